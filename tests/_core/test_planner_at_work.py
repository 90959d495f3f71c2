"""The planner at work: a pool in miniature, with nothing but counts and a clock, lives by its plans.

It plans when the last plan said that it should, and asserts each time it need not that the plan would have been empty.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qorb._core.planner import Limits, Plan, grow, rebalance

if TYPE_CHECKING:
    from collections.abc import Callable

BACKING_OFF, ATTEMPTING, IDLE, CHECKING, CLAIMED, ENDING, GONE = (
    "backing off",
    "attempting",
    "idle",
    "checking",
    "claimed",
    "ending",
    "gone",
)
CONNECTED = (IDLE, CHECKING, CLAIMED)
BACKOFF = 30.0


@dataclass(eq=False)
class Slot:
    backend: Backend
    state: str = BACKING_OFF


@dataclass(eq=False)
class Backend:
    """What the planner sees, counted from the slots."""

    name: str
    since: float
    accepts: bool = True
    black_hole: bool = False
    """When it does not accept: whether an attempt takes as long as it may."""
    leaving: bool = False
    untried: bool = True
    next_attempt: float = -math.inf
    last_attempt: float = -math.inf
    failures: int = 0
    slots: list[Slot] = field(default_factory=list)
    tries: list[float] = field(default_factory=list)

    def count(self, *states: str) -> int:
        return sum(slot.state in states for slot in self.slots)

    @property
    def online(self) -> bool:
        return self.count(*CONNECTED) > 0

    @property
    def failing(self) -> bool:
        return self.failures > 0

    @property
    def connecting(self) -> int:
        return self.count(BACKING_OFF, ATTEMPTING)

    @property
    def attempting(self) -> int:
        return self.count(ATTEMPTING)

    @property
    def unclaimed(self) -> int:
        return self.count(IDLE)

    @property
    def checking(self) -> int:
        return self.count(CHECKING)

    @property
    def claimed(self) -> int:
        return self.count(CLAIMED)

    @property
    def ending(self) -> int:
        return self.count(ENDING)

    @property
    def held(self) -> int:
        return self.connecting + self.count(*CONNECTED)

    def __repr__(self) -> str:
        kinds = {state: self.count(state) for state in (BACKING_OFF, ATTEMPTING, *CONNECTED, ENDING)}
        return f"<{self.name} { ({state: n for state, n in kinds.items() if n}) }>"


class World:
    """A pool in virtual time. Whatever happens goes through `_after`, which decides whether to plan."""

    def __init__(self, limits: Limits, backends: int, *, seed: int = 0, accepting: int = 1_000) -> None:
        self.limits = limits
        self.rng = Random(seed)
        self.now = 0.0
        self.backends: list[Backend] = []
        self.waiting = 0
        self.plan: Plan[Backend] | None = None
        self.closed = 0
        """Connections closed by a plan."""
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        for i in range(backends):
            self._appear(f"b{i}", accepts=i < accepting)
        self._after(must_plan=True)
        self._at(60.0, self._rebalance_timer)

    # Time.

    def _at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + delay, next(self._order), action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, _, action = heapq.heappop(self._due)
            action()
        self.now = end

    # Planning, and what must hold.

    def _after(self, *, must_plan: bool = False, demand_rose: bool = False, relief: bool = False) -> None:
        plan = self.plan
        if (
            plan is None
            or must_plan
            or (demand_rose and not plan.saturated)
            or (relief and plan.starved)
            or self.now >= plan.forgotten_at
        ):
            self._apply(grow(self.backends, self.waiting, self.limits, self.now))
        self._check()

    def _apply(self, plan: Plan[Backend]) -> None:
        self.plan = plan
        for each, count in plan.start:
            assert count > 0
            assert not each.leaving
            for _ in range(count):
                slot = Slot(each)
                each.slots.append(slot)
                self._at(0.0, lambda slot=slot: self._attempt(slot))  # type: ignore[misc]
            self._check_caps()
        for each, count in plan.stop:
            assert count > 0
            self._stop(each, count)
        assert len({id(each) for each, _ in plan.start + plan.stop}) == len(plan.start + plan.stop)
        if self.now < plan.forgotten_at < math.inf:
            self._at(plan.forgotten_at - self.now, self._after)

    def _stop(self, each: Backend, count: int) -> None:
        assert not each.leaving
        was_online = each.online
        rank = {BACKING_OFF: 0, ATTEMPTING: 1, IDLE: 2, CHECKING: 3}
        able = sorted((slot for slot in each.slots if slot.state in rank), key=lambda slot: rank[slot.state])
        assert count <= len(able), f"{each} has no {count} slots to end that are not claimed"
        for slot in able[:count]:
            self.closed += slot.state in CONNECTED
            self._end(slot)
        assert each.online == was_online, f"{each} lost its only connection"

    def _end(self, slot: Slot) -> None:
        slow = self.rng.choice((0.0, 0.001, 0.5)) if slot.state in CONNECTED else self.rng.choice((0.0, 0.001))
        slot.state = ENDING
        self._at(slow, lambda: self._gone(slot))

    def _gone(self, slot: Slot) -> None:
        slot.state = GONE
        slot.backend.slots.remove(slot)
        if slot.backend.leaving and not slot.backend.slots:
            self.backends.remove(slot.backend)
        self._after(relief=True)

    def _rebalance_timer(self) -> None:
        self._at(60.0, self._rebalance_timer)
        self.rebalance()

    def rebalance(self) -> None:
        self._apply(rebalance(self.backends, self.waiting, self.limits, self.now))
        again = rebalance(self.backends, self.waiting, self.limits, self.now)
        assert not again, f"rebalance is not content with what it did: {again}"
        self._check()

    def _check_caps(self) -> None:
        assert sum(len(each.slots) for each in self.backends) <= self.limits.max_slots
        assert all(len(each.slots) <= self.limits.max_slots_per_backend for each in self.backends)

    def _check(self) -> None:
        self._check_caps()
        again = grow(self.backends, self.waiting, self.limits, self.now)
        assert not again, f"there is something to do: {again} after {self.plan} with {self.backends}"
        present = self.present
        gone_soon = sum(each.ending for each in self.backends)
        elsewhere = sum(len(each.slots) for each in self.backends if each.leaving)
        if present and not self.online and not gone_soon and elsewhere < self.limits.max_slots:
            assert any(each.connecting for each in present), "nothing is online and nothing is tried"

    @property
    def present(self) -> list[Backend]:
        return [each for each in self.backends if not each.leaving]

    @property
    def online(self) -> list[Backend]:
        return [each for each in self.present if each.online]

    # The life of a slot.

    def _attempt(self, slot: Slot) -> None:
        each = slot.backend
        if slot.state != BACKING_OFF:
            return
        if self.now < each.next_attempt:
            self._at(each.next_attempt - self.now, lambda: self._attempt(slot))
            return
        slot.state = ATTEMPTING
        each.last_attempt = self.now
        each.tries.append(self.now)
        lasts = 10.0 if each.black_hole and not each.accepts else self.rng.choice((0.001, 0.001, 0.2))
        self._at(lasts, lambda: self._attempted(slot))

    def _attempted(self, slot: Slot) -> None:
        if slot.state != ATTEMPTING:
            return
        each = slot.backend
        before = (each.online, each.untried, each.failing)
        each.last_attempt, each.untried = self.now, False
        if each.accepts:
            each.failures, each.next_attempt = 0, -math.inf
            slot.state = IDLE
            for other in each.slots:
                self._at(0.0, lambda other=other: self._attempt(other))  # type: ignore[misc]
            if self.waiting:
                slot.state = CLAIMED
                self.waiting -= 1
        else:
            each.failures += 1
            top = BACKOFF if self.online else 5.0
            if self.now >= each.next_attempt:
                each.next_attempt = self.now + min(0.02 * 2 ** min(each.failures, 30), top)
            slot.state = BACKING_OFF
            self._at(0.0, lambda: self._attempt(slot))
        self._after(must_plan=before != (each.online, each.untried, each.failing), relief=not each.accepts)

    def lose(self, slot: Slot) -> None:
        """The connection of a slot breaks, its check fails, or a client throws it away."""
        each = slot.backend
        was_online = each.online
        slot.state = BACKING_OFF
        self._at(0.0, lambda: self._attempt(slot))
        self._after(must_plan=was_online != each.online or each.failing, relief=True)

    # What clients and the world do.

    def _slots(self, *states: str) -> list[Slot]:
        return [slot for each in self.present for slot in each.slots if slot.state in states]

    def claim(self, pick: int = 0) -> None:
        idle = self._slots(IDLE)
        if idle:
            idle[pick % len(idle)].state = CLAIMED
        else:
            self.waiting += 1
        self._after(demand_rose=True)

    def give_up(self) -> None:
        if self.waiting:
            self.waiting -= 1
            self._after(relief=True)

    def release(self, pick: int = 0) -> None:
        held = [slot for each in self.backends for slot in each.slots if slot.state == CLAIMED]
        if not held:
            return
        slot = held[pick % len(held)]
        plan = self.plan
        assert plan is not None
        if slot.backend.leaving:
            self._end(slot)
        elif not self.waiting or self.now >= plan.forgotten_at:
            slot.state = IDLE
        else:
            self.waiting -= 1
        self._after(relief=True)
        self._serve()

    def discard(self, pick: int) -> None:
        """Throw a claimed connection away."""
        if claimed := self._slots(CLAIMED):
            self.lose(claimed[pick % len(claimed)])

    def _serve(self) -> None:
        """Hand what is idle to those who wait."""
        for slot in self._slots(IDLE)[: self.waiting]:
            slot.state = CLAIMED
            self.waiting -= 1
        self._check()

    def check(self, pick: int) -> None:
        if idle := self._slots(IDLE):
            idle[pick % len(idle)].state = CHECKING
            self._after()

    def checked(self, pick: int, *, good: bool) -> None:
        checking = self._slots(CHECKING)
        if not checking:
            return
        slot = checking[pick % len(checking)]
        if not good:
            self.lose(slot)
        elif self.waiting:
            slot.state = CLAIMED
            self.waiting -= 1
            self._after()
        else:
            slot.state = IDLE
            self._after()

    def down(self, pick: int, *, black_hole: bool = False) -> None:
        if not self.present:
            return
        each = self.present[pick % len(self.present)]
        each.accepts, each.black_hole = False, black_hole
        for slot in tuple(each.slots):
            if slot.state in (IDLE, CHECKING):
                self.lose(slot)

    def fill(self, pick: int) -> None:
        """Let a backend keep the connections that it has, and refuse more."""
        if self.present:
            self.present[pick % len(self.present)].accepts = False

    def up(self, pick: int) -> None:
        if self.present:
            self.present[pick % len(self.present)].accepts = True

    def _appear(self, name: str, *, accepts: bool = True) -> None:
        self.backends.append(Backend(name, self.now, accepts=accepts))

    def appear(self, *, accepts: bool) -> None:
        self._appear(f"n{next(self._order)}", accepts=accepts)
        self._after(must_plan=True)

    def vanish(self, pick: int) -> None:
        if not self.present:
            return
        each = self.present[pick % len(self.present)]
        each.leaving = True
        for slot in each.slots:
            if slot.state not in (CLAIMED, ENDING):
                self._end(slot)
        if not each.slots:
            self.backends.remove(each)
        self._after(must_plan=True)

    def come_back(self) -> None:
        leaving = [each for each in self.backends if each.leaving]
        if leaving:
            leaving[0].leaving = False
            leaving[0].since = self.now
            self._after(must_plan=True)

    def act(self, verb: int, pick: int) -> None:
        """Do one of everything that can happen."""
        verbs: list[Callable[[], None]] = [
            lambda: self.claim(pick),
            lambda: self.claim(pick),
            lambda: self.claim(pick),
            lambda: self.release(pick),
            lambda: self.release(pick),
            self.give_up,
            lambda: self.check(pick),
            lambda: self.checked(pick, good=pick % 3 > 0),
            lambda: self.down(pick, black_hole=pick % 2 > 0),
            lambda: self.up(pick),
            lambda: self.appear(accepts=pick % 2 > 0),
            lambda: self.vanish(pick),
            self.come_back,
            self.rebalance,
            lambda: self.discard(pick),
            lambda: self.fill(pick),
            lambda: self.run((0.0, 0.001, 0.05, 1.0, 12.0, 40.0)[pick % 6]),
            lambda: self.run((0.0, 0.001, 0.05, 1.0, 12.0, 40.0)[pick % 6]),
        ]
        verbs[verb % len(verbs)]()

    def heal(self) -> None:
        for each in self.backends:
            each.accepts = True

    def come_to_rest(self) -> None:
        """Let every check end and every attempt be made that has to be; nobody claims or releases anything."""
        while self._slots(CHECKING):
            self.checked(0, good=True)
        self._serve()
        self.run(200.0)

    def keep_busy(self, seconds: float, *, every: float = 0.5) -> None:
        """More demand than there are slots, and claims that end and begin all the time."""
        end = self.now + seconds
        while self.now < end:
            while self.waiting < self.limits.max_slots:
                self.claim(self.rng.randrange(100))
            self.run(every)
            self.release(self.rng.randrange(100))


POOLS = st.builds(
    Limits,
    spares_wanted=st.integers(0, 12),
    max_slots=st.integers(1, 12),
    max_slots_per_backend=st.integers(1, 12),
    max_connection_backoff=st.just(BACKOFF),
)
STEPS = st.lists(st.tuples(st.integers(0, 17), st.integers(0, 99)), min_size=15, max_size=100)


@settings(max_examples=max(200, settings().max_examples))
@given(POOLS, st.integers(0, 6), STEPS, st.integers(0, 3))
def test_whatever_happens_the_caps_hold_and_plans_are_final_and_healing_helps(
    limits: Limits, backends: int, steps: list[tuple[int, int]], seed: int
) -> None:
    world = World(limits, backends, seed=seed)
    for verb, pick in steps:
        world.act(verb, pick)
    world.heal()
    while world.waiting:
        world.give_up()
    while any(each.claimed for each in world.backends):
        world.release()
    world.run(200.0)
    assert len(world.online) == min(len(world.present), limits.max_slots)


@given(POOLS, st.integers(1, 6), STEPS, st.integers(0, 3))
def test_under_full_load_every_healthy_backend_comes_online_that_has_room(
    limits: Limits, backends: int, steps: list[tuple[int, int]], seed: int
) -> None:
    world = World(limits, backends, seed=seed)
    for verb, pick in steps:
        world.act(verb, pick)
    world.heal()
    world.keep_busy(250.0, every=1.0)
    assert len(world.online) == min(len(world.present), limits.max_slots)


@settings(max_examples=max(300, settings().max_examples))
@given(POOLS, st.integers(1, 5), STEPS, st.integers(1, 8), st.integers(0, 3))
def test_whoever_waits_is_served_while_a_backend_that_accepts_has_room_under_the_caps(
    limits: Limits, backends: int, steps: list[tuple[int, int]], more: int, seed: int
) -> None:
    world = World(limits, backends, seed=seed)
    for verb, pick in steps:
        world.act(verb, pick)
    for _ in range(more):
        world.claim()
    world.come_to_rest()
    if not world.waiting:
        return
    connected = sum(each.count(*CONNECTED) for each in world.backends)
    # A backend that was not tried for long has a slot for one attempt, whoever waits.
    under_way = any(each.attempting for each in world.present if not each.online)
    has_room = [each for each in world.present if each.accepts and len(each.slots) < limits.max_slots_per_backend]
    assert connected + under_way >= limits.max_slots or not has_room


@pytest.mark.parametrize("black_hole", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_eight_dead_backends_are_all_tried_again_and_again(*, black_hole: bool, busy: bool) -> None:
    world = World(Limits(4, 4, 4, BACKOFF), 9, accepting=1)
    for each in world.backends:
        each.black_hole = black_hole
    work = world.keep_busy if busy else world.run
    work(100.0)
    for each in world.backends[1:]:
        each.tries.clear()
    work(600.0)
    # Eight one after another: each at most once per backoff, and each waits for the attempts of the seven others.
    slowest = BACKOFF + 8 * (10.0 if black_hole else 0.2) + 8 * 0.5
    for each in world.backends[1:]:
        gaps = [later - earlier for earlier, later in itertools.pairwise([100.0, *each.tries, 700.0])]
        assert max(gaps) <= slowest
    assert world.backends[0].held >= 3


def test_demand_that_goes_up_and_down_round_the_cap_closes_no_more_connections_than_attempts_need() -> None:
    world = World(Limits(8, 16, 16, BACKOFF), 2, accepting=1)
    world.run(5.0)
    live, dead = world.backends
    for _ in range(14):
        world.claim()
    world.run(60.0)
    dead.tries.clear()
    world.closed = 0
    for _ in range(2_000):
        for _ in range(4):
            world.claim()
        world.run(0.01)
        for _ in range(4):
            world.release()
        world.run(0.01)
    assert world.closed <= len(dead.tries) + 1
    assert live.held >= 15


def test_a_backend_that_refuses_more_at_the_cap_costs_no_more_connections_than_attempts_need() -> None:
    world = World(Limits(8, 16, 16, BACKOFF), 2)
    world.run(5.0)
    _, full = world.backends
    full.accepts = False
    while full.count(IDLE) > 2:
        world.lose(next(slot for slot in full.slots if slot.state == IDLE))
    for _ in range(14):
        world.claim()
    world.run(60.0)
    assert [each.count(*CONNECTED) for each in world.backends] == [13, 2]
    full.tries.clear()
    world.closed = 0
    for _ in range(500):
        for _ in range(4):
            world.claim()
        world.run(0.01)
        for _ in range(4):
            world.release()
        world.run(0.01)
    assert world.closed <= len(full.tries) + 1
    assert full.count(*CONNECTED) == 2
    world.run(120.0)
    assert world.closed <= len(full.tries) + 1


@pytest.mark.parametrize("slots", [5, 8, 16])
@pytest.mark.parametrize("dead", [0, 2])
def test_a_backend_that_refused_more_is_noticed_when_it_accepts_again(slots: int, dead: int) -> None:
    world = World(Limits(16, slots, 16, BACKOFF), 2 + dead, accepting=2)
    world.run(5.0)
    full = world.backends[1]
    full.accepts = False
    while full.count(IDLE) > 1:
        world.lose(next(slot for slot in full.slots if slot.state == IDLE))
    world.run(100.0)
    assert full.count(*CONNECTED) == 1
    full.accepts = True
    world.run((1 + dead) * (BACKOFF + 1))
    assert full.count(*CONNECTED) >= (slots - dead) // 2


def test_a_flapping_backend_moves_only_its_share() -> None:
    world = World(Limits(8, 16, 16, BACKOFF), 2)
    world.run(5.0)
    for _ in range(8):
        world.claim()
    for _ in range(20):
        world.down(1)
        world.run(1.0)
        world.up(1)
        world.run(1.0)
    world.run(10.0)
    assert [each.held for each in world.backends] == [8, 8]
