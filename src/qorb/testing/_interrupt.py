"""Attempt: one interruption, at one suspension point, with one timing."""

from __future__ import annotations

import asyncio
import enum
import math
import weakref
from collections.abc import Generator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from qorb.testing._clock import virtual_loop
from qorb.testing._waiting import describe_wait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Literal

    from qorb.testing._loop import VirtualLoop

T = TypeVar("T")


class Timing(enum.Enum):
    """When the interruption comes, seen from a suspension point."""

    SUSPENDED = "suspended"
    """While it waits: in the turn of the loop after the suspension."""
    SAME_TICK = "same tick"
    """When what it waits for has come, just before it is told: both arrive together."""
    NEXT_TICK = "next tick"
    """One turn after that."""
    SECOND_TICK = "second tick"
    """Two turns after that."""


_TICKS_LATER = {Timing.SAME_TICK: 0, Timing.NEXT_TICK: 1, Timing.SECOND_TICK: 2}

Way: TypeAlias = "Literal['cancel', 'timeout', 'anyio'] | Callable[[Awaitable[Any]], Awaitable[Any]]"
"""How to interrupt an operation.

- "cancel": by Task.cancel()
- "timeout": within asyncio.timeout(), which expires
- "anyio": within anyio.CancelScope(), which is cancelled
- a function that puts the operation into something with a time limit of math.inf, such as
  `lambda operation: asyncio.wait_for(operation, math.inf)`: the first timer that this makes fires before its time
"""


class CancelSwallowedError(AssertionError):
    """An operation was cancelled in time, and ended otherwise than in CancelledError."""


@dataclass(frozen=True, slots=True)
class Ending(Generic[T]):
    """How an operation ended, when it did not raise."""

    cancelled: bool
    """It ended in CancelledError, wherever that came from."""
    result: T | None
    """What it returned; None when it was cancelled."""
    in_time: bool
    """The interruption came while there was still something to interrupt; for "cancel": what Task.cancel() returned."""


class Attempt:
    """One run of a scene, in which one operation is interrupted at one step with one timing.

    When a scene interrupts several operations, one after the other, their suspension points are counted through.
    """

    def __init__(self, step: int, timing: Timing, by: Way = "cancel", tasks: str | None = None) -> None:
        """Count steps from 1. `tasks`: the pattern of the names of tasks that are cancelled instead of an operation."""
        self.step = step
        self.timing = timing
        self.by: Way = by
        self.tasks = tasks
        self.reached = False
        """Whether the step has come yet."""
        self.in_time = False
        """Whether the interruption has come, and while there was still something to interrupt."""
        self.place = ""
        """The task, and the lines where it waited when the step came."""
        self._count = 0

    async def cancel(self, operation: Awaitable[T]) -> Ending[T]:
        """Await the operation in a task of its own, and cancel it when the step comes.

        Raises what the operation raises; CancelSwallowedError when it was cancelled in time, but went on to return or
        to raise something else. Cancelling this call cancels the operation.
        """
        interruption = Interruption(self, operation)
        await interruption.finish()
        interruption.check_not_swallowed()
        return interruption.ending()

    async def cancel_leniently(self, operation: Awaitable[T]) -> Ending[T]:
        """Do as cancel() does, but let the operation end as it likes: for one that may finish what it has begun."""
        interruption = Interruption(self, operation)
        await interruption.finish()
        return interruption.ending()

    async def meanwhile(self, operation: Awaitable[T], action: Callable[[], object]) -> Ending[T]:
        """Await the operation in a task of its own, and call `action()` when the step comes, instead of cancelling.

        Raises what the operation raises. Cancelling this call cancels the operation.
        """
        interruption = Interruption(self, operation, action)
        await interruption.finish()
        return interruption.ending()

    def comes(self, task: str, awaited: object) -> bool:
        """Count one suspension point, and say whether it is the one. `awaited`: the coroutine that is suspended."""
        self._count += 1
        if self._count != self.step:
            return False
        self.reached = True
        self.place = describe_wait(task, awaited)
        return True


