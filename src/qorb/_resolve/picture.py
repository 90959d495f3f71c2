"""What follows from the notes: the backends, who said what, and what is odd about it. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from qorb.resolvers.dns import Failed, NoRecords, Question, Records, Srv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qorb._resolve.notes import Exchange, Notes
    from qorb.backend import Backend
    from qorb.resolvers.dns import Server

_LONG_WAY = 4
"""Of so many CNAMEs in a row a plain name's owner should know; more than 8 are not followed."""
_MOST_REASONS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One backend, as a pool would be told of it, and where that comes from."""

    name: str
    address: str
    port: int
    priority: int
    weight: int
    server_name: str | None
    ttl: float | None
    """Seconds until the first record behind it expires, as it was sent; None when DNS no longer says it."""
    nameserver: str | None
    """Who has said its address."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one server said to one question."""

    nameserver: str
    name: str
    kind: str
    outcome: str
    """"records"; "none": there are none; "failed": that is no answer; "pending": nothing yet."""
    seconds: float
    records: int = 0
    ttl: float | None = None
    cnames: int = 0
    reason: str | None = None
    """Why there is nothing."""


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something that somebody should look at. What has the same key is the same, in other words perhaps."""

    key: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything at one moment."""

    service: str
    rows: tuple[Row, ...]
    said: tuple[Said, ...]
    oddities: tuple[Oddity, ...]
    reason: str | None
    """Why there is no backend; None when there is one."""


def picture(service: str, notes: Notes, *, plain: bool, max_backends: int) -> Picture:
    """Put together what is known. `plain`: the service is a host name, and there are no SRV records."""
    seen = _Seen(service, notes, plain=plain)
    rows = tuple(seen.row(backend) for backend in notes.backends)
    reason = None if rows else _why_nothing(service, notes, plain=plain)
    oddities = {oddity.key: oddity for oddity in seen.oddities(max_backends)}
    said = tuple(
        _said(question, server, exchange)
        for (question, server), exchange in notes.exchanges.items()
        if exchange.round >= notes.rounds - 1
    )
    return Picture(service, rows, said, tuple(oddities.values()), reason)


@dataclass(frozen=True, slots=True)
class News:
    """What one picture has that the one before had not."""

    added: tuple[Row, ...]
    removed: tuple[Row, ...]
    changed: tuple[tuple[Row, str], ...]
    """And what changed, in words."""
    odd: tuple[Oddity, ...]
    no_longer_odd: tuple[Oddity, ...]

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.added or self.removed or self.changed or self.odd or self.no_longer_odd)


def news(before: Picture, after: Picture) -> News:
    """Compare two pictures of one service. TTLs that run down, and who says the same, are no news."""
    old, new = {row.name: row for row in before.rows}, {row.name: row for row in after.rows}
    changed = ((row, _difference(old[name], row)) for name, row in new.items() if name in old)
    was_odd, is_odd = {one.key for one in before.oddities}, {one.key for one in after.oddities}
    return News(
        added=tuple(row for name, row in new.items() if name not in old),
        removed=tuple(row for name, row in old.items() if name not in new),
        changed=tuple((row, words) for row, words in changed if words),
        odd=tuple(one for one in after.oddities if one.key not in was_odd),
        no_longer_odd=tuple(one for one in before.oddities if one.key not in is_odd),
    )


_WHAT_MATTERS = tuple(field.name for field in fields(Row) if field.name not in {"name", "ttl", "nameserver"})


def _difference(before: Row, after: Row) -> str:
    pairs = ((field, getattr(before, field), getattr(after, field)) for field in _WHAT_MATTERS)
    return ", ".join(f"{field} {old} -> {new}" for field, old, new in pairs if old != new)


