"""Resolver: knows which backends there are. Monitor: a resolver on its own, without a pool."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from qorb._core.backoff import Backoff
from qorb._resolving import Watch
from qorb._tasks import TaskOwner, TimerOwner
from qorb.errors import PoolNotStartedError, PoolTerminatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from qorb.backend import Backend
    from qorb.errors import ResolveError
    from qorb.events import Event

RETRY = (1.0, 30.0, 0.020)
"""The first and the longest pause before a watch() that ended is started again, and their spread, in seconds."""


class Resolver(ABC):
    """Knows which backends there are, now and as that changes. Never judges their health."""

    @abstractmethod
    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        """Publish every complete set of backends as it becomes known, until cancelled.

        Whatever it starts has ended when it returns, raises or is cancelled. When it returns or raises, the last
        published set stays and watch() is started again after a growing pause. publish() belongs to the event loop's
        thread.
        """

    def monitor(self) -> Monitor:
        """Run this resolver on its own, without a pool: `async with resolver.monitor() as monitor:`."""
        return Monitor(self)


class Monitor:
    """A resolver that runs on its own. `async with` starts it, without waiting for a set, and terminates it."""

    def __init__(self, resolver: Resolver) -> None:
        """Take the resolver; start nothing."""
        self._resolver = resolver
        self._backends: Mapping[str, Backend] = MappingProxyType({})
        self._tasks: TaskOwner | None = None
        self._timers: TimerOwner | None = None
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._callers: dict[asyncio.Future[None], None] = {}
        self._ended = False

    async def __aenter__(self) -> Self:
        """Start the resolver, without suspending. Raises PoolTerminatedError when the monitor was terminated."""
        if self._ended:
            raise PoolTerminatedError("this monitor was terminated; ask the resolver for another")
        if self._tasks is None:
            self._timers = TimerOwner(asyncio.get_running_loop())
            self._tasks = TaskOwner(self._timers)
            self._start()
        return self

    def _start(self) -> None:
        if self._tasks is not None and self._timers is not None:
            backoff = Backoff(*RETRY, random.Random())
            name = f"qorb monitor of {type(self._resolver).__name__}"
            self._tasks.start(Watch(name, self._resolver, self, self._timers, backoff))

    async def __aexit__(self, *exc: object) -> None:
        """Terminate. Cancelled meanwhile it raises CancelledError, and the resolver ends all the same."""
        await self.terminate()

    @property
    def backends(self) -> Mapping[str, Backend]:
        """The latest complete set, by name; empty before the first one."""
        return self._backends

    async def changed(self) -> Mapping[str, Backend]:
        """Wait for a set that differs from the one at the time of the call.

        Raises PoolTerminatedError when the monitor is terminated before or meanwhile, PoolNotStartedError before it was
        started. Cancellation changes nothing.
        """
        known = self._backends
        if self._tasks is None and not self._ended:
            raise PoolNotStartedError(
                "the monitor has not been started; use `async with resolver.monitor() as monitor:`"
            )
        while not self._ended:
            if self._backends != known:
                return self._backends
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[future] = None
            try:
                await future
            finally:
                self._waiting.pop(future, None)
        raise PoolTerminatedError("the monitor was terminated")

    async def terminate(self) -> None:
        """End the resolver: when this returns, nothing of it is running any more. Idempotent.

        Cancelling a caller stops nothing but his waiting; another call goes on with it. Called from inside the resolver
        it ends in CancelledError.
        """
        self._ended = True
        _wake(self._waiting)
        if self._tasks is None:
            return
        if not self._tasks.closed:
            self._tasks.stop_all()
        own = self._tasks.owns(asyncio.current_task())
        if own is not None:
            own.stop()
        while self._tasks.tasks:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._callers[future] = None
            try:
                await future
            finally:
                self._callers.pop(future, None)

    # Subscriber

    def backends_known(self, backends: dict[str, Backend]) -> None:
        """Take a set over."""
        self._backends = MappingProxyType(backends)
        _wake(self._waiting)

    def resolver_failed(self, error: ResolveError) -> None:
        """Keep the last set; the log has the reason."""

    def resolver_told(self, kind: Callable[..., Event], *fields: object) -> None:
        """Keep it to itself: a monitor has no observer."""

    def watch_ended(self, task: asyncio.Task[None]) -> None:
        """Tell whoever waits for the end."""
        if self._tasks is not None and not self._tasks.closed:
            self._died(task)
        elif self._timers is not None:
            self._timers.cancel_all()
        _wake(self._callers)

    def _died(self, task: asyncio.Task[Any]) -> None:
        """End as well: the task was cancelled from outside, or died of a bug."""
        self._ended = True
        if self._tasks is not None:
            self._tasks.closed = True
        if not task.cancelled() and task.exception() is not None:
            task.get_loop().call_exception_handler(
                {"message": "qorb: a monitor's task died", "exception": task.exception(), "task": task}
            )
        _wake(self._waiting)


def _wake(futures: dict[asyncio.Future[None], None]) -> None:
    for future in tuple(futures):
        if not future.done():
            future.set_result(None)
