"""DNS messages by hand (RFC 1035), as correct or as wrong as a test wants them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

A, CNAME, SOA, TXT, AAAA, SRV, OPT = 1, 5, 6, 16, 28, 33, 41
TYPES = {"A": A, "AAAA": AAAA, "SRV": SRV}
QR, AA, TC, RD, RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
GOOD = QR | AA | RD | RA
QUESTION = b"\xc0\x0c"
"""A pointer to the name that was asked for."""


def name(text: str) -> bytes:
    """A name without compression."""
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".") if label) + b"\0"


def record(owner: bytes, kind: int, data: bytes, *, ttl: int = 1, length: int | None = None, class_: int = 1) -> bytes:
    return owner + struct.pack(">HHIH", kind, class_, ttl, len(data) if length is None else length) + data


def srv(target: bytes, *, owner: bytes = QUESTION, port: int = 5432, priority: int = 0, ttl: int = 1) -> bytes:
    return record(owner, SRV, struct.pack(">HHH", priority, 1, port) + target, ttl=ttl)


def address(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


@dataclass(frozen=True)
class Query:
    """A query that was received."""

    id: int
    name: str
    kind: int
    question: bytes
    """As it was sent: name, type and class."""
    payload: int | None
    """The size of UDP answers that its EDNS0 record allows; None: it has none."""

    @classmethod
    def read(cls, message: bytes) -> Query:
        number, _, questions, _, _, additional = struct.unpack_from(">6H", message)
        assert questions == 1, message
        labels, at = [], 12
        while length := message[at]:
            labels.append(message[at + 1 : at + 1 + length].decode())
            at += 1 + length
        kind, _ = struct.unpack_from(">HH", message, at + 1)
        end = at + 5
        payload = None
        if additional and message[end : end + 3] == b"\0" + struct.pack(">H", OPT):
            (payload,) = struct.unpack_from(">H", message, end + 3)
        return cls(number, ".".join(labels).lower(), kind, message[12:end], payload)


@dataclass(frozen=True)
class Answer:
    """An answer, each part of which can be replaced by a wrong one."""

    query: Query
    records: tuple[bytes, ...] = ()
    flags: int = GOOD
    code: int = 0
    counts: tuple[int, int, int, int] | None = None
    question: bytes | None = None
    id: int | None = None
    additional: tuple[bytes, ...] = ()
    tail: bytes = b""

    def but(self, **changes: object) -> Answer:
        return replace(self, **changes)  # type: ignore[arg-type]

    def __bytes__(self) -> bytes:
        question = self.query.question if self.question is None else self.question
        counts = self.counts or (bool(question), len(self.records), 0, len(self.additional))
        head = struct.pack(
            ">6H", self.query.id if self.id is None else self.id, self.flags & 0xFFF0 | self.code, *map(int, counts)
        )
        return head + question + b"".join(self.records) + b"".join(self.additional) + self.tail


def zone(query: Query, domain: str, targets: dict[str, str], *, ttl: int = 1) -> Answer:
    """The right answer of a zone with an SRV record for each target, at whose addresses it is found."""
    answer = Answer(query)
    if query.kind == SRV and query.name == f"_pg._tcp.{domain}":
        return answer.but(records=tuple(srv(name(f"{target}.{domain}"), ttl=ttl) for target in targets))
    target = query.name.removesuffix(f".{domain}")
    if target not in targets:
        return answer.but(code=3)
    if query.kind == A:
        return answer.but(records=(record(QUESTION, A, address(targets[target]), ttl=ttl),))
    return answer
