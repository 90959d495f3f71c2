"""A loop that dials for a driver: as TcpConnector does, under the right name for TLS, and knowing what is open."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, TypeVar

from qorb.connectors._postgres import Overhearing
from qorb.connectors._sockets import close_without_loop

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from qorb.backend import Backend
    from qorb.connectors._sockets import Dialler

P = TypeVar("P", bound=asyncio.BaseProtocol)


class DiallingLoop:
    """The running loop, for one connection of a driver that takes a loop: in all but a few methods it is that loop.

    Whatever address the driver asks for, the first connection goes to the backend and the others, which cancel queries,
    go to the very server that the first one found. Names are looked up on a thread of the call's own, as TcpConnector
    does it. A certificate must be good for `name`, not for the address.
    """

    def __init__(self, dialler: Dialler, backend: Backend, name: str | None) -> None:
        """Bind it to the running loop. Opens nothing."""
        self._loop = asyncio.get_running_loop()
        self._dialler = dialler
        self._backend = backend
        self._name = name
        self._peer: tuple[int, tuple[Any, ...]] | None = None
        self._open: list[tuple[socket.socket, asyncio.Transport]] = []
        self._waiter: asyncio.Future[Any] | None = None
        self._overhearing = Overhearing()
        self._is_cancelling: Callable[[], bool] = bool
        """The driver's own word; False until there is a driver."""
        self._rested = False
        """The server had nothing left to answer when the last future was made."""
        self._cancels = False
        self._error_listener: Callable[[BaseException], object] | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the loop has
        return getattr(self._loop, name)

    # asyncio.current_task(loop) looks the task up by its loop.
    def __eq__(self, other: object) -> bool:
        return other is self._loop or other is self

    def __hash__(self) -> int:
        return hash(self._loop)

    @property
    def awaits_an_answer(self) -> bool:
        """Whether a query is under way: the driver makes a future for each, and for what comes of cancelling it."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def is_in_answer(self) -> bool:
        """Whether a query is under way, or may have been given up by the driver in the middle of its answer."""
        return self._waiter is not None and (not self._waiter.done() or not self._overhearing.rests)

    @property
    def cancels_in_vain(self) -> bool:
        """Whether the driver waits for the end of a query that was over when it began to cancel it: that never comes.

        asyncpg does so when what it gives the last rows of a COPY to fails or is cancelled.
        """
        return self._cancels and self._rested and self._is_cancelling()

    @property
    def is_closing(self) -> bool:
        """Whether the first connection has ended, or its server has said that it does; the driver hears of it later."""
        return not self._open or self._overhearing.farewell or self._open[0][1].is_closing()

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future of the loop, and remember it."""
        self._waiter = future = self._loop.create_future()
        self._cancels = self._is_cancelling()  # then the one before was made for that, and not for a query
        if not self._cancels:
            self._rested = self._overhearing.rests
        self._overhearing.asked()
        if self._error_listener is not None:
            future.add_done_callback(self._look_for_error)
        return future

    def listen_in(self, connection: Any) -> None:  # noqa: ANN401 - asyncpg.Connection
        """Hear what the server says to a connection from now on, to know when it ends the session."""
        protocol, transport = connection._protocol, connection._transport  # noqa: SLF001 - there is no public word
        hear, receive = self._overhearing.hear, protocol.data_received
        self._waiter, self._is_cancelling = None, protocol._is_cancelling  # noqa: SLF001 - as above

        def data_received(received: bytes) -> None:
            hear(received)
            receive(received)

        protocol.data_received = data_received
        transport.set_protocol(protocol)  # uvloop looks methods up here, and not again

    def tell_errors_to(self, listener: Callable[[BaseException], object]) -> None:
        """Have a function called with what each query raises from now on, before whoever asked gets to know."""
        self._error_listener = listener

    def _look_for_error(self, waiter: asyncio.Future[Any]) -> None:
        if self._error_listener is None or waiter.cancelled():
            return
        if (error := waiter.exception()) is not None:
            self._error_listener(error)

    async def create_connection(
        self,
        factory: Callable[[], P],
        host: str,  # noqa: ARG002 - the driver's idea of where to go
        port: int,  # noqa: ARG002 - as above
        *,
        ssl: ssl.SSLContext | None = None,
    ) -> tuple[asyncio.Transport, P]:
        """Connect. Raises ConnectError, or what the TLS handshake raises; cancelled, it leaves nothing open."""
        sock = await self._dial()
        try:
            transport, protocol = await self._loop.create_connection(
                factory, sock=sock, ssl=ssl, server_hostname=None if ssl is None else self._name
            )
        except BaseException:
            _shut(sock)
            sock.close()
            if self._waiter is not None:
                self._waiter.cancel()  # or asyncio complains that nobody has heard of the end of the connection
            raise
        self._open[1:] = [(one, its) for one, its in self._open[1:] if one.fileno() != -1]
        self._open.append((sock, transport))
        return transport, protocol

    async def start_tls(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.BaseProtocol,
        context: ssl.SSLContext,
        *,
        server_hostname: str,  # noqa: ARG002 - the driver's idea of whom to expect
    ) -> asyncio.Transport | None:
        """Begin TLS on a connection of this loop. Raises what the handshake raises."""
        return await self._loop.start_tls(transport, protocol, context, server_hostname=self._name)

    def abort(self) -> None:
        """Close all its connections at once, without an exception, also when the loop is closed."""
        for sock, transport in self._open:
            if self._loop.is_closed():
                close_without_loop(self._loop, sock, transport)
            else:
                transport.abort()
                _shut(sock)
        self._open.clear()

    async def _dial(self) -> socket.socket:
        if self._peer is not None:
            return await self._dialler.connect(*self._peer)
        sock = await self._dialler.dial(self._backend)
        try:
            self._peer = sock.family, sock.getpeername()
        except OSError:
            sock.close()
            raise
        return sock


def _shut(sock: socket.socket) -> None:
    """Tell the peer now: the transport closes the socket in the loop's next turn, if that comes."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
