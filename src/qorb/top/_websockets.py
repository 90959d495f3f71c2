"""Server: the statistics on a server of their own.

It is built on the library websockets, which speaks as much HTTP as is needed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, Self

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol

from qorb.companions import Companion
from qorb.errors import shown
from qorb.threads import outlast
from qorb.top._feed import GOING_AWAY, MOST_RECEIVED, Feed, converse
from qorb.top._gate import SUBPROTOCOL, Answer, Request, listening_address
from qorb.top._site import SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from websockets.asyncio.server import Server as WebSocketServer
    from websockets.http11 import Request as WireRequest

    from qorb.pool import Pool
    from qorb.top._site import Site

logger = logging.getLogger("qorb")

_FAREWELL = 0.025
"""Seconds that clients have to say good-bye when the server ends."""
_MOST_CONNECTIONS = 64
"""At a time, those included that have not asked for anything yet."""
_OPENING = 10.0
"""Seconds that a request may take to arrive, and its answer to be taken."""


class Server:
    """A server of statistics. `async with await serve(pool) as server:` closes it before the pools end."""

    def __init__(self, site: Site) -> None:
        """Nothing is open yet."""
        self.url = ""
        """Of the page."""
        self.ending = False
        self.connections: dict[_Connection, None] = {}
        self._site = site
        self._beside: dict[_Presence, Callable[[], None]] = {}
        self._ended = asyncio.Event()
        self._server: WebSocketServer | None = None
        self._listening: socket.socket | None = None
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        """Be open: it is."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close it."""
        await self.close()

    async def open(self, host: str, port: int, pools: Sequence[Pool[Any]]) -> None:
        """Listen, and accompany the pools. When it raises, nothing is open."""
        listening = self._listening = _listen(host, port)
        try:
            # Neither this nor what follows suspends before there is somebody who closes it.
            server = self._server = await self._serve(listening)
            for pool in pools:
                presence = _Presence(self)
                self._beside[presence] = pool.accompany(presence)
            await server.start_serving()
        except BaseException:
            await self.close()
            listening.close()
            raise
        self.url = _url(listening)
        logger.info("statistics of %s: %s", ", ".join(f"pool {pool.name}" for pool in pools), self.url)
        if not listening_address(host).is_loopback:
            logger.warning("statistics can be asked for from other machines: %s", self.url)

    async def _serve(self, listening: socket.socket) -> WebSocketServer:
        class Connection(_Connection):
            owner = self

        limits = self._site.limits
        return await serve(
            self._converse,
            sock=listening,
            start_serving=False,
            process_request=self._answer,
            process_response=self._admit,
            select_subprotocol=_select_subprotocol,
            create_connection=Connection,
            compression=None,
            server_header="qorb",
            open_timeout=_OPENING,
            ping_interval=limits.ping,
            ping_timeout=limits.ping,
            close_timeout=limits.patience,
            max_size=MOST_RECEIVED,
            max_queue=4,
            # What it logs has addresses in it, and those may have a token in them: nobody is to find and to open this.
            logger=logging.Logger("qorb.top", logging.CRITICAL + 1),  # noqa: LOG001
        )

    async def close(self) -> None:
        """End it: when this returns nothing of it runs. Idempotent; cancelled, it goes on without the caller."""
        if not self._beside:
            await self._end()
        for stop in tuple(self._beside.values()):
            stop()
        await self._ended.wait()

    async def left_by(self, presence: _Presence) -> None:
        """Note that a pool ends: the last one takes the server along."""
        self._beside.pop(presence, None)
        if not self._beside:
            await self._end()

    async def _end(self) -> None:
        """Close everything; cancelled meanwhile, at once."""
        self.ending = True
        if self._loop.is_closed():  # nothing can be waited for any more
            if self._listening is not None:
                self._listening.close()
            return
        server = self._server
        if server is not None:
            server.close(code=GOING_AWAY, reason="the server ends")
            timer = self._loop.call_later(_FAREWELL, self._abort)
            closing = asyncio.ensure_future(server.wait_closed())
            closed = asyncio.Event()
            closing.add_done_callback(lambda _: closed.set())
            try:
                await outlast(closed, self._abort)
            finally:
                timer.cancel()
        self._ended.set()

    def _abort(self) -> None:
        for connection in tuple(self.connections):
            connection.transport.abort()

    def _answer(self, connection: ServerConnection, wire: WireRequest) -> Response | None:
        """Answer what is no WebSocket's opening."""
        request = _request(connection, wire)
        if request.path == SOCKET and any(value.lower() == "websocket" for value in request.all_of("upgrade")):
            return None
        return _response(self._site.answer(request))

    def _admit(self, connection: ServerConnection, wire: WireRequest, response: Response) -> Response | None:
        """Let a WebSocket in that would be opened well, or say why not."""
        if response.status_code != 101 or not isinstance(connection, _Connection):  # noqa: PLR2004 - Switching Protocols
            return None
        feed = self._site.admit(_request(connection, wire))
        if isinstance(feed, Answer):
            return _response(feed)
        connection.feed = feed
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        feed = connection.feed if isinstance(connection, _Connection) else None
        if feed is None:
            return

        async def send(frame: bytes) -> None:
            try:
                await connection.send(frame)
            except ConnectionClosed as error:
                raise ConnectionResetError(str(error)) from error

        async def receive() -> int | None:
            try:
                return len(await connection.recv(decode=False))
            except ConnectionClosed:
                return None

        await converse(feed, send, receive, self._site.limits.patience)
        if feed.client_gone and connection.state is State.OPEN:  # too slow to be told anything
            connection.transport.abort()
        await connection.close(feed.code, feed.reason)


