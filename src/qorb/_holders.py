"""Who holds connections: for how long, where they were claimed, and where those tasks stand now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from qorb._tasks import where
from qorb.errors import Holder, masked

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from qorb._look import Look
    from qorb._slot import Slot

_OWN = os.path.dirname(__file__) + os.sep  # noqa: PTH120 - compared as text
"""Where a task stands in the library itself, when it waits for a connection, tells less than where it asked for it."""


def holder_of(slot: Slot[Any], look: Look, asking: set[Any], *, located: bool) -> Holder:
    """Say who has a claim, and if `located` where that task stands now; `asking` are those that wait for another."""
    task, call = task_of(slot), look.preparing.get(slot)
    if task is None:
        return _holding(slot, look.now)
    now = None
    if located:
        now = where(call.coroutine) if call is not None else place_of(task, look.running)
    return _holding(slot, look.now, now, len(look.held[task]), asks=task in asking, preparing=call is not None)


def _holding(
    slot: Slot[Any], at: float, now: str | None = None, of_task: int = 1, *, asks: bool = False, preparing: bool = False
) -> Holder:
    name = slot.owner.backend.name
    if slot.holder is None:
        return Holder(name, slot.id, 0.0, None, None, handed_off=True)
    task, seconds = slot.holder(), at - slot.since
    if task is None:
        return Holder(name, slot.id, seconds, None, slot.site, ended=True)
    return Holder(
        name,
        slot.id,
        seconds,
        task_name(task),
        slot.site,
        now,
        _function(task),
        of_task,
        asks,
        handed_off=False,
        preparing=preparing,
        ended=task.done(),
    )


def held_by_task(claimed: Sequence[Slot[Any]]) -> dict[asyncio.Task[Any], list[Slot[Any]]]:
    """Say of each task which connections it holds."""
    held: dict[asyncio.Task[Any], list[Slot[Any]]] = {}
    for slot in claimed:
        task = task_of(slot)
        if task is not None:
            held.setdefault(task, []).append(slot)
    return held


def _function(task: asyncio.Task[Any]) -> str | None:
    """Name the function that a task runs; None when it has ended."""
    # An eager task that has ended has no coroutine any more, and CPython 3.12 crashes when it is asked for it.
    if task.done():
        return None
    coroutine = task.get_coro()
    name: str = getattr(coroutine, "__qualname__", None) or type(coroutine).__name__
    return name.rpartition("<locals>.")[2]


def task_name(task: asyncio.Task[Any]) -> str:
    """Give the name of a task without what looks like a password."""
    return masked(task.get_name())


def task_of(slot: Slot[Any]) -> asyncio.Task[Any] | None:
    """Give the task that has the connection, if there is one and it has not gone."""
    return slot.holder() if slot.holder is not None else None


def place_of(task: asyncio.Task[Any], running: str | None = None) -> str | None:
    """Say where a task stands; None when it has ended, and `running` when it is the one that runs."""
    coroutine: Any = task.get_coro() if not task.done() else None
    if coroutine is None:
        return None
    if getattr(coroutine, "cr_running", False):
        return running
    return where(coroutine, _OWN)


def describe_holder(slot: Slot[Any], now: float) -> str:
    """Say who holds a connection, for how long, where it was claimed if known, and where the holder is now."""
    task = task_of(slot)
    return str(_holding(slot, now, place_of(task) if task is not None else None))


def holder(slot: Slot[Any]) -> str:
    """Name the task that holds a connection."""
    if slot.holder is None:
        return "one that is being handed off to a waiting claim"
    task = task_of(slot)
    return f"task {task_name(task)!r}" if task is not None else "a task that has ended"
