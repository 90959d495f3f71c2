"""BlockingConnector: connections of drivers that only block, such as DB-API modules; each has a thread of its own."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from qorb.connector import Connector, Outcome
from qorb.errors import ConnectError
from qorb.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from qorb.backend import Backend

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


class BlockingConnection(Generic[T]):
    """One connection of a BlockingConnector. The driver's connection itself never leaves its thread."""

    __slots__ = ("__weakref__", "_notes", "_worker", "backend")

    def __init__(self, backend: Backend, worker: Worker[T], notes: _Notes[T]) -> None:
        """Belong to the thread that has the driver's connection; BlockingConnector.connect() makes these."""
        self.backend: Backend = backend
        """Where it goes."""
        self._worker = worker
        self._notes = notes

    def __repr__(self) -> str:
        """Say where it goes and how it is; nothing that could be a secret."""
        state = "closed" if self.closed else "busy" if self.busy else "idle"
        return f"<BlockingConnection to {self.backend}, {state}>"

    async def run(self, function: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call function(raw, *args, **kwargs) on the connection's thread, raw being the driver's connection.

        Gives what it returns and raises what it raises, unchanged. It sees this task's context variables, in a copy.
        Calls are made one after the other. Raises ConnectError when the connection is closed.

        Cancelled, it ends at once. The function, which nothing can stop, may go on meanwhile (the connector's
        `interrupt` is called then, if it has one): what it uses besides the connection must bear that. The connection
        is not handed out to anybody else before the function has returned.
        """
        return await self._worker.run(partial(self._notes.take, function, args, kwargs))

    @property
    def busy(self) -> bool:
        """Whether a call is under way or waiting, be it one whose run() was cancelled."""
        return self._worker.busy

    @property
    def closed(self) -> bool:
        """Whether it was closed, or the connector's `is_closed` said so after the last call."""
        return self._worker.stopped or self._notes.closed


class _Notes(Generic[T]):
    """What the thread notes of a driver's connection after every call, for the loop to read."""

    def __init__(self, is_closed: Callable[[T], object] | None, needs_recycle: Callable[[T], object] | None) -> None:
        self.closed = False
        self.dirty = False
        self._is_closed = is_closed
        self._needs_recycle = needs_recycle

    def take(self, function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any], raw: T) -> R:
        """Make a call, on the thread, and look at the connection afterwards."""
        self.dirty = True
        try:
            return function(raw, *args, **kwargs)
        finally:
            self.closed = self.closed or _says(self._is_closed, raw, unknown=False)
            self.dirty = _says(self._needs_recycle, raw, unknown=True)


def _says(question: Callable[[T], object] | None, raw: T, *, unknown: bool) -> bool:
    """Ask the question; one that fails is answered with yes, which costs a connection at the most."""
    if question is None:
        return unknown
    try:
        return bool(question(raw))
    except Exception:  # noqa: BLE001 - user code
        return True


def roll_back(raw: Any, outcome: Outcome) -> None:  # noqa: ANN401 - any driver's connection
    """Roll back what the claim has not committed: the default of `recycle`.

    Raises ConnectError for a connection that has no rollback(), unless the claim ended cleanly.
    """
    rollback = getattr(raw, "rollback", None)
    if rollback is not None:
        rollback()
    elif outcome is not Outcome.CLEAN:
        raise ConnectError(f"the claim did not end cleanly ({outcome.value}), so the connection is not used again")


def close(raw: Any) -> None:  # noqa: ANN401 - any driver's connection
    """Close it with its own method: the default of `close`."""
    raw.close()


