"""What is asked, what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from qorb.resolvers.dns._servers import Server

Kind: TypeAlias = Literal["SRV", "A", "AAAA"]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a server: records of one kind under one name, in lower case and without the final dot."""

    name: str
    kind: Kind

    def __str__(self) -> str:
        """Give "name kind"."""
        return f"{self.name} {self.kind}"


@dataclass(frozen=True, slots=True, order=True)
class Srv:
    """One SRV record (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str
    """In lower case, without the final dot; "" for the root, which says that there is no such service."""


@dataclass(frozen=True, slots=True)
class Records:
    """A server has records."""

    records: tuple[Srv, ...] | tuple[str, ...]
    """Those that can be used, of one kind and in an order that does not depend on the answer's; addresses as text."""
    ttl: float
    """Seconds until the first record of the answer expires, the CNAMEs on the way included; as it was sent."""
    cnames: int = 0
    """How many CNAMEs lead to them."""
    total: int = 0
    """How many there were before some were left out."""
    refused: tuple[str, ...] = ()
    """Some of those left out, each with the reason."""


@dataclass(frozen=True, slots=True)
class NoRecords:
    """A server says that there are none."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer, or none that can be used: it says nothing about what there is."""

    reason: str


Reply: TypeAlias = Records | NoRecords | Failed


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and the server that gave it; None when all servers together did."""

    reply: Reply
    server: Server | None
