"""From frames to figures per second and quantiles, by the clock of arrival.

A figure is the difference to the newest frame that is old enough, divided by the time between the two. A frame that
comes early, because the set of backends changed or because the network held several back, so makes the period longer
instead of showing a spike.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qorb.top.terminal.frame import Frame, Histogram

HISTORY = 120
"""So many samples are kept for a sparkline, one for each interval."""

_OLD_ENOUGH = 0.8
"""Intervals."""
_CLOSE = 0.05
"""Intervals. Of frames that come closer, one after the other, the last is remembered: they may be any number."""

Samples = tuple[float | None, ...]
"""Claims per second, the newest last; None where nothing is known."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took within the last period."""

    half: float
    """Seconds; at most so long it was for half of them. Infinite when it is longer than `longest`."""
    most: float
    """The same for 99 %."""
    longest: float
    """Seconds; longer times are not told apart."""
    mean: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A frame, and what follows from it and those before."""

    frame: Frame
    came_at: float
    """By the clock of arrival."""
    claims_per_second: float | None
    per_second: Mapping[str, float]
    """Claims per second of each backend of which that is known."""
    samples: Samples
    """Of the pool."""
    samples_of: Mapping[str, Samples]
    """Of each backend."""
    peak: float
    """The highest sample of a backend."""
    latencies: Mapping[str, Latency]
    """By what was timed: "wait", "use", "connect"; those of which there was one."""


@dataclass(frozen=True, slots=True)
class _Point:
    at: float
    claims: int
    totals: dict[str, int]
    timings: Mapping[str, Histogram]


class Rates:
    """Takes frames and gives readings."""

    def __init__(self, interval: float) -> None:
        """Know nothing yet; frames are asked for every so many seconds."""
        self._interval = interval
        self._points: deque[_Point] = deque()
        self._claims = 0
        self._sampled_at: float | None = None
        self._samples: Samples = ()
        self._samples_of: dict[str, Samples] = {}
        self._peak = 0.0

    def lose(self) -> None:
        """Note that the connection is lost: what the next one says of claims has another beginning."""
        self._points.clear()

    def take(self, frame: Frame, now: float) -> Reading:
        """Reckon with a frame that has come now."""
        self._claims += frame.claims
        totals = {name: counts.total_claims for name, counts in frame.backends.items()}
        self._forget_what_began_anew(totals)
        before = self._old_enough(now)
        pool_rate: float | None = None
        per_second: dict[str, float] = {}
        latencies: dict[str, Latency] = {}
        if before is not None:
            seconds = now - before.at
            pool_rate = (self._claims - before.claims) / seconds
            known = ((name, total, before.totals.get(name)) for name, total in totals.items())
            per_second = {name: (total - old) / seconds for name, total, old in known if old is not None}
            latencies = _latencies(before.timings, frame.timings or {})
        self._sample(now, pool_rate, per_second, totals)
        self._remember(_Point(now, self._claims, totals, frame.timings or {}))
        return Reading(frame, now, pool_rate, per_second, self._samples, self._samples_of, self._peak, latencies)

    def _forget_what_began_anew(self, totals: Mapping[str, int]) -> None:
        """Counters that have fallen are those of another process, or of a backend that was away meanwhile."""
        if not self._points:
            return
        newest = self._points[-1].totals
        fallen = [name for name, total in newest.items() if total > totals.get(name, -1)]
        for name in fallen:
            for point in self._points:
                point.totals.pop(name, None)

    def _old_enough(self, now: float) -> _Point | None:
        """Give the newest frame to compare with, and forget those before it."""
        latest = now - _OLD_ENOUGH * self._interval
        while len(self._points) > 1 and self._points[1].at <= latest:
            self._points.popleft()
        return self._points[0] if self._points and self._points[0].at <= latest else None

    def _remember(self, point: _Point) -> None:
        points = self._points
        if len(points) > 1 and point.at - points[-2].at < _CLOSE * self._interval:
            points.pop()
        points.append(point)

    def _sample(
        self, now: float, pool_rate: float | None, per_second: Mapping[str, float], totals: Mapping[str, int]
    ) -> None:
        if self._sampled_at is None:
            self._sampled_at = now
        passed = now - self._sampled_at
        if passed < _OLD_ENOUGH * self._interval:
            # Whoever is gone is forgotten at once; whoever is new begins with the next sample.
            self._samples_of = {name: self._samples_of.get(name, ()) for name in totals}
            return
        periods = min(max(1, round(passed / self._interval)), HISTORY)
        self._sampled_at = now
        self._samples = _longer(self._samples, pool_rate, periods)
        self._samples_of = {
            name: _longer(self._samples_of.get(name, ()), per_second.get(name), periods) for name in totals
        }
        self._peak = max((one or 0.0 for samples in self._samples_of.values() for one in samples), default=0.0)


def _longer(samples: Samples, sample: float | None, periods: int) -> Samples:
    return (*samples, *[sample] * periods)[-HISTORY:]


def _latencies(before: Mapping[str, Histogram], now: Mapping[str, Histogram]) -> dict[str, Latency]:
    found = {name: _latency(before[name], histogram) for name, histogram in now.items() if name in before}
    return {name: latency for name, latency in found.items() if latency is not None}


def _latency(before: Histogram, now: Histogram) -> Latency | None:
    if before.bounds != now.bounds or not now.bounds:
        return None
    counts = [after - earlier for earlier, after in zip(before.counts, now.counts, strict=True)]
    total = sum(counts)
    if min(counts) < 0 or total == 0:
        return None
    ends = (*now.bounds, math.inf)
    return Latency(
        half=_quantile(counts, ends, total / 2),
        most=_quantile(counts, ends, total * 0.99),
        longest=now.bounds[-1],
        mean=max(0.0, now.sum - before.sum) / total,
    )


def _quantile(counts: list[int], ends: tuple[float, ...], rank: float) -> float:
    for end, count in zip(ends, counts, strict=True):
        rank -= count
        if rank <= 0:
            return end
    return math.inf
