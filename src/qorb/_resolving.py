"""Running a resolver: its watch() in a task, what it publishes checked, started again when it ends."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, Protocol

from qorb import events
from qorb._core.backoff import LEAST_PAUSE
from qorb._tasks import Call, CallFailedError, Interrupted, call_now, logger
from qorb.backend import Backend, check_names
from qorb.errors import ResolveError, WrongLoopError, describe, presentable
from qorb.publishing import Publisher

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from qorb._core.backoff import Backoff
    from qorb._tasks import Timer, TimerOwner
    from qorb.events import Event
    from qorb.resolver import Resolver


class Subscriber(Protocol):
    """Who wants to know."""

    def backends_known(self, backends: dict[str, Backend]) -> None:
        """Be given a complete set that passed the checks."""
        ...

    def resolver_failed(self, error: ResolveError) -> None:
        """Be told why there is no new set."""
        ...

    def resolver_told(self, kind: Callable[..., Event], *fields: object) -> None:
        """Be told what the resolver does: an event to make, and its fields but the pool."""
        ...

    def watch_ended(self, task: asyncio.Task[None]) -> None:
        """Be told that the task has ended."""
        ...


class _ToSubscriber(Publisher):
    """What watch() is given: tells a subscriber."""

    __slots__ = ("_watch",)

    def __init__(self, watch: Watch) -> None:
        super().__init__(watch.publish)
        self._watch = watch

    def failed(self, error: ResolveError) -> None:
        self._watch.failed(error)

    def query_started(self, server: str, question: str) -> None:
        self._watch.told(events.ResolverQueryStart, server, question)

    def query_done(self, server: str, question: str, records: int, ttl: float) -> None:
        self._watch.told(events.ResolverQueryDone, server, question, records, ttl)

    def query_failed(self, server: str, question: str, reason: str) -> None:
        self._watch.told(events.ResolverQueryFailed, server, question, reason)


class Watch:
    """The life of a resolver's watch()."""

    def __init__(
        self, name: str, resolver: Resolver, subscriber: Subscriber, timers: TimerOwner, backoff: Backoff
    ) -> None:
        """Prepare to run the resolver's watch() and to pass on what it publishes."""
        self.name = name
        self.call: Call[Any] | None = None
        self._resolver = resolver
        self._subscriber = subscriber
        self._timers = timers
        self._backoff = backoff
        self._thread = threading.get_ident()
        self._stopped = False
        self._pause: asyncio.Future[None] | None = None
        self._timer: Timer | None = None

    async def live(self) -> None:
        """Run watch(), again and again with growing pauses, until stopped."""
        while not self._stopped:
            began = self._timers.loop.time()
            self.call = call = Call(self._timers, self._resolver.watch, _ToSubscriber(self))
            try:
                await call.within(math.inf)
            except Interrupted:
                return
            except CallFailedError as failure:
                self._report(f"watch() failed: {describe(failure.error)}", failure.error)
            else:
                if not self._stopped:
                    self._report("watch() returned; it should go on until it is cancelled", None)
            finally:
                self.call = None
            await self._wait_before_next(began)

    async def _wait_before_next(self, began: float) -> None:
        now = self._timers.loop.time()
        if now - began > self._backoff.longest:
            self._backoff.succeeded()
        self._backoff.failed(self._backoff.round, now, least=LEAST_PAUSE)
        if self._stopped:
            return
        self._pause = self._timers.loop.create_future()
        self._timer = self._timers.at(self._backoff.not_before, self._pause_over)
        try:
            await self._pause
        finally:
            self._pause = None

    def _pause_over(self) -> None:
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    def stop(self) -> None:
        """End at once."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.call is not None:
            self.call.interrupt()
        self._pause_over()

    def settle(self, task: asyncio.Task[None]) -> None:
        """Note that the task has ended."""
        self._subscriber.watch_ended(task)

    def describe(self) -> str:
        """Say what is under way."""
        call = self.call
        if call is None:
            return f"{self.name}: waiting before the next watch()"
        return f"{self.name}: {call.describe()}"

    def failed(self, error: ResolveError) -> None:
        """Pass on why there is no newer set."""
        if not self._stopped:
            self._subscriber.resolver_failed(error)

    def told(self, kind: Callable[..., Event], *fields: object) -> None:
        """Pass on what the resolver does."""
        if not self._stopped:
            self._subscriber.resolver_told(kind, *fields)

    def publish(self, backends: Iterable[Backend]) -> None:
        """Pass a set on, or say what is wrong with it. What the resolver was told to stop publishing is dropped."""
        if threading.get_ident() != self._thread:
            raise WrongLoopError(
                f"{self.name}: publish() was called from another thread; use the event loop's call_soon_threadsafe()"
            )
        if self._stopped:
            return
        try:
            read = call_now(_checked, backends)
        except CallFailedError as failure:
            what = f"published a set that cannot be used, and it was ignored: {describe(failure.error)}"
            self._report(what, failure.error)
            return
        self._subscriber.backends_known(read)

    def _report(self, what: str, error: BaseException | None) -> None:
        kind = type(self._resolver).__name__
        failure = ResolveError(f"{kind}: {what}", getattr(self._resolver, "service", None))
        failure.__cause__ = presentable(error) if error is not None else None
        logger.error("%s: %s", self.name, what)
        self._subscriber.resolver_failed(failure)


def _checked(backends: Iterable[Backend]) -> dict[str, Backend]:
    """Read a set, by name; the iterable is user code."""
    read: tuple[object, ...] = (backends,) if isinstance(backends, str) else tuple(backends)
    checked: list[Backend] = []
    for backend in read:
        if not isinstance(backend, Backend):  # its text may be that of a connection string, with a password
            kind = type(backend).__name__
            raise TypeError(f"{kind} is no Backend; publish a list of them, such as [Backend.parse('10.0.0.1:5432')]")
        checked.append(backend)
    check_names(checked)
    return {backend.name: backend for backend in checked}
