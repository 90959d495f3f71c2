"""Threads for user code that blocks: the pool knows of them, and ends when they have."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class ThreadOwner:
    """The threads that run for one pool."""

    def __init__(self, name: str, ended: Callable[[], object]) -> None:
        """Own nothing yet. `name` stands before those of the threads; `ended` is called when a thread has ended."""
        self.name = name
        self._ended = ended
        self._threads: dict[threading.Thread, weakref.ref[Any] | None] = {}
        """Each with the connection that it serves, if it serves one."""

    @property
    def alive(self) -> tuple[str, ...]:
        """The names of those that have not ended."""
        return tuple(thread.name for thread in tuple(self._threads) if thread.is_alive())

    def started(self, thread: threading.Thread) -> None:
        """Own a thread."""
        self._threads[thread] = None

    def serves(self, thread: threading.Thread, connection: object) -> None:
        """Note which connection a thread is there for."""
        self._threads[thread] = weakref.ref(connection)

    def owns(self, thread: threading.Thread) -> bool:
        """Say whether the thread is still this owner's business."""
        return thread in self._threads

    def leave(self, connection: object) -> None:
        """Own the thread of a connection no more: both are left to the claimer."""
        for thread, served in tuple(self._threads.items()):
            if served is not None and served() is connection:
                del self._threads[thread]

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
    What it returned is lost then: where that must be closed, have the function keep it where you find it.
    """
    owner = owner_here()
    ending = Ending(asyncio.get_running_loop(), owner)
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def serve() -> None:
        work(outcome, functools.partial(function, *arguments))
        ending.tell()

    # A daemon, so that an interpreter that exits in the middle of it is not held up.
    ending.start(threading.Thread(target=serve, name=f"{name_here(owner)} {what}", daemon=True))
    await outlast(ending.joined)
    return outcome.result()


async def outlast(event: asyncio.Event, cancelled: Callable[[], object] | None = None) -> None:
    """Wait for the event in spite of cancellations, at each of which `cancelled` is called; then raise the last."""
    last: asyncio.CancelledError | None = None
    while not event.is_set():
        try:
            await event.wait()
        except asyncio.CancelledError as error:
            last = error
            if cancelled is not None:
                cancelled()
    if last is not None:
        raise last


def work(outcome: concurrent.futures.Future[T], function: Callable[[], T]) -> None:
    """Call the function, and keep what it returns or raises for whoever waits."""
    try:
        outcome.set_result(function())
    except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
        outcome.set_exception(error)
    finally:
        del outcome, function  # the traceback knows this frame: what it holds would live as long as the error


def owner_here() -> ThreadOwner | None:
    """Give the owner of threads that are started here: that of the pool whose call this is, if it is one."""
    call = employer.get()
    return call.threads if call is not None else None


def name_here(owner: ThreadOwner | None) -> str:
    """Give the name of the pool's task that starts a thread, or, where that is not the pool's, of the pool."""
    name = "qorb" if owner is None else owner.name
    task = asyncio.current_task()
    return task.get_name() if task is not None and task.get_name().startswith(f"{name} ") else name


class Ending:
    """How the loop hears that a thread has ended: the last thing that the thread does is to tell it.

    Holds on to neither loop nor owner, for a thread that waits is never garbage, nor is what it holds on to.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: ThreadOwner | None) -> None:
        """Belong to a thread that is to be started by start()."""
        self.joined: asyncio.Event = asyncio.Event()
        """In the loop: the thread has ended."""
        self._loop = weakref.ref(loop)
        self._owner = weakref.ref(owner) if owner is not None else None

    def start(self, thread: threading.Thread) -> None:
        """Start the thread for the owner."""
        thread.start()
        owner = self._owner() if self._owner is not None else None
        if owner is not None:
            owner.started(thread)

    @property
    def unheard(self) -> bool:
        """Whether nobody will hear of it any more."""
        loop = self._loop()
        return loop is None or loop.is_closed()

    def tell(self) -> None:
        """Say that the calling thread ends now."""
        loop = self._loop()
        if loop is not None:
            call_soon(loop, self._join, threading.current_thread())

    def _join(self, thread: threading.Thread) -> None:
        thread.join()
        owner = self._owner() if self._owner is not None else None
        if owner is not None and owner.owns(thread):
            owner.joined(thread)
        self.joined.set()


def call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
    """Call back in the loop, from a thread; not when the loop is closed, for then nobody waits."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *arguments)
