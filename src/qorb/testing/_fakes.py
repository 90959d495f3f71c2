"""FakeConnector: a service that goes wrong on demand, and remembers what was done to it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from qorb.connector import Connector, Outcome
from qorb.errors import ConnectError
from qorb.testing._connection import Call, FakeConnection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Generator

    from qorb.backend import Backend

OPERATIONS: Final = ("connect", "validate", "on_acquire", "on_recycle", "close")
"""What takes time and may be stalled, slowed, failed and so on."""

CALLS_REMEMBERED: Final = 100_000


class ForbiddenCallError(AssertionError):
    """The pool did to a connector what it must not do. The test fails, even where the pool catches this."""


@dataclass(slots=True, frozen=True)
class _Fault:
    """Something that goes wrong, and where."""

    kind: str
    operation: str | None
    backend: str | None
    action: Callable[[Backend], Any] | None = None
    seconds: float = 0.0
    spared: frozenset[str] = frozenset()
    """The backends that have been healed of what was meant for all."""

    def concerns(self, call: Call) -> bool:
        name = call.backend.name
        return self.operation in (None, call.operation) and self.backend in (None, name) and name not in self.spared


class FakeConnector(Connector[FakeConnection]):
    """A connector with verbs to make things go wrong. Every operation takes `latency` seconds, close() too.

    The verbs take effect on calls in flight as well: an operation looks at its end at what is wrong by then, a stalled
    one goes on as soon as nothing stalls it. They add up until heal(); of two of a kind the later one counts. Where a
    verb takes a `backend`, that is the name of one, and None means all of them; where it takes an `operation`, that is
    "connect", "validate", "on_acquire", "on_recycle" or "close", and None means all of them. A verb that is given
    something else raises TypeError or ValueError, and changes nothing.

    The connector keeps account of what is really there, and fails the test when the pool does something that it must
    never do: two calls on one connection at a time, any call on one that it has closed, a call after forbid(). Such a
    call raises ForbiddenCallError, and since a pool takes an exception of user code for an ordinary failure, it also
    makes qorb.testing.run() fail, and assert_nothing_left().

    To be subclassed where the connection must be able to do more: override new_connection().
    """

    def __init__(self, *, latency: float = 0.001) -> None:
        """Make a connector that works; `latency` is the time that every operation takes, in seconds.

        Raises ValueError for a latency that is negative, NaN or no number.
        """
        _check_seconds("latency", latency)
        self.latency = latency
        self.calls: deque[Call] = deque(maxlen=CALLS_REMEMBERED)
        """The last 100,000 calls, oldest first."""
        self.count: Counter[str] = Counter()
        """How many calls of each operation there have been, abort included."""
        self.in_flight: list[Call] = []
        """The calls that have not ended, oldest first."""
        self.peak = 0
        """The most connections that were ever open at a time."""
        self.peak_of_backend: Counter[str] = Counter()
        """The same for each backend, by name."""
        self.violations: list[ForbiddenCallError] = []
        """What the pool did and must not do."""
        self._faults: list[_Fault] = []
        self._forbidden = False
        self._allowed: Collection[str] = ()
        self._unclosed: dict[int, FakeConnection] = {}
        self._uses: dict[int, str] = {}
        """What is going on on a connection, by its id."""
        self._unread: dict[int, deque[str]] = {}
        """The answers that are on their way on a connection, by its id."""
        self._open_at: Counter[str] = Counter()
        self._opened = 0
        self._flying: Counter[tuple[str, str | None]] = Counter()
        self._most_flying: Counter[tuple[str, str | None]] = Counter()
        self._stalled: list[asyncio.Future[None]] = []

    @property
    def connections(self) -> Collection[FakeConnection]:
        """The open connections, oldest first. One counts from the moment connect() has made it."""
        return [connection for connection in self._unclosed.values() if not connection.closed]

    @property
    def unclosed(self) -> Collection[FakeConnection]:
        """The connections that the pool has not closed: the open ones, and those that only the server has closed."""
        return list(self._unclosed.values())

    def peak_in_flight(self, operation: str, backend: str | None = None) -> int:
        """Return the most calls of the operation that were ever in flight at a time: to one backend, or to all."""
        return self._most_flying[operation, backend]

    def check(self) -> None:
        """Raise the first ForbiddenCallError, if there was one."""
        if self.violations:
            raise self.violations[0]

    def refuse(self, backend: str | None = None) -> None:
        """From now on connect raises ConnectionRefusedError."""
        self._add(_Fault("refuse", "connect", backend))

    def stall(self, operation: str | None = None, backend: str | None = None) -> None:
        """From now on the operation does not end until heal() or its cancellation."""
        self._add(_Fault("stall", operation, backend))

    def invalidate(self, backend: str | None = None) -> None:
        """From now on validate and on_recycle raise ConnectError."""
        self._add(_Fault("invalid", "validate", backend))
        self._add(_Fault("invalid", "on_recycle", backend))

    def slow(self, seconds: float, operation: str | None = None, backend: str | None = None) -> None:
        """From now on the operation takes so many seconds instead of the latency."""
        self._add(_Fault("slow", operation, backend, seconds=seconds))

    def fail(self, operation: str | None, error: Callable[[], BaseException], backend: str | None = None) -> None:
        """From now on the operation raises what `error()` returns: an exception of any kind, BaseException included."""
        _check_callable("error", error)
        self._add(_Fault("fail", operation, backend, lambda _backend: error()))

    def during(
        self, operation: str | None, action: Callable[[Backend], Awaitable[object] | None], backend: str | None = None
    ) -> None:
        """From now on the operation calls `action(backend)` in its midst, and awaits what that returns.

        For user code that blocks the loop (`lambda _: block(2)`), or that calls back into the pool.
        """
        _check_callable("action", action)
        self._add(_Fault("during", operation, backend, action))

    def deafen(self, seconds: float, operation: str | None = None, backend: str | None = None) -> None:
        """From now on the operation does not listen to its cancellation: it goes on for `seconds` and ends well."""
        self._add(_Fault("deaf", operation, backend, seconds=seconds))

    def return_none(self, backend: str | None = None) -> None:
        """From now on connect returns None."""
        self._add(_Fault("none", "connect", backend))

    def return_same(self, backend: str | None = None) -> None:
        """From now on connect returns the oldest open connection again, if there is one."""
        self._add(_Fault("same", "connect", backend))

    def drop(self, backend: str | None = None) -> int:
        """Close the open connections from the server's side, once. Return how many there were.

        is_closed() is true of them from now on and everything else raises ConnectError; new connections are not harmed.
        """
        _check_backend(backend)
        dropped = [one for one in self.connections if backend in (None, one.backend.name)]
        for connection in dropped:
            connection.closed = True
        return len(dropped)

    def forbid(self, *, allow: Collection[str] = ()) -> None:
        """From now on any call fails the test, abort, is_closed and needs_recycle included, but those in `allow`."""
        self._forbidden = True
        self._allowed = allow

    def heal(self, backend: str | None = None) -> None:
        """End all of this; with `backend`, end it for this one only, and leave it be that calls are forbidden."""
        _check_backend(backend)
        if backend is None:
            self._faults.clear()
            self._forbidden = False
        else:
            others = (fault for fault in self._faults if fault.backend != backend)
            self._faults = [replace(fault, spared=fault.spared | {backend}) for fault in others]
        for future in self._stalled:
            if not future.done():
                future.set_result(None)

    def new_connection(self, number: int, backend: Backend) -> FakeConnection:
        """Make the object that connect returns. To be overridden where it must be able to do more."""
        return FakeConnection(number, backend)

    async def connect(self, backend: Backend) -> FakeConnection:
        """Open a connection after the latency. One that is cancelled leaves nothing open."""
        with self._call("connect", backend) as call:
            await self._take_time(call)
            if self._finds("refuse", call):
                raise ConnectionRefusedError(f"{backend} refuses connections")
            self._fail_if_told(call)
            if self._finds("none", call):
                return cast("FakeConnection", cast("object", None))  # the lie that was asked for
            if self._finds("same", call) and self._unclosed:
                return next(iter(self._unclosed.values()))
            return self._open(backend, call.task)

    async def validate(self, connection: FakeConnection) -> None:
        """Take the latency; raise ConnectError when the connection is closed, or invalidated.

        One that is cancelled ends at once, unless told to be deaf, and changes nothing.
        """
        with self._call("validate", connection.backend, connection) as call:
            await self._take_time(call)
            self._fail_if_told(call)
            self._fail_if_unfit(call, connection)

    async def on_acquire(self, connection: FakeConnection) -> None:
        """Take the latency; raise ConnectError when the connection is closed. Cancelled as validate is."""
        with self._call("on_acquire", connection.backend, connection) as call:
            await self._take_time(call)
            self._fail_if_told(call)
            self._fail_if_unfit(call, connection)

    async def on_recycle(self, connection: FakeConnection, outcome: Outcome) -> None:
        """Take the latency; raise ConnectError when the claim did not end cleanly, or as validate does.

        Cancelled as validate is.
        """
        with self._call("on_recycle", connection.backend, connection) as call:
            await self._take_time(call)
            self._fail_if_told(call)
            self._fail_if_unfit(call, connection)
            if outcome is not Outcome.CLEAN:
                raise ConnectError(f"the claim did not end cleanly ({outcome.value})", connection.backend.name)

    async def close(self, connection: FakeConnection) -> None:
        """Close the connection after the latency. One that fails or is cancelled leaves it open, for abort()."""
        with self._call("close", connection.backend, connection) as call:
            await self._take_time(call)
            self._fail_if_told(call)
            self._end(connection)

    def abort(self, connection: FakeConnection) -> None:
        """Close the connection at once. A second time does nothing."""
        self.count["abort"] += 1
        now = _now()
        self.calls.append(Call("abort", connection.backend, connection, _task_name(), now, now))
        if self._forbidden and "abort" not in self._allowed:
            self._note(f"abort was called on connection {connection.id} after forbid()")
        self._end(connection)

    def is_closed(self, connection: FakeConnection) -> bool:
        """Say whether one of the sides has closed the connection."""
        self._refuse_if_forbidden("is_closed", connection.backend)
        return connection.closed

    def needs_recycle(self, connection: FakeConnection, outcome: Outcome) -> bool:
        """Say as Connector does; that is always, since on_recycle is overridden."""
        self._refuse_if_forbidden("needs_recycle", connection.backend)
        return super().needs_recycle(connection, outcome)

    async def exchange(self, connection: FakeConnection, text: str) -> str:
        """Do the work of FakeConnection.request(); cancelled, it leaves the answer in the way."""
        self._fail_if_closed(connection)
        with self._alone(connection, "request"):
            self._unread[connection.id].append(text)
            await asyncio.sleep(self.latency)
            self._fail_if_closed(connection)
            answer = self._unread[connection.id].popleft()
        if answer != text:
            self._violate(
                f"the answer to {answer!r} came to the one who had asked {text!r}, on connection {connection.id}"
            )
        return answer

    def _add(self, fault: _Fault) -> None:
        _check_backend(fault.backend)
        _check_seconds("seconds", fault.seconds)
        if fault.operation not in (None, *OPERATIONS):
            raise ValueError(f"the operation must be one of {', '.join(OPERATIONS)}, not {fault.operation!r}")
        self._faults.append(fault)

    def _finds(self, kind: str, call: Call) -> _Fault | None:
        """Return the fault of this kind that was ordered last and concerns the call."""
        return next((one for one in reversed(self._faults) if one.kind == kind and one.concerns(call)), None)

    @contextlib.contextmanager
    def _call(
        self, operation: str, backend: Backend, connection: FakeConnection | None = None
    ) -> Generator[Call, None, None]:
        """Keep the books of one call, and see that it is a lawful one."""
        call = Call(operation, backend, connection, _task_name(), _now())
        self.calls.append(call)
        self.count[operation] += 1
        self._refuse_if_forbidden(operation, backend)
        with contextlib.nullcontext() if connection is None else self._alone(connection, operation):
            self._take_off(call)
            try:
                yield call
            except BaseException as error:
                call.raised = type(error)
                raise
            finally:
                self._land(call)

    @contextlib.contextmanager
    def _alone(self, connection: FakeConnection, operation: str) -> Generator[None, None, None]:
        """See that nothing else uses the connection meanwhile, and that the pool has not closed it before."""
        if connection.id not in self._unclosed:
            self._violate(f"{operation} on connection {connection.id}, which the pool has closed")
        if connection.id in self._uses:
            self._violate(
                f"{operation} on connection {connection.id} while its {self._uses[connection.id]} was not over"
            )
        self._uses[connection.id] = operation
        try:
            yield
        finally:
            del self._uses[connection.id]

    def _take_off(self, call: Call) -> None:
        self.in_flight.append(call)
        for key in ((call.operation, None), (call.operation, call.backend.name)):
            self._flying[key] += 1
            self._most_flying[key] = max(self._most_flying[key], self._flying[key])

    def _land(self, call: Call) -> None:
        call.ended = _now()
        self.in_flight.remove(call)
        self._flying[call.operation, None] -= 1
        self._flying[call.operation, call.backend.name] -= 1

    async def _take_time(self, call: Call) -> None:
        during = self._finds("during", call)
        if during is not None and during.action is not None:
            awaited = during.action(call.backend)
            if awaited is not None:
                await awaited
        deaf = self._finds("deaf", call)
        if deaf is None:
            await self._wait(call)
            return
        with contextlib.suppress(asyncio.CancelledError):
            await self._wait(call)
            return
        await _go_on_regardless(deaf.seconds)

    async def _wait(self, call: Call) -> None:
        slow = self._finds("slow", call)
        await asyncio.sleep(self.latency if slow is None else slow.seconds)
        while self._finds("stall", call):
            healed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._stalled.append(healed)
            try:
                await healed
            finally:
                self._stalled.remove(healed)

    def _fail_if_told(self, call: Call) -> None:
        fail = self._finds("fail", call)
        if fail is not None and fail.action is not None:
            raise fail.action(call.backend)

    def _fail_if_unfit(self, call: Call, connection: FakeConnection) -> None:
        self._fail_if_closed(connection)
        if self._finds("invalid", call):
            raise ConnectError(
                f"connection {connection.id} to {connection.backend} is not good", connection.backend.name
            )

    def _fail_if_closed(self, connection: FakeConnection) -> None:
        if connection.closed:
            raise ConnectError(f"connection {connection.id} to {connection.backend} is closed", connection.backend.name)

    def _open(self, backend: Backend, task: str) -> FakeConnection:
        self._opened += 1
        connection = self.new_connection(self._opened, backend)
        connection.opened_by = task
        connection.connector = self
        self._unclosed[connection.id] = connection
        self._unread[connection.id] = deque()
        self._open_at[backend.name] += 1
        self.peak = max(self.peak, len(self._unclosed))
        self.peak_of_backend[backend.name] = max(self.peak_of_backend[backend.name], self._open_at[backend.name])
        return connection

    def _end(self, connection: FakeConnection) -> None:
        connection.closed = True
        if self._unclosed.pop(connection.id, None) is not None:
            del self._unread[connection.id]
            self._open_at[connection.backend.name] -= 1

    def _refuse_if_forbidden(self, operation: str, backend: Backend) -> None:
        if self._forbidden and operation not in self._allowed:
            self._violate(f"{operation} was called for {backend} after forbid()")

    def _violate(self, text: str) -> NoReturn:
        raise self._note(text)

    def _note(self, text: str) -> ForbiddenCallError:
        error = ForbiddenCallError(f"{text}, by task {_task_name()!r} at {_now():.6f}")
        self.violations.append(error)
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().call_exception_handler({"message": str(error), "exception": error})
        return error


def _check_backend(name: object) -> None:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"backend must be the name of one, or None for all of them, not {name!r}")


def _check_callable(what: str, function: object) -> None:
    if not callable(function):
        raise TypeError(f"{what} must be a function, not {function!r}")


def _check_seconds(what: str, seconds: object) -> None:
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds >= 0:  # NaN is not
        raise ValueError(f"{what} must be a number of seconds, 0 or more, not {seconds!r}")


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return math.nan


def _task_name() -> str:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return ""
    return "" if task is None else task.get_name()


async def _go_on_regardless(seconds: float) -> None:
    """Wait, whoever cancels it meanwhile."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(until - loop.time())
