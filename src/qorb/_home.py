"""Home: the event loop, the thread and the process that something belongs to, and may be used in only.

And Unique: of what lives there, there is one.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

from qorb.errors import PoolForkedError, WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable

_homes: weakref.WeakSet[Home] = weakref.WeakSet()


def _mark_forked() -> None:
    """In a child process: nothing of the parent's may be touched, its sockets and selectors are shared."""
    for home in tuple(_homes):
        home.forked = True
        home.disown()


os.register_at_fork(after_in_child=_mark_forked)


class Unique:
    """Cannot be copied or pickled: a second one would give back, or end, what belongs to the first."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        """Raise TypeError. The copy module and pickle both ask here."""
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: its connections and tasks have one owner, in one "
            "process; pass the object itself on, or make another"
        )


class Home:
    """Where a pool or a monitor lives: the running loop, the calling thread, this process."""

    def __init__(self, owner: str, kind: str, disown: Callable[[], None], *, pool: str | None = None) -> None:
        """Be here; `owner`, `kind` and `pool`, its name, are for errors, `disown` is called in a child process."""
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.forked = False
        self.disown = disown
        self._owner = owner
        self._kind = kind
        self._pool = pool
        _homes.add(self)

    def check_process(self) -> None:
        """Raise PoolForkedError in a child process."""
        if self.forked:
            raise PoolForkedError(
                f"{self._owner} belongs to the parent process; make a {self._kind} of your own in the child",
                pool=self._pool,
            )

    def task(self) -> asyncio.Task[Any] | None:
        """Give the calling task; None when it does not run here."""
        if threading.get_ident() != self.thread or self.loop.is_closed():
            return None
        return asyncio.current_task(self.loop)

    def wrong(self) -> WrongLoopError:
        """Make the error for a caller who is not at home."""
        if self.loop.is_closed():
            return WrongLoopError(
                f"the event loop of {self._owner} is closed; terminate() the {self._kind} before", pool=self._pool
            )
        return WrongLoopError(
            f"{self._owner} belongs to another event loop or thread; make one {self._kind} for each event loop",
            pool=self._pool,
        )
