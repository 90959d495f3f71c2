"""Servers for pools to connect to: one in this process, which does as the test likes, and one that can be killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Self

from tests.connectors.peers import eventually, named, reset_when_closed

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from tests.connectors.peers import Listener

_ECHO_PROCESS = """
import asyncio
import contextlib
import sys

async def echo(reader, writer):
    with contextlib.suppress(OSError):
        while received := await reader.read(4096):
            writer.write(received)
    writer.close()

async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", int(sys.argv[1]))
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def _echo(transport: asyncio.Transport, received: bytes) -> None:
    transport.write(received)


class Served(asyncio.Protocol):
    """One connection of a Server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._server.opened += 1
        self._server.connections.append(self)
        self._server.welcome(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.remove(self)

    def data_received(self, received: bytes) -> None:
        self._server.reply(self.transport, received)

    def close(self) -> None:
        """End with a FIN."""
        self.transport.close()

    def reset(self) -> None:
        """End with a RST."""
        reset_when_closed(self.transport.get_extra_info("socket"))
        self.transport.abort()


class Server:
    """A server in this process: `async with` it.

    `welcome` is what it does first with each connection, `reply` what it does with received bytes: send them back.
    """

    def __init__(self, listener: Listener, welcome: Callable[[asyncio.Transport], object] = lambda _: None) -> None:
        self._listener = listener
        self.welcome = welcome
        self.reply: Callable[[asyncio.Transport, bytes], object] = _echo
        self.connections: list[Served] = []
        self.opened = 0

    def sockets(self) -> set[str]:
        """Its ends of the connections, as open_sockets() calls them."""
        return {named(served.transport.get_extra_info("socket")) for served in self.connections}

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Served(self), sock=self._listener.sock)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for connection in tuple(self.connections):
            connection.reset()
        await self._server.wait_closed()


class TlsServer(Server):
    """A Server that speaks TLS. `refused` counts the clients that did not like its certificate."""

    def __init__(self, listener: Listener, context: ssl.SSLContext) -> None:
        super().__init__(listener)
        self.refused = 0
        self._context = context

    async def __aenter__(self) -> Self:
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._accepting.cancel()
        await asyncio.wait({self._accepting})
        for connection in tuple(self.connections):
            connection.transport.abort()
        await eventually(lambda: not self.connections)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            peer = await self._listener.accept()
            try:
                await loop.connect_accepted_socket(lambda: Served(self), peer, ssl=self._context)
            except OSError:
                self.refused += 1


class ServerProcess:
    """An echo server in a process of its own: `with` it. It can be killed, and started again on the same port."""

    def __init__(self) -> None:
        self._port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and return when it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ECHO_PROCESS, str(self._port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Kill it with SIGKILL, and return when it is gone."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
