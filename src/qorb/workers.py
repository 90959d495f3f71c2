"""Worker: a thread that lives as long as a connection of a driver that blocks, and makes all the calls with it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import os
import queue
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qorb.errors import ConnectError, PoolForkedError, describe
from qorb.threads import Ending, call_soon, name_here, outlast, owner_here, work

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from qorb.threads import ThreadOwner

T = TypeVar("T")
R = TypeVar("R")

_LOOK = 5.0
"""Seconds after which an idle thread looks whether its event loop is closed: nobody would tell it to end then."""
_REPEAT = 1.0
"""Seconds after which a call that has not ended is interrupted again: it may have been between two statements."""

_logger = logging.getLogger("qorb")


class _Job(Generic[T, R]):
    """One call on a worker's thread. Made in the loop, and in the context, of who waits for it."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self.function = function
        self.context = copy_context()
        self.outcome: concurrent.futures.Future[R] = concurrent.futures.Future()
        self.loop = asyncio.get_running_loop()
        self.arrived = asyncio.Event()
        """In the loop: the outcome is there."""
        self.over = threading.Event()
        """The thread has left it behind, and no interruption of it is under way."""
        self.interrupted = False


class _Bench(Generic[T]):
    """What a worker and its thread share. It does not know the worker, so that one that is forgotten is collected."""

    thing: T

    def __init__(self, end: Callable[[T], object], interrupt: Callable[[T], object] | None, ending: Ending) -> None:
        self.jobs: queue.SimpleQueue[_Job[T, Any] | None] = queue.SimpleQueue()
        self.current: _Job[T, Any] | None = None
        self.stopping = False
        self.interrupt = interrupt
        self.ending = ending
        self.ended: concurrent.futures.Future[object] = concurrent.futures.Future()
        """How the end of the thing went."""
        self._end = end
        self._guard = threading.Lock()
        """Held while a job is interrupted, and when it is over: the interruption must not hit the next one."""

    def keep(self, make: Callable[[], T]) -> None:
        """Make the thing; on the thread."""
        self.thing = make()

    def serve(self, make: _Job[None, None]) -> None:
        """Be the life of the thread: make the thing, do jobs with it, end it."""
        self._perform(make, None)
        failed = make.outcome.exception() is not None
        del make
        if failed:
            self.ended.set_result(None)
        else:
            while (job := self._next()) is not None:
                self.current = job
                self._perform(job, self.thing)
                self.current = job = None
            work(self.ended, functools.partial(self._end, self.thing))
            del self.thing
        self.ending.tell()

    def _next(self) -> _Job[T, Any] | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self.jobs.get(timeout=_LOOK)
            if self.ending.unheard:
                return None

    def _perform(self, job: _Job[Any, Any], thing: object) -> None:
        if job.outcome.set_running_or_notify_cancel():
            function: Callable[[Any], Any] = _refuse if self.stopping else job.function
            work(job.outcome, functools.partial(_call, job.context, function, thing))
        with self._guard:
            job.over.set()
        call_soon(job.loop, job.arrived.set)

    def interrupt_until_over(self, job: _Job[T, Any], ending: Ending) -> None:
        """Be the life of another thread: interrupt a job, again and again, until it is over."""
        while not job.over.is_set():
            with self._guard:
                if not job.over.is_set():
                    self._interrupt_once()
            job.over.wait(_REPEAT)
        ending.tell()

    def _interrupt_once(self) -> None:
        outcome: concurrent.futures.Future[object] = concurrent.futures.Future()
        if self.interrupt is not None:
            work(outcome, functools.partial(self.interrupt, self.thing))
            if (error := outcome.exception()) is not None:
                _logger.debug("%s failed: %s", threading.current_thread().name, describe(error))


def _call(context: Context, function: Callable[[T], R], thing: T) -> R:
    return context.run(function, thing)


def _refuse(thing: object) -> None:
    del thing
    raise _closed_error()


def _closed_error() -> ConnectError:
    return ConnectError("the connection is closed: it was given back, or its pool was ended")


