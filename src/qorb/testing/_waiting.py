"""Where tasks wait, in words."""

from __future__ import annotations

import gc
import linecache
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

_MAX_FUTURE_TEXT = 200


def describe_tasks(tasks: Iterable[asyncio.Task[Any]]) -> str:
    """List tasks, each with its name and the lines where it waits, the outermost first."""
    return "\n".join(map(describe_task, tasks)) or "  (no task)"


def describe_task(task: asyncio.Task[Any]) -> str:
    """Give the task's name and the lines where it waits, the outermost first, and what for."""
    text = describe_wait(task.get_name(), task.get_coro())
    waits_for = getattr(task, "_fut_waiter", None)
    if waits_for is None:
        return text
    future = repr(waits_for)
    return f"{text}\n    for " + (future if len(future) <= _MAX_FUTURE_TEXT else future[:_MAX_FUTURE_TEXT] + "…")


def describe_wait(task: str, awaited: object) -> str:
    """Give the name of a task and the lines where a coroutine waits in it, the outermost first."""
    return "\n".join([f"  task {task!r}", *(f"    {_describe_frame(frame)}" for frame in frames(awaited))])


def frames(awaited: object) -> list[FrameType]:
    """Walk from a coroutine to what it awaits, what that awaits, and so on; return the frames on the way."""
    found: list[FrameType] = []
    seen: set[int] = set()
    while awaited is not None and id(awaited) not in seen:
        seen.add(id(awaited))
        frame = _first(awaited, "cr_frame", "gi_frame", "ag_frame")
        if isinstance(frame, FrameType):
            found.append(frame)
        awaited = _first(awaited, "cr_await", "gi_yieldfrom", "ag_await", "awaited") or _behind(awaited, frame)
    return found


def _first(awaited: object, *names: str) -> object:
    return next((one for name in names if (one := getattr(awaited, name, None)) is not None), None)


def _behind(awaited: object, frame: object) -> object:
    """Return what stands behind an awaitable that does not show what it awaits."""
    if isinstance(frame, FrameType):
        # The generator of an object that steps a coroutine itself, as tasks do.
        stepped = getattr(frame.f_locals.get("self"), "coroutine", None)
        return stepped if hasattr(stepped, "cr_await") else None
    # What coroutine.__await__() returns shows the coroutine to nobody but the garbage collector.
    coroutines = [one for one in gc.get_referents(awaited) if hasattr(one, "cr_await")]
    return coroutines[0] if len(coroutines) == 1 else None


def _describe_frame(frame: FrameType) -> str:
    code = frame.f_code
    text = linecache.getline(code.co_filename, frame.f_lineno).strip()
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}" + (f": {text}" if text else "")