class Interruption(Generic[T]):
    """One operation, and what interrupts it."""

    def __init__(self, attempt: Attempt, operation: Awaitable[T], action: Callable[[], object] | None = None) -> None:
        """Prepare to interrupt the operation by calling `action`; None: by what the attempt says."""
        self._watched = _Watched(operation, self._suspended)
        if attempt.tasks is not None:
            self._watched.close()
            raise RuntimeError(f"this attempt cancels tasks named {attempt.tasks!r}; await the operation itself")
        self._attempt = attempt
        self._act = None if action is None else _in_any_case(action)
        self._loop = virtual_loop("at_every_await()")
        by: Way = attempt.by if action is None else "cancel"
        self._task = asyncio.Task(self._within(by), loop=self._loop, name="operation")
        self._interrupt: Callable[[], bool] | None = None
        """What interrupts the operation, and returns whether that was in time; None when it is not going on."""
        self._in_time = False
        self._cancelled = False

    async def finish(self) -> None:
        """Wait until the operation has ended, whichever way; interrupt it when the step comes."""
        try:
            await asyncio.wait([self._task])
            self._watched.close()
        finally:
            self._task.cancel()

    def ending(self) -> Ending[T]:
        """Return how the operation has ended; raise what it has raised."""
        if self._task.cancelled():
            return Ending(cancelled=True, result=None, in_time=self._in_time)
        if self._cancelled:
            self._task.exception()  # that of the asyncio.timeout() round it
            return Ending(cancelled=True, result=None, in_time=self._in_time)
        return Ending(cancelled=False, result=self._task.result(), in_time=self._in_time)

    def check_not_swallowed(self) -> None:
        """Raise CancelSwallowedError when the operation has been cancelled, but has not ended in CancelledError."""
        # These two cancel a task that goes on, so CancelledError must come up. The others may come a moment too late.
        sure = self._attempt.by in ("cancel", "timeout")
        if not self._in_time or self._cancelled or self._task.cancelled() or not (sure or self._watched.was_cancelled):
            return
        error = self._task.exception()
        ended = f"raised {error!r}" if error is not None else f"returned {self._task.result()!r}"
        raise CancelSwallowedError(f"the operation was cancelled in time, but it {ended}") from error

    async def _within(self, by: Way) -> T | None:
        """Await the operation within what interrupts it."""
        if by == "cancel":
            return await self._proper(self._act or self._task.cancel)
        if by == "anyio":
            from qorb.testing._anyio import within_scope  # noqa: PLC0415 - only this way of interrupting needs anyio

            return await within_scope(self._proper)
        number = next(self._loop.timer_numbers)
        if by == "timeout":
            async with asyncio.timeout(math.inf):
                return await self._until_timer(number)
        result: T = await by(self._until_timer(number))
        return result

    async def _until_timer(self, number: int) -> T:
        return await self._proper(_fired_early(self._loop.timer_since(number)))

    async def _proper(self, interrupt: Callable[[], bool]) -> T:
        """Await the operation itself."""
        self._interrupt = interrupt
        try:
            result: T = await self._watched
        except asyncio.CancelledError:
            self._cancelled = True
            raise
        else:
            return result
        finally:
            self._interrupt = None

    def _suspended(self, waits_for: asyncio.Future[object] | None) -> None:
        """Be told that the operation is about to be suspended until what it waits for is done; None: for one turn."""
        if not self._attempt.comes("operation", self._watched.awaited):
            return
        if self._attempt.timing is Timing.SUSPENDED:
            self._loop.call_soon(self._fire)
        elif waits_for is not None:
            # Added before the task adds its own wake-up, and therefore called before it.
            waits_for.add_done_callback(self._result_came)
        else:
            self._loop.call_soon(self._result_came)

    def _result_came(self, _future: object = None) -> None:
        _after_turns(self._loop, _TICKS_LATER[self._attempt.timing], self._fire)

    def _fire(self) -> None:
        if self._interrupt is not None:
            self._watched.interrupted()
            self._in_time = self._attempt.in_time = self._interrupt()


