"""Buckets: how often something took how long, counted at a cost that a claim can bear."""

from __future__ import annotations

from bisect import bisect_left


class Buckets:
    """Counts by upper bound, which belongs to its bucket, and one for what is above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Take the bounds, in growing order."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds
