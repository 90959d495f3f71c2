"""Where tasks wait, in words."""

from __future__ import annotations

import gc
import linecache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable
    from types import FrameType

_MAX_FUTURE_TEXT = 200


def describe_tasks(tasks: Iterable[asyncio.Task[Any]]) -> str:
    """List tasks, each with its name and the lines where it waits, the outermost first."""
    return "\n".join(map(describe_task, tasks)) or "  (no task)"


def describe_task(task: asyncio.Task[Any]) -> str:
    """Give the task's name and the lines where it waits, the outermost first."""
    lines = [f"  task {task.get_name()!r}"]
    lines += [f"    {_describe_frame(frame)}" for frame in frames(task.get_coro())]
    waiter = getattr(task, "_fut_waiter", None)
    if waiter is not None:
        text = repr(waiter)
        lines.append("    for " + (text if len(text) <= _MAX_FUTURE_TEXT else text[:_MAX_FUTURE_TEXT] + "…"))
    return "\n".join(lines)


def frames(awaited: object) -> list[FrameType]:
    """Walk from a coroutine to what it awaits, what that awaits, and so on; return the frames on the way."""
    found: list[FrameType] = []
    seen: set[int] = set()
    while awaited is not None and id(awaited) not in seen:
        seen.add(id(awaited))
        frame = _first(awaited, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            found.append(frame)
        awaited = _next(awaited)
    return found


def _next(awaited: object) -> object:
    for name in ("cr_await", "gi_yieldfrom", "ag_await", "awaited"):
        inner: object = getattr(awaited, name, None)
        if inner is not None:
            return inner
    if getattr(awaited, "gi_frame", None) is not None:
        return _stepped_by_hand(awaited.gi_frame)  # type: ignore[attr-defined]
    # What coroutine.__await__() returns shows nothing of the coroutine behind it but to the garbage collector.
    behind = [one for one in gc.get_referents(awaited) if hasattr(one, "cr_await") or hasattr(one, "ag_await")]
    return behind[0] if len(behind) == 1 else None


def _stepped_by_hand(frame: FrameType) -> object:
    """Return the coroutine that an object's __await__() steps itself, as tasks do."""
    stepped = getattr(frame.f_locals.get("self"), "coroutine", None)
    return stepped if hasattr(stepped, "cr_await") else None


def _first(awaited: object, *names: str) -> FrameType | None:
    for name in names:
        frame: FrameType | None = getattr(awaited, name, None)
        if frame is not None:
            return frame
    return None


def _describe_frame(frame: FrameType) -> str:
    code = frame.f_code
    text = linecache.getline(code.co_filename, frame.f_lineno).strip()
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}" + (f": {text}" if text else "")
