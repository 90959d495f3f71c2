"""FixedResolver: backends that never change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from qorb.backend import Backend, read_backends
from qorb.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class FixedResolver(Resolver):
    """Knows a set of backends that never changes."""

    def __init__(self, backends: Iterable[str | tuple[str, int] | Backend]) -> None:
        """Take the backends: "host:port", (host, port), or Backend. Their names are the textual addresses.

        Raises ValueError for an address that is none, and for one that is given twice.
        """
        self._backends = read_backends(backends)

    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        """Publish the set, then wait to be cancelled."""
        publish(self._backends)
        await asyncio.get_running_loop().create_future()