class TaskCanceller:
    """Cancels the tasks whose names fit, whoever has started them: one at each step. Watches the steps of the loop."""

    def __init__(self, loop: VirtualLoop, attempt: Attempt, pattern: str) -> None:
        """Watch for tasks whose names match a pattern like those for files: `*` and `?`."""
        self._loop = loop
        self._attempt = attempt
        self._pattern = pattern
        self._known: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._waited_for: asyncio.Task[Any] | None = None
        """The task that is cancelled as soon as it is to run on."""

    def before_step(self, task: asyncio.Task[Any]) -> None:
        """Count the moment before a task's first step; cancel the task whose wait is over."""
        if task is self._waited_for:
            self._waited_for = None
            self._cancel(task)
        elif task not in self._known and fnmatchcase(task.get_name(), self._pattern):
            self._known.add(task)
            if self._attempt.comes(task.get_name(), task.get_coro()):
                self._cancel(task)

    def after_step(self, task: asyncio.Task[Any]) -> None:
        """Count the suspension with which the step has ended."""
        if task.done() or task not in self._known or not self._attempt.comes(task.get_name(), task.get_coro()):
            return
        if self._attempt.timing is Timing.SUSPENDED:
            self._loop.call_soon(self._fire, task)
        else:
            self._waited_for = task

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        _after_turns(self._loop, _TICKS_LATER.get(self._attempt.timing, 0), lambda: self._fire(task))

    def _fire(self, task: asyncio.Task[Any]) -> None:
        self._attempt.in_time = task.cancel()


class _Watched(Generator[Any, Any, T]):
    """An awaitable that passes everything on to another one, and tells when that suspends."""

    def __init__(self, operation: Awaitable[T], suspended: Callable[[asyncio.Future[object] | None], None]) -> None:
        self.awaited = operation.__await__()
        self.was_cancelled = False
        """It was cancelled since it was interrupted."""
        self._suspended = suspended
        self._task: asyncio.Task[Any] | None = None
        """What it runs in: the task that is interrupted, or one that was started round it."""
        self._cancelled_before = 0
        """How many cancellations of that task were under way already when it was interrupted."""

    def __await__(self) -> _Watched[T]:
        return self

    def interrupted(self) -> None:
        """Be told that it is interrupted now: what a time limit of its own has cancelled says nothing of that."""
        self.was_cancelled = False
        self._cancelled_before = self._task.cancelling() if self._task is not None else 0

    def send(self, value: object) -> object:
        return self._pass_on(self.awaited.send, value)

    def close(self) -> None:
        """End the operation if it never began, so that nobody complains that it was not awaited."""
        self.awaited.close()

    def throw(  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        self, error: BaseException
    ) -> object:
        """Pass on an exception. Tasks, and `await` for them, throw an instance and nothing else."""
        if isinstance(error, asyncio.CancelledError):
            # One that comes without Task.cancel() is the operation's own affair: it has cancelled what it waits for.
            task = asyncio.current_task()
            by_now = task.cancelling() if task is not None else 0
            self.was_cancelled = self.was_cancelled or by_now > self._cancelled_before
        return self._pass_on(self.awaited.throw, error)

    def _pass_on(self, how: Callable[[Any], Any], what: object) -> object:
        waits_for = how(what)
        self._task = asyncio.current_task()
        if self._task is not None:  # those of its own are over once it says so
            self._cancelled_before = min(self._cancelled_before, self._task.cancelling())
        self._suspended(waits_for)
        return waits_for


def _after_turns(loop: asyncio.AbstractEventLoop, turns: int, callback: Callable[[], object]) -> None:
    if turns == 0:
        callback()
    else:
        loop.call_soon(_after_turns, loop, turns - 1, callback)


def _fired_early(timer: asyncio.TimerHandle) -> Callable[[], bool]:
    """Make the function that has a timer fire before its time, and returns whether it could still fire."""

    def fire() -> bool:
        if timer.cancelled():
            return False
        timer._run()  # noqa: SLF001 - as the loop does when it is due
        timer.cancel()
        return True

    return fire


def _in_any_case(action: Callable[[], object]) -> Callable[[], bool]:
    """Make the function that calls `action` and returns that this was in time."""

    def act() -> bool:
        action()
        return True

    return act
