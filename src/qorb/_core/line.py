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

_SWEEP_FROM = 32


class Place:
    """One place in the line. A subclass says who stands there."""

    __slots__ = ("common", "deadline", "in_line")

    def __init__(self, deadline: float, *, common: bool) -> None:
        """Take until when to wait (math.inf: for ever), and whether the timeout is the usual one."""
        self.deadline = deadline
        self.common = common
        self.in_line = False
        """Whether it is waited in this place; False again as soon as it is served or given up."""


P = TypeVar("P", bound=Place)


class Line(Generic[P]):
    """Who waits, in order."""

    __slots__ = ("_crossed_out", "_due", "_heap", "_order", "_serial", "waiting")

    def __init__(self) -> None:
        """Begin empty."""
        self._order: deque[P] = deque()
        self._due: deque[P] = deque()
        """The common ones, in the order of their deadlines, which is that of the line."""
        self._heap: list[tuple[float, int, P]] = []
        """The others that have a deadline."""
        self._serial = 0
        self._crossed_out = 0
        self.waiting = 0
        """How many wait."""

    def join(self, place: P) -> None:
        """Stand at the end. Deadlines of common places must not be earlier than those of the common ones before."""
        place.in_line = True
        self._order.append(place)
        self.waiting += 1
        if place.common:
            self._due.append(place)
        else:
            self._push(place)

    def rejoin(self, place: P) -> None:
        """Stand at the front: for one who had been served and got nothing fit for use."""
        place.in_line = True
        self._order.appendleft(place)
        self.waiting += 1
        if place.common:
            self._due.appendleft(place)
        else:
            self._push(place)

    def leave(self, place: P) -> None:
        """Give a place up; one that has been served or given up already stays as it is."""
        if not place.in_line:
            return
        place.in_line = False
        self.waiting -= 1
        self._crossed_out += 1
        if self._crossed_out > _SWEEP_FROM and self._crossed_out > self.waiting:
            self._sweep()

    def pop(self) -> P | None:
        """Take the first out of the line; None when nobody waits."""
        order, due = self._order, self._due
        while order:
            place = order.popleft()
            if due and due[0] is place:
                due.popleft()
            if place.in_line:
                place.in_line = False
                self.waiting -= 1
                return place
            self._crossed_out -= 1
        return None

    def pop_overdue(self, now: float) -> Iterator[P]:
        """Take out everyone whose deadline is not after `now`, the earliest deadline first."""
        while self.next_deadline() <= now:
            due, heap = self._due, self._heap
            place = due[0] if due and not (heap and heap[0][0] < due[0].deadline) else heap[0][2]
            self.leave(place)
            yield place

    def next_deadline(self) -> float:
        """Say when the next one falls due; math.inf when nobody ever does."""
        due, heap = self._due, self._heap
        while due and not due[0].in_line:
            due.popleft()
        while heap and not heap[0][2].in_line:
            heappop(heap)
        return min(due[0].deadline if due else math.inf, heap[0][0] if heap else math.inf)

    def __iter__(self) -> Iterator[P]:
        """Go through those who wait, first to last."""
        return (place for place in self._order if place.in_line)

    def _push(self, place: P) -> None:
        if place.deadline == math.inf:
            return
        self._serial += 1
        heap = self._heap
        if len(heap) > _SWEEP_FROM and len(heap) > 2 * self.waiting:
            heap[:] = [entry for entry in heap if entry[2].in_line]
            heapify(heap)
        heappush(heap, (place.deadline, self._serial, place))

    def _sweep(self) -> None:
        self._order = deque(place for place in self._order if place.in_line)
        self._due = deque(place for place in self._due if place.in_line)
        self._crossed_out = 0
