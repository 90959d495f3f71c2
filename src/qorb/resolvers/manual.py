"""ManualResolver: the application says which backends there are."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from qorb.backend import Backend, read_backends
from qorb.errors import WrongLoopError
from qorb.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class ManualResolver(Resolver):
    """Knows the set of backends that the application pushed last. Several pools may share one."""

    def __init__(self, backends: Iterable[str | tuple[str, int] | Backend] = ()) -> None:
        """Take the first set, as FixedResolver does."""
        self._backends = read_backends(backends)
        self._watchers: dict[object, tuple[Callable[[Iterable[Backend]], None], int]] = {}
        """What publishes the set, and the thread that it belongs to, for each who watches."""

    def set(self, backends: Iterable[str | tuple[str, int] | Backend]) -> None:
        """Replace the whole set; who watches is told at once. Call it in the thread of the event loop.

        Raises ValueError for an address that is none, and for one that is given twice, WrongLoopError in another thread
        than that of everybody who watches; the last set stays then, for everybody.
        """
        read = read_backends(backends)
        watchers = tuple(self._watchers.values())
        if any(thread != threading.get_ident() for _, thread in watchers):
            raise WrongLoopError(
                "ManualResolver.set() was called in another thread than that of the event loop that watches; write "
                "loop.call_soon_threadsafe(resolver.set, backends)"
            )
        self._backends = read
        for publish, _ in watchers:
            publish(read)

    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        """Publish the set, now and whenever it is replaced, until cancelled."""
        watcher = object()
        self._watchers[watcher] = publish, threading.get_ident()
        try:
            publish(self._backends)
            await asyncio.get_running_loop().create_future()
        finally:
            del self._watchers[watcher]
