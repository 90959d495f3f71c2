"""Echo servers on loopback that can be made to fail.

Every byte that comes in goes out again, so a line is answered by the same line and a single byte by the same byte.
"""

from __future__ import annotations

import asyncio
import enum
import socket
from typing import TYPE_CHECKING, cast

from qorb import Backend

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOST = "127.0.0.1"
_BACKLOG = 128


class Health(enum.Enum):
    """How a server is, in truth; the pool has to find it out."""

    WELL = "well"
    KILLED = "killed"
    """Its port refuses connections."""
    HUNG = "hung"
    """It accepts connections and reads, but never answers."""


class NoPortError(OSError):
    """A server has got no port."""

    def __init__(self, name: str, port: int, error: OSError) -> None:
        """Say which server, which port, and why."""
        wanted = f"port {port}" if port else "a free port"
        why = error.strerror or type(error).__name__
        super().__init__(f"the server {name} did not get {wanted} on {_HOST}: {why}")


class EchoServer:
    """One echo server. Its port, an ephemeral one, stays its own from start() until stop(), also while it is killed.

    Verbs: start, kill, revive, hang, heal, stop.
    """

    def __init__(self, name: str) -> None:
        """Take no port yet."""
        self.name = name
        self.health = Health.KILLED
        self._well_since = 0.0
        self._port = 0
        self._socket: socket.socket | None = None
        self._listener: asyncio.Server | None = None
        self._conversations: dict[_Conversation, None] = {}
        self._deserted = asyncio.Event()
        self._deserted.set()

    @property
    def backend(self) -> Backend:
        """Where it is, once it was started."""
        return Backend(self.name, _HOST, self._port)

    @property
    def connections(self) -> int:
        """How many connections are open, seen from this side."""
        return len(self._conversations)

    def sockets(self) -> Iterator[int]:
        """Give the descriptors of all sockets that it has open: its port, and its ends of the connections."""
        if self._socket is not None:
            yield self._socket.fileno()
        for conversation in self._conversations:
            yield conversation.descriptor

    async def start(self) -> None:
        """Accept connections. NoPortError when there is no port. Cancelled: it does not, and may be started again."""
        loop = asyncio.get_running_loop()
        if self._socket is None:
            self._socket = self._reserve()
            self._port = self._socket.getsockname()[1]
        try:
            self._listener = await loop.create_server(lambda: _Conversation(self), sock=self._socket, backlog=_BACKLOG)
        except OSError as error:
            raise NoPortError(self.name, self._port, error) from error
        self._become(Health.WELL)

    def kill(self) -> None:
        """Refuse connections and drop the open ones, as when a process dies.

        The port is bound again at once, without listening: connecting to it is refused, and nobody else gets it.
        NoPortError when somebody else was faster.
        """
        self._close()
        self._socket = self._reserve()
        self._become(Health.KILLED)

    async def revive(self) -> None:
        """Accept connections again, on the same port."""
        await self.start()

    def hang(self) -> None:
        """Go on accepting and reading, but hold every answer back, as a process that is stopped."""
        self._become(Health.HUNG)

    def heal(self) -> None:
        """Answer again, beginning with what was held back: late replies to questions that nobody waits for any more."""
        self._become(Health.WELL)
        for conversation in self._conversations:
            conversation.answer()

    def stop(self) -> None:
        """End for good: close the port and all connections."""
        self._close()
        self._become(Health.KILLED)

    async def deserted(self) -> None:
        """Wait until no connection is open. May be cancelled."""
        await self._deserted.wait()

    def was_well_since(self, moment: float) -> bool:
        """Say whether the server was well all the time since that moment of the loop's time."""
        return self.health is Health.WELL and self._well_since <= moment

    def joined(self, conversation: _Conversation) -> None:
        """Count a connection that was opened."""
        self._conversations[conversation] = None
        self._deserted.clear()

    def left(self, conversation: _Conversation) -> None:
        """Count a connection that is closed."""
        del self._conversations[conversation]
        if not self._conversations:
            self._deserted.set()

    def _reserve(self) -> socket.socket:
        try:
            return _reserve(self._port)
        except OSError as error:
            raise NoPortError(self.name, self._port, error) from error

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        elif self._socket is not None:
            self._socket.close()
        self._socket = None
        for conversation in self._conversations:
            conversation.drop()

    def _become(self, health: Health) -> None:
        self.health = health
        if health is Health.WELL:
            self._well_since = asyncio.get_running_loop().time()


class _Conversation(asyncio.Protocol):
    """One connection, seen from the server."""

    def __init__(self, server: EchoServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._held_back = bytearray()

    @property
    def descriptor(self) -> int:
        """The number of its socket; -1 when it is closed."""
        return -1 if self._transport is None else self._transport.get_extra_info("socket").fileno()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.joined(self)
        if self._server.health is Health.KILLED:
            # asyncio accepted it before the listener was closed, and comes with it only now.
            self.drop()

    def data_received(self, data: bytes) -> None:
        self._held_back += data
        if self._server.health is Health.WELL:
            self.answer()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio.Protocol has it
        self._transport = None
        self._server.left(self)

    def answer(self) -> None:
        if self._transport is not None and self._held_back:
            self._transport.write(bytes(self._held_back))
            self._held_back.clear()

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def server_name(backend: str) -> str:
    """Give the name of the server behind a backend: of "echo-1.demo.test:40001", "echo-1"."""
    return backend.partition(".")[0]


def _reserve(port: int) -> socket.socket:
    """Bind a port without listening on it. OSError when it cannot be had."""
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # The connections of the server that was here before may still be in TIME_WAIT.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((_HOST, port))
    except OSError:
        reserved.close()
        raise
    return reserved