class Worker(Generic[T]):
    """A thread with one thing that does not leave it, such as a connection of a driver that blocks. For connectors.

    The thread makes the thing, makes calls with it, one after the other, ends it, and is over. As with to_thread, the
    pool knows of a thread that is started in a method of its connector.
    """

    __slots__ = ("__weakref__", "_bench", "_last", "_loop", "_owner", "_process", "name", "thread")

    def __init__(
        self, make: _Job[None, None], bench: _Bench[T], owner: ThreadOwner | None, name: str, what: str
    ) -> None:
        """Start nothing yet: that is for Worker.start()."""
        self.name: str = name
        self.thread: threading.Thread = threading.Thread(
            target=bench.serve, args=(make,), name=f"{name} {what}", daemon=True
        )
        self._bench = bench
        self._loop = make.loop
        self._owner = owner
        self._process = os.getpid()
        self._last = make.over

    @classmethod
    async def start(
        cls,
        make: Callable[[], T],
        end: Callable[[T], object],
        *,
        interrupt: Callable[[T], object] | None = None,
        what: str = "works",
    ) -> Worker[T]:
        """Start the thread, which calls `make`; raise what that raises.

        `end` is called with the thing in the end. `interrupt` is called with it to make a call end that was given up:
        on yet another thread, and again every second until that call is over. `what` is as in to_thread.

        Cancelled meanwhile, it raises its CancelledError when `make` has returned and the thread has ended.
        """
        owner = owner_here()
        bench = _Bench(end, interrupt, Ending(asyncio.get_running_loop(), owner))
        job: _Job[None, None] = _Job(lambda _: bench.keep(make))
        worker = cls(job, bench, owner, name_here(owner), what)
        bench.ending.start(worker.thread)
        try:
            await outlast(job.arrived)
            job.outcome.result()
        except BaseException as error:
            worker.stop()
            if not isinstance(error, GeneratorExit):  # that comes when the loop is closed: nothing can be waited for
                await outlast(bench.ending.joined)
            raise
        return worker

    @property
    def busy(self) -> bool:
        """Whether a call is under way or waiting, be it one that was given up."""
        return not self._last.is_set()

    @property
    def stopped(self) -> bool:
        """Whether it makes no more calls."""
        return self._bench.stopping or not self.thread.is_alive()

    def serve(self, connection: object) -> None:
        """Be there for a connection: a claimer to whom that is left takes the thread along."""
        if self._owner is not None:
            self._owner.serves(self.thread, connection)

    async def run(self, function: Callable[[T], R]) -> R:
        """Call the function with the thing on its thread, in a copy of this context; give or raise what that does.

        Calls wait for their turn. Raises ConnectError after stop(), PoolForkedError in a child process.

        Cancelled, it raises its CancelledError at once. A call that had not begun is never made; one that had is
        interrupted, if there is an `interrupt`, and the thread is `busy` until it is over.
        """
        if os.getpid() != self._process:
            raise PoolForkedError("this connection belongs to the parent process; make a pool of your own in the child")
        if self.stopped:
            raise _closed_error()
        job = _Job(function)
        self._last = job.over
        self._bench.jobs.put(job)
        try:
            await job.arrived.wait()
            return job.outcome.result()
        finally:
            if not job.outcome.cancel():
                self._interrupt(job)
            del job

    def stop(self) -> None:
        """Tell the thread to end after the call that is under way. Never waits; for any thread."""
        if not self._bench.stopping:
            self._bench.stopping = True
            self._bench.jobs.put(None)

    def abort(self) -> None:
        """Tell the thread to end, and interrupt the call that is under way. Never waits; for any thread."""
        self.stop()
        self._interrupt(self._bench.current)

    async def ended(self) -> None:
        """Wait until the thread has ended after stop(), and raise what `end` raised.

        Cancelled meanwhile, it interrupts the call that is under way, and raises its CancelledError when the thread has
        ended: nobody can take its connection from it.
        """
        await outlast(self._bench.ending.joined, lambda: self._interrupt(self._bench.current))
        self._bench.ended.result()

    def _interrupt(self, job: _Job[T, Any] | None) -> None:
        if job is None or self._bench.interrupt is None or job.interrupted or job.over.is_set():
            return
        job.interrupted = True
        owner = self._owner if self._owner is not None and self._owner.owns(self.thread) else None
        ending = Ending(self._loop, owner)
        thread = threading.Thread(
            target=self._bench.interrupt_until_over, args=(job, ending), name=f"{self.name} interrupts", daemon=True
        )
        with contextlib.suppress(RuntimeError):  # no thread can be started while the interpreter exits
            ending.start(thread)

    def __del__(self) -> None:
        """End the thread of what was forgotten."""
        bench = getattr(self, "_bench", None)
        if bench is not None:
            bench.stopping = True
            bench.jobs.put(None)
