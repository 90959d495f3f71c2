"""Ranking: which backend serves the next claim.

The score of a backend is (claims outstanding + recent failures, at most 8) / weight, the lowest first; `load` is what
stands above the weight. Backends of one priority form a class, those of one weight within it a lane, those of one load
within that a ring: a circular list that is turned by one whenever its head is taken, so that backends of equal score
are served in turn. Taking from the only lane of the best class therefore costs a comparison and the turn.

Loads that grow are noticed lazily, when a backend comes to the head of its ring; loads that shrink move their backend
at once (`improve`). A backend stands in a ring only while it has an idle connection, which is also noticed lazily.
Between lanes a heap decides: by score, then by claims served / weight, where a backend that was away does not catch up
on what it missed. So choosing is O(1) amortised in the common case and O(log lanes) otherwise.
"""

from __future__ import annotations

from bisect import insort
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from random import Random

MAX_PENALTY = 8
"""A backend counts at most this many failures against itself."""
UNRANKED = 1 << 60
"""The level of a backend that stands in no ring: above every load, so that its return counts as an improvement."""
_LEAST_WEIGHT = 0.1
_LOOK_BACK = 8
"""So many places towards the front a backend may go that has served less than those who stand there."""


class Ranked:
    """What is ranked: a backend's slot set. All but `load` and `total_claims` is the ranking's own."""

    __slots__ = ("head_start", "lane", "level", "load", "next", "previous", "total_claims")

    def __init__(self) -> None:
        """Stand nowhere yet."""
        self.load: int = 0
        """Claims outstanding + recent failures, at most MAX_PENALTY."""
        self.total_claims: int = 0
        self.level = UNRANKED
        """The load under which it stands in a ring; UNRANKED when in none."""
        self.lane: Lane[Any] | None = None
        self.next: Any = None
        """The neighbours in the ring are of the same class as this."""
        self.previous: Any = None
        self.head_start = 0.0
        """Claims it is taken to have had before it joined, so that it does not catch up on what it missed."""

    @property
    def has_idle(self) -> bool:
        """Whether it has an idle connection."""
        raise NotImplementedError


R = TypeVar("R", bound=Ranked)


class Ring(Generic[R]):
    """Backends of one load, in the order in which they are to be served."""

    __slots__ = ("head", "level")

    def __init__(self, level: int) -> None:
        """Begin empty."""
        self.level = level
        self.head: R | None = None


class Lane(Generic[R]):
    """Backends of one priority and one weight."""

    __slots__ = ("low", "members", "owner", "rings", "version", "weight")

    def __init__(self, owner: PriorityClass[R], weight: float) -> None:
        """Begin empty."""
        self.owner = owner
        self.weight = weight
        self.members = 0
        self.rings: list[Ring[R]] = [Ring(0)]
        self.low = self.rings[0]
        """The lowest ring that may have a member."""
        self.version = 0
        """Counts the entries of the class's heap: only the newest counts."""

    def first(self) -> R | None:
        """Give the backend to be served next, looked at afresh; None when there is none."""
        while True:
            ring = self.low
            ranked = ring.head
            if ranked is None:
                if ring.level + 1 >= len(self.rings):
                    return None
                self.low = self.rings[ring.level + 1]
            elif not ranked.has_idle:
                self._unlink(ranked)
            elif ranked.load != ring.level:
                self._unlink(ranked)
                self.put(ranked)
            else:
                return ranked

    def put(self, ranked: R) -> None:
        """Stand in the ring of the backend's load: at the end, but before those who have served more lately."""
        load = ranked.load
        rings = self.rings
        while load >= len(rings):
            rings.append(Ring(len(rings)))
        ring = rings[load]
        ranked.level = load
        head = ring.head
        if head is None:
            ring.head = ranked.next = ranked.previous = ranked
        else:
            served = ranked.total_claims + ranked.head_start
            after = head
            for _ in range(_LOOK_BACK):
                before = after.previous
                if before.total_claims + before.head_start <= served:
                    break
                after = before
                if after is head:  # all the way round: it has served less than any other
                    ring.head = ranked
                    break
            ranked.previous, ranked.next = after.previous, after
            after.previous.next = ranked
            after.previous = ranked
        if load < self.low.level:
            self.low = ring

    def drop(self, ranked: R) -> None:
        """Stand in no ring any more."""
        if ranked.level != UNRANKED:
            self._unlink(ranked)

    def score(self, ranked: R) -> tuple[float, float]:
        """Give what is compared between lanes: the score, then the claims served, both by weight."""
        return ranked.load / self.weight, self.served(ranked)

    def served(self, ranked: R) -> float:
        """Give the claims served, by weight, as if the backend had always been there."""
        return (ranked.total_claims + ranked.head_start) / self.weight

    def _unlink(self, ranked: R) -> None:
        ring = self.rings[ranked.level]
        if ranked.next is ranked:
            ring.head = None
        else:
            ranked.previous.next, ranked.next.previous = ranked.next, ranked.previous
            if ring.head is ranked:
                ring.head = ranked.next
        ranked.next = ranked.previous = None
        ranked.level = UNRANKED


