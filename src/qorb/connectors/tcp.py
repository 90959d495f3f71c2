"""TcpConnector: plain or TLS byte streams over TCP that notice when their peer is gone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import socket
import ssl as tls
import warnings
import weakref
from typing import TYPE_CHECKING, Any, cast

from qorb.connector import Connector, Outcome, overrides
from qorb.errors import ConnectError, shown
from qorb.threads import to_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qorb.backend import Backend

# A reader stops reading above twice its limit. Together with _Protocol.get_buffer this keeps what a peer can make a
# connection hold, unasked, under 64 KiB; the price is that readline() and readuntil() take no line longer than 32 KiB.
_STREAM_LIMIT = 32 * 1024 - 1
_MOST_UNREAD = 2 * _STREAM_LIMIT + 1
_READ_SIZE = 16 * 1024

_KEEPALIVE_PROBES = 3
_LONGEST_KEEPALIVE = 32_767  # the kernel's own limit, in seconds
_LONGEST_USER_TIMEOUT = 2_147_483  # milliseconds in 31 bits
_LONGEST_NAME = 253  # in DNS, without the final dot
_MOST_ADDRESSES = 64  # of one host name; the rest is not tried


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
        return f"<TcpStream to {_shown(self.writer.get_extra_info('peername'))}, {state}>"

    def abort(self) -> None:
        """Close at once; what was not sent is lost. Also when the loop has stopped or is closed."""
        if self._socket is not None and self._loop.is_closed():
            _close_without_loop(self._loop, self._socket, self.writer.transport)
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
        self._ssl = _checked_context(ssl)
        self._keepalive = _checked_seconds("keepalive", keepalive, _LONGEST_KEEPALIVE)
        self._user_timeout = _checked_seconds("user_timeout", user_timeout, _LONGEST_USER_TIMEOUT)
        self._socket_options = tuple(_socket_options(self._keepalive, self._user_timeout))

    def __repr__(self) -> str:
        """Show the settings; of the context only that there is one."""
        context = "None" if self._ssl is None else "<SSLContext>"
        return f"{type(self).__name__}(ssl={context}, keepalive={self._keepalive}, user_timeout={self._user_timeout})"

    async def connect(self, backend: Backend) -> TcpStream:
        """Connect to `backend.address` and to nothing else; with TLS the handshake is done, too. Raises ConnectError.

        A host that is a name, not an IP address, is looked up by the system, on a thread, and its addresses are tried
        in the order given. Such a look-up cannot be interrupted: a call that is cancelled meanwhile ends when the
        look-up does. (A DnsResolver finds addresses without a thread.) Cancelled anywhere else, it ends at once. Either
        way nothing stays open.
        """
        name = None if self._ssl is None else _server_name(backend)
        sock = await self._dial(backend)
        try:
            return await self._open_stream(sock, name)
        except (OSError, ValueError) as error:
            where = _shown(backend.address)
            step = f"connecting to {where}" if name is None else f"the TLS handshake with {where} as {name!r}"
            raise ConnectError(f"{step} failed: {_reason(error)}", backend.name) from error

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

    async def _dial(self, backend: Backend) -> socket.socket:
        """Return a connected socket, or raise ConnectError that says what happened at each address."""
        try:
            addresses = await _addresses(*backend.address)
        except (OSError, ValueError) as error:
            raise ConnectError(f"looking up {backend.host!r} failed: {_reason(error)}", backend.name) from error
        failures: list[OSError] = []
        for family, address in addresses:
            try:
                return await self._connected_socket(family, address)
            except OSError as error:
                failures.append(error)
        tries = zip(addresses, failures, strict=True)
        text = "; ".join(f"connecting to {_shown(address)} failed: {_reason(error)}" for (_, address), error in tries)
        raise ConnectError(text, backend.name) from failures[-1]

    async def _connected_socket(self, family: int, address: tuple[Any, ...]) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        _sockets.add(sock)
        try:
            sock.settimeout(0)
            for level, option, value in self._socket_options:
                sock.setsockopt(level, option, value)
            await asyncio.get_running_loop().sock_connect(sock, address)
            if sock.getsockname() == sock.getpeername():
                # Nobody listens, but the kernel chose this very port for our own end: TCP's simultaneous open.
                raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except BaseException:
            sock.close()
            raise
        return sock

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
                _close_without_loop(loop, sock, protocol.open_transport)
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


def _checked_context(context: tls.SSLContext | None) -> tls.SSLContext | None:
    if context is None:
        return None
    if not isinstance(context, tls.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext or None, not {type(context).__name__}")
    if context.protocol is tls.PROTOCOL_TLS_SERVER:
        raise ValueError("ssl must be a context for clients; make it with ssl.create_default_context()")
    if context.verify_mode is tls.CERT_NONE:
        warnings.warn(
            "ssl: this context checks no certificate, so anybody may be at the other end; use "
            "ssl.create_default_context(), with cafile= for an authority of your own; a filter silences this",
            RuntimeWarning,
            stacklevel=3,
        )
    elif not context.check_hostname:
        warnings.warn(
            "ssl: this context accepts the certificate of anybody whom its authorities have signed; set "
            "check_hostname=True and, where the certificate has another name than the address, Backend.server_name",
            RuntimeWarning,
            stacklevel=3,
        )
    return context


def _checked_seconds(name: str, value: float | None, most: int) -> float | None:
    """Return the setting, None for never. Raises TypeError or ValueError naming it."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds or None, not {shown(value)}")
    if not value > 0:  # NaN is not
        raise ValueError(f"{name} must be more than 0 seconds (None switches it off), not {shown(value)}")
    if value == math.inf:
        return None
    if value > most:
        raise ValueError(f"{name} must be at most {most} seconds (None switches it off), not {shown(value)}")
    return float(value)