class _Presence(Companion):
    """The server beside one of its pools."""

    name = "statistics server"

    def __init__(self, server: Server) -> None:
        self._server = server

    async def live(self) -> None:
        """Wait for the end of the pool, and for that of the server when it is the last one."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self._server.left_by(self)


class _Connection(ServerConnection):
    """One connection of a client."""

    owner: Server
    feed: Feed | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        owner = self.owner
        owner.connections[self] = None
        if owner.ending or len(owner.connections) > _MOST_CONNECTIONS:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.owner.connections.pop(self, None)
        if self.feed is not None:
            self.feed.leave()


def _listen(host: str, port: int) -> socket.socket:
    """Listen. The socket is made here: given a name, a loop would look it up on a thread that it keeps."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:  # noqa: PLR2004 - 16 bits
        raise ValueError(f"port must be a whole number from 0 to 65535, not {shown(port)}")
    address = listening_address(host)
    ipv6 = isinstance(address, ipaddress.IPv6Address)
    listening = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would share the port with whoever has it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ipv6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.setblocking(False)  # noqa: FBT003 - its only parameter
        listening.bind((str(address), port))
        listening.listen(_MOST_CONNECTIONS)
    except OSError as error:
        listening.close()
        remedy = "; is another server of statistics running? port=0 takes any that is free" if port else ""
        text = f"statistics cannot be served on {_authority(str(address), port)}: {error.strerror}{remedy}"
        raise OSError(error.errno, text) from error
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{_authority(host, port)}/"


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _request(connection: ServerConnection, wire: WireRequest) -> Request:
    path, _, query = wire.path.partition("?")
    client, server = connection.remote_address, connection.local_address
    return Request(
        method=wire.method,
        path=path,
        query=query,
        headers=tuple((name.lower(), value) for name, value in wire.headers.raw_items()),
        client=client[0] if client else None,
        server=server[0] if server else None,
    )


def _response(answer: Answer) -> Response:
    headers = Headers([*answer.headers, ("Connection", "close")])
    return Response(answer.status.value, answer.status.phrase, headers, answer.body)


def _select_subprotocol(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None
