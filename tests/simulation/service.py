"""The world outside the pool: a service that keeps account of how it is treated, and a resolver that talks nonsense."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qorb import Backend, Connector, Outcome, PoolTerminatedError, Resolver
from qorb.testing import FakeConnection, FakeConnector, block
from tests.simulation.laws import BrokenError, Law

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qorb.testing._connection import Call
    from tests.simulation.plan import Plan

OFFLINE_CAP = 5.0
"""Seconds: the longest pause while nothing in the pool is online."""


class Odd(BaseException):
    """An exception that `except Exception` does not catch."""


class UnprintableError(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def error(kind: str) -> BaseException:
    """Make an exception as user code might raise it."""
    makers: dict[str, Callable[[], BaseException]] = {
        "refused": lambda: ConnectionRefusedError("postgres://user:canary@host refused"),
        "value": lambda: ValueError("password=canary is wrong"),
        "base": lambda: Odd("time is over"),
        "cancelled": asyncio.CancelledError,
        "timeout": TimeoutError,
        "unprintable": UnprintableError,
        "ours": lambda: PoolTerminatedError("another pool is terminated"),
    }
    return makers[kind]()


@dataclass
class _Pace:
    """What is known of the attempts to connect to one backend."""

    address: tuple[Any, ...]
    round: int = 0
    failed_rounds: int = 0
    not_before: float = -math.inf


class Pace:
    """The law of backoff, told from outside: how soon a backend may be tried again after failures.

    It never asks for more than is promised: what it cannot see it takes for a reason to try at once.
    """

    def __init__(self, policy: dict[str, float]) -> None:
        self._least = policy["min_connection_backoff"]
        self._most = min(policy["max_connection_backoff"], OFFLINE_CAP)
        self._of: dict[str, _Pace] = {}

    def changed(self, backends: Iterable[Backend]) -> None:
        """Start over for those that vanished or moved: their failures were those of another place."""
        addresses = {one.name: (*one.address, one.server_name) for one in backends}
        for name, pace in list(self._of.items()):
            if addresses.get(name) != pace.address:
                del self._of[name]

    def begins(self, backend: Backend, now: float) -> tuple[_Pace, int]:
        """Note that an attempt begins; raise when it comes too soon."""
        address = (*backend.address, backend.server_name)
        pace = self._of.get(backend.name)
        if pace is None or pace.address != address:
            pace = self._of[backend.name] = _Pace(address)
        if now < pace.not_before - 1e-9:
            raise BrokenError(
                f"an attempt to reach {backend.name} at {now:.6f}, after {pace.failed_rounds} failed rounds; "
                f"not allowed before {pace.not_before:.6f}",
                Law.PACE,
            )
        return pace, pace.round

    def failing(self, name: str) -> bool:
        """Say whether the last round of attempts to reach that backend failed."""
        return name in self._of and self._of[name].failed_rounds > 0

    def succeeded(self, pace: _Pace) -> None:
        pace.round += 1
        pace.failed_rounds = 0
        pace.not_before = -math.inf

    def failed(self, pace: _Pace, began_in: int, now: float) -> None:
        if began_in != pace.round:
            return
        pace.round += 1
        pace.failed_rounds += 1
        pause = min(self._least * 2.0 ** min(pace.failed_rounds - 1, 100), self._most)
        pace.not_before = now + pause / 2


class Service(FakeConnector):
    """A FakeConnector that knows the law of backoff and when its server closed what."""

    def __init__(self, plan: Plan, report: Callable[[BaseException], None]) -> None:
        super().__init__(latency=plan.latency)
        self.pace = Pace(plan.policy)
        self.dropped_at: dict[int, float] = {}
        self.failed: Counter[str] = Counter()
        """What may count as a failure, by backend: calls that raised, gave nonsense or were deaf, dead ones found."""
        self.found_dead = 0
        self._closed_late: set[int] = set()
        """Connections whose close() did not listen: it may end well after its time, and the pool cannot tell."""
        self.refused = 0
        """Calls of on_acquire that raised, and were not cancelled."""
        self.dirty: set[int] = set()
        """Connections that were left in disorder by whoever had them; the books say which."""
        self.excused = False
        """abort() may be called a second time: it raises, which leaves open whether it has worked."""
        self._report = report
        self._known: set[int] = set()

    def drop(self, backend: str | None = None) -> int:
        now = asyncio.get_running_loop().time()
        for connection in self.connections:
            if backend in (None, connection.backend.name):
                self.dropped_at.setdefault(connection.id, now)
        return super().drop(backend)

    async def connect(self, backend: Backend) -> FakeConnection:
        loop = asyncio.get_running_loop()
        try:
            pace, began_in = self.pace.begins(backend, loop.time())
        except BrokenError as broken:
            self._report(broken)
            raise
        try:
            connection = await super().connect(backend)
        except Exception:
            self.pace.failed(pace, began_in, loop.time())
            raise
        if connection is None or connection.id in self._known:
            self.pace.failed(pace, began_in, loop.time())
            self.failed[backend.name] += 1
        else:
            self._known.add(connection.id)
            self.pace.succeeded(pace)
        return connection

    async def on_recycle(self, connection: FakeConnection, outcome: Outcome) -> None:
        if outcome is Outcome.CLEAN and connection.id in self.dirty:
            self._report(BrokenError(f"connection {connection.id} is dirty and recycled as clean", Law.FITNESS))
        await super().on_recycle(connection, outcome)

    def abort(self, connection: FakeConnection) -> None:
        if connection.id not in self._unclosed and connection.id not in self._closed_late and not self.excused:
            self._report(BrokenError(f"connection {connection.id} is aborted and was closed already", Law.CALLS))
        super().abort(connection)

    async def _take_time(self, call: Call) -> None:
        deaf = self._finds("deaf", call) is not None
        self.failed[call.backend.name] += deaf
        if deaf and call.operation == "close" and call.connection is not None:
            self._closed_late.add(call.connection.id)
        await super()._take_time(call)

    def _land(self, call: Call) -> None:
        super()._land(call)
        if call.raised is not None:
            self.failed[call.backend.name] += 1
            self.refused += call.operation == "on_acquire" and not issubclass(call.raised, asyncio.CancelledError)


class Manners:
    """Which synchronous parts of user code raise at present, and what."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def mind(self, method: str) -> None:
        """Raise if that method is to raise now."""
        kind = self.of.get(method)
        if kind is not None:
            raise error(kind)


