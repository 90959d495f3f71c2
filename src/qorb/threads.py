"""Threads for user code that blocks: the pool knows of them, and ends when they have."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class ThreadOwner:
    """The threads that run for one pool."""

    def __init__(self, name: str, ended: Callable[[], object]) -> None:
        """Own nothing yet. `name` stands before those of the threads; `ended` is called when a thread has ended."""
        self.name = name
        self._ended = ended
        self._threads: dict[threading.Thread, None] = {}

    @property
    def alive(self) -> tuple[str, ...]:
        """The names of those that have not ended."""
        return tuple(thread.name for thread in tuple(self._threads) if thread.is_alive())

    def started(self, thread: threading.Thread) -> None:
        """Own a thread."""
        self._threads[thread] = None

    def joined(self, thread: threading.Thread) -> None:
        """Forget a thread that has ended."""
        self._threads.pop(thread, None)
        self._ended()


class Employer(Protocol):
    """A call of user code on whose behalf threads are started."""

    @property
    def threads(self) -> ThreadOwner | None:
        """Who owns them."""
        ...


employer: ContextVar[Employer | None] = ContextVar("qorb call", default=None)
"""The innermost call of user code under way, if it is one of this context."""


async def to_thread(function: Callable[..., T], *arguments: object, what: str = "works") -> T:
    """Call a function that blocks on a thread of its own, and give what it returns, or raise what it raises.

    For connectors and resolvers: in their methods the pool knows of the thread; Pool.ledger() counts it, terminate()
    waits for it. `what` says what it does: that becomes the end of its name, after those of pool, slot and backend.

    Nothing can interrupt a thread. So that none goes on using a connection that is closed meanwhile, a call that is
    cancelled raises its CancelledError when the function has returned: bound what that does by a timeout of its own.
    """
    loop = asyncio.get_running_loop()
    call = employer.get()
    owner = call.threads if call is not None else None
    finished = asyncio.Event()
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            outcome.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            outcome.set_exception(error)
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile; nobody waits
            loop.call_soon_threadsafe(join)

    def join() -> None:
        thread.join()
        if owner is not None:
            owner.joined(thread)
        finished.set()

    # A daemon, so that an interpreter that exits in the middle of it is not held up.
    thread = threading.Thread(target=work, name=f"{_name(owner)} {what}", daemon=True)
    thread.start()
    if owner is not None:
        owner.started(thread)
    cancelled: asyncio.CancelledError | None = None
    while not finished.is_set():
        try:
            await finished.wait()
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return outcome.result()


def _name(owner: ThreadOwner | None) -> str:
    """Give the name of the pool's task that starts a thread, or, where that is not the pool's, of the pool."""
    name = "qorb" if owner is None else owner.name
    task = asyncio.current_task()
    return task.get_name() if task is not None and task.get_name().startswith(f"{name} ") else name
