"""The waiting line: who is first, who is overdue. Strictly first come, first served.

Most claims have the same timeout, so they fall due in the order in which they came and a deque knows the next deadline;
a heap is kept only for the others. Someone who leaves is crossed out where he stands and swept out later, which makes
leaving O(1) amortised.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

_SWEEP_FROM = 32


class Place(Generic[T]):
    """One place in the line; `who` is None as soon as it is given up."""

    __slots__ = ("common", "deadline", "who")

    def __init__(self, who: T, deadline: float, common: bool) -> None:  # noqa: FBT001 - a fact, not a switch
        """Take who waits, until when (math.inf: for ever), and whether the timeout is the usual one."""
        self.who: T | None = who
        self.deadline = deadline
        self.common = common


class Line(Generic[T]):
    """Who waits, in order."""

    __slots__ = ("_crossed_out", "_due", "_heap", "_order", "_serial", "waiting")

    def __init__(self) -> None:
        """Begin empty."""
        self._order: deque[Place[T]] = deque()
        self._due: deque[Place[T]] = deque()
        self._heap: list[tuple[float, int, Place[T]]] = []
        self._serial = 0
        self._crossed_out = 0
        self.waiting = 0
        """How many wait."""

    def join(self, who: T, deadline: float, *, common: bool) -> Place[T]:
        """Stand at the end. `common` deadlines must not be earlier than those of the common ones before."""
        place = Place(who, deadline, common)
        self._order.append(place)
        self.waiting += 1
        if common:
            self._due.append(place)
        else:
            self._push(place)
        return place

    def rejoin(self, who: T, deadline: float, *, common: bool) -> Place[T]:
        """Stand at the front: for one who had been served and got nothing fit for use."""
        place = Place(who, deadline, common)
        self._order.appendleft(place)
        self.waiting += 1
        if common:
            self._due.appendleft(place)
        else:
            self._push(place)
        return place

    def leave(self, place: Place[T]) -> None:
        """Give a place up; one that has been served or given up already stays as it is."""
        if place.who is None:
            return
        place.who = None
        self.waiting -= 1
        self._crossed_out += 1
        if self._crossed_out > _SWEEP_FROM and self._crossed_out > self.waiting:
            self._sweep()

    def pop(self) -> T | None:
        """Take the first out of the line; None when nobody waits."""
        order = self._order
        while order:
            place = order.popleft()
            if place.common and self._due and self._due[0] is place:
                self._due.popleft()
            who = place.who
            if who is None:
                self._crossed_out -= 1
                continue
            place.who = None
            self.waiting -= 1
            return who
        return None

    def pop_overdue(self, now: float) -> Iterator[T]:
        """Take out everyone whose deadline is not after `now`, the earliest deadline first."""
        while self.next_deadline() <= now:
            due, heap = self._due, self._heap
            place = due[0] if due and not (heap and heap[0][0] < due[0].deadline) else heap[0][2]
            who = place.who
            if who is not None:
                self.leave(place)
                yield who

    def next_deadline(self) -> float:
        """Say when the next one falls due; math.inf when nobody ever does."""
        due, heap = self._due, self._heap
        while due and due[0].who is None:
            due.popleft()
        while heap and heap[0][2].who is None:
            heappop(heap)
        return min(due[0].deadline if due else math.inf, heap[0][0] if heap else math.inf)

    def __iter__(self) -> Iterator[T]:
        """Go through those who wait, first to last."""
        return (place.who for place in self._order if place.who is not None)

    def _push(self, place: Place[T]) -> None:
        if place.deadline == math.inf:
            return
        self._serial += 1
        heap = self._heap
        if len(heap) > _SWEEP_FROM and len(heap) > 2 * self.waiting:
            self._heap = heap = [entry for entry in heap if entry[2].who is not None]
            heapify(heap)
        heappush(heap, (place.deadline, self._serial, place))

    def _sweep(self) -> None:
        self._order = deque(place for place in self._order if place.who is not None)
        self._due = deque(place for place in self._due if place.who is not None)
        self._crossed_out = 0
