"""Everything that runs by itself has an owner here: tasks, timers, and calls of user code that can be interrupted."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import sys
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from qorb.errors import ConnectError, describe, reportable
from qorb.threads import employer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from types import FrameType

    from qorb.threads import ThreadOwner


T = TypeVar("T")

logger = logging.getLogger("qorb")

REPEAT = 1.0
"""Seconds after which something that does not listen is told to stop again."""
_FOREVER = 1e9
"""A timer further away than this many seconds is never set: event loops differ in what they can represent."""


_ANCHOR = 3600.0
"""Seconds for which a timer that does nothing lies in the event loop; then comes the next."""


class Interrupted(Exception):  # noqa: N818 - not an error: what a call of user code ends in when its owner told it to stop
    """A call of user code ended because its owner told it to."""


class CallFailedError(Exception):
    """A call of user code failed; `error` is what it raised."""

    def __init__(self, error: BaseException) -> None:
        """Keep what user code raised."""
        super().__init__(error)
        self.error = error


def call_now(function: Callable[..., T], *arguments: object) -> T:
    """Call synchronous user code. Raises CallFailedError for what it raised; KeyboardInterrupt and its like pass."""
    try:
        return function(*arguments)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - user code
        raise CallFailedError(error) from None


class Timer:
    """One timer of a TimerOwner."""

    __slots__ = ("_callback", "_handle", "_moment", "_owner")

    def __init__(self, owner: TimerOwner, callback: Callable[[], object], moment: float = -math.inf) -> None:
        """Be counted by the owner until fired or cancelled."""
        self._owner = owner
        self._callback = callback
        self._moment = moment
        self._handle: asyncio.Handle | None = None

    def cancel(self) -> None:
        """Do not fire; a second call, or one after it fired, does nothing."""
        self._owner.alive.pop(self, None)
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        if self._owner.loop.time() < self._moment:  # event loops round: uvloop to milliseconds, so that it may be early
            self._handle = self._owner.call_at(self._moment, self._fire)
            return
        self._handle = None
        self._owner.alive.pop(self, None)
        self._callback()


class TimerOwner:
    """Sets timers and knows which are alive. They run in an empty context, never in that of the caller."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: ThreadOwner | None = None) -> None:
        """Belong to one loop; `threads` owns what calls of user code start."""
        self.loop = loop
        self.threads = threads
        self.alive: dict[Timer, None] = {}
        self._context = Context()

    def after(self, seconds: float, callback: Callable[[], object]) -> Timer | None:
        """Call back after so many seconds; None, and never, when that is too far away to matter."""
        return self.at(self.loop.time() + seconds, callback)

    def at(self, moment: float, callback: Callable[[], object]) -> Timer | None:
        """Call back at a moment of loop.time(), not before, even where the loop would.

        None, and never, when that is too far away or the loop is closed.
        """
        if not moment - self.loop.time() < _FOREVER or self.loop.is_closed():
            return None
        timer = Timer(self, callback, moment)
        timer._handle = self.call_at(moment, timer._fire)  # noqa: SLF001 - two halves of one thing
        self.alive[timer] = None
        return timer

    def call_at(self, moment: float, callback: Callable[[], object]) -> asyncio.Handle:
        """Have the loop call a timer that is alive, at that moment or a little before."""
        return self.loop.call_at(moment, callback, context=self._context)

    def soon(self, callback: Callable[[], object]) -> Timer | None:
        """Call back in the next turn of the loop; None, and never, when the loop is closed."""
        if self.loop.is_closed():
            return None
        timer = Timer(self, callback)
        timer._handle = self.loop.call_soon(timer._fire, context=self._context)  # noqa: SLF001 - as above
        self.alive[timer] = None
        return timer

    def cancel_all(self) -> None:
        """Cancel every timer that is alive."""
        for timer in tuple(self.alive):
            timer.cancel()


