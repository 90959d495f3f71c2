"""What there is to show at one moment, worked out from snapshots of the pool and the clients' own counts."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qorb._demo.journal import printable
from qorb._demo.servers import server_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qorb import PoolStats
    from qorb._demo.clients import Tally

WINDOW = 1.0
"""Seconds over which rates and latencies are taken."""


@dataclass(frozen=True, slots=True)
class Row:
    """One backend: how its server really is, and what the pool says of it."""

    name: str
    server: str
    online: bool
    connecting: int
    unclaimed: int
    checking: int
    claimed: int
    claims_per_second: float
    failures: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of the run of a demo."""

    elapsed: float
    """Seconds since it began."""
    seconds: float
    """How long the whole run is to take."""


@dataclass(frozen=True, slots=True)
class Frame(Moment):
    """Everything that a view shows beside the journal."""

    rows: tuple[Row, ...]
    claims_per_second: float
    waiting: int
    latency_p50: float | None
    """Seconds; None while no claim was served lately."""
    latency_p99: float | None
    right: int
    wrong: int
    cut_short: int
    surprises: int
    dns: str
    """How the DNS server really is, in words."""
    verdict: str
    """What the pool says of claims, in explain()."""


class Meter:
    """Turns snapshots that follow each other into frames."""

    def __init__(self, seconds: float) -> None:
        """Know nothing yet. `seconds` is how long the whole run is to take."""
        self._seconds = seconds
        self._snapshots: deque[tuple[float, PoolStats]] = deque()

    def frame(
        self,
        now: float,
        elapsed: float,
        stats: PoolStats,
        tally: Tally,
        condition: Callable[[str], str],
        dns: str = "",
        verdict: str = "",
    ) -> Frame:
        """Work out what to show. `now` is the loop's time, which never goes back from call to call.

        `condition` gives a word for how a server really is, by its name; `dns` says how the DNS server is,
        `verdict` how the pool explains itself.
        """
        self._snapshots.append((now, stats))
        while self._snapshots[0][0] < now - WINDOW:
            self._snapshots.popleft()
        while tally.waits and tally.waits[0][0] < now - WINDOW:
            tally.waits.popleft()
        then, before = self._snapshots[0]
        span = now - then
        claims_then = {name: backend.total_claims for name, backend in before.backends.items()}
        waits = sorted(wait for _, wait in tally.waits)
        return Frame(
            elapsed=elapsed,
            seconds=self._seconds,
            rows=tuple(
                Row(
                    name=printable(server_name(name)),
                    server=condition(server_name(name)),
                    online=backend.online,
                    connecting=backend.connecting_slots,
                    unclaimed=backend.unclaimed_slots,
                    checking=backend.checking_slots,
                    claimed=backend.claimed_slots,
                    claims_per_second=_rate(backend.total_claims, claims_then.get(name, 0), span),
                    failures=backend.failures,
                    last_error=None if backend.last_error is None else printable(backend.last_error),
                )
                for name, backend in stats.backends.items()
            ),
            claims_per_second=_rate(stats.claims, before.claims, span),
            waiting=stats.waiting,
            latency_p50=percentile(waits, 0.50),
            latency_p99=percentile(waits, 0.99),
            right=tally.right,
            wrong=tally.wrong,
            cut_short=tally.cut_short,
            surprises=len(tally.surprises),
            dns=dns,
            verdict=printable(verdict),
        )


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """Give the smallest value that at least that share of the values does not exceed; None of none."""
    if not ascending:
        return None
    return ascending[max(math.ceil(share * len(ascending)) - 1, 0)]


def _rate(count: int, before: int, span: float) -> float:
    # A backend that left and came back under the same name counts from 0 again.
    return (count - before if count >= before else count) / span if span > 0 else 0.0


def milliseconds(seconds: float | None) -> str:
    """Write a latency for people."""
    if seconds is None:
        return "-"
    digits = 2 if seconds < 0.001 else 1 if seconds < 0.010 else 0  # noqa: PLR2004 - two digits that count are enough
    return f"{1000 * seconds:.{digits}f} ms"


def in_short(error: str) -> str:
    """Leave out of an error's text what says nothing here: a connection that failed is always a ConnectError."""
    return error.removeprefix("ConnectError: ")
