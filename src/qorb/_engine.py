"""The engine: all that runs behind a Pool.

Its tasks hold on to it and not to the Pool, so that a Pool that is dropped without terminate() is noticed and ended. It
owns the slot sets, keeps them in line with what the resolver says and the planner decides, and knows everything that
is alive.
"""

from __future__ import annotations

import math
import tracemalloc
import warnings
from contextvars import Context
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qorb import events
from qorb._company import Company
from qorb._core.backoff import LEAST_PAUSE, Backoff
from qorb._core.planner import Limits, Plan, grow, rebalance
from qorb._desk import WHATEVER, Attempt, Desk
from qorb._diagnosis import diagnose
from qorb._holders import describe_holder
from qorb._home import Home
from qorb._resolving import Watch
from qorb._slot import CLAIMED
from qorb._slot_set import OFFLINE_BACKOFF_CAP, SlotSet
from qorb._tasks import REPEAT, CallFailedError, TaskOwner, TimerOwner, call_now, logger
from qorb._termination import Termination
from qorb._timing import Timing
from qorb.errors import PoolTerminatedError, ResolveError, describe
from qorb.stats import Ledger, PoolState, PoolStats
from qorb.threads import ThreadOwner

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from random import Random

    from qorb._slot import Slot
    from qorb._tasks import Timer
    from qorb.backend import Backend
    from qorb.companions import Companion
    from qorb.connector import Connector
    from qorb.events import Event, Observer
    from qorb.policy import Policy
    from qorb.resolver import Resolver
    from qorb.stats import Timings

C = TypeVar("C")

_LONG_CLAIMS_PAUSE = 0.1
"""Seconds between two looks for long claims at the least, however little Policy.long_claim_warning is."""


def terminated_error(name: str, state: PoolState) -> PoolTerminatedError:
    """Make the error for whoever comes too late."""
    remedy = "; make a new one" if state is PoolState.TERMINATED else ""
    return PoolTerminatedError(f"pool {name} is {state.value}{remedy}", pool=name)


