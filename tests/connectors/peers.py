"""The other end of a connection, as a plain socket: the test decides what happens there, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qorb import Backend

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

    import pytest

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

GIVE_UP = 60.0
"""Seconds after which a test that waits for something says that it did not happen."""


class Names:
    """Stands in for the look-up of host names. While `may_answer` is not set, whoever asks must wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, list[str] | Exception] = {}
        self.asked = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._ask = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, port: int, *arguments: Any, flags: int = 0, **options: Any) -> Any:
        if flags & socket.AI_NUMERICHOST or host not in self.known:
            return self._ask(host, port, *arguments, flags=flags, **options)
        self.asked.set()
        assert self.may_answer.wait(GIVE_UP)
        answers = self.known[host]
        if isinstance(answers, Exception):
            raise answers
        return [answer for address in answers for answer in self._ask(address, port, *arguments, **options)]


class Listener:
    """A listening socket. `backend` is how a connector gets there; accept() gives the other end."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, backlog: int = 100) -> None:
        ((family, kind, _, _, address),) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self.sock = socket.socket(family, kind)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.setblocking(False)
        self.sock.bind(address)
        self.sock.listen(backlog)
        self.host = host
        self.port: int = self.sock.getsockname()[1]

    @property
    def backend(self) -> Backend:
        return self.named(None)

    def named(self, server_name: str | None) -> Backend:
        return Backend(f"{self.host}:{self.port}", self.host, self.port, server_name)

    async def accept(self) -> socket.socket:
        accepted, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        return accepted

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


async def receive(peer: socket.socket, size: int) -> bytes:
    """Receive exactly so many bytes, or what came before the end."""
    received = b""
    while len(received) < size and (more := await asyncio.get_running_loop().sock_recv(peer, size - len(received))):
        received += more
    return received


async def send(peer: socket.socket, content: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(peer, content)


async def receive_end(peer: socket.socket) -> None:
    """Wait until the connection has ended, gracefully or by a reset; fail when anything else comes first."""
    try:
        received = await asyncio.get_running_loop().sock_recv(peer, 1)
    except ConnectionResetError:
        return
    assert received == b""


def fill(peer: socket.socket, content: bytes) -> int:
    """Send as much as the two ends take without anybody reading; return how much that was."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < len(content):
            sent += peer.send(content[sent : sent + (1 << 16)])
    return sent


def reset(peer: socket.socket) -> None:
    """Close with a RST."""
    reset_when_closed(peer)
    peer.close()


def reset_when_closed(peer: socket.socket) -> None:
    """Have the kernel send a RST instead of a FIN when the socket is closed."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that no event announces. The limit only ends a test that fails."""
    loop = asyncio.get_running_loop()
    end = loop.time() + GIVE_UP
    while not condition():
        assert loop.time() < end, "it did not happen"
        await asyncio.sleep(0.002)


def open_sockets() -> frozenset[str]:
    """The sockets that this process has open, pairs and Unix ones included."""
    return frozenset(target for target in map(_target, Path("/proc/self/fd").iterdir()) if target.startswith("socket:"))


def named(sock: socket.socket) -> str:
    """What open_sockets() calls a socket."""
    return f"socket:[{os.fstat(sock.fileno()).st_ino}]"


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - "socket:[1234]" is no path
    except FileNotFoundError:  # the descriptor of the listing itself
        return ""


@contextlib.asynccontextmanager
async def tls_peer(listener: Listener, context: ssl.SSLContext) -> AsyncIterator[asyncio.Task[Streams]]:
    """Accept one connection and shake hands. Gives a task that ends with that end's streams, or with the failure."""
    accepting = asyncio.create_task(_accept_tls(listener, context))
    try:
        yield accepting
    finally:
        accepting.cancel()
        await asyncio.wait({accepting})
        if not accepting.cancelled() and accepting.exception() is None:
            _, writer = accepting.result()
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _accept_tls(listener: Listener, context: ssl.SSLContext) -> Streams:
    loop = asyncio.get_running_loop()
    peer = await listener.accept()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, peer, ssl=context)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
