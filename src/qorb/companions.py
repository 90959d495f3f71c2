"""Companion: something that lives beside a pool and ends with it, such as a server of its statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Companion(ABC):
    """What `Pool.accompany()` runs, in a task of the pool's.

    It must not hold the pool, save by a `weakref`: a pool is not kept alive by its own tasks. An instance may accompany
    one pool once.
    """

    name: str = "companion"
    """What it is, for the names of tasks, logs and errors."""

    @abstractmethod
    async def live(self) -> None:
        """Live until cancelled, or until there is nothing left to do.

        It is cancelled when all else of the pool has ended, at the latest when the pool's end stops everything, and
        again every second; it is called even when it is to stop before it has begun. Whatever it has started has ended
        when it returns, raises or is cancelled, for `Pool.terminate()` waits for that and for no more. What it raises
        is logged; it is not started again.
        """

    def backends_changed(self) -> None:  # noqa: B027 - not everybody wants to know
        """Be told that the backends in `Pool.stats()` are others than before: some are new, or gone.

        Called in the pool's loop, in the midst of things: it must be quick, and what it raises is logged. May be told
        once too often.
        """
