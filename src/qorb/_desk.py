"""The desk: idle connections on one side, the waiting line on the other; this is where claims are served.

What a claim needs when a connection is at hand, and a release when nothing is odd, is written out in claim.py for
speed; `quick` and `swift` say when those short cuts may be taken. Everything here is the long way, which does the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import weakref
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from qorb import events
from qorb._core.line import Line, Place
from qorb._core.ranking import Ranking
from qorb._diagnosis import Diagnosis, diagnose
from qorb._slot import CLAIMED, CONNECTING, TERMINATED, UNCLAIMED, Slot
from qorb._tasks import Call, CallFailedError, Interrupted, call_now
from qorb.connector import Outcome, overrides
from qorb.errors import QueueFullError, WrongLoopError, describe, presentable

if TYPE_CHECKING:
    from collections.abc import Callable

    from qorb._engine import Engine
    from qorb._slot_set import SlotSet
    from qorb._tasks import Timer
    from qorb._timing import Timing
    from qorb.errors import ClaimTimeoutError

C = TypeVar("C")

_claim_ids = itertools.count(1)

_TURNS_OF_GRACE = 2
"""Turns of the loop between a deadline and its execution, so that what becomes free in the same turn still counts."""
_TURNS_AFTER_A_STALL = 10
_STALL = 1.0
"""A timer that is this late (seconds) says that the loop stood still: then grants go before timeouts."""

WHATEVER = 1 << 60
"""`planned_for` when no number of claims is a reason to plan; an integer, because it is compared at every claim."""

_TERMINATED = object()
"""What a waiting claim is given when the pool ends."""


class Attempt(Place):
    """One try to get a connection: who, until when, and what went wrong so far. A ClaimRequest is one."""

    # No __init__: whoever makes one fills in what is asked for, which takes half the time; Desk.begin() does the rest.
    __slots__ = ("asked", "failure", "future", "id", "site", "started", "task", "timeout")

    asked: float | None
    """The timeout that the caller gave; None: the policy's."""
    site: str | None
    """Where it was asked for, when that is known."""
    future: Any
    """A future, for a slot, a diagnosis, or the news that the pool ends. None: nothing was asked yet."""
    id: int
    task: asyncio.Task[Any] | None
    started: float
    timeout: float
    failure: BaseException | None
    """What on_acquire raised last."""


