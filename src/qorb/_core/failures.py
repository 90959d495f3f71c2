"""Failures: how many there were in the last window of time."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

MAX_REMEMBERED = 1000
"""More failures than this in one window are counted as this many, so that a storm costs no memory."""


class FailureWindow:
    """The times of the failures in the last `length` seconds."""

    __slots__ = ("_length", "_times")

    def __init__(self, length: float) -> None:
        """Take the length of the window in seconds."""
        self._length = length
        self._times: deque[float] = deque(maxlen=MAX_REMEMBERED)

    def add(self, now: float) -> None:
        """Note a failure."""
        self._times.append(now)

    def count(self, now: float) -> int:
        """Say how many failures the window holds, forgetting what has left it."""
        times = self._times
        while times and times[0] + self._length <= now:
            times.popleft()
        return len(times)

    def held(self, now: float) -> int:
        """Say the same and forget nothing: any thread may ask."""
        if not self._times:
            return 0
        times = tuple(self._times)
        return len(times) - bisect_right(times, now, key=lambda moment: moment + self._length)

    def next_change(self) -> float | None:
        """Say when the oldest failure leaves the window; None when there is none."""
        return self._times[0] + self._length if self._times else None