class _Seen:
    """The notes, looked at from several sides."""

    def __init__(self, service: str, notes: Notes, *, plain: bool) -> None:
        self._service = service
        self._notes = notes
        self._plain = plain
        self._records = [
            (question, server, exchange.known)
            for (question, server), exchange in notes.exchanges.items()
            if isinstance(exchange.known, Records)
        ]

    def row(self, backend: Backend) -> Row:
        target = backend.server_name or backend.host
        ttls: list[float] = []
        nameserver = None
        for question, server, reply in self._records:
            if question.kind == "SRV":
                if any(_is_of(srv, target, backend.port) for srv in reply.records):
                    ttls.append(reply.ttl)
            elif question.name == target and backend.host in reply.records:
                ttls.append(reply.ttl)
                nameserver = nameserver or str(server)
        return Row(
            name=backend.name,
            address=backend.host,
            port=backend.port,
            priority=backend.priority,
            weight=backend.weight,
            server_name=backend.server_name,
            ttl=min(ttls, default=None) if nameserver is not None else None,
            nameserver=nameserver,
        )

    def oddities(self, max_backends: int) -> Iterator[Oddity]:
        yield from self._targets_without_address()
        yield from self._aliases()
        yield from self._left_out(max_backends)
        yield from self._disagreement()
        yield from self._nothing_newer()
        yield from self._failures()

    def _targets_without_address(self) -> Iterator[Oddity]:
        with_addresses = {question.name for question, _, _ in self._records if question.kind != "SRV"}
        for target in self._targets():
            if target in with_addresses:
                continue
            latest = [
                exchange.reply or exchange.known
                for (question, _), exchange in self._notes.exchanges.items()
                if question.name == target
            ]
            why = {reply.reason: None for reply in latest if isinstance(reply, NoRecords | Failed)}
            text = f"target {target} has no address: {'; '.join(why) or 'no answer yet'}"
            yield Oddity(("no address", target), text)

    def _targets(self) -> dict[str, None]:
        """Give the targets of all SRV records of the service that can be used."""
        if self._plain:
            return {self._service: None}
        found = (srv for _, _, reply in self._of_the_service() for srv in reply.records)
        return {srv.target: None for srv in found if isinstance(srv, Srv)}

    def _of_the_service(self) -> list[tuple[Question, Server, Records]]:
        return [one for one in self._records if one[0] == Question(self._service, "SRV")]

    def _aliases(self) -> Iterator[Oddity]:
        for question, _, reply in self._records:
            name = question.name
            if question.kind != "SRV" and not self._plain and reply.cnames:
                text = f"target {name} is an alias ({_cnames(reply)}): RFC 2782 wants targets that have addresses"
                yield Oddity(("alias", name), text)
            elif reply.cnames >= _LONG_WAY:
                yield Oddity(("alias", name), f"{name} is reached through {_cnames(reply)}; 8 are the most")

    def _left_out(self, max_backends: int) -> Iterator[Oddity]:
        for question, _, reply in self._records:
            for refused in reply.refused:
                yield Oddity(("left out", str(question), refused), f"{question}: left out {refused}")
        for (question, _), exchange in self._notes.exchanges.items():
            if isinstance(exchange.known, NoRecords) and "can be used" in exchange.known.reason:
                text = f"{question}: {exchange.known.reason}"
                yield Oddity(("left out", str(question), exchange.known.reason), text)
        places = self._places()
        for place, targets in places.items():
            if len(targets) > 1:
                text = f"{_address(*place)} stands under {' and '.join(sorted(targets)[:3])}: one backend"
                yield Oddity(("twice", *map(str, place)), text)
        if len(self._notes.backends) == max_backends < len(places):
            text = f"{len(places) - max_backends} addresses are left out: only {max_backends} backends are used"
            yield Oddity(("too many",), text)

    def _places(self) -> dict[tuple[str, int], set[str]]:
        """Give for each (address, port) that there is the targets that have it."""
        addresses: dict[str, dict[str, None]] = {}
        for question, _, reply in self._records:
            if question.kind != "SRV":
                addresses.setdefault(question.name, {}).update({str(one): None for one in reply.records})
        places: dict[tuple[str, int], set[str]] = {}
        for _, _, reply in self._of_the_service():
            for srv in reply.records:
                if isinstance(srv, Srv):
                    for address in addresses.get(srv.target, ()):
                        places.setdefault((address, srv.port), set()).add(srv.target)
        return places

    def _disagreement(self) -> Iterator[Oddity]:
        said: dict[Question, dict[frozenset[object], Server]] = {}
        for (question, server), exchange in self._notes.exchanges.items():
            if exchange.known is not None:
                records = exchange.known.records if isinstance(exchange.known, Records) else ()
                said.setdefault(question, {}).setdefault(frozenset(records), server)
        for question, answers in said.items():
            if len(answers) > 1:
                words = ", ".join(f"{server} has {len(records)}" for records, server in answers.items())
                yield Oddity(("disagree", str(question)), f"{question}: the servers disagree ({words})")

    def _nothing_newer(self) -> Iterator[Oddity]:
        """Tell what is not known anew, where something is known: it stays."""
        if not self._notes.backends:
            return
        if self._notes.trouble is not None:
            yield Oddity(("trouble",), f"{self._notes.trouble}; what was known stays")
        with_addresses = {question.name for question, _, _ in self._records}
        for question, reason in self._notes.missing:
            if question.kind != "SRV" and question.name not in with_addresses:
                continue  # it has been said that the target has no address
            yield Oddity(("nothing newer", str(question)), f"{question}: {reason}")

    def _failures(self) -> Iterator[Oddity]:
        told = {question for question, _ in self._notes.missing}
        failures: Counter[tuple[str, str]] = Counter()
        examples: dict[tuple[str, str], Question] = {}
        for (question, server), exchange in self._notes.exchanges.items():
            if isinstance(exchange.reply, Failed) and question not in told:
                key = (str(server), exchange.reply.reason)
                failures[key] += 1
                examples.setdefault(key, question)
        for (whose, reason), count in failures.items():
            more = f" and {count - 1} more" if count > 1 else ""
            text = f"{whose}: {reason} ({examples[whose, reason]}{more})"
            yield Oddity(("failed", whose, reason.partition(":")[0]), text)


def _said(question: Question, server: Server, exchange: Exchange) -> Said:
    reply = exchange.reply
    if isinstance(reply, Records):
        return Said(
            str(server),
            question.name,
            question.kind,
            "records",
            exchange.seconds,
            records=reply.total,
            ttl=reply.ttl,
            cnames=reply.cnames,
        )
    outcome = "pending" if reply is None else "none" if isinstance(reply, NoRecords) else "failed"
    reason = None if reply is None else reply.reason
    return Said(str(server), question.name, question.kind, outcome, exchange.seconds, reason=reason)


def _why_nothing(service: str, notes: Notes, *, plain: bool) -> str:
    if notes.trouble is not None:
        return notes.trouble
    reasons = [f"{question}: {reason}" for question, reason in notes.missing]
    text = "; ".join(reasons[:_MOST_REASONS])
    if len(reasons) > _MOST_REASONS:
        text += f"; and {len(reasons) - _MOST_REASONS} more"
    if not plain and not service.startswith("_"):
        text += " (for the addresses of a plain host name give --default-port)"
    return text or "no answer yet"


def _is_of(record: object, target: str, port: int) -> bool:
    return isinstance(record, Srv) and (record.target, record.port) == (target, port)


def _cnames(reply: Records) -> str:
    return "1 CNAME" if reply.cnames == 1 else f"{reply.cnames} CNAMEs"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
