"""run: one coroutine function in virtual time, from its start until nothing of it is left."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

from qorb.testing._loop import Deadlock, Livelock, VirtualLoop
from qorb.testing._waiting import describe_tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class UnhandledError(AssertionError):
    """Something failed during a run and nobody was told: the loop's exception handler was called.

    `contexts` is what it was called with; see asyncio's loop.call_exception_handler().
    """

    def __init__(self, contexts: list[dict[str, Any]]) -> None:
        """Say what happened, tracebacks included."""
        super().__init__("\n".join(map(_describe_context, contexts)))
        self.contexts = contexts


def run(main: Callable[[], Awaitable[T]], *, seed: int = 0, patience: int = 1_000_000) -> T:
    """Run a coroutine function in virtual time and return its result.

    Waits take no real time, however long. The order in which things happen is a function of `seed`: 0 is asyncio's own,
    any other shuffles the tasks that are ready at the same time. The loop is in debug mode; its clock starts at 1000.

    Raises TypeError for arguments that are none of these, and what main() raises. Raises Deadlock, which lists the
    tasks, when nothing can happen any more; Livelock when for `patience` turns of the loop either no time has passed or
    main() has not been woken, whatever else goes on; UnhandledError when the loop's exception handler was called and
    main() has not set another one. At the end the tasks that are left are cancelled and asynchronous generators closed,
    as asyncio.run() does it, and the loop is closed.

    There is no network in virtual time. Functions given to loop.run_in_executor() or asyncio.to_thread() run on the
    loop's own thread, in the next turn and in no time.
    """
    check_coroutine_function("run", main)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be a whole number, not {seed!r}")
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - documented by asyncio, and does not raise
        raise RuntimeError("run() cannot be called while an event loop is running")
    loop = VirtualLoop(seed=seed, patience=patience)
    try:
        result = _run_to_the_end(loop, main)
    except BaseException as error:
        if loop.errors:
            error.add_note(f"besides, nobody was told of this:\n{UnhandledError(loop.errors)}")
        raise
    if loop.errors:
        raise UnhandledError(loop.errors) from loop.errors[0].get("exception")
    return result


def check_coroutine_function(name: str, main: object) -> None:
    """Raise TypeError when what the function `name` was given cannot be called."""
    if callable(main):
        return
    if asyncio.iscoroutine(main):
        main.close()
        raise TypeError(f"{name}() takes the coroutine function itself: write {name}(main), not {name}(main())")
    raise TypeError(f"{name}() takes a coroutine function, not {main!r}")


def _run_to_the_end(loop: VirtualLoop, main: Callable[[], Awaitable[T]]) -> T:
    async def call_main() -> T:
        return await main()

    task = asyncio.Task(call_main(), loop=loop, name="main")
    loop.main = task
    try:
        return loop.run_until_complete(task)
    finally:
        if task.done() and not task.cancelled():
            task.exception()  # has been raised, or gives way to what ended the loop
        try:
            _wind_up(loop)
        finally:
            loop.close()


def _wind_up(loop: VirtualLoop) -> None:
    """Cancel what is left and wait for it. What goes wrong is added to the loop's errors."""
    left = loop.tasks()
    for task in left:
        task.cancel()
    try:
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_asyncgens())
    except (Deadlock, Livelock) as error:
        loop.errors.append({"message": "tasks that were cancelled at the end of run() do not end", "exception": error})
    for task in left:
        failure = task.exception() if task.done() and not task.cancelled() else None
        if failure is not None:
            message = f"task {task.get_name()!r} was cancelled at the end of run() and raised"
            loop.call_exception_handler({"message": message, "exception": failure, "task": task})
    loop.take_lost_exceptions()
    _forsake(loop)


def _forsake(loop: VirtualLoop) -> None:
    """Report the tasks that are still pending, and see to it that their end is silent."""
    pending = loop.tasks()
    if not pending:
        return
    message = "tasks are still pending after the end of run():\n" + describe_tasks(pending)
    loop.call_exception_handler({"message": message})
    for task in pending:
        setattr(task, "_log_destroy_pending", False)  # noqa: B010 - private; it has been reported just now


def _describe_context(context: dict[str, Any]) -> str:
    lines = [str(context.get("message", "an error"))]
    task = context.get("task") or context.get("future")
    if task is not None:
        lines.append(f"  {task!r}")
    error = context.get("exception")
    if isinstance(error, BaseException):
        lines += "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(lines)
