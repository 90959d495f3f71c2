"""The waiting line: who is first, who is overdue. Strictly first come, first served.

Most claims have the usual timeout, so they fall due in the order in which they came, and the first of them is the next
one due. The others stand in a queue of their own, with a heap for their deadlines; serial numbers say who came before
whom. Someone who leaves is crossed out where he stands and swept out later, which makes leaving O(1) amortised.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heapify, heappop, heappush, merge
from operator import attrgetter
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

_SWEEP_FROM = 32


class Place:
    """One place in the line. A subclass says who stands there."""

    # No __init__: one is made for every claim. Whoever makes it sets the first two; the line sets the others.
    __slots__ = ("common", "deadline", "in_line", "serial")

    deadline: float
    """Until when to wait, as a moment of the clock; math.inf: for ever."""
    common: bool
    """Whether the timeout is the usual one."""
    in_line: bool
    """Whether it is waited in this place; False again as soon as it is served or given up."""
    serial: int
    """Lower numbers are served first."""


P = TypeVar("P", bound=Place)


class Line(Generic[P]):
    """Who waits, in order."""

    __slots__ = ("_common", "_crossed_out", "_heap", "_last", "_noted", "_others", "waiting")

    def __init__(self) -> None:
        """Begin empty."""
        self._common: deque[P] = deque()
        """Those with the usual timeout: the order of the line is that of their deadlines."""
        self._others: deque[P] = deque()
        self._heap: list[tuple[float, int, P]] = []
        """The deadlines of the others."""
        self._last = 0
        """The serial number that was given last."""
        self._noted = 0
        """How many deadlines have been noted."""
        self._crossed_out = 0
        self.waiting = 0
        """How many wait."""

    def arrive(self, place: P) -> None:
        """Note when one came who need not wait: should he rejoin, he stands before all who came later."""
        self._last = place.serial = self._last + 1
        place.in_line = False

    def join(self, place: P) -> None:
        """Stand at the end. Deadlines of common places must not be earlier than those of the common ones before."""
        self._last = place.serial = self._last + 1
        place.in_line = True
        self.waiting += 1
        if place.common:
            self._common.append(place)
        else:
            self._others.append(place)
            self._note_deadline(place)

    def rejoin(self, place: P) -> None:
        """Stand before all who came later: for one who had been served and got nothing fit for use."""
        place.in_line = True
        self.waiting += 1
        queue = self._common if place.common else self._others
        before = 0  # those who stand here and came earlier have rejoined as well
        while before < len(queue) and queue[before].serial < place.serial:
            before += 1
        queue.insert(before, place)
        if not place.common:
            self._note_deadline(place)

    def leave(self, place: P) -> None:
        """Give a place up; one that has been served or given up already stays as it is."""
        if not place.in_line:
            return
        place.in_line = False
        self.waiting -= 1
        self._crossed_out += 1
        if not self.waiting or (self._crossed_out > _SWEEP_FROM and self._crossed_out > self.waiting):
            self._sweep()

    def pop(self) -> P | None:
        """Take the first out of the line; None when nobody waits."""
        common = self._common
        if self._others:
            self._skip_crossed_out()
            if self._others and not (common and common[0].serial < self._others[0].serial):
                common = self._others
        while common:
            place = common.popleft()
            if place.in_line:
                place.in_line = False
                self.waiting -= 1
                if not self.waiting and (self._crossed_out or self._heap):
                    self._sweep()
                return place
            self._crossed_out -= 1
        return None

    def pop_overdue(self, now: float) -> Iterator[P]:
        """Take out everyone whose deadline is not after `now`, the earliest deadline first."""
        while self.next_deadline() <= now:
            common, heap = self._common, self._heap
            place = common[0] if common and not (heap and heap[0][0] < common[0].deadline) else heap[0][2]
            self.leave(place)
            yield place

    def next_deadline(self) -> float:
        """Say when the next one falls due; math.inf when nobody ever does."""
        self._skip_crossed_out()
        common, heap = self._common, self._heap
        return min(common[0].deadline if common else math.inf, heap[0][0] if heap else math.inf)

    def __iter__(self) -> Iterator[P]:
        """Go through those who wait, first to last."""
        in_order = merge(self._common, self._others, key=attrgetter("serial"))
        return (place for place in in_order if place.in_line)

    def _note_deadline(self, place: P) -> None:
        if place.deadline == math.inf:
            return
        heap = self._heap
        if len(heap) > _SWEEP_FROM and len(heap) > 2 * self.waiting:
            self._sweep_deadlines()
        self._noted += 1
        heappush(heap, (place.deadline, self._noted, place))

    def _skip_crossed_out(self) -> None:
        """Let those stand first in their queues who are still there."""
        for queue in (self._common, self._others):
            while queue and not queue[0].in_line:
                queue.popleft()
                self._crossed_out -= 1
        heap = self._heap
        while heap and not heap[0][2].in_line:
            heappop(heap)

    def _sweep(self) -> None:
        """Forget who has gone; when nobody waits, all of them: who stood here must not be kept alive by the line."""
        self._common = deque(place for place in self._common if place.in_line)
        self._others = deque(place for place in self._others if place.in_line)
        self._crossed_out = 0
        self._sweep_deadlines()

    def _sweep_deadlines(self) -> None:
        heap = self._heap
        heap[:] = [entry for entry in heap if entry[2].in_line]
        heapify(heap)
