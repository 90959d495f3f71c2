"""The life of one slot: connect, idle, checked, claimed, recycled, closed.

A slot runs in one task, and everything it does happens there, one thing at a time. Claims do not wake that task:
handing an idle connection out and taking a clean one back are moves that the desk makes by itself. The task wakes for
what takes time, and after every wait it looks at the slot's state, not at why the wait ended.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qorb import events
from qorb._core.backoff import LEAST_PAUSE
from qorb._core.states import SlotState, check_move
from qorb._tasks import Call, CallFailedError, Interrupted, logger
from qorb.connector import Outcome
from qorb.errors import ConnectError, describe

if TYPE_CHECKING:
    import weakref
    from collections.abc import Awaitable, Callable

    from qorb._slot_set import SlotSet
    from qorb._tasks import Timer
    from qorb.backend import Backend

C = TypeVar("C")
T = TypeVar("T")

CONNECTING = SlotState.CONNECTING
UNCLAIMED = SlotState.UNCLAIMED
CHECKING = SlotState.CHECKING
CLAIMED = SlotState.CLAIMED
RECYCLING = SlotState.RECYCLING
TERMINATED = SlotState.TERMINATED

_ids = itertools.count(1)

_BETWEEN_CALLS = {
    CONNECTING: "waiting to connect",
    UNCLAIMED: "idle",
    CHECKING: "about to be checked",
    CLAIMED: "claimed",
    RECYCLING: "about to be recycled",
    TERMINATED: "ending",
}
"""What a slot does while it has no call of the connector under way."""


class Slot(Generic[C]):
    """A commitment to hold one connection to a backend."""

    __slots__ = (
        "_closing",
        "_due_timer",
        "_expires",
        "_outcome",
        "_outgoing",
        "_stopped",
        "_waker",
        "acquire_round",
        "attempting",
        "backend",
        "call",
        "claim_id",
        "connected_at",
        "connection",
        "detached",
        "due",
        "fresh_round",
        "good_round",
        "holder",
        "id",
        "idle_by",
        "name",
        "odd",
        "owner",
        "place",
        "proven",
        "ready",
        "replaces",
        "revoked",
        "since",
        "site",
        "state",
        "untold",
        "warned_since",
    )

    def __init__(self, owner: SlotSet[C], replaces: Slot[C] | None = None) -> None:
        """Begin in CONNECTING. `replaces`: the slot that may go once this one is connected."""
        self.id = next(_ids)
        self.owner = owner
        self.backend: Backend = owner.backend
        """Where the connection goes; the set's backend may have moved since."""
        self.name = f"qorb {owner.engine.name} slot {self.id} {owner.backend.name}"
        self.state = CONNECTING
        self.connection: C | None = None
        self.ready: asyncio.Future[C] | None = None
        """A finished future that bears the connection: awaiting it costs less than a coroutine."""
        self.odd = False
        """A release must take the long way and look: the slot is due, stale, leaving, revoked, or not proven yet."""
        self.due = False
        """A check or the end of the connection's lifetime is due."""
        self.holder: weakref.ref[asyncio.Task[Any]] | None = None
        """The task that has, or last had, the connection; weak, so that a claim forgotten by its task is found."""
        self.since = 0.0
        """When the slot was claimed last, or connected."""
        self.idle_by = -math.inf
        """A moment at which the slot was seen idle; says something if that was after `since`."""
        self.site: str | None = None
        """Where it was claimed, when that is known."""
        self.warned_since = -math.inf
        """`since` of the claim that was logged for its length."""
        self.claim_id = 0
        """The claim that the observer was told it was handed to; 0 when he was told that it came back."""
        self.place = 0
        """Where among the idle connections it is to stand: the last is handed out first."""
        self.attempting = False
        self.acquire_round = self.good_round = 0
        """The round of the backend's on_acquire backoff in which the connection was made; and the round of its failing
        checks in which it was made, or passed a check or recycling last."""
        self.fresh_round = 0
        """The round of the backend's backoff for connections that die young in which it was made."""
        self.connected_at = 0.0
        self.proven = False
        """The connection served a claim, or passed a check, and was open afterwards."""
        self.replaces = replaces
        self.revoked = False
        self.detached = False
        self.call: Call[Any] | None = None
        self.untold: type[events._SlotFailure] | None = None
        """What the observer has to be told if what it was told the start of comes to no other end."""
        self._outgoing: C | None = None
        """A connection that is to be closed before anything else."""
        self._outcome = Outcome.CLEAN
        self._closing = False
        self._stopped = False
        self._waker: asyncio.Future[None] | None = None
        self._due_timer: Timer | None = None
        self._expires = math.inf

    # The door: every change of state goes through here (the desk's two hot moves are written out in claim.py).

    def move(self, new: SlotState) -> None:
        """Change state; the set takes note, and the slot's task wakes up."""
        old = self.state
        check_move(old, new)
        self.state = new
        if new is CONNECTING or new is TERMINATED:
            self._let_go()
        self.owner.moved(self, old, new)
        self.wake()

    def _let_go(self) -> None:
        """Take the connection out of service; the slot's task closes it."""
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None
        if self.connection is not None and not self.detached:
            self._outgoing, self.connection, self.ready = self.connection, None, None
        self.odd = self.due = False

    # What others ask for.

    def retire(self) -> None:
        """End gracefully. A claimed slot ends when it is released."""
        if self.state is CLAIMED:
            self.odd = True
        elif self.state is not TERMINATED:
            self.move(TERMINATED)
            if self.call is not None and not self._closing:
                self.call.interrupt()

    def stop(self) -> None:
        """End at once: nothing is waited out, the connection is aborted. A claim that is still out is revoked."""
        self._stopped = True
        if self.state is CLAIMED:
            self._revoke()
        if self.state is not TERMINATED:
            self.move(TERMINATED)
        if self.call is not None:
            self.call.interrupt()
        else:
            self._abort_outgoing()
        self.wake()

    def _revoke(self) -> None:
        self.revoked = True
        self.owner.engine.desk.handed_back(self)

    def detach(self) -> None:
        """Leave the claimed connection to its claimer, who aborts it on release; the slot ends."""
        self.detached = True
        self.owner.engine.connections.pop(id(self.connection), None)
        self.owner.engine.threads.leave(self.connection)
        if self.holder is not None:  # otherwise its claimer has not come for it yet
            self.owner.engine.desk.handed_back(self)  # the observer may release it at once
        self.move(TERMINATED)

    def redirect(self) -> None:
        """Note that the backend's address changed: an attempt to reach the old one is given up."""
        if self.state is not CONNECTING:
            self.odd = self.state is not TERMINATED
        elif self.attempting and self.call is not None:
            self.call.interrupt()

    @property
    def stale(self) -> bool:
        """Whether the connection goes to an address that the backend has left."""
        return elsewhere(self.backend, self.owner.backend)

    def renew(self) -> None:
        """Close the idle connection and open another."""
        self.move(CONNECTING)

    def fall_due(self) -> None:
        """Note that a check, or the end of the connection's lifetime, is due."""
        self._due_timer = None
        self.due = self.odd = True  # whoever claims it before its check begins must not return it without a look
        if self.state is UNCLAIMED:
            self.owner.check_next()

    def check(self) -> bool:
        """Leave the idle ones to be checked; False when it is replaced at once: too old, or visibly dead."""
        if self.too_old:
            self.renew()
            return False
        fit = self.owner.engine.seems_open(self)
        if self.state is not UNCLAIMED:  # is_closed() has made calls of its own, and the slot went another way
            return False
        if not fit:
            self.owner.found_closed(self)
            return False
        self.owner.note_idle()  # while it is checked it is not among the idle ones
        self.move(CHECKING)
        return True

    @property
    def too_old(self) -> bool:
        """Whether the connection has outlived max_lifetime."""
        return self.owner.engine.loop.time() >= self._expires

    def recycle(self, outcome: Outcome) -> None:
        """Make the released connection fit for the next claim."""
        self._outcome = outcome
        self.move(RECYCLING)

    # The life.

    async def live(self) -> None:
        """Live until TERMINATED and closed."""
        task = asyncio.current_task(self.owner.engine.loop)
        try:
            while self.state is not TERMINATED or self._outgoing is not None:
                await self._next_stage()
                self._tell_end()
                if task is not None and task.cancelling():  # user code swallowed a cancellation that was not ours
                    raise asyncio.CancelledError
        except (KeyboardInterrupt, SystemExit):
            self.emergency_exit()  # the loop stops now: nobody may come by later to settle the slot
            raise

    def _tell_end(self) -> None:
        """Tell the observer of what was neither good nor bad that it is over."""
        if self.untold is not None:
            self.owner.observe_failure(self.untold, self, "given up: the slot ends or the backend moved")

    async def _next_stage(self) -> None:
        if self._outgoing is not None:
            await self._close()
        elif self.state is CONNECTING:
            await self._connect()
        elif self.state is CHECKING:
            await self._check()
        elif self.state is RECYCLING:
            await self._recycle()
        else:
            await self._pause()

    async def _pause(self) -> None:
        self._waker = self.owner.engine.loop.create_future()
        try:
            await self._waker
        finally:
            self._waker = None

    def wake(self) -> None:
        if self._waker is not None and not self._waker.done() and not self.owner.engine.loop.is_closed():
            self._waker.set_result(None)

    def _prepare(self, function: Callable[..., Awaitable[T]], *arguments: object) -> Call[T]:
        if self.owner.engine.forked:
            raise Interrupted
        self.call = call = Call(self.owner.engine.timers, function, *arguments)
        return call

    async def _ask(self, function: Callable[..., Awaitable[T]], *arguments: object, within: float) -> T:
        try:
            return await self._prepare(function, *arguments).within(within)
        finally:
            self.call = None

    async def _open(self, backend: Backend) -> C:
        """Connect. What a connect() that did not listen returns after its time is a connection all the same."""
        engine = self.owner.engine
        try:
            return await self._prepare(engine.connector.connect, backend).within_or_later(engine.policy.connect_timeout)
        finally:
            self.call = None

    async def _connect(self) -> None:
        owner, engine = self.owner, self.owner.engine
        if not owner.admit(self):
            await self._pause()
            return
        backend = self.backend = owner.backend
        attempt = owner.attempt_begins(self)
        began = engine.loop.time()
        try:
            connection = await self._open(backend)
            if self.state is CONNECTING:
                self._adopt(connection, engine.loop.time() - began)
            elif engine.owner_of(connection) is None:
                self._outgoing = connection  # told to end meanwhile
        except Interrupted:
            owner.attempt_given_up(self)
        except CallFailedError as failure:
            owner.attempt_failed(self, attempt, failure.error)
        finally:
            owner.attempt_ended(self)

    def _adopt(self, connection: C, took: float) -> None:
        """Take a new connection, made in so many seconds, into service. Raises CallFailedError when it is none."""
        owner, engine = self.owner, self.owner.engine
        if connection is None:
            raise CallFailedError(ConnectError("connect() returned None instead of a connection", self.backend.name))
        other = engine.owner_of(connection)
        if other is not None:
            raise CallFailedError(
                ConnectError(
                    f"connect() returned a connection that is in use already, by slot {other.id}; "
                    "every call must open another",
                    self.backend.name,
                )
            )
        engine.connections[id(connection)] = self
        if self.stale:
            self._outgoing = connection
            return
        self.connection = connection
        fit = engine.seems_open(self)
        if self.state is not CONNECTING:  # is_closed() has ended the slot, and the connection with it
            return
        if not fit:  # a failure, with a pause: otherwise who waits would drive it round and round
            self.connection, self._outgoing = None, connection
            raise CallFailedError(
                ConnectError("connect() returned a connection that is closed already", self.backend.name)
            )
        self.ready = engine.loop.create_future()
        self.ready.set_result(connection)
        owner.note_idle()
        self.since = self.idle_by = engine.loop.time()
        self.holder = None
        self.place = 0
        self.acquire_round = owner.acquire_backoff.round
        self.fresh_round = owner.fresh_backoff.round
        self.connected_at = self.since
        self.good_round = owner.bad_round
        self.proven = False
        lifetime = engine.policy.max_lifetime * (1 - 0.1 * engine.rng.random())
        self._expires = self.since + max(lifetime, LEAST_PAUSE)  # the clock may not tell a shorter one from none
        self.set_due_timer()
        if engine.desk.timing is not None:
            engine.desk.timing.connect.add(took)
        owner.attempt_succeeded(self)
        self.move(UNCLAIMED)
        owner.serve(self)

    def set_due_timer(self) -> None:
        """Wait for the next check, or for the end of the connection's lifetime."""
        engine = self.owner.engine
        pause = max(engine.policy.health_interval, LEAST_PAUSE) + engine.rng.random() * _finite(engine.policy.spread)
        moment = min(engine.loop.time() + pause, self._expires)
        self.due = False
        if self._due_timer is not None:  # checked before its time, because another check had failed
            self._due_timer.cancel()
        self.odd = self.stale or not self.proven
        self._due_timer = engine.timers.at(moment, self.fall_due)

    async def _check(self) -> None:
        owner, engine = self.owner, self.owner.engine
        owner.observe(events.HealthCheckStart, self)
        try:
            await self._ask(engine.connector.validate, self.connection, within=engine.policy.health_check_timeout)
        except Interrupted:
            pass
        except CallFailedError as failure:
            if self.state is CHECKING:
                owner.check_failed(self, failure.error)
        else:
            owner.observe(events.HealthCheckDone, self)
            self._found_good()
        if self.state is CHECKING:
            self.set_due_timer()
            self.move(UNCLAIMED)
            owner.serve(self)

    async def _recycle(self) -> None:
        owner, engine = self.owner, self.owner.engine
        owner.observe(events.RecycleStart, self)
        try:
            await self._ask(
                engine.connector.on_recycle, self.connection, self._outcome, within=engine.policy.health_check_timeout
            )
        except Interrupted:
            pass
        except CallFailedError as failure:
            if self.state is RECYCLING:
                owner.recycle_failed(self, failure.error)
        else:
            owner.observe(events.RecycleDone, self)
            self._found_good()
        if self.state is RECYCLING:
            if self.stale or self.too_old:
                self.renew()
            else:
                self.place = -1
                if self._due_timer is None:
                    self.set_due_timer()
                self.move(UNCLAIMED)
                owner.serve(self)

    def _found_good(self) -> None:
        self.good_round = self.owner.bad_round
        self.owner.connection_proven(self)

    async def _close(self) -> None:
        """Close the outgoing connection: gracefully, or at once after stop()."""
        engine = self.owner.engine
        connection = self._outgoing
        if connection is None:
            return
        self._closing = True
        try:
            if not self._stopped:
                await self._ask(engine.connector.close, connection, within=engine.policy.close_timeout)
                engine.forget(connection)
                self._outgoing = None
        except Interrupted:
            pass
        except CallFailedError as failure:
            logger.debug("%s: close() failed: %s", self.name, describe(failure.error))
        finally:
            self._closing = False
        if self._outgoing is not None:
            self._abort_outgoing()

    def _abort_outgoing(self) -> None:
        connection, self._outgoing = self._outgoing, None
        if connection is not None:
            self.owner.engine.abort_connection(connection)

    # The end.

    def settle(self, task: asyncio.Task[None]) -> None:
        """Give back whatever is still held; the task has ended."""
        self._tell_end()
        self.emergency_exit()
        self.owner.slot_ended(self, task)

    def emergency_exit(self) -> None:
        """End here and now, whatever is under way."""
        self._stopped = True
        if self.state is CLAIMED:
            self._revoke()
        if self.state is not TERMINATED:
            self.move(TERMINATED)
        self._abort_outgoing()

    def describe(self) -> str:
        """Say what is under way: the call, for how long, where it waits."""
        return f"{self.name}: {self.call.describe() if self.call is not None else _BETWEEN_CALLS[self.state]}"


def elsewhere(one: Backend, other: Backend) -> bool:
    """Whether connections to the one are none to the other."""
    return (one.address, one.server_name) != (other.address, other.server_name)


def _finite(seconds: float) -> float:
    return 0.0 if math.isinf(seconds) else seconds