class Call(Generic[T]):
    """One call of user code, awaited in some task, that can be interrupted from outside without cancelling that task.

    An interruption cancels what the call is waiting for, just as Task.cancel() would, and is repeated every second for
    code that does not listen. Because the task itself is not cancelled, a cancellation of the task always comes from
    somebody else, and always passes.
    """

    __slots__ = (
        "_expired",
        "_outer",
        "_repeat",
        "_task",
        "_throw",
        "_timers",
        "_waits_for",
        "coroutine",
        "forestalled",
        "function",
        "interrupted",
        "since",
    )

    def __init__(self, timers: TimerOwner, function: Callable[..., Awaitable[T]], *arguments: object) -> None:
        """Prepare to await function(*arguments)."""
        self.function = function
        self.coroutine: Coroutine[Any, Any, T] = _enter(function, arguments)
        self._timers = timers
        self._waits_for: Any = None
        self._throw = False
        self._expired = False
        self._repeat: Timer | None = None
        self._task: asyncio.Task[Any] | None = None
        """The task that it runs in, while it runs."""
        self._outer: Call[Any] | None = None
        """The call, of this pool or another, in whose midst it is made: a connector may claim connections, too."""
        self.interrupted = False
        self.forestalled = False
        """The call was never made: its task had been cancelled before."""
        self.since = timers.loop.time()

    def describe(self, by: str = "") -> str:
        """Say what is called, for how long, by whom where that is not plain, and where it waits."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        seconds = self._timers.loop.time() - self.since
        return f"{name} for {seconds:.1f} s{f' by {by}' if by else ''} in {where(self.coroutine)}"

    async def within(self, seconds: float) -> T:
        """Await the call, bounded by `seconds`: what does not listen and ends well later was too slow all the same.

        Raises CallFailedError for whatever user code raised (TimeoutError when it was too slow, and a CancelledError
        that nobody had asked for), Interrupted after interrupt(). KeyboardInterrupt, SystemExit and the cancellation of
        the task pass.
        """
        result = await self.within_or_later(seconds)
        if self._expired and not self.interrupted:
            raise self._reason(seconds)
        return result

    async def within_or_later(self, seconds: float) -> T:
        """Await the call as within() does, but take its result however late it comes."""
        loop = self._timers.loop
        task = asyncio.current_task(loop)
        cancelled_before = task.cancelling() if task is not None else 0
        outer = employer.get()
        if isinstance(outer, Call) and outer._is_in(task):  # noqa: SLF001 - of this class
            self._outer = outer
        self._task = task
        employer.set(self)
        limit = self._timers.after(seconds, self._expire)
        try:
            if cancelled_before:
                await self._hear()
            return await self
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except asyncio.CancelledError:
            if (task is not None and task.cancelling() > cancelled_before) or self.forestalled or self._ends_with_outer:
                raise
            raise self._reason(seconds) from None
        except Exception as error:  # noqa: BLE001 - user code
            raise CallFailedError(error) from None
        except BaseException as error:  # noqa: BLE001 - user code; what must pass has passed above
            loop.call_exception_handler(
                {"message": "qorb: user code raised a BaseException", "exception": reportable(error)}
            )
            raise CallFailedError(error) from None
        finally:
            if limit is not None:
                limit.cancel()
            if self._repeat is not None:
                self._repeat.cancel()
                self._repeat = None
            employer.set(outer)  # and not reset(): the garbage collector may end this in another context
            self._task = self._outer = None

    async def _hear(self) -> None:
        """Let a task that has been cancelled, while it ran, hear of it before the call begins.

        Otherwise it would hear of it in the midst of the call, where it would be taken for the work of user code.
        """
        try:
            await asyncio.sleep(0)
        except BaseException as error:
            self.forestalled = isinstance(error, asyncio.CancelledError)
            self.coroutine.close()
            raise
        if self._throw:  # interrupted meanwhile
            self.coroutine.close()
            raise asyncio.CancelledError

    @property
    def threads(self) -> ThreadOwner | None:
        """Who owns the threads that are started in its midst."""
        return self._timers.threads

    def interrupt(self) -> None:
        """Tell the call to end: what it waits for is cancelled now, and again every second until it has ended.

        Telling it again makes no difference: in between it may clean up.
        """
        self.interrupted = True
        if self._repeat is None:
            self._cancel()

    def _expire(self) -> None:
        self._expired = True
        if self._repeat is None:
            self._cancel()

    def _is_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether it runs in that task: one that was started in the midst of a call inherits its context."""
        return self._task is task

    @property
    def _ends_with_outer(self) -> bool:
        """Whether a call in whose midst this one is made was told to end."""
        outer = self._outer
        return outer is not None and (outer.interrupted or outer._expired or outer._ends_with_outer)  # noqa: SLF001 - of this class

    def _reason(self, seconds: float) -> Exception:
        if self.interrupted:
            return Interrupted()
        if self._expired:
            return CallFailedError(TimeoutError(f"not done within {seconds:g} s"))
        return CallFailedError(ConnectError("it raised CancelledError, although nobody had cancelled it"))

    def _cancel(self) -> None:
        if self._repeat is not None:
            self._repeat.cancel()
        self._repeat = self._timers.after(REPEAT, self._cancel)
        self._throw = not self._cancel_wait()

    def _cancel_wait(self) -> bool:
        cancel = getattr(self._waits_for, "cancel", None)
        return cancel is not None and bool(cancel())

    def __await__(self) -> Generator[Any, Any, T]:
        """Step the coroutine as a task would, and step in when the call is interrupted."""
        step: Callable[[Any], Any] = self.coroutine.send
        argument: Any = None
        while True:
            try:
                self._waits_for = step(argument)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if self._throw and self._cancel_wait():  # interrupted while it ran
                self._throw = False
            try:
                argument = yield self._waits_for
                step = self.coroutine.send
            except GeneratorExit:  # from the garbage collector, which may have closed the coroutine before
                self.coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001 - passed on to the code that waits: that is what a task does
                step, argument = self.coroutine.throw, error
                self._throw = False
            self._waits_for = None
            if self._throw:
                self._throw = False
                step, argument = self.coroutine.throw, asyncio.CancelledError()


