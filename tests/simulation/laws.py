"""The laws: what must be true of the pool at every step, by its own books and by what can be seen from outside.

After each turn of the loop the books are added up anew. When nothing is ready to run, more must be true: whoever can be
served has been, whatever is due has a timer, and the planner has nothing left to do.
"""

from __future__ import annotations

import asyncio
import enum
import functools
from collections import Counter
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from qorb import PoolState
from qorb._core.planner import grow
from qorb._core.ranking import UNRANKED
from qorb._slot import CHECKING, CLAIMED, CONNECTING, RECYCLING, TERMINATED, UNCLAIMED, Slot
from qorb._tasks import Timer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qorb import Backend
    from qorb._core.ranking import PriorityClass, Ranked
    from qorb._desk import Attempt
    from qorb._engine import Engine
    from qorb._slot_set import SlotSet
    from qorb.stats import PoolStats
    from qorb.testing import FakeConnection
    from tests.simulation.books import Books
    from tests.simulation.service import Service
    from tests.simulation.situations import Situations
    from tests.simulation.witness import Witness

P = ParamSpec("P")
T = TypeVar("T")

FAR = 1e8
"""Seconds: a timer that is further away than this need not exist."""
MAX_IN_FLIGHT = 8
OFTEN, SELDOM = 800, 8
"""So many times in the beginning everything is checked; what takes long is checked every so many times afterwards."""


class Law(enum.Enum):
    """What must be true of a pool, whatever happens to it. Every check is made in the name of one of these."""

    TALLY = "what the pool counts is what a recount of its slots gives"
    CONNECTIONS = "the connections that are open are those that the slots have, and no others"
    LIMITS = "there are never more slots, connections or attempts than the policy allows, those that end included"
    OWNER = "a connection has one owner: one slot, and one claim at the most"
    LINE = "whoever came first is served first, and whoever stands in line is still waiting"
    WAITING = "nobody waits while a connection that he may have is idle"
    HELD = "a slot is claimed as long as somebody has its connection, and no longer"
    ONCE = "a claim ends once: served, failed or cancelled; one that was served ends once again"
    DEADLINE = "a claim that is not served ends at its deadline, neither earlier nor later, and says why"
    CANCELLATION = "a cancellation reaches whoever was cancelled, and nobody else; so does an exception of a body"
    FITNESS = "nobody gets a connection that was left dirty or is closed, or one to another backend than it says"
    CALLS = "the calls for a slot never overlap, and none is made on a connection that is closed already"
    PACE = "a backend that fails is left alone as long as the policy says"
    BACKENDS = "the backends are those that were published last, and the connections go to where these are now"
    RANKING = "the ranking has every backend that may serve, in its right place"
    PLAN = "there are as many slots as the policy wants, and nobody is without one who could have it"
    PROGRESS = "everything waits for something that is sure to come; what is healed serves again, up to full capacity"
    QUIET = "a pool that is left alone leaves its connections alone, and takes few turns of the loop"
    LEDGER = "the ledger has the tasks and timers that there are"
    STATS = "the statistics say what can be seen from outside"
    STORY = "the events tell what happened, all of it, once, in order"
    END = "at the end nothing is left, nothing is called any more, and it comes in time"
    SECRETS = "no password appears anywhere"
    LOG = "nothing is reported as an error or a warning that the plan has not provoked"


class BrokenError(AssertionError):
    """A law was broken."""

    def __init__(self, text: str, law: Law | None = None) -> None:
        super().__init__(text)
        self.law = law


def require(truth: object, text: Callable[[], str] | str, law: Law | None = None) -> None:
    """Raise BrokenError unless it is true."""
    if not truth:
        raise BrokenError(text if isinstance(text, str) else text(), law)


