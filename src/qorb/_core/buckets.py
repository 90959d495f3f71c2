"""Buckets: how often something took how long, counted at a cost that a claim can bear."""

from __future__ import annotations

from bisect import bisect_right
from math import fsum

FULL = 256
"""So many are noted before they are sorted into the buckets: together that is cheaper than one by one."""

_Counted = tuple[tuple[int, ...], float]


class Buckets:
    """Counts by upper bound, which belongs to its bucket, and one for what is above all bounds.

    Any thread may read them. A finalizer may add one at whatever point, also of the methods here.
    """

    __slots__ = ("_counted", "bounds", "fresh")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Take the bounds, in growing order."""
        self.bounds = bounds
        self._counted: _Counted = ((0,) * (len(bounds) + 1), 0.0)
        self.fresh: list[float] = []
        """Noted, not yet in a bucket. Always the same list: the short ways of a claim do themselves what add() does."""

    def add(self, seconds: float) -> None:
        """Count one."""
        self.fresh.append(seconds)
        if len(self.fresh) >= FULL:
            self.sort()

    def sort(self) -> None:
        """Sort into the buckets what has been noted."""
        before, fresh = self._look()
        after = self._sorted_in(before, fresh)
        done = slice(len(fresh))
        if self._counted is before:  # else a finalizer has added one meanwhile, and all have been sorted
            # No thread and no finalizer gets between these two: there is no call, and nothing is made.
            self._counted = after
            del self.fresh[done]

    def read(self) -> _Counted:
        """Give the counts and the sum."""
        return self._sorted_in(*self._look())

    def _look(self) -> tuple[_Counted, list[float]]:
        while True:
            counted, fresh = self._counted, self.fresh[:]
            if counted is self._counted:  # else some were in neither, or in both
                return counted, fresh

    def _sorted_in(self, counted: _Counted, fresh: list[float]) -> _Counted:
        counts, total = counted
        fresh.sort()
        places = [0, *(bisect_right(fresh, bound) for bound in self.bounds), len(fresh)]
        added = map(int.__sub__, places[1:], places)
        return tuple(map(int.__add__, counts, added)), total + fsum(fresh)
