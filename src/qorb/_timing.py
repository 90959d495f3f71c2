"""Timing: what the times of claims and connects are counted in, once Pool.measure() has asked for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from qorb._core.buckets import FULL, Buckets
from qorb.errors import kind_of, shown
from qorb.stats import Histogram, Timings

if TYPE_CHECKING:
    from collections.abc import Iterable

BOUNDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds: from what a claim takes when a connection is at hand to the usual claim_timeout."""
_MAX_BOUNDS = 200


def checked_bounds(bounds: Iterable[float]) -> tuple[float, ...]:
    """Give the bounds as a tuple of floats. Raises TypeError or ValueError, naming what is wrong."""
    if isinstance(bounds, str | bytes):
        raise TypeError(f"bounds must be numbers of seconds, not {kind_of(bounds)}")
    checked: list[float] = []
    for bound in bounds:
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise TypeError(f"bounds must be numbers of seconds, not {kind_of(bound)}")
        if not 0 < bound < math.inf or (checked and bound <= checked[-1]) or len(checked) >= _MAX_BOUNDS:
            raise ValueError(
                f"bounds must be finite, above 0 and growing, at most {_MAX_BOUNDS} of them; {shown(bound)} is not"
            )
        checked.append(float(bound))
    if not checked:
        raise ValueError("bounds must be at least one number of seconds")
    return tuple(checked)


class Claimed(Protocol):
    """What counts the claims that it got."""

    total_claims: int


class Timing:
    """The times of one pool."""

    __slots__ = ("bounds", "claims_before", "connect", "use", "uses", "wait", "waits")

    def __init__(self, bounds: tuple[float, ...], claims: int) -> None:
        """Begin with nothing, when so many claims had got their connection."""
        self.bounds = bounds
        self.claims_before = claims
        self.wait = Buckets(bounds)
        """Of claims that did not go the shortest way."""
        self.use = Buckets(bounds)
        self.connect = Buckets(bounds)
        self.waits, self.uses = self.wait.fresh, self.use.fresh  # at hand where a call would cost too much

    def waited(self, claimed: Claimed, seconds: float) -> None:
        """Count a claim that did not go the shortest way, here and where it is counted otherwise."""
        claimed.total_claims += 1
        self.waits.append(seconds)  # nothing is called in between: in no other thread is there one without the other
        if len(self.waits) >= FULL:
            self.wait.sort()

    def snapshot(self, claims: int) -> Timings:
        """Give the times so far, when so many claims have got their connection.

        Those that are in no bucket found a connection at hand. Not to count them singly is what makes measuring cheap.
        """
        wait = _histogram(self.wait)
        at_once = max(0, claims - self.claims_before - wait.total)
        counts = (wait.counts[0] + at_once, *wait.counts[1:])
        return Timings(
            wait=Histogram(self.bounds, counts, wait.total + at_once, wait.sum),
            use=_histogram(self.use),
            connect=_histogram(self.connect),
        )


def _histogram(buckets: Buckets) -> Histogram:
    counts, total = buckets.read()
    return Histogram(buckets.bounds, counts, sum(counts), total)