class upholding:  # noqa: N801 - reads as what it does: with upholding(Law.PACE)
    """In the name of which law something is checked that does not say so itself: around a block or a function."""

    def __init__(self, law: Law) -> None:
        self._law = law

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Name the law that was broken."""
        if error is not None and getattr(error, "law", None) is None:
            error.law = self._law  # type: ignore[attr-defined]

    def __call__(self, check: Callable[P, T]) -> Callable[P, T]:
        """Decorate a function. Written out: this is called ten times in every turn of every run."""

        @functools.wraps(check)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return check(*args, **kwargs)
            except BaseException as error:
                self.__exit__(None, error, None)
                raise

        return checked


class Laws:
    """Checks one pool."""

    def __init__(
        self,
        engine: Engine[FakeConnection],
        service: Service,
        books: Books,
        published: Callable[[], dict[str, Backend]],
        situations: Situations,
    ) -> None:
        self._engine = engine
        self._service = service
        self._books = books
        self._loop = engine.loop
        self._line: list[Attempt] = []
        self._rests = 0
        self._published = published
        self.witness: Witness | None = None
        self.situations = situations
        self.detaches = False
        """The pool is ended so that claims which are out keep their connections."""
        self._detached: set[int] = set()
        """The connections of those."""

    def after_turn(self) -> None:
        """Check what must be true after every turn of the loop."""
        self._tally()
        self._order()
        self.situations.after_turn()
        ready: Any = self._loop._ready  # type: ignore[attr-defined]
        if not ready and self._engine.state is not PoolState.TERMINATED and not self._due():
            self.at_rest()

    def _due(self) -> bool:
        timers: Any = self._loop._scheduled  # type: ignore[attr-defined]
        now = self._loop.time()
        return any(timer.when() <= now and not timer.cancelled() for timer in timers)

    # The books.

    @upholding(Law.TALLY)
    def _tally(self) -> None:
        engine, policy = self._engine, self._engine.policy
        total = claimed_here = online = 0
        expected: set[int] = set()
        for name, slots in engine.sets.items():
            connecting = unclaimed = checking = claimed = ending = attempting = 0
            for slot in slots.slots:
                state = slot.state
                connecting += state is CONNECTING
                unclaimed += state is UNCLAIMED
                checking += state is CHECKING or state is RECYCLING
                claimed += state is CLAIMED
                ending += state is TERMINATED
                attempting += slot.attempting
                self._check_slot(slots, slot)
                if slot.connection is not None:
                    expected.add(slot.connection.id)
                if slot._outgoing is not None:
                    expected.add(slot._outgoing.id)
            there = connecting, unclaimed, checking, claimed, ending, attempting
            told = slots.connecting, len(slots.idle), slots.checking, slots.claimed, slots.ending, slots.attempting
            if told != there:
                raise BrokenError(f"the tally of {name} is wrong: {told}, but there are {there}")
            connected = unclaimed + checking + claimed > 0
            if slots.online is not connected:
                raise BrokenError(f"{name}: online is {slots.online}, connected is {connected}")
            online += connected and not slots.leaving
            total += len(slots.slots)
            claimed_here += 0 if slots.leaving else claimed
            if len(slots.slots) > policy.max_slots_per_backend:
                raise BrokenError(f"{name} has {len(slots.slots)} slots: {there}", Law.LIMITS)
        told = engine.slots, engine.desk.claimed, engine._online
        there = total, claimed_here, online
        if told != there:
            raise BrokenError(f"slots, claimed ones and backends online are told as {told}, but there are {there}")
        if total > policy.max_slots:
            raise BrokenError(f"{total} slots", Law.LIMITS)
        self._connections(expected)

    def _check_slot(self, slots: SlotSet[FakeConnection], slot: Slot[FakeConnection]) -> None:
        state, connection = slot.state, slot.connection
        if slot.detached:
            return
        if (connection is None) is not (state is CONNECTING or state is TERMINATED):
            raise BrokenError(f"{slot.name} is {state} with connection {connection}", Law.OWNER)
        if slot.owner is not slots:
            raise BrokenError(f"{slot.name} belongs to another set", Law.OWNER)
        if connection is not None:
            if self._engine.connections.get(id(connection)) is not slot:
                raise BrokenError(f"{slot.name}: connection {connection.id} belongs to somebody else", Law.OWNER)
            if slot.ready is None or slot.ready.result() is not connection:
                raise BrokenError(f"{slot.name}: its future bears another connection", Law.OWNER)
            if slot.backend.name != connection.backend.name or slot.backend != connection.backend:
                raise BrokenError(f"{slot.name}: {connection} is not to {slot.backend!r}", Law.FITNESS)
        if (state is UNCLAIMED) is not (slot in slots.idle):
            raise BrokenError(f"{slot.name} is {state}; among the idle ones: {slot in slots.idle}", Law.OWNER)

    @upholding(Law.CONNECTIONS)
    def _connections(self, expected: set[int]) -> None:
        service, engine = self._service, self._engine
        open_ones = set(service._unclosed)
        if self.detaches and engine.state is not PoolState.RUNNING:
            self._detached.update(self._books.holding)
        if open_ones - self._detached != expected - self._detached:
            raise BrokenError(f"open are {sorted(open_ones)}, the slots have {sorted(expected)}")
        if service.peak > engine.policy.max_slots:
            raise BrokenError(f"{service.peak} connections were open at a time", Law.LIMITS)
        for name, peak in service.peak_of_backend.items():
            if peak > engine.policy.max_slots_per_backend:
                raise BrokenError(f"{peak} connections to {name} were open at a time", Law.LIMITS)
            attempts = service.peak_in_flight("connect", name)
            if attempts > MAX_IN_FLIGHT:
                raise BrokenError(f"{attempts} attempts to reach {name} were in flight at a time", Law.LIMITS)
        if engine.state is PoolState.RUNNING:
            self._books.check_held(engine)
        callers = [call.task for call in service.in_flight if call.operation != "on_acquire"]
        slots = [task for task in callers if " slot " in task]
        if len(set(slots)) < len(slots):
            raise BrokenError(f"calls overlap: {sorted(slots)}", Law.CALLS)

    # The line: strictly first come, first served.

    @upholding(Law.LINE)
    def _order(self) -> None:
        engine, desk = self._engine, self._engine.desk
        if not self._line and not desk.line.waiting:
            return
        line = list(desk.line)
        waiting = set(map(id, in_line(engine)))
        require(len(line) == desk.line.waiting, lambda: f"{desk.line.waiting} wait, but {len(line)} stand in line")
        behind: Attempt | None = None
        for attempt in self._line:
            if id(attempt) in waiting:
                behind = behind or attempt
            elif behind is not None and _served(attempt):
                raise BrokenError(f"claim {attempt.id} was served before claim {behind.id}, which stood before it")
        self._line = line

    # At rest: nothing is ready to run.

    def at_rest(self) -> None:
        """Check what must be true when nothing is left to do at this moment."""
        self._rests += 1
        engine = self._engine
        self._nobody_is_lost()
        if engine.state is PoolState.RUNNING:
            self._nobody_waits_in_vain()
            self.situations.at_rest()
            if self._rests < OFTEN or self._rests % SELDOM == 0:
                self._backends_are_those_published()
                for slots in engine.sets.values():
                    self._something_will_happen(slots)
                self._nothing_is_left_to_plan()
                self._ranking()
            if self.witness is not None:
                self.witness.at_rest(engine, self._service, self._books)
        if self._rests % SELDOM == 0:
            self._ledger()
            self._stats()

    @upholding(Law.HELD)
    def _nobody_is_lost(self) -> None:
        engine = self._engine
        claimed = {
            slot.connection.id for slots in engine.sets.values() for slot in slots.slots if slot.state is CLAIMED
        }
        held = set(self._books.holding)
        acquiring = {slot.connection.id for slot in engine.desk.acquiring.values() if slot.connection is not None}
        if engine.state is PoolState.RUNNING:
            require(
                claimed == held | acquiring,
                lambda: f"claimed are {sorted(claimed)}; held are {sorted(held)}, in on_acquire {sorted(acquiring)}",
            )
        else:
            require(
                claimed <= held | acquiring, lambda: f"claimed are {claimed}; held {held}, in on_acquire {acquiring}"
            )

    @upholding(Law.WAITING)
    def _nobody_waits_in_vain(self) -> None:
        engine, desk, now = self._engine, self._engine.desk, self._loop.time()
        waiting = in_line(engine)
        require(len(waiting) == desk.line.waiting, "someone who was cancelled still stands in line", Law.LINE)
        if not waiting:
            return
        for attempt in waiting:
            due = attempt.deadline
            require(due > now, lambda a=attempt: f"claim {a.id} waits at {now}, due at {a.deadline}", Law.DEADLINE)
        deadline = min(attempt.deadline for attempt in waiting)
        if deadline - now < FAR:
            armed = desk._deadline_timer is not None and desk._deadline_armed_for <= deadline
            require(armed, lambda: f"no timer for the deadline at {deadline}", Law.DEADLINE)
            timers = [one for one in engine.timers.alive if one._callback == desk._deadline_due]
            require(timers == [desk._deadline_timer], lambda: f"timers for deadlines: {timers}", Law.DEADLINE)
        for group in _classes(engine):
            for slots in group:
                require(
                    not slots.idle,
                    lambda slots=slots: f"{len(waiting)} claims wait, and {slots.backend.name} has idle connections",
                )
            if any(slots.untried and slots.connecting for slots in group):
                return

    @upholding(Law.BACKENDS)
    def _backends_are_those_published(self) -> None:
        engine, known = self._engine, self._published()
        require(engine.backends == known, lambda: f"the pool knows {engine.backends}, published was {known}")
        for name, slots in engine.sets.items():
            if name in known:
                require(not slots.leaving and slots.backend == known[name], f"{name} is not up to date")
            else:
                require(slots.leaving and slots.slots, f"{name} should be gone")
        require(all(name in engine.sets for name in known), "a backend is missing")

    @upholding(Law.PROGRESS)
    def _something_will_happen(self, slots: SlotSet[FakeConnection]) -> None:  # noqa: C901 - one case after another
        """No slot is forgotten: each waits for something that is sure to come."""
        now, name = self._loop.time(), slots.backend.name
        for slot in slots.slots:
            call, state = slot.call, slot.state
            if state is UNCLAIMED:
                checking = slots._checking_slot
                if slot.due:
                    require(checking is not None and checking.call is not None, f"{slot.name} is due, nobody checks it")
                elif slot._due_timer is None:
                    moment = min(now + self._engine.policy.health_interval, slot._expires)
                    require(moment - now > FAR, f"{slot.name} will never be checked")
                else:
                    require(slot._due_timer in self._engine.timers.alive, f"{slot.name}: its timer is dead")
            elif state is CHECKING or state is RECYCLING or (state is TERMINATED and not slot.detached):
                require(call is not None, f"{slot.name} is {state}, and nothing happens")
            elif state is CONNECTING and call is None:
                require(slot in slots._waiting_to_connect, f"{slot.name} waits for nothing")
        if slots.leaving:
            kept = [slot.name for slot in slots.slots if slot.state not in (CLAIMED, TERMINATED)]
            require(not kept, f"{name} leaves, but keeps {kept}")
        elif slots._waiting_to_connect:
            require(slots._room(now) <= 0, f"{name}: slots wait to connect although they may")
            if not slots.attempting:
                moment = slots._admits_at
                require(moment > now, f"{name}: nothing keeps it from connecting")
                armed = slots._backoff_timer is not None or moment - now > FAR
                require(armed, f"{name} will never be tried again")
        where = slots.backend.address, slots.backend.server_name
        gone_to = [slot.connection.backend for slot in slots.idle if slot.connection is not None]
        stale = [there for there in gone_to if (there.address, there.server_name) != where]
        if stale and not slots.leaving:
            under_way = slots._converting
            busy = under_way is not None and under_way.state in (CONNECTING, TERMINATED) and under_way in slots.slots
            require(busy, f"{name}: idle connections to {stale}, and nobody converts them", Law.BACKENDS)

    @upholding(Law.PLAN)
    def _nothing_is_left_to_plan(self) -> None:
        """Nobody is without a slot who could have one, and there are as many slots as the policy wants.

        The planner may well prefer another distribution by now: that waits for the next claim, release or rebalance.
        """
        engine, now = self._engine, self._loop.time()
        require(engine._plan_timer is None, "a plan is due, and nothing is ready")
        if now >= engine.forgotten_at:
            return
        sets = [slots for slots in engine.sets.values() if not slots.leaving]
        plan = grow(tuple(engine.sets.values()), engine.desk.line.waiting, engine._limits, now)
        if not plan.start and not plan.stop:
            require(sum(len(slots.slots) for slots in sets) or not sets or self._is_full(), "no slots, and no plan")
            return
        held = sum(len(slots.slots) - slots.ending for slots in sets if slots.online or slots.untried)
        without = [one.backend.name for one in sets if not len(one.slots) - one.ending and one.next_attempt <= now]
        start, stop = ([(one.backend.name, n) for one, n in part] for part in (plan.start, plan.stop))
        told = f"start {start}, stop {stop}"
        require(not (plan.start and held < plan.wanted), f"there should be {plan.wanted} slots, not {held}: {told}")
        require(not without, f"{without} have no slot, though they could have one: {told}")

    def _is_full(self) -> bool:
        return self._engine.slots >= self._engine.policy.max_slots

    # Ranking.

    @upholding(Law.RANKING)
    def _ranking(self) -> None:
        engine = self._engine
        ranking = engine.desk.ranking
        priorities = [group.priority for group in ranking.classes]
        require(priorities == sorted(set(priorities)), f"classes are {priorities}")
        ranked = {id(one): one for group in ranking.classes for one in self._class(group)}
        for name, slots in engine.sets.items():
            if slots.leaving:
                require(slots.lane is None and id(slots) not in ranked, f"{name} leaves and is still ranked")
                continue
            lane = slots.lane
            require(lane is not None, f"{name} is not ranked")
            if lane is None:
                continue
            weight = float(slots.backend.weight) or 0.1
            right = (lane.owner.priority, lane.weight) == (slots.backend.priority, weight)
            require(right and lane.owner in ranking.classes, f"{name} stands in a wrong lane")
            if slots.idle:
                require(id(slots) in ranked, f"{name} has idle connections and stands in no ring")
        for group in ranking.classes:
            members = [s for s in engine.sets.values() if s.lane is not None and s.lane.owner is group]
            require(set(group.members) == set(members), f"class {group.priority} has {len(group.members)} members")
            untried = sum(slots.untried and slots.connecting > 0 for slots in members)
            require(group.untried == untried, f"class {group.priority} counts {group.untried} untried, not {untried}")
        best = ranking.best
        if ranking.classes and len(ranking.classes[0].lanes) == 1:
            require(best is next(iter(ranking.classes[0].lanes.values())), "best is not the best lane")
        else:
            require(best is None, "there is no one best lane")

    def _class(self, group: PriorityClass) -> Iterator[Ranked]:
        for lane in group.lanes.values():
            able = False
            for ring in lane.rings:
                for one in _members(ring.head):
                    require(one.level == ring.level and one.lane is lane, "someone stands in a wrong ring")
                    require(one.load >= one.level or not one.idle, f"load {one.load} stands in ring {one.level}")
                    require(ring.level >= lane.low.level, "someone stands below the lowest ring")
                    able = able or bool(one.idle)
                    yield one
            if able and len(group.lanes) > 1:
                entries = [key for key, _, version, of in group._heap if of is lane and version == lane.version]
                require(entries, f"a lane of weight {lane.weight} with idle connections is not on the heap")
                least = min(lane.score(one)[0] for ring in lane.rings for one in _members(ring.head) if one.idle)
                require(entries[0][0] <= least, f"a lane is on the heap with {entries[0]}, but has {least}")

    # What the pool says about itself.

    @upholding(Law.LEDGER)
    def _ledger(self) -> None:
        engine = self._engine
        named = {task for task in asyncio.all_tasks(self._loop) if task.get_name().startswith(f"qorb {engine.name} ")}
        require(
            named == set(engine.tasks.tasks), lambda: f"tasks are {named}, owned {list(engine.tasks.tasks.values())}"
        )
        scheduled = set()
        timers: Any = self._loop._scheduled  # type: ignore[attr-defined]
        for handle in timers:
            timer = getattr(handle._callback, "__self__", None) if not handle.cancelled() else None
            if isinstance(timer, Timer) and timer._owner is engine.timers:
                scheduled.add(timer)
        require(scheduled == set(engine.timers.alive), lambda: f"timers: {scheduled ^ set(engine.timers.alive)}")
        ledger = engine.ledger()
        require(ledger.timers == len(scheduled), "the ledger counts other timers")
        require(len(ledger.tasks) == len(named) + len(engine.desk.acquiring), "the ledger counts other tasks")

    @upholding(Law.STATS)
    def _stats(self) -> None:
        engine = self._engine
        books, stats = self._books, engine.stats()
        require(stats.claims == books.granted_count, lambda: f"{stats.claims=}, granted {books.granted_count}")
        require(stats.state is engine.state, lambda: f"{stats.state=}")
        waiting = len(in_line(engine))
        require(stats.waiting == waiting, lambda: f"{stats.waiting=}, but {waiting} wait")
        require(list(stats.backends) == sorted(engine.sets), "the backends are not sorted")
        for one in stats.backends.values():
            for text in (one.last_error, repr(one)):
                law = Law.SECRETS
                require(text is None or "canary" not in text, f"a secret in the stats: {text}", law)
        if engine.state is PoolState.RUNNING:
            self._numbers(stats)

    def _numbers(self, stats: PoolStats) -> None:
        """Compare the numbers of each backend with what its server and the clients see."""
        engine, service, books = self._engine, self._service, self._books
        acquiring = {slot.connection.id for slot in engine.desk.acquiring.values() if slot.connection is not None}
        in_hand = set(books.holding) | acquiring
        kept = {slot.connection.id for slot in engine.connections.values() if slot.connection is not None}
        seen: Counter[tuple[str, str]] = Counter()
        for number, connection in service._unclosed.items():
            use = service._uses.get(number)
            if number in in_hand:
                seen[connection.backend.name, "claimed"] += 1
            elif use is None:
                seen[connection.backend.name, "unclaimed"] += 1
            elif use in ("validate", "on_recycle") and number in kept:
                seen[connection.backend.name, "checking"] += 1
        for name, one in stats.backends.items():
            told = one.unclaimed_slots, one.checking_slots, one.claimed_slots
            there = tuple(seen[name, what] for what in ("unclaimed", "checking", "claimed"))
            require(told == there, lambda name=name, told=told, there=there: f"{name}: told {told}, seen {there}")
            require(one.online is any(there), f"{name}: online is {one.online}")
            connecting = sum(slot.state is CONNECTING for slot in engine.sets[name].slots)
            require(one.connecting_slots == connecting, f"{name}: {one.connecting_slots} connect, not {connecting}")
            require(one.total_claims <= books.granted_to[name], f"{name}: {one.total_claims=}")
            # A connector that leaves recycling to the pool cannot be seen to refuse what came back unclean.
            failed = service.failed[name] + books.unclean[name]
            require(one.failures <= failed, f"{name}: {one.failures=}, seen {failed}")
            told_of = one.last_error is not None
            require(failed or not told_of, f"{name}: {one.last_error=}, and nothing failed")
            require(told_of or not service.pace.failing(name), f"{name}: no last error, and it fails")


def in_line(engine: Engine[FakeConnection]) -> list[Attempt]:
    """Give those who wait, first to last, without those who have been cancelled and have not heard of it yet."""
    return [attempt for attempt in engine.desk.line if not attempt.future.done()]


def _served(attempt: Attempt) -> bool:
    future = attempt.future
    return future is not None and future.done() and not future.cancelled() and isinstance(future.result(), Slot)


def _classes(engine: Engine[FakeConnection]) -> list[list[SlotSet[FakeConnection]]]:
    groups: dict[int, list[SlotSet[FakeConnection]]] = {}
    for slots in engine.sets.values():
        if not slots.leaving:
            groups.setdefault(slots.backend.priority, []).append(slots)
    return [groups[priority] for priority in sorted(groups)]


def _members(head: Ranked | None) -> Iterator[Ranked]:
    one = head
    while one is not None:
        require(one.level != UNRANKED, "an unranked one stands in a ring")
        require(one.next is not None and one.next.previous is one, "a ring is broken")
        yield one
        one = one.next
        if one is head:
            return