class PriorityClass(Generic[R]):
    """Backends of one priority."""

    __slots__ = ("_heap", "_serial", "lanes", "members", "priority", "served", "untried")

    def __init__(self, priority: int) -> None:
        """Begin empty."""
        self.priority = priority
        self.lanes: dict[float, Lane[R]] = {}
        self.members: dict[R, Lane[R]] = {}
        """In which lane each is; in the order in which they joined, or came back."""
        self.untried = 0
        """Backends in a first attempt that has not failed yet: while there are any, worse classes wait."""
        self.served = 0.0
        """The claims served / weight of the backend that was chosen last, as far as is known."""
        self._heap: list[tuple[tuple[float, float], int, int, Lane[R]]] = []
        self._serial = 0

    def __lt__(self, other: PriorityClass[R]) -> bool:
        """Sort by priority."""
        return self.priority < other.priority

    def lane(self, weight: float) -> Lane[R]:
        """Give the lane of that weight."""
        lane = self.lanes.get(weight)
        if lane is None:
            lane = self.lanes[weight] = Lane[R](self, weight)
            for other in self.lanes.values():  # from now on (or still) the heap decides between them
                self.offer(other)
        return lane

    def forget(self, lane: Lane[R]) -> None:
        """Let go of a lane without members: weights may change for ever, and an only lane needs no heap."""
        del self.lanes[lane.weight]
        lane.version = 0  # what is on the heap of it does not count
        if len(self.lanes) == 1:
            self._heap.clear()

    def first(self) -> R | None:
        """Give the backend to be served next; None when none has an idle connection."""
        if len(self.lanes) == 1:
            return next(iter(self.lanes.values())).first()
        heap = self._heap
        while heap:
            key, _, version, lane = heap[0]
            if version != lane.version:
                heappop(heap)
                continue
            ranked = lane.first()
            if ranked is None:
                heappop(heap)
                continue
            now = lane.score(ranked)
            if now <= key:
                return ranked
            heapreplace(heap, self._entry(lane, now))
        return None

    def note_served(self) -> None:
        """Bring `served` up to date: nobody counts along in an only lane, or where one claim hands on to the next.

        A few are enough, those who joined or came back last: they began where the others were.
        """
        for each, lane in islice(reversed(self.members.items()), _LOOK_BACK):
            self.served = max(self.served, lane.served(each))

    def offer(self, lane: Lane[R]) -> None:
        """Put the lane's present score on the heap; needed whenever it may have become better."""
        if len(self.lanes) == 1:
            return
        ranked = lane.first()
        if ranked is None:
            return
        heap = self._heap
        if len(heap) > 4 * len(self.lanes):
            heap[:] = [entry for entry in heap if entry[2] == entry[3].version]
            heapify(heap)
        heappush(heap, self._entry(lane, lane.score(ranked)))

    def _entry(self, lane: Lane[R], key: tuple[float, float]) -> tuple[tuple[float, float], int, int, Lane[R]]:
        self._serial += 1
        lane.version = self._serial
        return key, self._serial, lane.version, lane


