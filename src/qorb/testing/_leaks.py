"""assert_nothing_left: what a pool has left behind, by its own account and by what can be seen without it."""

from __future__ import annotations

import asyncio
import enum
import gc
import threading
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any

from qorb.backend import Backend
from qorb.connector import Connector
from qorb.policy import Policy
from qorb.pool import Pool
from qorb.publishing import Publisher
from qorb.resolver import Resolver
from qorb.testing._clock import latest_loop
from qorb.testing._fakes import FakeConnector
from qorb.testing._waiting import describe_task

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_SHARED = (enum.Enum, Backend, Policy, Publisher, asyncio.AbstractEventLoop)
"""What several pools may refer to."""


def assert_nothing_left(pool: Pool[Any]) -> None:
    """Raise AssertionError, saying what, when anything of the pool is left.

    Looked at is the pool's own ledger; and, without believing it: the tasks and threads that bear the pool's name, the
    timers of the loop that call the pool, and the FakeConnectors of the pool: connections that it has not closed, calls
    in flight, calls that it must not make. The tasks that the pool's connector or resolver has started are theirs, not
    the pool's; those that nobody has told to end are named as well. Works inside and outside a running loop; outside,
    tasks and timers are those of the last `qorb.testing.run`. Raises TypeError for what is no Pool.
    """
    if not isinstance(pool, Pool):
        raise TypeError(f"assert_nothing_left() takes a Pool, not {pool!r}")
    parts = _parts(pool)
    left = [*_by_ledger(pool), *_tasks(pool), *_threads(pool), *_timers(parts), *_of_connectors(pool, parts)]
    left += _tasks_of_user_code(pool, parts)
    if left:
        raise AssertionError(f"pool {pool.name!r} has left behind:\n" + "\n".join(left))


def _by_ledger(pool: Pool[Any]) -> Iterator[str]:
    ledger = pool.ledger()
    if not ledger.empty:
        yield f"- by its ledger: {ledger}"
        yield from (f"    task {name!r}" for name in ledger.tasks)


def _tasks(pool: Pool[Any]) -> Iterator[str]:
    loop = latest_loop()
    if loop is not None:
        named = [task for task in asyncio.all_tasks(loop) if _is_named_after(pool, task.get_name())]
        yield from (f"- a task:\n{describe_task(task)}" for task in sorted(named, key=lambda task: task.get_name()))


def _tasks_of_user_code(pool: Pool[Any], parts: dict[int, object]) -> Iterator[str]:
    loop = latest_loop()
    for task in sorted(asyncio.all_tasks(loop) if loop is not None else (), key=lambda task: task.get_name()):
        if _stays(task) and not _is_named_after(pool, task.get_name()) and _was_started_within(task, parts):
            yield f"- a task that a connector or resolver of the pool has started and not ended:\n{describe_task(task)}"


def _stays(task: asyncio.Task[Any]) -> bool:
    """Whether the task waits and was not told to end; one that goes on right now, or is being cancelled, may end."""
    waits_for = getattr(task, "_fut_waiter", None)
    return waits_for is not None and not waits_for.done() and not task.cancelling()


def _was_started_within(task: asyncio.Task[Any], parts: dict[int, object]) -> bool:
    """Whether the task was started in the midst of a call of the pool: its context, copied then, knows that call."""
    contexts = [one for one in gc.get_referents(task) if isinstance(one, Context)]
    calls = [value for context in contexts for value in context.values() if type(value).__module__ == "qorb._tasks"]
    return any(id(one) in parts for one in gc.get_referents(*calls))


def _threads(pool: Pool[Any]) -> Iterator[str]:
    yield from (f"- a thread: {one.name!r}" for one in threading.enumerate() if _is_named_after(pool, one.name))


def _timers(parts: dict[int, object]) -> Iterator[str]:
    for timer in getattr(latest_loop(), "_scheduled", ()):
        target = getattr(timer._callback, "__self__", None)  # noqa: SLF001 - nothing else tells what a timer calls
        if not timer.cancelled() and any(id(one) in parts for one in (target, *gc.get_referents(target))):
            yield f"- a timer, due at {timer.when():.6f}: {timer!r}"


def _of_connectors(pool: Pool[Any], parts: dict[int, object]) -> Iterator[str]:
    for connector in parts.values():
        if not isinstance(connector, FakeConnector):
            continue
        # The connector may serve another pool as well: what that one does is no concern of this one.
        for connection in connector.unclosed:
            if _is_named_after(pool, connection.opened_by):
                yield f"- a connection that it has not closed: {connection!r}"
        for call in connector.in_flight:
            opened_by = call.task if call.connection is None else call.connection.opened_by
            if _is_named_after(pool, opened_by):
                yield f"- a call in flight since {call.started:.6f}: {call.operation} by {call.task!r}"
        yield from (f"- a call that it must not make: {error}" for error in connector.violations)


def _is_named_after(pool: Pool[Any], name: str) -> bool:
    return f"{name} ".startswith(f"qorb {pool.name} ")


def _parts(pool: Pool[Any]) -> dict[int, object]:
    """Find the objects that make up the pool, by id: what it refers to that is qorb's, or a user's part of a pool.

    This is how a debugger would see it; the names of the pool's attributes do not matter.
    """
    parts: dict[int, object] = {}
    unvisited: list[object] = [pool]
    while unvisited:
        one = unvisited.pop()
        if id(one) not in parts and (one is pool or _may_be_part(one)):
            parts[id(one)] = one
            unvisited += gc.get_referents(one)
    return parts


def _may_be_part(one: object) -> bool:
    if isinstance(one, (type, *_SHARED)):
        return False
    return isinstance(one, (*_CONTAINERS, Connector, Resolver)) or type(one).__module__.partition(".")[0] == "qorb"
