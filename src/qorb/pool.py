"""Pool: connections to a service, over all its backends.

What runs behind it is in _engine.py; what a claim does is in claim.py and _desk.py; how it ends in _termination.py.
"""

from __future__ import annotations

import random
import threading
import warnings
from contextvars import Context
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeVar

from qorb._diagnosis import explain
from qorb._engine import Engine, terminated_error
from qorb._home import Unique
from qorb._look import explain_unopened
from qorb._timing import BOUNDS, Timing, checked_bounds
from qorb.claim import ClaimRequest, call_site
from qorb.companions import Companion
from qorb.connector import Connector
from qorb.errors import PoolError, PoolNotStartedError, check_name, kind_of, shown
from qorb.events import check_observer
from qorb.policy import Policy
from qorb.resolver import Resolver
from qorb.stats import Ledger, PoolState, PoolStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qorb._desk import Desk
    from qorb.events import Observer
    from qorb.explanation import Explanation
    from qorb.stats import Timings

C = TypeVar("C")

_DEFAULT_POLICY = Policy()


class Pool(Unique, Generic[C]):
    """Connections to a service, over all its backends. Belongs to one event loop.

    `async with Pool("orders", resolver, connector) as pool:` starts it and terminates it; claims are made with
    `async with pool.claim() as connection:`. Creating a pool starts nothing and needs no loop.
    """

    __slots__ = (
        "__weakref__",
        "_bounds",
        "_connector",
        "_desk",
        "_engine",
        "_observer",
        "_resolver",
        "_rng",
        "_state",
        "name",
        "policy",
    )

    def __init__(
        self,
        name: str,
        resolver: Resolver,
        connector: Connector[C],
        policy: Policy = _DEFAULT_POLICY,
        *,
        observer: Observer | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Take what the pool is made of; start nothing.

        `observer` is called with every event (qorb.events); `rng` is where all chance comes from. Raises TypeError for
        an argument that is not what it should be, ValueError for a name that is empty, not printable or longer than 512
        characters.
        """
        self._engine: Engine[C] | None = None
        self._desk: Desk[C] | None = None
        self._state = PoolState.NEW
        self._bounds: tuple[float, ...] | None = None
        _check_type("name", name, str)
        check_name("a pool's name", name)
        _check_type("resolver", resolver, Resolver)
        _check_type("connector", connector, Connector)
        _check_type("policy", policy, Policy)
        if observer is not None:
            check_observer(observer)
        if rng is not None:
            _check_type("rng", rng, Random)
        self.name: str = name
        self.policy: Policy = policy
        self._resolver = resolver
        self._connector = connector
        self._observer = observer
        self._rng = rng if rng is not None else random.Random()

    def __repr__(self) -> str:
        """Name the pool and its state; nothing that could be a secret."""
        return f"<qorb.Pool {self.name!r} {self.state.value}>"

    @property
    def connector(self) -> Connector[C]:
        """What makes its connections."""
        return self._connector

    @property
    def state(self) -> PoolState:
        """Where the pool is in its life."""
        return self._engine.state if self._engine is not None else self._state

    async def start(self) -> None:
        """Start: from now on the pool belongs to the running loop. Idempotent; does not wait for connections.

        Never suspends, so no cancellation comes in between. Raises PoolTerminatedError when the pool is ending or has
        ended, WrongLoopError and PoolForkedError when it was started elsewhere.
        """
        engine = self._engine
        if engine is not None:
            engine.check_usable()
            return
        if self._state is not PoolState.NEW:
            raise terminated_error(self.name, self._state)
        engine = Engine(self.name, self._resolver, self._connector, self.policy, self._observer, self._rng)
        self._engine, self._desk = engine, engine.desk
        if self._bounds is not None:
            engine.measure(self._bounds)
        engine.start()

    async def __aenter__(self) -> Self:
        """Start, as start() does: without suspending."""
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Terminate; an exception of the block stays the primary one.

        Cancelled meanwhile it raises CancelledError, and the termination goes on.
        """
        try:
            await self.terminate()
        except PoolError as error:
            primary = exc[1]
            if not isinstance(primary, BaseException):
                raise
            primary.add_note(f"and pool {self.name} could not be terminated: {error}")

    async def ready(self, *, timeout: float | None = None) -> None:
        """Wait until the spares that the policy wants are connected.

        That is min(claimed + spares_wanted, max_slots, backends x max_slots_per_backend) connections. `timeout` in
        seconds, Policy.claim_timeout by default. Raises NoBackendsError, NoBackendsOnlineError or AllClaimsUsedError
        when they are not there in time, PoolTerminatedError when the pool ends meanwhile, PoolNotStartedError,
        WrongLoopError, PoolForkedError, and ValueError for a negative timeout or NaN. Cancellation changes nothing.
        """
        _check_duration("timeout", timeout)
        await self._running_desk().engine.ready(self.policy.claim_timeout if timeout is None else timeout)

    def claim(self, *, timeout: float | None = None) -> ClaimRequest[C]:
        """Ask for a connection: `async with pool.claim() as connection:` or `claim = await pool.claim()`.

        `timeout` in seconds is for all of it: waiting, on_acquire, retries. None: Policy.claim_timeout; 0: only what is
        at hand. Nothing happens until the request is awaited or entered; what can be raised then stands there. Raises
        ValueError for a negative timeout or NaN.
        """
        if timeout is not None:
            _check_duration("timeout", timeout)
        request: ClaimRequest[C] = ClaimRequest()
        request.pool = self
        request.asked = timeout
        request.slot = request.future = None
        desk = self._desk
        request.site = call_site() if desk is not None and desk.tracing else None
        return request

    async def terminate(
        self,
        *,
        grace: float = 5.0,
        held: Literal["revoke", "detach"] = "revoke",
        timeout: float | None = None,
    ) -> None:
        """End the pool. When this returns, nothing of the pool is running any more.

        New claims are refused and waiting ones failed at once. Claims that are out may come back for `grace` seconds;
        then everything is stopped: "revoke" aborts the connections of claims that are still out, "detach" leaves them
        usable until they are released. Raises TerminationError, with what is left, when `timeout` seconds are not
        enough; calling again goes on waiting. Concurrent callers return together. Cancelling a caller does not stop the
        termination. Idempotent. Called from a task of the pool itself it ends in CancelledError. Raises WrongLoopError
        and PoolForkedError elsewhere than where the pool was started, ValueError for an argument that is none of these.
        """
        _check_duration("grace", grace)
        _check_duration("timeout", timeout)
        if held not in ("revoke", "detach"):
            raise ValueError(f"held must be 'revoke' or 'detach', not {held!r}")
        engine = self._engine
        if engine is None:
            self._state = PoolState.TERMINATED
        elif engine.state is not PoolState.TERMINATED:
            await engine.termination.terminate(grace, held, timeout)
        elif engine.forked:
            engine.check_place()

    def abort(self) -> None:
        """End the pool here and now, for emergencies: every connection is aborted, every task told to stop.

        Synchronous and never waits; needs no running loop, not even an open one. What the tasks still have to do
        they do as soon as the loop runs again. May be called from any thread. In an observer, which is told of things
        while they are under way, it takes effect in the next turn of the loop. Raises PoolForkedError in a child.
        """
        engine = self._engine
        if engine is None:
            self._state = PoolState.TERMINATED
        elif engine.forked:
            engine.check_place()
        elif threading.get_ident() != engine.desk.thread and engine.loop.is_running():
            engine.loop.call_soon_threadsafe(engine.termination.abort, context=Context())
        else:
            engine.termination.abort()

    def stats(self) -> PoolStats:
        """Take a snapshot of the numbers. Raises PoolForkedError in a child process."""
        engine = self._engine
        if engine is None:
            return PoolStats(self.name, self._state, 0, 0, MappingProxyType({}))
        engine.home.check_process()
        return engine.stats()

    def measure(self, bounds: Iterable[float] = BOUNDS) -> None:
        """Count from now on how long claims wait, how long they are held, and how long connecting takes.

        `bounds`: the upper bounds of the histograms' buckets, in seconds, growing. Called again with the same ones it
        changes nothing, with others it begins anew. May be called before the start. A claim costs some tenths of a
        microsecond more; without it, nothing but a test. Raises ValueError or TypeError for bounds that are none,
        PoolForkedError in a child process.
        """
        self._bounds = checked = checked_bounds(bounds)
        if self._engine is not None:
            self._engine.home.check_process()
            self._engine.measure(checked)

    def timings(self) -> Timings | None:
        """Take a snapshot of what took how long; None without measure(). Raises PoolForkedError in a child process."""
        engine = self._engine
        if engine is None:
            return None if self._bounds is None else Timing(self._bounds, 0).snapshot(0)
        engine.home.check_process()
        return engine.timings()

    def ledger(self) -> Ledger:
        """List everything of the pool that is alive right now. Raises PoolForkedError in a child process."""
        engine = self._engine
        if engine is None:
            return Ledger((), 0, 0, 0, 0)
        engine.home.check_process()
        return engine.ledger()

    def explain(self) -> Explanation:
        """Say why claims are served or not: who holds the connections, who waits, how the backends stand, and the plan.

        `print(pool.explain())` is for people. In whatever state the pool is; raises PoolForkedError in a child process,
        and nothing else. May be called from any thread: in another than the pool's, what is told together may be of
        moments that differ a little. Takes microseconds for each slot and each backend, and changes nothing.
        """
        engine = self._engine
        if engine is None:
            return explain_unopened(self.name, self._state, self.policy)
        engine.home.check_process()
        return explain(engine)

    def accompany(self, companion: Companion) -> Callable[[], None]:
        """Have something live beside the pool, in a task of the pool's, and end with it.

        The pool tells it when there are other backends, and to stop when all else of the pool has ended; terminate()
        waits for it. Gives a function that tells it to stop sooner, from the pool's loop; a second call of that does
        nothing. Raises PoolNotStartedError, PoolTerminatedError when the pool is ending or has ended, WrongLoopError
        and PoolForkedError, and TypeError for what is no Companion.
        """
        _check_type("companion", companion, Companion)
        return self._running_desk().engine.accompany(companion).stop

    def _running_desk(self) -> Desk[C]:
        """Give the desk, or raise why there is none. For claims."""
        desk = self._desk
        if desk is not None:
            return desk
        if self._state is PoolState.TERMINATED:
            raise terminated_error(self.name, self._state)
        raise PoolNotStartedError(
            f"pool {self.name} has not been started; use `async with pool:` or `await pool.start()`", pool=self.name
        )

    def __del__(self) -> None:
        """End what was dropped without terminate(), and say so."""
        engine = getattr(self, "_engine", None)
        if engine is None or engine.forked or engine.over:
            return
        closed = engine.loop.is_closed()
        if not closed:
            if engine.state is not PoolState.RUNNING:
                return  # the termination goes on
            try:
                # Garbage is collected anywhere: in another thread, or in the midst of a move.
                # Anybody's code is under way then: its context is none of the pool's business, and must not be kept.
                engine.loop.call_soon_threadsafe(engine.termination.abort, context=Context())
            except RuntimeError:  # the loop was closed at this very moment
                closed = True
        if closed:
            engine.termination.abort()
        warnings.warn(
            f"unterminated pool {self.name}; use `async with` or `await pool.terminate()`",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )


def _check_type(what: str, value: object, wanted: type) -> None:
    if not isinstance(value, wanted):
        raise TypeError(f"{what} must be a {wanted.__name__}, not {kind_of(value)}")


def _check_duration(what: str, seconds: float | None) -> None:
    if seconds is None:
        return
    try:
        # NaN is not; True would be a second, but nobody means that.
        usable = isinstance(seconds, int | float) and not isinstance(seconds, bool) and float(seconds) >= 0
    except OverflowError:
        usable = False
    if not usable:
        raise ValueError(f"{what} must be a number of seconds, 0 or more (math.inf: for ever), not {shown(seconds)}")
