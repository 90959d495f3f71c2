"""The slots of one backend: their tally, their backoff, their turn to be checked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qorb import events
from qorb._core.backoff import LEAST_PAUSE, Backoff
from qorb._core.failures import FailureWindow
from qorb._core.ranking import MAX_PENALTY, Ranked
from qorb._slot import CHECKING, CLAIMED, CONNECTING, RECYCLING, TERMINATED, UNCLAIMED, Slot, elsewhere
from qorb._tasks import logger
from qorb.errors import BackendUnfitError, ConnectError, describe, presentable
from qorb.stats import BackendStats

if TYPE_CHECKING:
    import asyncio

    from qorb._core.states import SlotState
    from qorb._engine import Engine
    from qorb._tasks import Timer
    from qorb.backend import Backend

C = TypeVar("C")

MAX_ATTEMPTS_IN_FLIGHT = 8
"""So many connects to one backend run side by side at the most: one that comes back must not be overrun."""
LEAST_LIFE = 0.5
"""Seconds; a connection that was used for nothing and is found closed at a greater age was of use all the same."""
_OTHER_ENDS: dict[type[events._SlotEvent], type[events._SlotFailure]] = {
    events.ConnectStart: events.ConnectFailed,
    events.HealthCheckStart: events.HealthCheckFailed,
    events.RecycleStart: events.RecycleFailed,
}
"""How what has started ends if it is not done."""
OFFLINE_BACKOFF_CAP = 5.0
"""Seconds between attempts at the most while nothing in the pool is online."""


class SlotSet(Ranked, Generic[C]):
    """The slots of one backend. Satisfies the planner's Holding and the ranking's Ranked."""

    __slots__ = (
        "_backoff_armed_for",
        "_backoff_timer",
        "_checking_slot",
        "_converting",
        "_failure_timer",
        "_given_up_until",
        "_penalty",
        "_waiting_to_connect",
        "acquire_backoff",
        "attempting",
        "awaited",
        "backend",
        "backoff",
        "bad_round",
        "checking",
        "connecting",
        "engine",
        "failures",
        "fresh_backoff",
        "idle",
        "last_attempt",
        "last_error",
        "last_error_text",
        "last_error_time",
        "leaving",
        "lost_at",
        "online",
        "since",
        "slots",
        "unfit_at",
        "untried",
    )

    def __init__(self, engine: Engine[C], backend: Backend) -> None:
        """Begin without slots."""
        super().__init__()
        policy = engine.policy
        self.engine = engine
        self.backend = backend
        self.slots: dict[Slot[C], None] = {}
        """All whose task has not ended."""
        self.idle: list[Slot[C]] = []
        """The unclaimed ones; the last is handed out first."""
        self.connecting = 0
        self.checking = 0
        """Health check or recycling."""
        self._penalty = 0
        self.attempting = 0
        self.online = False
        self.untried = True
        """No attempt has ended yet."""
        self.awaited = False
        """Worse backends wait for the end of its first attempt."""
        self.leaving = False
        self.since = engine.loop.time()
        self.last_attempt = -math.inf
        self.backoff = Backoff(*engine.backoff_limits)
        self.acquire_backoff = Backoff(*engine.backoff_limits)
        self.fresh_backoff = Backoff(*engine.backoff_limits)
        """One step for each round of connections that die young; over when one proves itself, not when one is made."""
        self.failures = FailureWindow(2.0 * policy.max_connection_backoff)
        self.last_error: BaseException | None = None
        self.last_error_text: str | None = None
        self.last_error_time = -math.inf
        self.lost_at = -math.inf
        """When an idle connection was found closed last, such that it did not count as a failure."""
        self.unfit_at = -math.inf
        """When the backend was found not to be what is wanted last."""
        self.bad_round = 0
        """How often a connection has failed that was made, or found good, after the failures before it."""
        self._waiting_to_connect: dict[Slot[C], None] = {}
        self._checking_slot: Slot[C] | None = None
        self._converting: Slot[C] | None = None
        """The slot that connects to a new address for the sake of one at an old address."""
        self._backoff_timer: Timer | None = None
        self._backoff_armed_for = math.inf
        self._given_up_until = -math.inf
        self._failure_timer: Timer | None = None

    # What the ranking and the planner read.

    @property
    def has_idle(self) -> bool:
        """Whether it has an idle connection."""
        return bool(self.idle)

    @property
    def unclaimed(self) -> int:
        """Idle slots."""
        return len(self.idle)

    @property
    def claimed(self) -> int:
        """Slots that are handed out."""
        return self.load - self._penalty

    @property
    def ending(self) -> int:
        """Slots that were told to end and are not gone yet."""
        return len(self.slots) - self.connecting - len(self.idle) - self.checking - self.load + self._penalty

    @property
    def next_attempt(self) -> float:
        """Not before this moment will a new attempt begin."""
        return max(self.backoff.not_before, self.acquire_backoff.not_before, self.fresh_backoff.not_before)

    @property
    def failing(self) -> bool:
        """Whether more slots would be in vain now: the last connects failed, or the connections were of no use."""
        if self.backoff.steps:
            return True
        if not self.acquire_backoff.steps and not self.fresh_backoff.steps:
            return False
        return self.next_attempt > self.engine.loop.time()

    # Slots come and go.

    def start(self, count: int) -> None:
        """Create so many slots."""
        for _ in range(count):
            self._start(Slot(self))

    def _start(self, slot: Slot[C]) -> None:
        self.slots[slot] = None
        self.connecting += 1
        self.engine.slots += 1
        self.engine.tasks.start(slot)

    def stop(self, count: int) -> None:
        """End so many slots gracefully: unconnected ones first, then the longest idle; never claimed ones."""
        backing_off = [slot for slot in self.slots if slot.state is CONNECTING and not slot.attempting]
        attempting = [slot for slot in self.slots if slot.state is CONNECTING and slot.attempting]
        idle = sorted(self.idle, key=_idle_since)
        checking = [slot for slot in self.slots if slot.state in (CHECKING, RECYCLING)]
        for slot in (backing_off + attempting + idle + checking)[:count]:
            slot.retire()

    def note_idle(self) -> None:
        """Note of every idle slot that it is idle by now: a release, which has to be quick, does not note when."""
        now = self.engine.loop.time()
        for slot in self.idle:
            if not _known_idle(slot):
                slot.idle_by = now

    def leave(self) -> None:
        """Take no more part: the backend has vanished. Claims stay usable; everything else ends."""
        self.leaving = True
        self.engine.desk.claimed -= self.claimed
        self.engine.desk.withdraw(self)
        self.cancel_timers()
        if self.online:
            self.engine.turned(self)
        for slot in tuple(self.slots):
            slot.retire()

    def come_back(self, backend: Backend) -> None:
        """Take part again: the backend reappeared before its last slot was gone."""
        self.leaving = False
        self.engine.desk.claimed += self.claimed
        self.since = self.engine.loop.time()
        old, self.backend = self.backend, backend
        if elsewhere(old, backend):
            self._start_over()
        for slot in self.slots:
            if slot.state is CLAIMED:
                slot.odd = slot.due or slot.stale or slot.revoked or not slot.proven
        if self.online:
            self.engine.turned(self)
        self.engine.desk.admit(self)
        self._weigh_failures()  # their timer was set aside

    def slot_ended(self, slot: Slot[C], task: asyncio.Task[None]) -> None:
        """Forget a slot whose task has ended."""
        self.slots.pop(slot, None)
        self.engine.slots -= 1
        if slot is self._converting:
            self.convert()
        self.engine.slot_gone(self, task)

    # The door.

    def moved(self, slot: Slot[C], old: SlotState, new: SlotState) -> None:
        """Keep the tally, the ranking and the observer up to date with one change of state."""
        self._count_out(slot, old)
        self._count_in(slot, new)
        online = bool(self.idle) or self.checking > 0 or self.claimed > 0
        turned = online is not self.online
        if turned:
            self._turn(online)
        if self.engine.observer is not None:
            self._observe_move(slot, old, new, turned)
        if new is CONNECTING or new is TERMINATED:
            self.pump()
        if CONNECTING in (old, new) and self.failing:
            self.engine.replan()  # it counts with the connections that it has
        elif new is CONNECTING and self.engine.desk.starved:
            self.engine.replan()  # another backend may have the slot, now that no connection is closed for it
        if slot is self._checking_slot and new is not CHECKING:
            self._checking_slot = None
            self.check_next()

    def _count_out(self, slot: Slot[C], old: SlotState) -> None:
        if old is CONNECTING:
            self.connecting -= 1
            self._waiting_to_connect.pop(slot, None)
        elif old is UNCLAIMED:
            # The one that is handed out stands last: it is not looked for.
            slot.place = len(self.idle) - 1 if self.idle[-1] is slot else self.idle.index(slot)
            del self.idle[slot.place]
        elif old is CLAIMED:
            self.load -= 1
            if not self.leaving:
                self.engine.desk.claimed -= 1
            self._improved()
        else:
            self.checking -= 1

    def _count_in(self, slot: Slot[C], new: SlotState) -> None:
        if new is CONNECTING:
            self.connecting += 1
        elif new is UNCLAIMED:
            place = slot.place if slot.place >= 0 else len(self.idle)
            self.idle.insert(min(place, len(self.idle)), slot)
            self._improved()
        elif new is CLAIMED:
            self.load += 1
            if not self.leaving:
                self.engine.desk.claimed += 1
        elif new is not TERMINATED:
            self.checking += 1

    def _improved(self) -> None:
        if self.idle and self.load < self.level:
            self.engine.desk.ranking.improve(self)

    def _turn(self, online: bool) -> None:  # noqa: FBT001 - the new value of a fact
        self.online = online
        if online:
            self.engine.desk.ranking.back_online(self)
        if not self.leaving:
            self.engine.turned(self)

    def _observe_move(self, slot: Slot[C], old: SlotState, new: SlotState, turned: bool) -> None:  # noqa: FBT001 - a fact
        """Tell the observer of a move, all of which is in the books by now, and whether the set went on- or offline."""
        engine, name = self.engine, self.backend.name
        engine.emit(events.SlotStateChange(engine.name, name, slot.id, old.value, new.value, self.stats()))
        if turned:
            kind = events.SlotSetOnline if self.online else events.SlotSetOffline
            engine.emit(kind(engine.name, name, bool(self.idle)))

    # Connecting: whose turn it is, and how long to wait after failures.

    def admit(self, slot: Slot[C]) -> bool:
        """Say whether the slot may attempt to connect now; if not, it is woken when it may."""
        if self.engine.tasks.closed:
            return False
        # One moment for both: if time passed between, the slot would have come too early, and no timer would wake it.
        now = self.engine.loop.time()
        if self._room(now) > 0:
            self._waiting_to_connect.pop(slot, None)
            return True
        self._waiting_to_connect[slot] = None
        self._arm_backoff_timer(now)
        return False

    def _room(self, now: float) -> int:
        """Say how many attempts may begin now: while the backend fails, one at a time probes it."""
        if self._admits_at > now:
            return 0
        if self.backoff.steps:
            return 0 if self.attempting else 1
        return MAX_ATTEMPTS_IN_FLIGHT - self.attempting

    def pump(self) -> None:
        """Wake as many of those that wait to connect as may begin now."""
        if self.engine.tasks.closed:
            return
        now = self.engine.loop.time()
        if not self._waiting_to_connect:
            if self.acquire_backoff.steps or self.fresh_backoff.steps:  # more slots are in vain only until that is over
                self._arm_backoff_timer(now)
            return
        room = self._room(now)
        for slot in tuple(self._waiting_to_connect)[: max(room, 0)]:
            slot.wake()
        if room <= 0:
            self._arm_backoff_timer(now)

    def _arm_backoff_timer(self, now: float) -> None:
        moment = self._admits_at
        if self.leaving or moment <= now:
            return
        if self._backoff_timer is not None:
            if self._backoff_armed_for <= moment:
                return
            self._backoff_timer.cancel()  # a pause that began later may end earlier: its length is drawn
        self._backoff_timer = self.engine.timers.at(moment, self._backoff_over)
        self._backoff_armed_for = moment

    @property
    def _admits_at(self) -> float:
        """No attempt begins before: when the planner thinks that the next may, or a moment after one was given up."""
        return max(self.next_attempt, self._given_up_until)

    def _backoff_over(self) -> None:
        self._backoff_timer = None
        self.pump()
        if not self.backoff.steps and (self.acquire_backoff.steps or self.fresh_backoff.steps):
            self.engine.replan()  # it is not failing any more

    def _rearm_backoff_timer(self) -> None:
        if self._backoff_timer is not None:
            self._backoff_timer.cancel()
            self._backoff_timer = None
        self.pump()

    def attempt_begins(self, slot: Slot[C]) -> int:
        """Note that a connect() begins; give the round it belongs to."""
        slot.attempting = True
        self.attempting += 1
        self.last_attempt = self.engine.loop.time()
        self.observe(events.ConnectStart, slot)
        return self.backoff.round

    def attempt_ended(self, slot: Slot[C]) -> None:
        """Note that a connect() is over, whatever way."""
        slot.attempting = False
        self.attempting -= 1
        self.pump()

    def attempt_given_up(self, slot: Slot[C]) -> None:
        """Note that a connect() was interrupted by us: neither good nor bad.

        The next one waits for a moment all the same: a connector whose connect() claims from its own pool is demand
        that goes when it is interrupted, and without a pause slots would be started and ended round and round in no
        time.
        """
        self._given_up_until = self.engine.loop.time() + LEAST_PAUSE
        self.observe_failure(events.ConnectFailed, slot, "given up: the slot ends or the backend moved")

    def attempt_succeeded(self, slot: Slot[C]) -> None:
        """Start the backoff over and let the others that wait go on."""
        if self.backoff.steps:
            self.engine.replan()  # it gets its share again
        self.backoff.succeeded()
        self.last_attempt = self.engine.loop.time()
        self.observe(events.ConnectDone, slot)
        self._rearm_backoff_timer()

    def attempt_failed(self, slot: Slot[C], began_in: int, error: BaseException) -> None:
        """Count a failed connect() and leave the backend alone for a while."""
        now = self.engine.loop.time()
        self.last_attempt = now
        self._failed(error)
        least, most = (error.min_backoff, error.max_backoff) if isinstance(error, ConnectError) else (0.0, math.inf)
        self.backoff.failed(began_in, now, min(self.engine.backoff_cap(), most), least)
        self.backoff.not_before = max(self.backoff.not_before, now + LEAST_PAUSE)
        self._tried()
        self.observe_failure(events.ConnectFailed, slot, self.last_error_text or "")
        self._rearm_backoff_timer()
        self.engine.attempt_failed(self)

    def _tried(self) -> None:
        if self.untried:
            self.untried = False
            self.engine.first_attempt_ended(self)

    def cap_backoff(self) -> None:
        """Wait no longer than the cap for the next attempt, now that nothing in the pool is online."""
        if self.engine.tasks.closed:
            return
        now = self.engine.loop.time()
        backoffs = (self.backoff, self.acquire_backoff, self.fresh_backoff)
        shortened = [backoff.shorten(now, OFFLINE_BACKOFF_CAP) for backoff in backoffs]
        if any(shortened):
            self._rearm_backoff_timer()

    # Checks: one at a time while others are idle, all together once one has failed.

    def check_next(self) -> None:
        """Begin the next check that is due, unless one is under way."""
        if self._checking_slot is not None or self.leaving or self.engine.tasks.closed:
            return
        for slot in tuple(self.idle):
            if slot.due and slot.state is UNCLAIMED and slot.check():
                self._checking_slot = slot
                return

    def check_failed(self, slot: Slot[C], error: BaseException) -> None:
        """Give the connection up and check the other idle ones at once, together."""
        self._failed(error)
        self.observe_failure(events.HealthCheckFailed, slot, self.last_error_text or "")
        slot.move(CONNECTING)
        self._check_others(slot)

    def _check_others(self, failed: Slot[C]) -> None:
        """Check the other idle connections now, together, for the sake of one that has failed.

        Those that were made, or found good, after the first of them failed are left alone: otherwise, while nothing
        passes, each failure would have the successors of the others checked, and drive them round and round.
        """
        if failed.good_round == self.bad_round:
            self.bad_round += 1
        for other in tuple(self.idle):
            if other.state is UNCLAIMED and other.good_round < self.bad_round:
                other.check()

    def recycle_failed(self, slot: Slot[C], error: BaseException) -> None:
        """Give the connection up; it counts as a failure whatever the outcome of the claim was."""
        if self._died_young(slot) and not self.engine.seems_open(slot):
            death = self._early_death(slot, "in its first claim")
            if not isinstance(error, BackendUnfitError):  # that says why
                error = death
        self._failed(error)
        self.observe_failure(events.RecycleFailed, slot, self.last_error_text or "")
        if slot.state is RECYCLING:  # is_closed() may have ended the pool
            slot.move(CONNECTING)
            if isinstance(error, BackendUnfitError):
                self._check_others(slot)

    def found_closed(self, slot: Slot[C]) -> None:
        """Replace an idle connection that is visibly dead, and any other idle one of this backend that is too.

        An old one at once: servers close what is idle for long, or are restarted. One that died young counts as a
        failed attempt to connect, and is replaced after a pause: a server that accepts and closes must not be overrun.
        """
        self._replace_closed(slot)
        for other in tuple(self.idle):
            if other.state is UNCLAIMED and not self.engine.seems_open(other) and other.state is UNCLAIMED:
                self._replace_closed(other)

    def _replace_closed(self, slot: Slot[C]) -> None:
        if slot.connected_at < self.unfit_at:
            pass  # the backend was found unfit meanwhile, and has been blamed for that
        elif self._died_young(slot):
            self._failed(self._early_death(slot, "before it was used"))
        else:
            self.lost_at = self.engine.loop.time()
            self.connection_proven(slot)
        slot.renew()

    def _died_young(self, slot: Slot[C]) -> bool:
        """Say whether a closed connection was of no use: not proven, nor older than the pause that such ones bring."""
        age = self.engine.loop.time() - slot.connected_at
        return not slot.proven and age < max(LEAST_LIFE, self.fresh_backoff.pause)

    def _early_death(self, slot: Slot[C], when: str) -> ConnectError:
        """Leave the backend alone for a while, and give the reason."""
        now = self.engine.loop.time()
        self.fresh_backoff.failed(slot.fresh_round, now, self.engine.backoff_cap(), LEAST_PAUSE)
        age = now - slot.connected_at
        return ConnectError(f"found closed within {age:.3g} s of connecting, {when}", self.backend.name)

    def connection_proven(self, slot: Slot[C]) -> None:
        """Note that a connection was of use; the first time that ends the backoff for those that die young."""
        if slot.proven:
            return
        slot.proven = True
        if self.fresh_backoff.steps and slot.fresh_round == self.fresh_backoff.round:
            self.fresh_backoff.succeeded()
            self._rearm_backoff_timer()
            self.engine.replan()

    def acquire_failed(self, slot: Slot[C], error: BaseException) -> None:
        """Give up a connection that on_acquire refused, and leave the backend alone for a while."""
        now = self.engine.loop.time()
        self._failed(error)
        self.acquire_backoff.failed(slot.acquire_round, now, self.engine.backoff_cap(), LEAST_PAUSE)
        slot.move(TERMINATED if self.leaving or not self.engine.desk.open else CONNECTING)
        if isinstance(error, BackendUnfitError) and slot.state is CONNECTING:
            self._check_others(slot)

    def acquire_worked(self) -> None:
        """Start the on_acquire backoff over."""
        if self.acquire_backoff.steps:
            self.acquire_backoff.succeeded()
            self._rearm_backoff_timer()
            self.engine.replan()

    # A backend that moved under the same name.

    def readdress(self, backend: Backend) -> None:
        """Take the backend's new values over; connections to an old address are replaced one at a time."""
        old, self.backend = self.backend, backend
        if (old.priority, old.weight) != (backend.priority, backend.weight):
            self.engine.desk.rerank(self)
        if elsewhere(old, backend):
            self._start_over()
            self._rearm_backoff_timer()
            for slot in tuple(self.slots):
                slot.redirect()
            self.convert()

    def _start_over(self) -> None:
        """Wait for nothing: what failed were attempts to reach, and connections to, an address that was left."""
        self.backoff.succeeded()
        self.acquire_backoff.succeeded()
        self.fresh_backoff.succeeded()

    def convert(self) -> None:
        """Replace the next idle connection to an old address, unless one is being replaced."""
        under_way = self._converting
        busy = under_way is not None and under_way.state is CONNECTING
        if busy or self.leaving or self.engine.tasks.closed:
            return
        self._converting = None
        old = next((slot for slot in self.idle if slot.stale), None)
        if old is None:
            return
        if self.engine.has_room(self):
            self._converting = Slot(self, replaces=old)
            self._start(self._converting)
        else:
            self._converting = old
            old.renew()

    def serve(self, slot: Slot[C]) -> None:
        """Note that the slot has become idle: it may have an old slot to relieve, or a waiting claim to serve."""
        replaced, slot.replaces = slot.replaces, None
        if replaced is not None and replaced.state in (UNCLAIMED, CHECKING, RECYCLING):
            replaced.retire()
            self.engine.replan()
        if slot is self._converting or slot.stale:
            self.convert()
        self._tried()  # not before: worse backends would be asked while this one is not idle
        self.engine.slot_idle()

    # Failures.

    def _failed(self, error: BaseException) -> None:
        now = self.engine.loop.time()
        self.last_error_text = describe(error)
        cause = presentable(error)
        if isinstance(cause, ConnectError) and cause.backend == self.backend.name:
            self.last_error = cause  # it says all that there is to say
        else:
            self.last_error = ConnectError(f"{self.backend.name}: {self.last_error_text}", self.backend.name)
            self.last_error.__cause__ = cause
        self.last_error_time = now
        if isinstance(error, BackendUnfitError):
            self.unfit_at = now
        self.failures.add(now)
        self._weigh_failures()

    def _weigh_failures(self) -> None:
        """Let the failures of the last window count against the backend, and look again when one leaves it."""
        penalty = min(self.failures.count(self.engine.loop.time()), MAX_PENALTY)
        self.load += penalty - self._penalty
        self._penalty = penalty
        self._improved()
        moment = self.failures.next_change()
        if moment is not None and self._failure_timer is None and not self.leaving:
            self._failure_timer = self.engine.timers.at(moment, self._failure_forgotten)

    def _failure_forgotten(self) -> None:
        self._failure_timer = None
        self._weigh_failures()

    def cancel_timers(self) -> None:
        """Set aside retries and the failures' expiry."""
        for timer in (self._backoff_timer, self._failure_timer):
            if timer is not None:
                timer.cancel()
        self._backoff_timer = self._failure_timer = None

    # What can be seen.

    def observe(self, kind: type[events._SlotEvent], slot: Slot[C]) -> None:
        """Tell the observer, if there is one."""
        if self.engine.observer is not None:
            slot.untold = _OTHER_ENDS.get(kind)
            self.engine.emit(kind(self.engine.name, slot.id, self.backend.name))

    def observe_failure(self, kind: type[events._SlotFailure], slot: Slot[C], reason: str) -> None:
        """Tell the observer and the log."""
        slot.untold = None
        logger.debug("%s: %s: %s", slot.name, kind.__name__, reason)
        if self.engine.observer is not None:
            self.engine.emit(kind(self.engine.name, slot.id, self.backend.name, reason))

    def stats(self) -> BackendStats:
        """Take a snapshot."""
        return BackendStats(
            backend=self.backend,
            online=self.online,
            connecting_slots=self.connecting,
            unclaimed_slots=len(self.idle),
            checking_slots=self.checking,
            claimed_slots=self.claimed,
            total_claims=self.total_claims,
            failures=self.failures.held(self.engine.loop.time()),
            last_error=self.last_error_text,
        )


def _known_idle(slot: Slot[Any]) -> bool:
    """Whether it was noted that the slot is idle since its last claim, or since it was connected."""
    return slot.idle_by > slot.since or (slot.holder is None and slot.idle_by == slot.since)


def _idle_since(slot: Slot[Any]) -> tuple[float, bool]:
    """For sorting idle slots, the longest idle first; those of which nothing was noted stand in order already."""
    return slot.idle_by if _known_idle(slot) else math.inf, slot.idle_by == slot.since