class Desk(Generic[C]):
    """Hands idle connections to claims, in the order of the line, and takes them back."""

    def __init__(self, engine: Engine[C]) -> None:
        """Open for one engine."""
        self.engine = engine
        self.loop = engine.loop
        self.thread = threading.get_ident()
        self.clock = engine.loop.time
        self.tracing = engine.tracing
        self.line: Line[Attempt] = Line()
        self.ranking: Ranking[SlotSet[C]] = Ranking(engine.rng)
        self.claimed = 0
        """Claims out, on backends that are not leaving."""
        self.planned_for = -1
        """The number of claims, out and waiting, up to which there is nothing new to plan."""
        self.starved = False
        """A backend waits for a slot: every release is a reason to plan."""
        self.open = True
        self.quick = False
        """A claim may take the short cut."""
        self.swift = False
        """A release may take the short cut while nobody waits."""
        self.plain = False
        """A claim that has to wait may do so without ado: no observer, no on_acquire."""
        self.brisk = False
        """A release may be handed to the first in line without ado."""
        self.timing: Timing | None = None
        """What the times of claims are counted in, if somebody wants to know them."""
        self.timeouts = 0
        """Claims that ran out of time."""
        self.acquiring: dict[Call[None], Slot[C]] = {}
        self.done: asyncio.Future[None] = engine.loop.create_future()
        """A finished future, for what is awaitable but has nothing to wait for."""
        self.done.set_result(None)
        connector = engine.connector
        self.checks_closed = overrides(connector, "is_closed")
        self._prepares = overrides(connector, "on_acquire")
        self._asks_needs_recycle = overrides(connector, "needs_recycle")
        self.asks = self.checks_closed or self._asks_needs_recycle
        """The connector has something to say of a connection that comes back from a claim that ended cleanly."""
        self._clean_is_fit = not overrides(connector, "validate") and not overrides(connector, "on_recycle")
        self._claim_timeout = engine.policy.claim_timeout
        self._max_waiters = engine.policy.max_waiters
        self._deadline_timer: Timer | None = None
        self._deadline_armed_for = math.inf
        self.refresh()

    def refresh(self) -> None:
        """Find out anew whether the short cuts may be taken."""
        engine = self.engine
        waiting = self.line.waiting > 0
        self.plain = self.open and not self._prepares and engine.observer is None
        self.quick = self.plain and not waiting
        returns = self.plain and (self._asks_needs_recycle or self._clean_is_fit)
        self.swift = returns and not waiting and not self.starved and not engine.awaited
        self.brisk = (
            returns
            and waiting
            and not self.starved
            and engine.forgotten_at == math.inf
            and len(self.ranking.classes) == 1
        )

    # Backends come and go.

    def admit(self, slots: SlotSet[C]) -> None:
        """Let a backend serve claims."""
        backend = slots.backend
        self.ranking.add(slots, backend.priority, backend.weight)
        self.refresh()
        if slots.untried:
            self.await_first_attempt(slots)

    def withdraw(self, slots: SlotSet[C]) -> None:
        """Let a backend serve no more claims."""
        self.await_no_more(slots)
        self.ranking.remove(slots)
        self.refresh()

    def await_first_attempt(self, slots: SlotSet[C]) -> None:
        """Let worse backends wait until the first attempt to connect to this one is over."""
        if not slots.awaited and slots.lane is not None:
            slots.awaited = True
            slots.lane.owner.untried += 1

    def await_no_more(self, slots: SlotSet[C]) -> None:
        """Let worse backends serve: the first attempt is over, or there is no slot for it."""
        if slots.awaited and slots.lane is not None:
            slots.awaited = False
            slots.lane.owner.untried -= 1

    def rerank(self, slots: SlotSet[C]) -> None:
        """Take over a new priority or weight."""
        self.withdraw(slots)
        self.admit(slots)

    # A claim, the long way.

    async def claim(self, attempt: Attempt) -> Slot[C]:
        """Get a slot whose connection is ready for use, or raise why there is none.

        Cancelled at whatever point, it gives back what it had been given.
        """
        engine = self.engine
        self.begin(attempt, engine.check_usable())
        if engine.observing:  # in a task that the observer has started eagerly: what he is told of is still under way
            await self._next_turn()
            engine.check_usable()
        attempt.id = next(_claim_ids)
        attempt.future = self.done
        if engine.observer is not None:
            engine.emit(events.ClaimStart(engine.name, attempt.id))
        try:
            slot = await self._serve(attempt)
        except BaseException as error:
            if engine.observer is not None:
                wait = self.clock() - attempt.started
                self.at_home(engine.emit, events.ClaimFailed(engine.name, attempt.id, wait, describe(error)))
            raise
        if self.timing is not None:
            self.timing.waited(slot.owner, self.clock() - attempt.started)
        else:
            slot.owner.total_claims += 1
        if engine.observer is not None:
            engine.emit(events.ClaimDone(engine.name, attempt.id, slot.id, self.clock() - attempt.started))
            if slot.detached:  # on its way here
                self.handed_back(slot)
        return slot

    async def _next_turn(self) -> None:
        turn: asyncio.Future[None] = self.loop.create_future()
        timer = self.engine.timers.soon(lambda: None if turn.done() else turn.set_result(None))
        try:
            await turn
        finally:
            if timer is not None:
                timer.cancel()

    async def _serve(self, attempt: Attempt) -> Slot[C]:
        slot = None if self.line.waiting else self._take(attempt)
        while True:
            if slot is None:
                future = self.stand_in_line(attempt)
                try:
                    if self.engine.observer is not None:  # when told that there was none, he may have given one back
                        self.serve_line()
                    given = await future
                except BaseException:
                    self.forsake(attempt)
                    raise
            else:
                given = slot
                if attempt.failure is None:
                    self.line.arrive(attempt)
            slot = self.take_over(attempt, given)
            if not self._prepares:
                return slot
            if await self._acquire(slot, attempt):
                return slot
            slot = self._take(attempt)  # whoever got something unfit stands before the line

    def _take(self, attempt: Attempt) -> Slot[C] | None:
        """Take an idle connection for the claim, if one is at hand."""
        engine, observer = self.engine, self.engine.observer
        if observer is not None:
            engine.emit(events.PoolClaimStart(engine.name, attempt.id))
        slot = self._choose(attempt.id)
        if slot is not None:
            self._hand_out(slot, attempt.id)
        elif observer is not None:
            engine.emit(events.PoolClaimFailed(engine.name, attempt.id))
        return slot

    def _choose(self, claim_id: int) -> Slot[C] | None:
        """Find the idle connection that is to be handed out next; dead ones are replaced on the way.

        `claim_id` is 0 when it is not known yet who will get it: the observer is told later then, by `_take_turn`.
        """
        engine = self.engine
        observed = claim_id > 0 and engine.observer is not None
        while (slots := self.ranking.choose()) is not None:
            slot = slots.idle[-1]
            if observed:
                engine.emit(events.SlotSetClaimStart(engine.name, claim_id, slots.backend.name))
            fit = engine.seems_open(slot)
            if slot.state is not UNCLAIMED:  # is_closed() has made calls of its own, and the slot went another way
                reason = "the idle connection was taken out of service while it was looked at"
            elif fit:
                return slot
            else:
                slots.found_closed(slot)
                reason = "the idle connection was closed by the other side"
            if observed:
                engine.emit(events.SlotSetClaimFailed(engine.name, claim_id, slots.backend.name, reason))
        return None

    def _hand_out(self, slot: Slot[C], claim_id: int) -> None:
        slot.move(CLAIMED)
        self._handed_out(slot, claim_id)
        if self.claimed + self.line.waiting > self.planned_for:
            self.engine.replan()

    def _handed_out(self, slot: Slot[C], claim_id: int) -> None:
        engine = self.engine
        slot.claim_id = claim_id
        slot.holder = None  # until the claimer takes over
        if engine.observer is not None:
            name = slot.owner.backend.name
            engine.emit(events.SlotSetClaimDone(engine.name, claim_id, name, slot.id))
            engine.emit(events.PoolClaimDone(engine.name, claim_id, slot.id))
            engine.emit(events.HandleClaimed(engine.name, claim_id, slot.id, name))

    # Waiting.

    def begin(self, attempt: Attempt, task: asyncio.Task[Any] | None) -> None:
        """Let the time allowed begin."""
        asked = attempt.asked
        attempt.common = asked is None
        attempt.timeout = timeout = self._claim_timeout if asked is None else asked
        attempt.started = now = self.clock()
        attempt.deadline = now + timeout
        attempt.task = task
        attempt.failure = None
        attempt.id = 0

    def join_line(self, attempt: Attempt, task: asyncio.Task[Any]) -> asyncio.Future[Any]:
        """Begin and stand in line at once: written out for those who join a line with the usual timeout."""
        line = self.line
        if attempt.asked is not None or not 0 < line.waiting < self._max_waiters:
            self.begin(attempt, task)
            return self.stand_in_line(attempt)
        attempt.common = True
        attempt.timeout = timeout = self._claim_timeout
        attempt.started = now = self.clock()
        attempt.deadline = deadline = now + timeout
        attempt.task = task
        attempt.failure = None
        attempt.id = 0
        line.join(attempt)
        attempt.future = future = self.loop.create_future()
        if deadline < self._deadline_armed_for:
            self._arm_deadline(deadline)
        if self.claimed + line.waiting > self.planned_for:
            self.engine.replan()
        return future

    def stand_in_line(self, attempt: Attempt) -> asyncio.Future[Any]:
        """Join the line: what comes of the future goes to `take_over`, an exception on the way to `forsake`."""
        line = self.line
        if not self.open:
            raise self.engine.ended_error()
        if attempt.failure is None:
            if attempt.timeout <= 0:
                raise self._out_of_time(diagnose(self.engine), attempt)
            if line.waiting >= self._max_waiters:
                raise self._queue_full()
            line.join(attempt)
        else:
            if self.clock() >= attempt.deadline:
                raise self._out_of_time(diagnose(self.engine), attempt)
            line.rejoin(attempt)
        attempt.future = future = self.loop.create_future()
        if line.waiting == 1:
            self.refresh()
        if attempt.deadline < self._deadline_armed_for:
            self._arm_deadline(attempt.deadline)
        if self.claimed + line.waiting > self.planned_for:
            self.engine.replan()
        return future

    def forsake(self, attempt: Attempt) -> None:
        """Leave the line; give back what was handed off to it at the very moment of the cancellation."""
        self.at_home(self._forsake, attempt)

    def at_home(self, function: Callable[..., None], *arguments: object) -> None:
        """Call the function, in the pool's own thread.

        The garbage collector closes coroutines in whatever thread it runs, and in anybody's context.
        """
        if threading.get_ident() == self.thread or self.engine.forked or self.loop.is_closed():
            function(*arguments)
            return
        with contextlib.suppress(RuntimeError):  # the loop was closed at this very moment: the pool closes everything
            self.loop.call_soon_threadsafe(function, *arguments, context=Context())

    def _forsake(self, attempt: Attempt) -> None:
        self.line.leave(attempt)
        if not self.line.waiting:
            self.refresh()
        self._demand_fell()
        future = attempt.future
        if future is None or not future.done() or future.cancelled() or self.loop.is_closed():
            return
        if isinstance(future.result(), Slot):
            self._return_untouched(future.result())

    def take_over(self, attempt: Attempt, given: object) -> Slot[C]:
        """Give the slot that was handed off, or raise why there is none."""
        if isinstance(given, Diagnosis):
            raise self._out_of_time(given, attempt)
        if given is _TERMINATED:
            raise self.engine.ended_error()
        slot = cast("Slot[C]", given)
        if slot.revoked or (self._prepares and not self.open):
            self.discard(slot)
            raise self.engine.ended_error()
        slot.holder = weakref.ref(attempt.task) if attempt.task is not None else None
        slot.since = self.clock()
        slot.site = attempt.site
        slot.claim_id = attempt.id
        return slot

    def _out_of_time(self, diagnosis: Diagnosis, attempt: Attempt) -> ClaimTimeoutError:
        self.timeouts += 1
        return diagnosis.error(attempt)

    def _queue_full(self) -> QueueFullError:
        return QueueFullError(
            f"pool {self.engine.name}: the waiting line is full (waiting: {self.line.waiting}, max_waiters: "
            f"{self._max_waiters}); pool.explain() says what they wait for",
            pool=self.engine.name,
            waiting=self.line.waiting,
            limit=self._max_waiters,
        )

    def _return_untouched(self, slot: Slot[C]) -> None:
        """Take back a connection that its claimer never saw."""
        if slot.revoked or slot.detached:
            self.discard(slot)
            return
        self.handed_back(slot)
        if slot.odd:
            self._take_back_odd(slot)
        else:
            self._pass_on(slot)

    def first_in_line(self) -> Attempt | None:
        """Take the first out of the line, passing over those who were cancelled and whose task has not run yet."""
        line = self.line
        attempt = line.pop()
        while attempt is not None and attempt.future.done():
            attempt = line.pop()
        if not line.waiting:
            self.refresh()
        return attempt

    def serve_line(self) -> None:
        """Hand idle connections to the claims that wait."""
        while self.line.waiting:
            slot = self._choose(0)
            if slot is None:
                return
            attempt = self.first_in_line()
            if attempt is None:
                return
            # Before the observer hears of it, who may cancel this claim, or end another, which serves the line as well.
            attempt.future.set_result(slot)
            slot.move(CLAIMED)
            self._take_turn(slot, attempt)
            self._handed_out(slot, attempt.id)

    def _take_turn(self, slot: Slot[C], attempt: Attempt) -> None:
        """Tell the observer that somebody who waits tries again, and where."""
        engine = self.engine
        if engine.observer is not None:
            engine.emit(events.PoolClaimStart(engine.name, attempt.id))
            engine.emit(events.SlotSetClaimStart(engine.name, attempt.id, slot.owner.backend.name))

    # Deadlines: one timer for the whole line.

    def _arm_deadline(self, deadline: float) -> None:
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._deadline_armed_for = deadline
        self._deadline_timer = self.engine.timers.at(deadline, self._deadline_due)

    def _deadline_due(self) -> None:
        late = self.clock() - self._deadline_armed_for
        self._hesitate(_TURNS_AFTER_A_STALL if late > _STALL else _TURNS_OF_GRACE)

    def _hesitate(self, turns: int) -> None:
        if turns:
            self._deadline_timer = self.engine.timers.soon(lambda: self._hesitate(turns - 1))
        else:
            self._expire()

    def _expire(self) -> None:
        """Fail the claims whose time is over, all with one diagnosis, and wait for the next deadline."""
        self._deadline_timer = None
        self._deadline_armed_for = math.inf
        diagnosis: Diagnosis | None = None
        for attempt in self.line.pop_overdue(self.clock()):
            if attempt.future.done():
                continue
            if diagnosis is None:
                diagnosis = diagnose(self.engine)
            attempt.future.set_result(diagnosis)
        if not self.line.waiting:
            self.refresh()
        self._demand_fell()
        deadline = self.line.next_deadline()
        if deadline < math.inf:
            self._arm_deadline(deadline)

    # on_acquire: in the claimer's task, bounded, and interrupted when the pool ends.

    async def _acquire(self, slot: Slot[C], attempt: Attempt) -> bool:
        """Let the connector prepare the connection for its claimer; False when it is not fit."""
        limit = self._time_to_acquire(slot, attempt)
        call: Call[None] = Call(self.engine.timers, self.engine.connector.on_acquire, slot.connection)
        self.acquiring[call] = slot
        task, fit = attempt.task, True
        cancelled_before = task.cancelling() if task is not None else 0
        try:
            await call.within(limit)
        except CallFailedError as failure:
            self._acquire_failed(slot, attempt, failure.error)
            fit = False
        except Interrupted:
            self.discard(slot)
            raise self.engine.ended_error() from None
        except BaseException:
            if call.forestalled:
                self._return_untouched(slot)
            else:
                self.at_home(self.release, slot, Outcome.CANCELLED)
            raise
        finally:
            self.at_home(self._acquire_ended, call)
        if task is not None and task.cancelling() > cancelled_before:  # on_acquire swallowed it, as 3.11's wait_for may
            if fit:
                self.release(slot, Outcome.CANCELLED)
            raise asyncio.CancelledError
        if not fit:
            if not self.open:  # raised out here, where what user code raised is not shown along with it
                raise self.engine.ended_error()
            return False
        if slot.revoked or call.interrupted:
            self.discard(slot)
            raise self.engine.ended_error()
        slot.owner.acquire_worked()
        slot.since = self.clock()  # from now on it is the caller's
        return True

    def _time_to_acquire(self, slot: Slot[C], attempt: Attempt) -> float:
        """Give the seconds that on_acquire may take; give the slot back and raise when there are none left."""
        limit = self.engine.policy.health_check_timeout
        left = attempt.deadline - self.clock()
        if left > 0:
            return min(limit, left)
        if attempt.timeout > 0 and left > -_STALL:  # after a stall it is prepared all the same: it was at hand
            self._return_untouched(slot)
            raise self._out_of_time(diagnose(self.engine), attempt)
        return limit

    def _acquire_ended(self, call: Call[None]) -> None:
        self.acquiring.pop(call, None)
        self.engine.acquire_ended()

    def _acquire_failed(self, slot: Slot[C], attempt: Attempt, error: BaseException) -> None:
        engine = self.engine
        attempt.failure = presentable(error)
        if engine.observer is not None:
            engine.emit(events.ClaimAcquireFailed(engine.name, attempt.id, slot.id, describe(error)))
        self.handed_back(slot)
        if slot.state is CLAIMED:
            slot.owner.acquire_failed(slot, error)
        self._after_release()

    # Coming back.

    def give_back(self, slot: Slot[C], outcome: Outcome, unfit: bool | None = None) -> None:  # noqa: FBT001 - as below
        """Take a connection back from the caller who had it, and count for how long. Otherwise as release()."""
        self.note_use(slot)
        self.release(slot, outcome, unfit)

    def note_use(self, slot: Slot[C]) -> None:
        """Count for how long a caller had the connection, if somebody wants to know."""
        if self.timing is not None and not self.loop.is_closed():
            self.timing.use.add(self.clock() - slot.since)

    def release(self, slot: Slot[C], outcome: Outcome, unfit: bool | None = None) -> None:  # noqa: FBT001 - an answer
        """Take a connection back from its claimer. Never waits.

        `unfit`: what must_recycle() has said; None when it was not asked.
        """
        if slot.revoked or slot.detached:
            self.discard(slot)
            return
        if outcome is not Outcome.CLEAN and self.loop.is_closed():
            return  # a block was left because its task was collected; the connection is closed with the pool
        self.handed_back(slot)
        recycled = self.must_recycle(slot, outcome) if unfit is None else unfit
        # What the connector is asked may make calls of its own: the slot is looked at after the answers.
        fit = not recycled and not slot.odd and self.open and self.engine.seems_open(slot)
        if slot.state is not CLAIMED:
            self._dispose(slot)
        elif recycled:
            if self._ends(slot):
                slot.move(TERMINATED)
            else:
                slot.recycle(outcome)
            self._after_release()
        elif fit and not slot.odd and self.open:
            self._pass_on(slot)
        else:
            self._take_back_odd(slot)

    def discard(self, slot: Slot[C]) -> None:
        """Take back a connection that is not to be used again. Never waits."""
        if self.engine.forked:
            return
        self.handed_back(slot)
        self._dispose(slot)

    def _dispose(self, slot: Slot[C]) -> None:
        """Close the connection, unless the pool has taken it back before."""
        if slot.detached:
            connection, slot.connection, slot.ready = slot.connection, None, None
            slot.detached = False
            slot.revoked = True
            if connection is not None:
                self.engine.abort_detached(connection)
        elif slot.state is CLAIMED:
            slot.move(TERMINATED if self._ends(slot) else CONNECTING)
            self._after_release()

    def _ends(self, slot: Slot[C]) -> bool:
        """Say whether the slot ends when it is given back."""
        return slot.owner.leaving or not self.open

    def must_recycle(self, slot: Slot[C], outcome: Outcome) -> bool:
        """Ask the connector whether a connection has to be made fit for the next claim."""
        if not self._asks_needs_recycle:
            return outcome is not Outcome.CLEAN or not self._clean_is_fit
        connection = slot.connection
        if connection is None:
            return True
        try:
            return bool(call_now(self.engine.connector.needs_recycle, connection, outcome))
        except CallFailedError as failure:
            self.engine.user_code_failed("needs_recycle()", failure.error)
            return True
        except BaseException:
            self.settle(slot)
            raise

    def settle(self, slot: Slot[C]) -> None:
        """Give up a connection that was coming back: what was asked about it stops the program."""
        if slot.state is CLAIMED:
            self.discard(slot)

    def handed_back(self, slot: Slot[C]) -> None:
        """Tell the observer, once, that the slot is no longer its claimer's."""
        engine = self.engine
        if engine.observer is not None and slot.claim_id:
            claim_id, slot.claim_id = slot.claim_id, 0
            engine.emit(events.HandleReturned(engine.name, claim_id, slot.id, slot.owner.backend.name))

    def _pass_on(self, slot: Slot[C]) -> None:
        """Give the connection to the first in line, or put it among the idle ones."""
        if self.line.waiting and self.clock() < self.engine.forgotten_at and self.ranking.admits(slot.owner):
            attempt = self.first_in_line()
            if attempt is not None:
                attempt.future.set_result(slot)  # before the observer hears of it, who may cancel this claim
                self._take_turn(slot, attempt)
                self._handed_out(slot, attempt.id)  # it stays CLAIMED: only the claimer changes
                self._demand_fell()
                return
        slot.place = -1
        slot.move(UNCLAIMED)
        self._after_release()
        if slot.due and slot.state is UNCLAIMED:  # nobody wanted it, or was allowed to have it
            slot.owner.check_next()

    def _take_back_odd(self, slot: Slot[C]) -> None:
        """Take a clean connection back into a slot that something is the matter with."""
        worn = self._ends(slot) or slot.stale or slot.too_old or not self.engine.seems_open(slot)
        if slot.state is not CLAIMED:  # is_closed() has ended the pool
            self._dispose(slot)
            return
        if self._ends(slot):
            slot.move(TERMINATED)
        elif worn or slot.stale:
            slot.move(CONNECTING)
        else:
            if slot.holder is not None:  # somebody had it
                slot.owner.connection_proven(slot)
            slot.odd = slot.due or not slot.proven
            self._pass_on(slot)
            return
        self._after_release()

    def _demand_fell(self) -> None:
        """Note that a claim was released or gave up: where not all slots are in demand, it may be a backend's turn."""
        if self.starved and self.claimed + self.line.waiting < self.engine.policy.max_slots:
            self.engine.replan()

    def _after_release(self) -> None:
        engine = self.engine
        if not self.open:
            engine.claim_returned()
            return
        engine.tell_ready()
        if self.clock() >= engine.forgotten_at:
            engine.plan_now()
        elif self.starved or self.claimed + self.line.waiting > self.planned_for:
            engine.replan()
        if self.line.waiting:
            self.serve_line()

    # The end.

    def close(self) -> None:
        """Serve nobody any more: every waiting claim is failed, every on_acquire interrupted."""
        self.open = False
        self.refresh()
        while (attempt := self.first_in_line()) is not None:
            attempt.future.set_result(_TERMINATED)
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        for call in tuple(self.acquiring):
            call.interrupt()

    def abandon(self) -> None:
        """Forget whoever waits: the loop is closed, and no news will reach them."""
        self.open = False
        self.refresh()
        while self.line.pop() is not None:
            pass
        self.acquiring.clear()


def check_thread(desk: Desk[Any]) -> None:
    """Raise WrongLoopError when called from another thread than the pool's."""
    if threading.get_ident() != desk.thread:
        raise WrongLoopError(
            f"pool {desk.engine.name} belongs to another thread; reach it by its event loop's call_soon_threadsafe()",
            pool=desk.engine.name,
        )
