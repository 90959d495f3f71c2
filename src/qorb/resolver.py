"""Resolver: knows which backends there are. Monitor: a resolver on its own, without a pool."""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from contextvars import Context
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from qorb._core.backoff import Backoff
from qorb._home import Home, Unique
from qorb._resolving import Watch
from qorb._tasks import TaskOwner, TimerOwner
from qorb.errors import PoolNotStartedError, PoolTerminatedError

if TYPE_CHECKING:
    import asyncio
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


class Monitor(Unique):
    """A resolver that runs on its own. `async with` starts it, without waiting for a set, and terminates it.

    It belongs to the event loop in which it was started. One that is dropped without terminate() ends by itself, with a
    ResourceWarning.
    """

    __slots__ = ("__weakref__", "_ended", "_resolver", "_watching")

    def __init__(self, resolver: Resolver) -> None:
        """Take the resolver; start nothing."""
        self._resolver = resolver
        self._watching: Watching | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        """Start the resolver, without suspending.

        Raises PoolTerminatedError when the monitor was terminated, WrongLoopError when it was started in another event
        loop or thread, PoolForkedError in a child process.
        """
        if self._watching is None and not self._ended:
            self._watching = Watching(self._resolver)
        elif self._watching is None or self._watching.ended:
            raise PoolTerminatedError("this monitor was terminated; ask the resolver for another")
        else:
            self._watching.check_place()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Terminate. Cancelled meanwhile it raises CancelledError, and the resolver ends all the same."""
        await self.terminate()

    @property
    def backends(self) -> Mapping[str, Backend]:
        """The latest complete set, by name; empty before the first one. Raises PoolForkedError in a child process."""
        if self._watching is None:
            return MappingProxyType({})
        self._watching.home.check_process()
        return self._watching.backends

    async def changed(self) -> Mapping[str, Backend]:
        """Wait for a set that differs from the one at the time of the call.

        Raises PoolTerminatedError when the monitor is terminated before or meanwhile, PoolNotStartedError before it was
        started, WrongLoopError in another event loop or thread, PoolForkedError in a child process. Cancellation
        changes nothing.
        """
        if self._watching is not None:
            return await self._watching.changed()
        if self._ended:
            raise PoolTerminatedError("the monitor was terminated")
        raise PoolNotStartedError("the monitor has not been started; use `async with resolver.monitor() as monitor:`")

    async def terminate(self) -> None:
        """End the resolver: when this returns, nothing of it is running any more. Idempotent.

        Cancelling a caller stops nothing but his waiting; another call goes on with it. Called from inside the resolver
        it ends in CancelledError. When its event loop was closed before, it ends here and now. Raises WrongLoopError in
        another event loop or thread, PoolForkedError in a child process.
        """
        self._ended = True
        if self._watching is not None:
            await self._watching.terminate()

    def __del__(self) -> None:
        """End what was dropped without terminate(), and say so."""
        watching: Watching | None = getattr(self, "_watching", None)
        if watching is None or watching.ended or watching.home.forked:
            return
        watching.dropped()
        warnings.warn(
            f"unterminated {watching.name}; use `async with` or `await monitor.terminate()`",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )


class Watching:
    """What runs behind a Monitor: its task holds this and not the Monitor, so that one that is dropped is noticed."""

    def __init__(self, resolver: Resolver) -> None:
        """Start the resolver in the running loop."""
        self.name: str = f"monitor of {type(resolver).__name__}"
        self.home: Home = Home(f"the {self.name}", "monitor", self._disown)
        self.backends: Mapping[str, Backend] = MappingProxyType({})
        self.ended: bool = False
        """It was told to end, or its task was ended by others."""
        self._timers = TimerOwner(self.home.loop)
        self._tasks = TaskOwner(self._timers)
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._callers: dict[asyncio.Future[None], None] = {}
        self._tasks.anchor()
        backoff = Backoff(*RETRY, random.Random())
        self._tasks.start(Watch(f"qorb {self.name}", resolver, self, self._timers, backoff))

    def check_place(self) -> asyncio.Task[Any]:
        """Raise when called from a child process, another thread or another loop; give the calling task."""
        self.home.check_process()
        task = self.home.task()
        if task is None:
            raise self.home.wrong()
        return task

    def _disown(self) -> None:
        self._tasks.closed = True
        self._timers.cancel_all()

    async def changed(self) -> Mapping[str, Backend]:
        """Wait for a set that differs from the one at the time of the call."""
        known = self.backends
        if not self.ended:
            self.check_place()
        while not self.ended:
            if self.backends != known:
                return self.backends
            await self._wait_in(self._waiting)
        raise PoolTerminatedError("the monitor was terminated")

    async def _wait_in(self, waiting: dict[asyncio.Future[None], None]) -> None:
        future: asyncio.Future[None] = self.home.loop.create_future()
        waiting[future] = None
        try:
            await future
        finally:
            waiting.pop(future, None)

    async def terminate(self) -> None:
        """End, or join what has begun; return when nothing is running any more."""
        self.home.check_process()
        if self.home.loop.is_closed():
            self._destroy()
        if not self._tasks.tasks:
            return
        task = self.check_place()
        self._stop()
        own = self._tasks.owns(task)
        if own is not None:
            own.stop()  # a task cannot wait for its own end
        while self._tasks.tasks:
            await self._wait_in(self._callers)

    def _stop(self) -> None:
        self.ended = True
        _wake(self._waiting)
        if not self._tasks.closed:
            self._tasks.stop_all()

    def _destroy(self) -> None:
        """End although the loop is closed."""
        self.ended = True
        self._tasks.destroy_all()
        self._timers.cancel_all()

    def dropped(self) -> None:
        """End because nobody can ask for it any more: garbage is collected anywhere, in another thread, too."""
        try:
            self.home.loop.call_soon_threadsafe(self._stop, context=Context())
        except RuntimeError:  # the loop is closed
            self._destroy()

    # Subscriber

    def backends_known(self, backends: dict[str, Backend]) -> None:
        """Take a set over."""
        if not self.ended:
            self.backends = MappingProxyType(backends)
            _wake(self._waiting)

    def resolver_failed(self, error: ResolveError) -> None:
        """Keep the last set; the log has the reason."""

    def resolver_told(self, kind: Callable[..., Event], *fields: object) -> None:
        """Keep it to itself: a monitor has no observer."""

    def watch_ended(self, task: asyncio.Task[None]) -> None:
        """Tell whoever waits for the end."""
        if not self._tasks.closed:
            self._died(task)
        self._timers.cancel_all()
        if not self.home.loop.is_closed():
            _wake(self._callers)

    def _died(self, task: asyncio.Task[Any]) -> None:
        """End as well: the task was cancelled from outside, or died of a bug."""
        self.ended = self._tasks.closed = True
        if not task.cancelled() and task.exception() is not None:
            self.home.loop.call_exception_handler(
                {"message": "qorb: a monitor's task died", "exception": task.exception(), "task": task}
            )
        _wake(self._waiting)


def _wake(futures: dict[asyncio.Future[None], None]) -> None:
    for future in tuple(futures):
        if not future.done():
            future.set_result(None)