class Ranking(Generic[R]):
    """All backends, by priority, score, and turn."""

    __slots__ = ("_rng", "best", "classes")

    def __init__(self, rng: Random) -> None:
        """Begin empty. `rng` decides the order in which equal backends are first served."""
        self._rng = rng
        self.classes: list[PriorityClass[R]] = []
        self.best: Lane[R] | None = None
        """The only lane of the best class: whoever is at the head of its lowest ring may be taken without more ado."""

    def add(self, ranked: R, priority: int, weight: int) -> None:
        """Let a backend take part."""
        group = self._class(priority)
        group.note_served()
        lane = group.lane(float(weight) if weight > 0 else _LEAST_WEIGHT)
        group.members[ranked] = lane
        lane.members += 1
        ranked.lane = lane
        ranked.level = UNRANKED
        ranked.head_start = group.served * lane.weight - ranked.total_claims
        self._find_best()
        if ranked.has_idle:
            self.improve(ranked)

    def remove(self, ranked: R) -> None:
        """Let a backend take part no more."""
        lane = ranked.lane
        if lane is None:
            return
        lane.drop(ranked)
        ranked.lane = None
        group = lane.owner
        del group.members[ranked]
        lane.members -= 1
        if not lane.members:
            group.forget(lane)
        if not group.members:
            self.classes.remove(group)
        self._find_best()

    def improve(self, ranked: R) -> None:
        """Note that the backend's load has shrunk, or that it has an idle connection again."""
        lane = ranked.lane
        if lane is None:
            return
        was_away = ranked.level == UNRANKED
        lane.drop(ranked)
        lane.put(ranked)
        lane.owner.offer(lane)
        if was_away and ranked.next is not ranked and not ranked.total_claims and self._rng.random() < 0.5:  # noqa: PLR2004 - a coin
            lane.rings[ranked.level].head = ranked

    def back_online(self, ranked: R) -> None:
        """Note that the backend was offline: what it missed it does not catch up on."""
        lane = ranked.lane
        if lane is not None:
            group = lane.owner
            group.note_served()
            del group.members[ranked]
            group.members[ranked] = lane
            missed = group.served * lane.weight - ranked.total_claims
            ranked.head_start = max(ranked.head_start, missed)

    def choose(self) -> R | None:
        """Give the backend that is to serve the next claim and turn its ring; None when none may.

        The caller takes one of its idle connections, adds 1 to its load, and counts the claim when it is served.
        """
        for group in self.classes:
            ranked = group.first()
            if ranked is not None:
                self.take(ranked)
                return ranked
            if group.untried:
                return None
        return None

    def take(self, ranked: R) -> None:
        """Turn the ring that `ranked` heads."""
        lane = ranked.lane
        if lane is None or ranked.level == UNRANKED:
            return
        lane.rings[ranked.level].head = ranked.next
        group = lane.owner
        if len(group.lanes) > 1:
            group.served = max(group.served, lane.served(ranked))

    def admits(self, ranked: R) -> bool:
        """Say whether the backend's class may serve now.

        It may not while a better one has an idle connection or is in a first attempt that has not failed yet.
        """
        lane = ranked.lane
        if lane is None:
            return False
        better = self.classes[: self.classes.index(lane.owner)]
        return not any(group.untried or group.first() is not None for group in better)

    def _class(self, priority: int) -> PriorityClass[R]:
        for group in self.classes:
            if group.priority == priority:
                return group
        group = PriorityClass[R](priority)
        insort(self.classes, group)
        return group

    def _find_best(self) -> None:
        lanes = self.classes[0].lanes if self.classes else {}
        self.best = next(iter(lanes.values())) if len(lanes) == 1 else None
