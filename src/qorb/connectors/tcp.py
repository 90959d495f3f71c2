"""TcpConnector: plain or TLS byte streams over TCP that notice when their peer is gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, cast

from qorb.connector import Connector, Outcome, overrides
from qorb.connectors._sockets import (
    Dialler,
    checked_context,
    close_without_loop,
    reason,
    server_name,
    shown_address,
)
from qorb.errors import ConnectError

if TYPE_CHECKING:
    import ssl as tls

    from qorb.backend import Backend

# A reader stops reading above twice its limit. Together with _Protocol.get_buffer this keeps what a peer can make a
# connection hold, unasked, under 64 KiB; the price is that readline() and readuntil() take no line longer than 32 KiB.
_STREAM_LIMIT = 32 * 1024 - 1
_MOST_UNREAD = 2 * _STREAM_LIMIT + 1
_READ_SIZE = 16 * 1024


class TcpStream:
    """One connection of a TcpConnector: a reader and a writer. Made inside a running event loop."""

    __slots__ = ("__weakref__", "_loop", "_socket", "reader", "writer")

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sock: socket.socket | None = None
    ) -> None:
        """Bind the two ends; `sock` is the socket under them, for an abort() when their loop cannot help any more."""
        self.reader: asyncio.StreamReader = reader
        self.writer: asyncio.StreamWriter = writer
        self._socket = sock
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        """Say who is at the other end and whether the stream is closed; never what went through it."""
        state = "closed" if self.writer.is_closing() else "open"
        return f"<TcpStream to {shown_address(self.writer.get_extra_info('peername'))}, {state}>"

    def abort(self) -> None:
        """Close at once; what was not sent is lost. Also when the loop has stopped or is closed."""
        if self._socket is not None and self._loop.is_closed():
            close_without_loop(self._loop, self._socket, self.writer.transport)
            return
        self.writer.transport.abort()
        if self._socket is not None:
            # The transport closes the socket in the loop's next turn, if that ever comes; one with TLS that was closed
            # twice not even then. This tells the peer now, and ends such a transport.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class TcpConnector(Connector[TcpStream]):
    """Opens TCP connections, with TLS when it is given an `ssl` context; the pool hands out TcpStreams.

    ssl: the context for TLS, or None. The certificate must be good for `backend.server_name`, or for `backend.host`
        when that is None, whatever address is connected to. How strictly is for the context to say:
        ssl.create_default_context() checks everything. A context whose checks were switched off (check_hostname False
        and verify_mode CERT_NONE) is used as it is, but brings a RuntimeWarning: the traffic is encrypted, but anybody
        may be at the other end. So does one that checks the certificate but not whom it was made out to.
    keepalive: seconds of silence after which the kernel probes the peer (in whole seconds, rounded up). Then a probe
        every third of that time, at least a second apart; when three stay unanswered, the connection is closed.
        None or math.inf: no probes.
    user_timeout: seconds that sent data may stay unacknowledged before the kernel gives the connection up
        (TCP_USER_TIMEOUT; on Linux, elsewhere it does nothing). None or math.inf: the system's default, about 15
        minutes. On Linux it also decides about the probes: the connection is closed at the first probe that comes due
        with silence as long as user_timeout and the probe before it unanswered. Lossy networks want a user_timeout
        longer than keepalive; with both at 30 a vanished peer is noticed after about 40 s.

    Raises TypeError or ValueError, naming the parameter, for anything else.

    A connection on which a claim did not end cleanly, or on which bytes are unread, is never handed out again: they may
    be the answer to somebody else's question. A subclass may override `on_recycle`, which is then called after every
    claim, and `validate`, which health checks and on_recycle call; one that speaks a protocol calls super().validate()
    first.
    """

    def __init__(
        self, *, ssl: tls.SSLContext | None = None, keepalive: float | None = 30.0, user_timeout: float | None = 30.0
    ) -> None:
        """Check the settings. Opens nothing."""
        self._ssl = checked_context(ssl)
        self._dialler = Dialler(keepalive, user_timeout)

    def __repr__(self) -> str:
        """Show the settings; of the context only that there is one."""
        context = "None" if self._ssl is None else "<SSLContext>"
        times = f"keepalive={self._dialler.keepalive}, user_timeout={self._dialler.user_timeout}"
        return f"{type(self).__name__}(ssl={context}, {times})"

    async def connect(self, backend: Backend) -> TcpStream:
        """Connect to `backend.address` and to nothing else; with TLS the handshake is done, too. Raises ConnectError.

        A host that is a name, not an IP address, is looked up by the system, on a thread, and its addresses are tried
        in the order given. Such a look-up cannot be interrupted: a call that is cancelled meanwhile ends when the
        look-up does. (A DnsResolver finds addresses without a thread.) Cancelled anywhere else, it ends at once. Either
        way nothing stays open.
        """
        name = None if self._ssl is None else server_name(backend)
        sock = await self._dialler.dial(backend)
        try:
            return await self._open_stream(sock, name)
        except (OSError, ValueError) as error:
            where = shown_address(backend.address)
            step = f"connecting to {where}" if name is None else f"the TLS handshake with {where} as {name!r}"
            raise ConnectError(f"{step} failed: {reason(error)}", backend.name) from error

    async def validate(self, connection: TcpStream) -> None:
        """Raise ConnectError when the connection is visibly closed or out of step. Sends nothing, never suspends."""
        if connection.writer.is_closing():
            raise ConnectError("the connection is closed")
        if connection.reader.at_eof():
            raise ConnectError("the peer has closed the connection")
        if unread := _unread(connection.reader):
            raise ConnectError(f"{unread} bytes have arrived that nobody has read, so the connection is out of step")

    async def close(self, connection: TcpStream) -> None:
        """Send what is still to be sent, end TLS, close.

        Waits as long as the peer takes: bound it, as the pool does. When it is cancelled, it aborts.
        """
        writer = connection.writer
        try:
            writer.close()
            with contextlib.suppress(OSError):  # it broke while closing, so it is closed
                await writer.wait_closed()
        except BaseException:
            self.abort(connection)
            raise

    def abort(self, connection: TcpStream) -> None:
        """Close at once; what was not sent is lost. Also when the loop has stopped or is closed."""
        connection.abort()

    def is_closed(self, connection: TcpStream) -> bool:
        """Say whether the connection is closed by either side, or holds bytes that nobody asked for."""
        reader = connection.reader
        return bool(_unread(reader)) or reader.at_eof() or connection.writer.is_closing()

    def needs_recycle(self, connection: TcpStream, outcome: Outcome) -> bool:
        """Say whether anything must be done before the next claim: not when all is clean and read.

        True as well for a subclass with an on_recycle of its own.
        """
        return outcome is not Outcome.CLEAN or bool(_unread(connection.reader)) or overrides(self, "on_recycle")

    async def _open_stream(self, sock: socket.socket, name: str | None) -> TcpStream:
        """Put a stream, and TLS, on a connected socket, which from here on belongs to the stream."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_STREAM_LIMIT, loop=loop)
        protocol = _Protocol(reader, loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, sock=sock, ssl=self._ssl, server_hostname=name
            )
        except BaseException:
            if loop.is_closed():
                close_without_loop(loop, sock, protocol.open_transport)
            elif protocol.open_transport is not None:  # cancelled as it came up: asyncio has closed it only gracefully
                protocol.open_transport.abort()
            sock.close()
            raise
        return TcpStream(reader, asyncio.StreamWriter(transport, protocol, reader, loop), sock)


class _Protocol(asyncio.StreamReaderProtocol, asyncio.BufferedProtocol):
    """Takes from the socket only what the reader has room for.

    As asyncio does it by itself, one read may bring 256 KiB beyond the reader's limit. (uvloop does not ask get_buffer:
    there, that is what one read may bring.)
    """

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._reader = reader
        self._incoming = memoryview(b"")
        self.open_transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.open_transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_transport = None
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio knows no better
        # A full reader stops reading. If this one reads all the same, readexactly() waits for more than fits.
        room = _MOST_UNREAD - _unread(self._reader)
        self._incoming = memoryview(bytearray(min(room, _READ_SIZE) if room > 0 else _READ_SIZE))
        return self._incoming

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._incoming[:nbytes]))
        self._incoming = memoryview(b"")


def _unread(reader: asyncio.StreamReader) -> int:
    """Count the bytes that have arrived and were not read. StreamReader has had them in `_buffer` since it exists."""
    return len(reader._buffer)  # type: ignore[attr-defined]  # noqa: SLF001