async def _enter(function: Callable[..., Awaitable[T]], arguments: tuple[object, ...]) -> T:
    return await function(*arguments)


_ENTER = _enter.__code__


class Life(Protocol):
    """What a TaskOwner runs."""

    name: str
    call: Call[Any] | None
    """The call of user code that is under way."""

    def live(self) -> Coroutine[Any, Any, None]:
        """Run until told to stop."""
        ...

    def stop(self) -> None:
        """Be told, synchronously, to end at once; may be told again."""
        ...

    def settle(self, task: asyncio.Task[None]) -> None:
        """Be told that the task has ended, whatever way: give back what is still held."""
        ...

    def describe(self) -> str:
        """Say what is under way."""
        ...


class TaskOwner:
    """Starts tasks, holds on to them until they have ended, and tells them to stop."""

    def __init__(self, timers: TimerOwner) -> None:
        """Own nothing yet."""
        self._timers = timers
        self.tasks: dict[asyncio.Task[None], Life] = {}
        self.closed = False
        """No task can be started any more."""
        self._context = Context()
        self._repeat: Timer | None = None

    def start(self, life: Life) -> None:
        """Run a life in a task of its own: never eagerly, in an empty context."""
        if self.closed:
            raise RuntimeError(f"{life.name}: no task is started any more, the pool is ending")
        # asyncio.Task itself, not loop.create_task(): a task factory might run the first step right here (eager tasks).
        # The coroutine is made last: a signal handler that raises (between any two calls) must not leave one unstarted.
        loop, name, context = self._timers.loop, life.name, Context()
        task = asyncio.Task(life.live(), loop=loop, name=name, context=context)
        # Private, and only here: it must not be asyncio that complains of a task whose loop was closed, but the pool.
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: SLF001
        self.tasks[task] = life
        task.add_done_callback(self._ended, context=self._context)

    def anchor(self) -> None:
        """Be kept alive by the loop, as long as that is open: it knows its tasks only by what they wait for.

        Otherwise whoever is behind them could be collected, in a reference cycle, together with the tasks, which nobody
        would end then.
        """
        self._timers.after(_ANCHOR, self.anchor)

    def stop_all(self) -> None:
        """Start nothing more, and tell every task to stop, now and again every second."""
        self.closed = True
        if self._repeat is not None:
            self._repeat.cancel()
            self._repeat = None
        if self.tasks:
            self._repeat = self._timers.after(REPEAT, self.stop_all)
        for life in tuple(self.tasks.values()):
            life.stop()

    def owns(self, task: asyncio.Task[Any] | None) -> Life | None:
        """Give the life that runs in that task, if it is one of ours."""
        return self.tasks.get(task) if task is not None else None

    def destroy_all(self) -> None:
        """End every task although its loop is closed, without a warning from asyncio."""
        self.closed = True
        for task, life in tuple(self.tasks.items()):
            coroutine: Any = task.get_coro()  # None for a task that ended eagerly, which ours never do
            try:
                coroutine.close()
            except RuntimeError as error:  # user code that awaits while it is closed, or needs its loop
                logger.debug("%s: %s", life.name, describe(error))
            self.tasks.pop(task, None)
            life.settle(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        life = self.tasks.pop(task, None)
        if self._repeat is not None and not self.tasks:
            self._repeat.cancel()
            self._repeat = None
        if life is not None:
            life.settle(task)


def where(coroutine: Any, but: str = "<") -> str:  # noqa: ANN401 - coroutines, generators and awaitables of any kind
    """Say where a suspended coroutine waits: function, file and line of its innermost frame.

    That is the innermost one outside the standard library, where there is one: that something sleeps in asyncio tells
    nobody what it is. And it is one outside the folder `but`, if there is one.
    """
    innermost = telling = outside = None
    for _ in range(100):
        frame: FrameType | None = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            break
        innermost = frame
        code = frame.f_code
        if code is not _ENTER and not _is_of_python(code.co_filename):
            telling = frame
            if not code.co_filename.startswith(but):
                outside = frame
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    frame = outside or telling or innermost
    return _place(frame) if frame is not None else "not started yet"


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"


def thread_place(thread: int) -> str | None:
    """Say where a thread is: its innermost frame outside the standard library; None when it has ended."""
    frame: FrameType | None = sys._current_frames().get(thread)  # noqa: SLF001 - the only way
    while frame is not None and _is_of_python(frame.f_code.co_filename):
        frame = frame.f_back
    return _place(frame) if frame is not None else None


_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120 - compared as text


@functools.lru_cache(1000)
def _is_of_python(filename: str) -> bool:
    """Whether a file belongs to the standard library, among whose folders lies that of what was installed."""
    if filename.startswith("<frozen "):
        return True
    return filename.startswith(_STANDARD_LIBRARY) and "-packages" + os.sep not in filename
