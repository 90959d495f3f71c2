"""ManualResolver: the application says which backends there are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from qorb.backend import Backend, read_backends
from qorb.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class ManualResolver(Resolver):
    """Knows the set of backends that the application pushed last. Several pools may share one."""

    def __init__(self, backends: Iterable[str | tuple[str, int] | Backend] = ()) -> None:
        """Take the first set, as FixedResolver does."""
        self._backends = read_backends(backends)
        self._watchers: dict[object, Callable[[Iterable[Backend]], None]] = {}

    def set(self, backends: Iterable[str | tuple[str, int] | Backend]) -> None:
        """Replace the whole set; who watches is told at once. Call it in the thread of the event loop.

        Raises ValueError for an address that is none, and for one that is given twice; the last set stays then.
        """
        self._backends = read_backends(backends)
        for publish in tuple(self._watchers.values()):
            publish(self._backends)

    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        """Publish the set, now and whenever it is replaced, until cancelled."""
        watcher = object()
        self._watchers[watcher] = publish
        try:
            publish(self._backends)
            await asyncio.get_running_loop().create_future()
        finally:
            del self._watchers[watcher]
