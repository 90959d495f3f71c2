"""The demo's DNS server in a thread of its own, for programs under test that run in this thread or in a process."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

from qorb._demo.dns import DnsServer, Zone

SERVICE = "_echo._tcp.demo.test"


class NameServer:
    """Serves the zone demo.test. What changes the zone while it may be asked goes through do()."""

    def __init__(self, ttl: int) -> None:
        self.zone = Zone("demo.test", ttl)
        self.server = DnsServer(self.zone)
        self._loop = asyncio.new_event_loop()
        self._up: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._end = self._loop.create_future()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        self._up.get()

    @property
    def address(self) -> str:
        return self.server.address

    async def _serve(self) -> None:
        await self.server.start()
        self._up.put(None)
        await self._end
        self.server.stop()
        while self.server.receiving:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0)

    def srv(self, text: str) -> None:
        """Add an SRV record of the service."""
        self.do(self.zone.add, SERVICE, "SRV", text)

    def add(self, name: str, kind: str, text: str) -> None:
        """Add a record."""
        self.do(self.zone.add, name, kind, text)

    def do(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it in the server's thread, before whatever is asked from now on."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def stop(self) -> None:
        self.do(self._end.set_result, None)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def name_server(ttl: int = 7) -> Iterator[NameServer]:
    server = NameServer(ttl)
    try:
        yield server
    finally:
        server.stop()