class BlockingConnector(Connector[BlockingConnection[T]], Generic[T]):
    """Pools the connections of a driver that only blocks; the pool hands out BlockingConnections.

    Every connection has a thread, which opens it, makes all calls with it and closes it. The functions given here are
    all called on that thread, with the driver's connection, `raw`; only `interrupt` is not.

    connect: connect(backend) opens a connection and returns it. Give it a timeout of its own, no longer than
        Policy.connect_timeout: nothing can stop it, and its slot waits until it has returned.
    validate: validate(raw) raises when the connection is bad, for health checks. `recycle` is called after it, so that
        it leaves no transaction open. None: only `is_closed` is asked.
    recycle: recycle(raw, outcome) makes the connection fit for the next claim, or raises to have it closed. By default
        it rolls back. Not called after a claim that made no call, nor after one that was lost: that closes it.
    needs_recycle: needs_recycle(raw), asked after every call, says whether `recycle` has anything to do; where it has
        not, that way to the thread and back is saved. For sqlite3: `lambda raw: raw.in_transaction`. None: always.
    close: close(raw) ends the connection. By default raw.close().
    is_closed: is_closed(raw), asked after every call, says whether the connection is visibly dead. None: never.
    interrupt: interrupt(raw) makes a call end that was given up: sqlite3.Connection.interrupt,
        psycopg.Connection.cancel. It is called on a thread of its own while the call is under way, and again every
        second until that is over. None: it is waited for.

    Raises TypeError, naming the parameter, for what is no plain function. What any of these raises reaches who called
    it: the claimer, or the pool, for which it is an ordinary failure.
    """

    def __init__(
        self,
        connect: Callable[[Backend], T],
        *,
        validate: Callable[[T], object] | None = None,
        recycle: Callable[[T, Outcome], object] | None = None,
        needs_recycle: Callable[[T], object] | None = None,
        close: Callable[[T], object] = close,
        is_closed: Callable[[T], object] | None = None,
        interrupt: Callable[[T], object] | None = None,
    ) -> None:
        """Check the functions. Opens nothing."""
        self._connect = _checked("connect", connect)
        self._validate = _checked("validate", validate) if validate is not None else None
        self._recycle = _checked("recycle", recycle) if recycle is not None else roll_back
        self._recycles_always = type(self).on_recycle is not BlockingConnector[Any].on_recycle
        self._needs_recycle = _checked("needs_recycle", needs_recycle) if needs_recycle is not None else None
        self._close = _checked("close", close)
        self._is_closed = _checked("is_closed", is_closed) if is_closed is not None else None
        self._interrupt = _checked("interrupt", interrupt) if interrupt is not None else None

    async def connect(self, backend: Backend) -> BlockingConnection[T]:
        """Start a thread and open a connection on it. Raises what `connect` raises.

        Cancelled, it raises its CancelledError when `connect` has returned and what that opened is closed: until then
        the slot is taken, so that there are never more threads than slots.
        """
        worker = await Worker[T].start(
            partial(self._open, backend), self._close, interrupt=self._interrupt, what="connection"
        )
        connection = BlockingConnection(backend, worker, _Notes(self._is_closed, self._needs_recycle))
        worker.serve(connection)
        return connection

    def _open(self, backend: Backend) -> T:
        raw = self._connect(backend)
        if self._close is close and not hasattr(raw, "close"):
            raise TypeError(f"a {type(raw).__name__} has no close(); give BlockingConnector a close=")
        return raw

    async def validate(self, connection: BlockingConnection[T]) -> None:
        """Call `validate`, and `recycle` after it. Raises what they raise.

        Cancelled, it ends at once, as run() does.
        """
        if self._validate is not None or self._is_closed is not None:
            worker, notes = _parts(connection)
            await worker.run(partial(self._check, notes))

    def _check(self, notes: _Notes[T], raw: T) -> None:
        if self._validate is not None:
            notes.take(self._validate, (), {}, raw)
            self._make_fit(notes, Outcome.CLEAN, raw)
        elif _says(self._is_closed, raw, unknown=False):
            notes.closed = True
        if notes.closed:
            raise ConnectError("the connection is closed")

    async def on_recycle(self, connection: BlockingConnection[T], outcome: Outcome) -> None:
        """Call `recycle` when the calls of the claim are over. Raises what it raises; ConnectError for a lost claim.

        Cancelled, it ends at once, as run() does.
        """
        if outcome is Outcome.LEAKED:
            raise ConnectError("the claim was lost, so somebody may still use the connection", connection.backend.name)
        worker, notes = _parts(connection)
        await worker.run(partial(self._make_fit, notes, outcome))

    def _make_fit(self, notes: _Notes[T], outcome: Outcome, raw: T) -> None:
        notes.take(self._recycle, (outcome,), {}, raw)
        notes.dirty = False

    def needs_recycle(self, connection: BlockingConnection[T], outcome: Outcome) -> bool:
        """Say whether there is anything to make fit: a call that is not over, or what calls have left behind.

        How the claim ended does not matter, unless it was lost: what a call that has returned has left is on the
        thread, in plain view. True as well for a subclass with an on_recycle of its own.
        """
        worker, notes = _parts(connection)
        return outcome is Outcome.LEAKED or worker.busy or notes.dirty or self._recycles_always

    async def close(self, connection: BlockingConnection[T]) -> None:
        """Have the thread call `close`, after the call under way, and wait until it has ended. Raises what that raises.

        Cancelled, it interrupts that call, and raises its CancelledError when the thread has ended.
        """
        worker, _ = _parts(connection)
        worker.stop()
        await worker.ended()

    def abort(self, connection: BlockingConnection[T]) -> None:
        """Interrupt the call under way, and have the thread call `close` and end after it. Never waits."""
        worker, _ = _parts(connection)
        worker.abort()

    def is_closed(self, connection: BlockingConnection[T]) -> bool:
        """Say what was seen after the last call."""
        return connection.closed


def _parts(connection: BlockingConnection[T]) -> tuple[Worker[T], _Notes[T]]:
    return connection._worker, connection._notes  # noqa: SLF001 - its connector is the other half of it


F = TypeVar("F", bound="Callable[..., object]")


def _checked(what: str, function: F) -> F:
    if not callable(function):
        raise TypeError(f"{what} must be a function, not something of the class {type(function).__name__}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{what} must be a plain function that blocks, not an async one: a driver that has async needs no threads"
        )
    return function