def _socket_options(keepalive: float | None, user_timeout: float | None) -> Iterator[tuple[int, int, int]]:
    """What to set on each socket, as (level, option, value), as far as this system has it."""
    yield socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
    if keepalive is not None:
        yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
        yield from _tcp_option(("TCP_KEEPIDLE", "TCP_KEEPALIVE"), math.ceil(keepalive))  # the latter on macOS
        yield from _tcp_option(("TCP_KEEPINTVL",), math.ceil(keepalive / _KEEPALIVE_PROBES))
        yield from _tcp_option(("TCP_KEEPCNT",), _KEEPALIVE_PROBES)
    if user_timeout is not None:
        yield from _tcp_option(("TCP_USER_TIMEOUT",), math.ceil(user_timeout * 1000))


def _tcp_option(names: tuple[str, ...], value: int) -> Iterator[tuple[int, int, int]]:
    for name in names:
        if hasattr(socket, name):
            yield socket.IPPROTO_TCP, getattr(socket, name), value
            return


async def _addresses(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Turn a host into (family, address) pairs, at least one. Raises OSError or ValueError."""
    if "\0" in host:
        raise ValueError("there is a null character in it")  # the system would end the name there, and look that up
    try:
        # An IP address is only read, so this does not block.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await _look_up(host, port)
    return [(family, address) for family, _, _, _, address in found[:_MOST_ADDRESSES]]


async def _look_up(host: str, port: int) -> list[tuple[Any, ...]]:
    """Ask the system for the addresses of a host name, on a thread of this call's own: it blocks.

    A call that is cancelled raises its CancelledError when the look-up ends.
    """

    def ask() -> list[tuple[Any, ...]]:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

    return await to_thread(ask, what=f"looks up {host}")


def _close_without_loop(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, transport: asyncio.WriteTransport | None
) -> None:
    """Close a socket although its transport can only end in a turn of its loop, and there will be none.

    A transport that has not ended warns when it is collected. There is no public way to tell it that it has.
    """
    under_tls = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    # The loop knows it before TLS does; but when the interpreter ends, the loop may have forgotten it.
    known_to_loop = getattr(loop, "_transports", {}).get(sock.fileno())
    if transport is not None:
        with contextlib.suppress(RuntimeError):  # it is marked as closed before it asks the loop to go on
            transport.abort()
    sock.close()
    for one in (transport, under_tls, known_to_loop):
        if getattr(one, "_sock", None) is not None:
            one._sock = None  # type: ignore[union-attr]  # noqa: SLF001 - see above


_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
"""Those that were opened, some of them closed by now."""


def _close_in_child() -> None:
    """Close, in a child process, what the parent has open: this does not end the connections, but makes them its own.

    Otherwise what asyncio does when it collects a stream in the child would take the parent's events away: they share
    the selector.
    """
    for sock in tuple(_sockets):
        sock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _unread(reader: asyncio.StreamReader) -> int:
    """Count the bytes that have arrived and were not read. StreamReader has had them in `_buffer` since it exists."""
    return len(reader._buffer)  # type: ignore[attr-defined]  # noqa: SLF001


def _server_name(backend: Backend) -> str:
    """What the certificate must be good for; TLS wants it without the final dot (RFC 6066, section 3).

    Raises ConnectError for what is no name: some event loops lose the socket over it, and none checks an empty one.
    """
    name = (backend.server_name or backend.host).removesuffix(".")
    try:
        name.encode("idna")
    except UnicodeError as error:
        raise ConnectError(f"no certificate can be good for the server name {name!r}: {error}", backend.name) from error
    if not 0 < len(name) <= _LONGEST_NAME or "\0" in name:
        raise ConnectError(f"no certificate can be good for the server name {name!r}", backend.name)
    return name


def _reason(error: Exception) -> str:
    if isinstance(error, tls.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, tls.SSLError | socket.gaierror):  # their numbers are none of the system's
        return error.strerror or str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _shown(address: tuple[Any, ...] | None) -> str:
    if not address:
        return "nobody"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
