"""Snapshots: the numbers of this moment, as immutable values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qorb._core.quick import quickly_made

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qorb.backend import Backend


class PoolState(enum.Enum):
    """Where a pool is in its life."""

    NEW = "new"
    RUNNING = "running"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


@quickly_made
@dataclass(frozen=True, slots=True)
class BackendStats:
    """One backend's numbers. The five counters bear the original's names, which travel on the wire."""

    backend: Backend
    online: bool
    connecting_slots: int
    unclaimed_slots: int
    checking_slots: int
    """Health check or recycling."""
    claimed_slots: int
    total_claims: int
    """Claims that reached their caller."""
    failures: int
    """In the last 2 x max_connection_backoff."""
    last_error: str | None
    """Of the last failed connect or check, without secrets."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """An immutable snapshot of a pool; safe to read from another thread."""

    name: str
    state: PoolState
    claims: int
    """Successful claims so far."""
    waiting: int
    """Claims in the waiting line."""
    backends: Mapping[str, BackendStats]
    """Sorted by name; backends that are leaving stay until they are gone."""
    timeouts: int = 0
    """Claims so far that ran out of time."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often something took how long."""

    bounds: tuple[float, ...]
    """Seconds, growing: the upper bounds of the buckets, which belong to them. One more bucket has no bound."""
    counts: tuple[int, ...]
    """How often, bucket by bucket; not added up. There is one more than there are bounds."""
    total: int
    """How often in all."""
    sum: float
    """Seconds in all."""


@dataclass(frozen=True, slots=True)
class Timings:
    """What took how long since Pool.measure(), of this very moment; never changes."""

    wait: Histogram
    """From claim() until the caller had the connection. A claim that finds one at hand has waited for 0 seconds."""
    use: Histogram
    """From there until it was given back."""
    connect: Histogram
    """Calls of connect() that gave a connection."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Everything of a pool that is alive right now."""

    tasks: tuple[str, ...]
    """Names."""
    timers: int
    connections: int
    waiters: int
    threads: int

    @property
    def empty(self) -> bool:
        """Say whether nothing is left."""
        return not (self.tasks or self.timers or self.connections or self.waiters or self.threads)

    def __str__(self) -> str:
        """Say in words what is left."""
        if self.empty:
            return "nothing"
        counts = [
            (len(self.tasks), "task"),
            (self.timers, "timer"),
            (self.connections, "connection"),
            (self.waiters, "waiting claim"),
            (self.threads, "thread"),
        ]
        return ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts if n)
