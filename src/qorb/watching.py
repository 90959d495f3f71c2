"""watch_all(): several resolvers at once, for resolvers that are made of others."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from qorb import events
from qorb._core.backoff import Backoff
from qorb._resolving import Watch
from qorb._tasks import TaskOwner, TimerOwner
from qorb.errors import ResolveError, describe, presentable
from qorb.resolver import RETRY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qorb.backend import Backend
    from qorb.events import Event
    from qorb.publishing import Publisher
    from qorb.resolver import Resolver


async def watch_all(resolvers: Sequence[Resolver], publishers: Sequence[Publisher]) -> None:
    """Run the watch() of each resolver, in a task of its own, with the publisher at its place, until cancelled.

    Sets are checked before they are passed on. A watch() that raises or returns is started again after a growing pause
    of 1 s at first and 30 s at most, and its publisher is told; so it is of a set that cannot be used.

    When cancelled it tells all of them to end, and raises CancelledError when they have, however often it is cancelled
    meanwhile. When one of its tasks is cancelled by somebody else it raises ResolveError, and nothing is running then
    either. Raises ValueError when there is nothing to watch, or not one publisher for each resolver.
    """
    if not resolvers or len(resolvers) != len(publishers):
        raise ValueError(
            f"{len(resolvers)} resolvers and {len(publishers)} publishers: give one for each, at least one"
        )
    await _Together(resolvers, publishers).run()


class _Together:
    """The tasks of one watch_all()."""

    def __init__(self, resolvers: Sequence[Resolver], publishers: Sequence[Publisher]) -> None:
        self._loop = asyncio.get_running_loop()
        self._timers = TimerOwner(self._loop)
        self._tasks = TaskOwner(self._timers)
        self._resolvers = resolvers
        self._publishers = publishers
        self._ended: asyncio.Future[None] | None = None
        """What run() waits for: the end of one of the tasks."""
        self._reason: ResolveError | None = None
        """Why all of it ends although nobody has asked for that."""

    async def run(self) -> None:
        """Start them, and wait until all have ended: they do when told to, or when one of them has."""
        cancelled: asyncio.CancelledError | None = None
        try:
            self._start()
            while self._tasks.tasks:
                self._ended = self._loop.create_future()
                try:
                    await self._ended
                except asyncio.CancelledError as error:
                    cancelled = error
                    self._stop()
        except BaseException:  # GeneratorExit, or an interrupt: there is no waiting any more
            self._abandon()
            raise
        self._timers.cancel_all()
        if cancelled is not None:
            raise cancelled
        if self._reason is not None:
            raise self._reason

    def _start(self) -> None:
        task = asyncio.current_task()
        # The pool's or monitor's task bears its name, and so do those that work for it.
        own = task.get_name() if task is not None else "qorb"
        for number, (resolver, publisher) in enumerate(zip(self._resolvers, self._publishers, strict=True), 1):
            name = f"{own} {number} of {len(self._resolvers)} ({type(resolver).__name__})"
            backoff = Backoff(*RETRY, random.Random())
            self._tasks.start(Watch(name, resolver, _Told(publisher, self._task_ended), self._timers, backoff))

    def _stop(self) -> None:
        if not self._tasks.closed:  # its owner reminds them by itself
            self._tasks.stop_all()

    def _abandon(self) -> None:
        self._ended = None
        if self._loop.is_closed():
            self._tasks.destroy_all()
        else:
            self._stop()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if task.done() and not self._tasks.closed:
            self._reason = _why_it_ended(task)
            self._stop()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


class _Told:
    """Subscriber to one of them: tells its publisher."""

    def __init__(self, publisher: Publisher, ended: Callable[[asyncio.Task[None]], None]) -> None:
        self._publisher = publisher
        self._ended = ended
        self._tells: dict[Callable[..., Event], Callable[..., None]] = {
            events.ResolverQueryStart: publisher.query_started,
            events.ResolverQueryDone: publisher.query_done,
            events.ResolverQueryFailed: publisher.query_failed,
        }

    def backends_known(self, backends: dict[str, Backend]) -> None:
        """Pass a set on."""
        self._publisher(tuple(backends.values()))

    def resolver_failed(self, error: ResolveError) -> None:
        """Pass on why there is no new set."""
        self._publisher.failed(error)

    def resolver_told(self, kind: Callable[..., Event], *fields: object) -> None:
        """Pass on what the resolver does."""
        self._tells[kind](*fields)

    def watch_ended(self, task: asyncio.Task[None]) -> None:
        """Pass on that the task has ended."""
        self._ended(task)


def _why_it_ended(task: asyncio.Task[None]) -> ResolveError:
    name = task.get_name()
    error = None if task.cancelled() else task.exception()
    if error is None:
        return ResolveError(f"the task {name!r} was cancelled, although not by its owner")
    reason = ResolveError(f"the task {name!r} died: {describe(error)}")
    reason.__cause__ = presentable(error)
    return reason