class Engine(Generic[C]):
    """All that runs behind one Pool."""

    def __init__(
        self,
        name: str,
        resolver: Resolver,
        connector: Connector[C],
        policy: Policy,
        observer: Observer | None,
        rng: Random,
    ) -> None:
        """Belong to the running loop; start nothing yet."""
        self.name = name
        self.resolver = resolver
        self.connector = connector
        self.policy = policy
        self.observer = observer
        self.rng = rng
        self.home = Home(f"pool {name}", "pool", self.disown, pool=name)
        self.loop = self.home.loop
        self.tracing = self.loop.get_debug() or tracemalloc.is_tracing()
        """Whether claims note where they were made: it costs more than the claim itself."""
        self.backoff_limits = (policy.min_connection_backoff, policy.max_connection_backoff, policy.spread, rng)
        self.threads = ThreadOwner(f"qorb {name}", self._thread_ended)
        self.timers = TimerOwner(self.loop, self.threads)
        self.tasks = TaskOwner(self.timers)
        self.state = PoolState.RUNNING
        self.backends: dict[str, Backend] = {}
        """What the resolver published last."""
        self.published = False
        self._published_meanwhile: dict[str, Backend] | None = None
        """What it published while the observer was being told of something; to be taken over in the next turn."""
        self.watch: Watch | None = None
        """The life of the resolver's watch(), once begun."""
        self.resolver_error: ResolveError | None = None
        self.resolver_error_text: str | None = None
        self.sets: dict[str, SlotSet[C]] = {}
        """By name, those that are leaving included."""
        self.slots = 0
        """Slots whose task has not ended."""
        self.connections: dict[int, Slot[C]] = {}
        """Every open connection that was adopted, by identity."""
        self.forgotten_at = math.inf
        """From this moment on a backend that was not tried for long gets the next slot that comes free."""
        self.departed_claims = 0
        self.companies: dict[Company, None] = {}
        """Companions whose task has not ended."""
        self.bugs = 0
        """Tasks that died of an exception of their own."""
        self._ready: dict[asyncio.Future[Any], None] = {}
        self.desk: Desk[C] = Desk(self)
        self.termination = Termination(self)
        self._limits = Limits(
            policy.spares_wanted, policy.max_slots, policy.max_slots_per_backend, policy.max_connection_backoff
        )
        self._online = 0
        self._plan_timer: Timer | None = None
        self._rebalance_timer: Timer | None = None
        self._long_claims_timer: Timer | None = None
        self._forgotten_timer: Timer | None = None
        self.observing = False
        """The observer is being told of something, which is still under way."""
        self._observer_reported = self._warned_of_outsider = False

    @property
    def forked(self) -> bool:
        """Whether this is a child process, where the pool is not to be touched."""
        return self.home.forked

    def disown(self) -> None:
        """Be in a child process: tasks, sockets and sessions are the parent's, and nothing here touches them again."""
        self.observer = None
        self.tasks.closed = True
        self.timers.cancel_all()
        self.desk.open = False
        self.desk.refresh()
        for slots in self.sets.values():
            for slot in slots.slots:
                slot.revoked = True

    def start(self) -> None:
        """Start the resolver and the timers."""
        self.tasks.anchor()
        self._start_watch()
        self._rebalance_timer = self.timers.after(self.policy.rebalance_interval, self._rebalance)
        self._long_claims_timer = self.timers.after(self.policy.long_claim_warning, self._look_for_long_claims)

    def _start_watch(self) -> None:
        backoff = Backoff(*self.backoff_limits)
        self.watch = Watch(f"qorb {self.name} resolver", self.resolver, self, self.timers, backoff)
        self.tasks.start(self.watch)

    # Who may call.

    def check_usable(self) -> asyncio.Task[Any] | None:
        """Raise unless a claim can be made from here and now; give the calling task."""
        task = self.check_place()
        if self.state is not PoolState.RUNNING:
            raise self.ended_error()
        return task

    def check_place(self) -> asyncio.Task[Any] | None:
        """Raise when called from a child process, another thread or another loop; give the calling task."""
        self.home.check_process()
        task = self.home.task()
        if task is None:
            raise self.ended_error() if self.state is PoolState.TERMINATED else self.home.wrong()
        return task

    def ended_error(self) -> PoolTerminatedError:
        """Make the error for a claim that comes too late. Raises PoolForkedError where that is why."""
        self.home.check_process()
        return terminated_error(self.name, self.state)

    # What the resolver says (Subscriber).

    def backends_known(self, backends: dict[str, Backend]) -> None:
        """Take a complete set over: the difference to the last one, by name and by value."""
        if self.tasks.closed:
            return
        if self.observing:  # what the observer is told of may be the last set's taking effect
            if self._published_meanwhile is None:
                self.timers.soon(self._take_over_later)
            self._published_meanwhile = backends
            return
        self._published_meanwhile = None  # this set is newer
        old, self.backends = self.backends, backends
        self.published = True
        self.resolver_error = self.resolver_error_text = None
        added = tuple(name for name in backends if name not in old)
        removed = tuple(name for name in old if name not in backends)
        changed = tuple(name for name, backend in backends.items() if name in old and old[name] != backend)
        for name in removed:
            slots = self.sets[name]
            slots.leave()
            self._drop_if_gone(slots)
        for name in added:
            self._add(backends[name])
        for name in changed:
            self.sets[name].readdress(backends[name])
        if added or removed:
            self._tell_companions()
        if added or removed or changed:
            logger.info("pool %s: backends added: %s, removed: %s, changed: %s", self.name, added, removed, changed)
            if self.observer is not None:
                self.emit(events.ResolverUpdated(self.name, added, removed, changed))
            self.replan()
        self.desk.serve_line()
        self.tell_ready()

    def _take_over_later(self) -> None:
        if self._published_meanwhile is not None:
            self.backends_known(self._published_meanwhile)

    def _add(self, backend: Backend) -> None:
        slots = self.sets.get(backend.name)
        if slots is not None:
            slots.come_back(backend)
        else:
            self.sets[backend.name] = slots = SlotSet(self, backend)
            self.desk.admit(slots)

    def resolver_failed(self, error: ResolveError) -> None:
        """Remember why there is no new set; the last one stays."""
        self.resolver_error = error
        self.resolver_error_text = str(error)
        self.resolver_told(events.ResolverFailed, self.resolver_error_text)

    def resolver_told(self, kind: Callable[..., Event], *fields: object) -> None:
        """Pass on to the observer what the resolver tells of its work."""
        if self.observer is not None and not self.tasks.closed:
            self.emit(kind(self.name, *fields))

    def watch_ended(self, task: asyncio.Task[None]) -> None:
        """Start the resolver again when its task died of a bug."""
        died = self._died(task)
        self.task_ended(task, "resolver")
        if died and not self.tasks.closed:
            self.timers.after(REPEAT, self._restart_watch)

    def _restart_watch(self) -> None:
        if not self.tasks.closed:
            self._start_watch()

    # Companions.

    def accompany(self, companion: Companion) -> Company:
        """Run a companion, in a task of its own."""
        self.check_usable()
        company = Company(self.name, companion, self.timers, self._company_ended)
        self.companies[company] = None
        self.tasks.start(company)
        return company

    def _company_ended(self, company: Company) -> None:
        self.companies.pop(company, None)
        if company.task is not None:
            self.task_ended(company.task, company.name)

    def _tell_companions(self) -> None:
        for company in tuple(self.companies):
            company.tell_of_backends()

    # What slots report.

    def turned(self, slots: SlotSet[C]) -> None:
        """Note that a backend went online or offline; one that leaves is offline for all but its own claims."""
        self._online += 1 if slots.online and not slots.leaving else -1
        if not self._online:
            for each in self.sets.values():
                each.cap_backoff()
        self.replan()

    def backoff_cap(self) -> float:
        """Give the longest pause between attempts that is in order at this moment."""
        return math.inf if self._online else OFFLINE_BACKOFF_CAP

    def first_attempt_ended(self, slots: SlotSet[C]) -> None:
        """Note that a backend is no longer in its first attempt: worse ones may serve now."""
        self.desk.await_no_more(slots)
        self.replan()
        self.desk.serve_line()

    def attempt_failed(self, slots: SlotSet[C]) -> None:
        """Note a failed attempt: it may be another backend's turn."""
        del slots
        self.replan()

    def slot_idle(self) -> None:
        """Note that a connection has become available."""
        self.desk.serve_line()
        self.tell_ready()

    def slot_gone(self, slots: SlotSet[C], task: asyncio.Task[None]) -> None:
        """Note that a slot's task has ended."""
        self._drop_if_gone(slots)
        died = self._died(task)
        self.task_ended(task, slots.backend.name)
        if died and not self.tasks.closed:
            self.timers.after(REPEAT, self.replan)  # not at once: a bug must not make a storm
        else:
            self.replan()

    def _drop_if_gone(self, slots: SlotSet[C]) -> None:
        if slots.leaving and not slots.slots and self.sets.get(slots.backend.name) is slots:
            # Without a call between the two, no other thread finds these claims in neither or in both.
            del self.sets[slots.backend.name]
            self.departed_claims += slots.total_claims
            self._tell_companions()

    def _died(self, task: asyncio.Task[None]) -> bool:
        return not task.cancelled() and task.done() and task.exception() is not None

    def task_ended(self, task: asyncio.Task[None], what: str) -> None:
        """Look at how a task ended: by itself, of a bug, or cancelled by somebody else."""
        if not task.done():  # destroyed with its closed loop
            return
        if task.cancelled():
            self._cancelled_from_outside()
        else:
            error = task.exception()
            if error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
                self.bugs += 1
                message = f"qorb: a task of pool {self.name} died ({what}) and is replaced"
                self.loop.call_exception_handler({"message": message, "exception": error, "task": task})
        self.termination.look()

    def _cancelled_from_outside(self) -> None:
        if self.state is not PoolState.RUNNING or self._warned_of_outsider or self.forked:
            return
        self._warned_of_outsider = True
        self.termination.abort()
        warnings.warn(
            f"unterminated pool {self.name}: its tasks were cancelled from outside; use `async with` or "
            "`await pool.terminate()`",
            ResourceWarning,
            stacklevel=2,
        )

    def claim_returned(self) -> None:
        """Note that a claim came back while the pool is terminating."""
        self.termination.claim_returned()

    def _thread_ended(self) -> None:
        """Note that a thread of user code is over."""
        self.termination.look()

    def acquire_ended(self) -> None:
        """Note that an on_acquire is over."""
        if not self.desk.open:
            self.timers.soon(self.termination.look)  # not at once: the observer has to hear of the claim's end first

    # Balance.

    def has_room(self, slots: SlotSet[C]) -> bool:
        """Say whether there is room for one more slot of a backend, and nobody else waits for that."""
        policy = self.policy
        within = self.slots < policy.max_slots and len(slots.slots) < policy.max_slots_per_backend
        return within and not self.desk.starved

    def replan(self) -> None:
        """Plan once before the next turn of the loop is over."""
        if self._plan_timer is None and not self.tasks.closed:
            self._plan_timer = self.timers.soon(self.plan_now)

    def plan_now(self) -> None:
        """Decide what to start and what a cap demands to end, and do it."""
        if self._plan_timer is not None:
            self._plan_timer.cancel()
            self._plan_timer = None
        if self.tasks.closed:
            return
        now = self.loop.time()
        plan = grow(tuple(self.sets.values()), self.desk.line.waiting, self._limits, now)
        if plan.start or plan.stop:
            self._carry_out(plan)
        self._remember(plan, now)
        self._await_first_attempts()

    def _rebalance(self) -> None:
        pause = max(self.policy.rebalance_interval, LEAST_PAUSE)  # the clock may not tell a shorter one from none
        self._rebalance_timer = self.timers.after(pause, self._rebalance)
        now = self.loop.time()
        plan = rebalance(tuple(self.sets.values()), self.desk.line.waiting, self._limits, now)
        self._carry_out(plan)
        self._remember(plan, now)
        self._await_first_attempts()

    def _carry_out(self, plan: Plan[SlotSet[C]]) -> None:
        change: dict[str, int] = {}
        if self.observer is not None:
            change = {slots.backend.name: count for slots, count in plan.start}
            change |= {slots.backend.name: -count for slots, count in plan.stop}
            self.emit(events.RebalanceStart(self.name, MappingProxyType(change)))
        for slots, count in plan.stop:
            slots.stop(count)
        for slots, count in plan.start:
            slots.start(count)
        if self.observer is not None:
            self.emit(events.RebalanceDone(self.name, MappingProxyType(change)))

    def _remember(self, plan: Plan[SlotSet[C]], planned_at: float) -> None:
        desk = self.desk
        self._note_forgotten(plan.forgotten_at, planned_at)
        desk.planned_for = WHATEVER if plan.saturated else desk.claimed + desk.line.waiting
        desk.starved = plan.starved
        desk.refresh()

    def _await_first_attempts(self) -> None:
        """Let worse backends wait for those that have got a slot for their first attempt, but not for those without."""
        desk, freed = self.desk, False
        for slots in self.sets.values():
            if slots.untried and not slots.leaving:
                if slots.connecting:
                    desk.await_first_attempt(slots)
                elif slots.awaited:
                    desk.await_no_more(slots)
                    freed = True
        if freed:
            desk.serve_line()

    def _note_forgotten(self, moment: float, planned_at: float) -> None:
        """Plan again from the moment on which a forgotten backend gets a slot, should nothing else give the occasion.

        When that moment had come already and no slot was to be had, the next release is the occasion.
        """
        if moment == self.forgotten_at:
            return
        self.forgotten_at = moment
        if self._forgotten_timer is not None:
            self._forgotten_timer.cancel()
            self._forgotten_timer = None
        if moment > planned_at:
            self._forgotten_timer = self.timers.at(moment, self._forgotten_due)

    def _forgotten_due(self) -> None:
        self._forgotten_timer = None
        self.plan_now()

    # Waiting until everything is connected.

    async def ready(self, timeout: float) -> None:
        """Wait until as many connections are up as the policy wants."""
        task = self.check_usable()
        if self._is_ready():
            return
        attempt = Attempt()
        attempt.asked, attempt.site = timeout, None
        self.desk.begin(attempt, task)
        future: asyncio.Future[Any] = self.loop.create_future()
        self._ready[future] = None
        self.desk.refresh()
        timer = self.timers.after(timeout, lambda: None if future.done() else future.set_result(diagnose(self)))
        try:
            given = await future
        finally:
            self._ready.pop(future, None)
            self.desk.refresh()
            if timer is not None:
                timer.cancel()
        if given is not None:
            raise given.error(attempt, "not ready")
        if self.state is not PoolState.RUNNING:
            raise self.ended_error()

    def _is_ready(self) -> bool:
        policy = self.policy
        if not policy.spares_wanted:
            return True
        current = [self.sets[name] for name in self.backends]
        wanted = self.desk.claimed + policy.spares_wanted
        reachable = len(current) * policy.max_slots_per_backend
        connected = sum(slots.unclaimed + slots.checking + slots.claimed for slots in current)
        return bool(current) and connected >= min(wanted, policy.max_slots, reachable)

    def tell_ready(self) -> None:
        """Look whether what ready() waits for has come: a connection more, a backend less, or a claim less."""
        if self._ready and self._is_ready():
            self.release_ready()

    @property
    def awaited(self) -> bool:
        """Whether somebody waits in ready()."""
        return bool(self._ready)

    def release_ready(self) -> None:
        """Wake whoever waits in ready()."""
        for future in tuple(self._ready):
            if not future.done():
                future.set_result(None)

    # Connections.

    def owner_of(self, connection: C) -> Slot[C] | None:
        """Give the slot that has this very connection."""
        return self.connections.get(id(connection))

    def forget(self, connection: C) -> None:
        """Note that a connection is closed, or not the pool's any more."""
        self.connections.pop(id(connection), None)

    def abort_connection(self, connection: C) -> None:
        """End a connection at once."""
        self.forget(connection)
        self.abort_detached(connection)

    def abort_detached(self, connection: C) -> None:
        """End a connection that has been left to its claimer."""
        if self.forked:
            return
        try:
            call_now(self.connector.abort, connection)
        except CallFailedError as failure:
            self.user_code_failed("abort()", failure.error)

    def seems_open(self, slot: Slot[C]) -> bool:
        """Ask the connector whether a connection is visibly dead."""
        if not self.desk.checks_closed:
            return True
        connection = slot.connection
        if connection is None:
            return False
        try:
            return not call_now(self.connector.is_closed, connection)
        except CallFailedError as failure:
            self.user_code_failed("is_closed()", failure.error)
            return False
        except BaseException:
            self.desk.settle(slot)
            raise

    def user_code_failed(self, what: str, error: BaseException) -> None:
        """Note an exception in user code that concerns nobody but its author."""
        logger.warning("pool %s: the connector's %s failed: %s", self.name, what, describe(error))

    # What can be seen.

    def emit(self, event: Event) -> None:
        """Tell the observer; what it raises is reported once and harms nothing."""
        observer = self.observer
        if observer is None:
            return
        outer, self.observing = self.observing, True
        try:
            call_now(observer, event)
        except CallFailedError as failure:
            if not self._observer_reported:
                self._observer_reported = True
                logger.error(
                    "pool %s: the observer raised, which is reported only once: %s", self.name, describe(failure.error)
                )
        except (KeyboardInterrupt, SystemExit) as stop:
            self._stop_program(stop)
        finally:
            self.observing = outer

    def _stop_program(self, stop: BaseException) -> None:
        """Raise it out of the loop's next turn: what the observer was told of is still under way."""

        def leave() -> None:
            raise stop

        if self.loop.is_closed():
            leave()
        self.loop.call_soon(leave, context=Context())

    def claims_out(self) -> int:
        """Count the claims that are out, on leaving backends too."""
        return sum(slots.claimed for slots in self.sets.values())

    def stats(self) -> PoolStats:
        """Take a snapshot."""
        sets = dict(sorted(self.sets.items()))
        return PoolStats(
            name=self.name,
            state=self.state,
            claims=self.claims(),
            waiting=self.desk.line.waiting,
            backends=MappingProxyType({name: slots.stats() for name, slots in sets.items()}),
            timeouts=self.desk.timeouts,
        )

    def claims(self) -> int:
        """Count the claims that have got their connection. Asked from whatever thread, it never counts backwards."""
        while True:
            departed, sets = self.departed_claims, tuple(self.sets.values())
            if departed == self.departed_claims:  # else a backend has gone between the two looks
                return departed + sum(slots.total_claims for slots in sets)

    def measure(self, bounds: tuple[float, ...]) -> None:
        """Count times from now on; those with other bounds are forgotten."""
        if self.desk.timing is None or self.desk.timing.bounds != bounds:
            self.desk.timing = Timing(bounds, self.claims())

    def timings(self) -> Timings | None:
        """Take a snapshot of the times; None when they are not counted."""
        timing = self.desk.timing
        if timing is None:
            return None
        while True:
            claims = self.claims()
            timings = timing.snapshot(claims)
            if claims == self.claims():  # else, in another thread, some have been served while it was taken
                return timings

    def ledger(self) -> Ledger:
        """List what is alive."""
        names = [life.name for life in self.tasks.tasks.values()]
        names += [f"qorb {self.name} on_acquire of slot {slot.id}" for slot in self.desk.acquiring.values()]
        return Ledger(
            tasks=tuple(names),
            timers=len(self.timers.alive),
            connections=len(self.connections),
            waiters=self.desk.line.waiting + len(self._ready),
            threads=len(self.threads.alive),
        )

    def _look_for_long_claims(self) -> None:
        """Log each claim that is held too long once; come back when the next one may be."""
        now = self.loop.time()
        limit = self.policy.long_claim_warning
        next_look = now + limit
        long: list[Slot[C]] = []
        for slots in self.sets.values():
            for slot in slots.slots:
                if slot.state is not CLAIMED or slot.warned_since == slot.since:
                    continue
                if slot.since + limit <= now:
                    long.append(slot)
                else:
                    next_look = min(next_look, slot.since + limit)
        self._long_claims_timer = self.timers.at(max(next_look, now + _LONG_CLAIMS_PAUSE), self._look_for_long_claims)
        for slot in long:  # now that all have been looked at: a handler of the log may change them, or raise
            if slot.state is CLAIMED and slot.since + limit <= now:
                slot.warned_since = slot.since
                held = describe_holder(slot, now)
                logger.warning("pool %s: slot %d to %s is claimed for %s", self.name, slot.id, slot.backend, held)

    # The end.

    def halt(self) -> None:
        """Let nothing begin any more: no claim, no task, no plan, no retry. Synchronous."""
        self.state = PoolState.TERMINATING
        self.tasks.closed = True
        for timer in (self._plan_timer, self._rebalance_timer, self._long_claims_timer, self._forgotten_timer):
            if timer is not None:
                timer.cancel()
        self._plan_timer = self._rebalance_timer = self._long_claims_timer = self._forgotten_timer = None
        for slots in self.sets.values():
            slots.cancel_timers()
        self.desk.close()
        self.release_ready()

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.state is PoolState.TERMINATED

    def ended(self) -> None:
        """Be over."""
        self.state = PoolState.TERMINATED
        self.timers.cancel_all()
        self.observer = None
        # In one stroke, without a call: no other thread finds the claims in neither or in both.
        self.departed_claims, self.sets = self.claims(), {}
        self.backends = {}