class _Front(Connector[FakeConnection]):
    """A connector that has of its own only what it must; what else is wanted is added by `front`."""

    def __init__(self, service: Service, manners: Manners, recycles: str) -> None:
        self.service = service
        self.manners = manners
        self.recycles = recycles

    async def connect(self, backend: Backend) -> FakeConnection:
        return await self.service.connect(backend)

    def abort(self, connection: FakeConnection) -> None:
        self.service.excused = self.service.excused or "abort" in self.manners.of
        self.service.abort(connection)
        self.manners.mind("abort")


async def _validate(self: _Front, connection: FakeConnection) -> None:
    await self.service.validate(connection)


async def _on_acquire(self: _Front, connection: FakeConnection) -> None:
    await self.service.on_acquire(connection)


async def _on_recycle(self: _Front, connection: FakeConnection, outcome: Outcome) -> None:
    await self.service.on_recycle(connection, outcome)


async def _close(self: _Front, connection: FakeConnection) -> None:
    await self.service.close(connection)


def _is_closed(self: _Front, connection: FakeConnection) -> bool:
    closed = self.service.is_closed(connection)
    self.service.found_dead += closed
    self.service.failed[connection.backend.name] += closed or "is_closed" in self.manners.of
    self.manners.mind("is_closed")
    return closed


def _needs_recycle(self: _Front, connection: FakeConnection, outcome: Outcome) -> bool:
    self.service.needs_recycle(connection, outcome)
    self.manners.mind("needs_recycle")
    return self.recycles == "always" or outcome is not Outcome.CLEAN


_METHODS = {
    "validate": _validate,
    "on_acquire": _on_acquire,
    "on_recycle": _on_recycle,
    "close": _close,
    "is_closed": _is_closed,
    "needs_recycle": _needs_recycle,
}


def front(plan: Plan, service: Service, manners: Manners) -> Connector[FakeConnection]:
    """Make a connector to the service that overrides what the plan says; the rest takes the pool's short cuts."""
    body = {name: _METHODS[name] for name in plan.overridden}
    return type("Front", (_Front,), body)(service, manners, plan.recycles)


class UnrulyResolver(Resolver):
    """A resolver that publishes what it is told to, sensible or not, and may fail or return."""

    def __init__(self, backends: Iterable[Backend]) -> None:
        self._backends = tuple(backends)
        self.known: dict[str, Backend] = {}
        """The last sensible set that was published."""
        self.forbidden = False
        """The pool has ended: nothing may be asked of it any more."""
        self.asked_too_late = False
        self.asked = 0
        """How often watch() was called."""
        self._publish: Callable[[Any], None] | None = None
        self._over: asyncio.Future[None] | None = None

    @property
    def listening(self) -> bool:
        """Whether watch() is running."""
        return self._publish is not None

    def set(self, backends: Iterable[Backend]) -> None:
        """Publish a set, or remember it for the next watch()."""
        self._backends = tuple(backends)
        if self._publish is not None:
            self._tell(self._publish)

    def _tell(self, publish: Callable[[Any], None]) -> None:
        self.known = {backend.name: backend for backend in self._backends}
        publish(self._backends)

    def say(self, what: object) -> None:
        """Publish anything."""
        if self._publish is not None:
            self._publish(what)

    def end(self, failure: BaseException | None) -> None:
        """Let watch() return or raise."""
        if self._over is not None and not self._over.done():
            if failure is None:
                self._over.set_result(None)
            else:
                self._over.set_exception(failure)

    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        self.asked_too_late = self.asked_too_late or self.forbidden
        self.asked += 1
        self._publish = publish
        self._over = asyncio.get_running_loop().create_future()
        try:
            self._tell(publish)
            await self._over
        finally:
            self._publish = self._over = None


def nonsense(kind: str, backend: Backend) -> object:
    """Make something that no resolver should publish."""

    def breaks_off(failure: BaseException) -> Iterable[Backend]:
        yield backend
        raise failure

    makers: dict[str, Callable[[], object]] = {
        "twice": lambda: [backend, backend],
        "text": lambda: ["10.0.0.1:5432"],
        "none": lambda: None,
        "raises": lambda: breaks_off(OSError("no answer")),
        "raises base": lambda: breaks_off(Odd("no answer")),
    }
    return makers[kind]()


def block_for(seconds: float) -> None:
    """Stop the loop."""
    block(seconds)
