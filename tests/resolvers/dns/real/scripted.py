"""A DNS server that does what a script says: `python -m tests.resolvers.dns.real.scripted MODULE`.

It is a process of its own: what it costs to make a hostile answer is not to be counted as what it costs to read it.

MODULE has SCRIPTS, which say by the domain of the service what is done on a query. The server prints its port, the same
for UDP and TCP on 127.0.0.1; to a line with a domain on its standard input it answers with what was asked about that.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from tests.resolvers.dns.real.wire import Query

CLOSE = b""
"""Instead of an answer: the connection is closed."""


@dataclass(frozen=True)
class Sent:
    """What is sent in return: after so many seconds, from the server's address or that of somebody else."""

    message: bytes
    delay: float = 0.0
    from_elsewhere: bool = False
    raw: bool = False
    """Over TCP: without the length before it."""


@dataclass(frozen=True)
class Asked:
    """A query, and how it came."""

    query: Query
    domain: str
    """The last two labels of its name."""
    tcp: bool
    number: int
    """How many times this question was asked before, over UDP or TCP."""


Script: TypeAlias = Callable[[Asked], "Sequence[Sent | bytes]"]


@dataclass
class Log:
    """What was asked about one domain."""

    entries: list[tuple[str, int, bool, int | None]] = field(default_factory=list)
    """Name, kind, over TCP, size allowed by EDNS0."""


class Scripted:
    """The server."""

    def __init__(self, scripts: Callable[[str], Script]) -> None:
        self._scripts = scripts
        self._counts: Counter[tuple[str, int]] = Counter()
        self.logs: dict[str, Log] = {}

    def answer(self, message: bytes, *, tcp: bool) -> list[Sent]:
        query = Query.read(message)
        domain = ".".join(query.name.split(".")[-2:])
        asked = Asked(query, domain, tcp, self._counts[query.name, query.kind])
        self._counts[query.name, query.kind] += 1
        self.logs.setdefault(domain, Log()).entries.append((query.name, query.kind, tcp, query.payload))
        return [Sent(one) if isinstance(one, bytes) else one for one in self._scripts(domain)(asked)]

    async def serve(self) -> int:
        """Open the sockets and give the port."""
        loop = asyncio.get_running_loop()
        while True:
            transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(self), ("127.0.0.1", 0))
            port: int = transport.get_extra_info("sockname")[1]
            with contextlib.suppress(OSError):
                self._server = await asyncio.start_server(self._talk, "127.0.0.1", port, limit=2**17)
                return port
            transport.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                (length,) = struct.unpack(">H", await reader.readexactly(2))
                for sent in self.answer(await reader.readexactly(length), tcp=True):
                    await asyncio.sleep(sent.delay)
                    if not sent.message:
                        return writer.close()
                    head = b"" if sent.raw else struct.pack(">H", len(sent.message))
                    writer.write(head + sent.message)
                    await writer.drain()
        return writer.close()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: Scripted) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        for sent in self._server.answer(data, tcp=False):
            if sent.delay:
                loop.call_later(sent.delay, self._send, sent, peer)
            else:
                self._send(sent, peer)

    def _send(self, sent: Sent, peer: tuple[str, int]) -> None:
        if sent.from_elsewhere:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.sendto(sent.message, peer)
        else:
            self._transport.sendto(sent.message, peer)


class ScriptedServer:
    """The server's process, as the tests see it."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server did not start; see its stderr"
        self.port = int(line)
        self.address = f"127.0.0.1:{self.port}"

    def log(self, domain: str) -> Log:
        """What was asked about this domain."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{domain}\n")
        self._process.stdin.flush()
        return Log([(name, kind, tcp, size) for name, kind, tcp, size in json.loads(self._process.stdout.readline())])

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def scripted_server(module: str) -> Iterator[ScriptedServer]:
    server = ScriptedServer(module)
    try:
        yield server
    finally:
        server.stop()


async def main(module: str) -> None:
    loop = asyncio.get_running_loop()
    scripts: Any = importlib.import_module(module)
    server = Scripted(scripts.script)
    port = await server.serve()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    while domain := await loop.run_in_executor(None, sys.stdin.readline):
        sys.stdout.write(json.dumps(server.logs.get(domain.strip(), Log()).entries) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]), debug=False)
