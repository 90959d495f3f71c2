"""Sockets that are connected as TcpConnector does it: for TcpConnector, and for drivers that have it done for them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import math
import os
import socket
import ssl as tls
import warnings
import weakref
from typing import TYPE_CHECKING, Any

from qorb.errors import ConnectError, shown
from qorb.threads import to_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qorb.backend import Backend

_KEEPALIVE_PROBES = 3
_LONGEST_KEEPALIVE = 32_767  # the kernel's own limit, in seconds
_LONGEST_USER_TIMEOUT = 2_147_483  # milliseconds in 31 bits
_LONGEST_NAME = 253  # in DNS, without the final dot
_MOST_ADDRESSES = 64  # of one host name; the rest is not tried


class Dialler:
    """Connects sockets, all with the same options: `keepalive` and `user_timeout` are those of TcpConnector."""

    def __init__(self, keepalive: float | None = 30.0, user_timeout: float | None = 30.0) -> None:
        """Raise TypeError or ValueError, naming the parameter, for what is not usable."""
        self.keepalive: float | None = _checked_seconds("keepalive", keepalive, _LONGEST_KEEPALIVE)
        self.user_timeout: float | None = _checked_seconds("user_timeout", user_timeout, _LONGEST_USER_TIMEOUT)
        self._options = tuple(_socket_options(self.keepalive, self.user_timeout))

    async def dial(self, backend: Backend) -> socket.socket:
        """Return a socket that is connected to a backend. Raises ConnectError that says what happened at each address.

        Cancelled while a host name is looked up, it ends when the look-up does. It leaves nothing open.
        """
        addresses = await addresses_of(backend)
        failures: list[OSError] = []
        for family, address in addresses:
            try:
                return await self.connect(family, address)
            except OSError as error:
                failures.append(error)
        tries = zip(addresses, failures, strict=True)
        text = "; ".join(
            f"connecting to {shown_address(address)} failed: {reason(error)}" for (_, address), error in tries
        )
        raise ConnectError(text, backend.name) from failures[-1]

    async def connect(self, family: int, address: tuple[Any, ...]) -> socket.socket:
        """Return a socket that is connected to one address. Raises OSError; cancelled, it leaves nothing open."""
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        _sockets.add(sock)
        try:
            sock.settimeout(0)
            for level, option, value in self._options:
                sock.setsockopt(level, option, value)
            await asyncio.get_running_loop().sock_connect(sock, address)
            if sock.getsockname() == sock.getpeername():
                # Nobody listens, but the kernel chose this very port for our own end: TCP's simultaneous open.
                raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except BaseException:
            sock.close()
            raise
        return sock


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


async def addresses_of(backend: Backend) -> list[tuple[int, tuple[Any, ...]]]:
    """Give the addresses of a backend as (family, address), at least one. Raises ConnectError.

    A host that is a name, not an IP address, is looked up by the system, on a thread; cancelled meanwhile, it ends when
    the look-up does.
    """
    try:
        found = await _found(*backend.address)
    except (OSError, ValueError) as error:
        raise ConnectError(f"looking up {backend.host!r} failed: {reason(error)}", backend.name) from error
    return [(family, address) for family, _, _, _, address in found[:_MOST_ADDRESSES]]


async def _found(host: str, port: int) -> list[tuple[Any, ...]]:
    if "\0" in host:
        raise ValueError("there is a null character in it")  # the system would end the name there, and look that up
    try:
        # An IP address is only read, so this does not block.
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except socket.gaierror:
        return await _look_up(host, port)


async def _look_up(host: str, port: int) -> list[tuple[Any, ...]]:
    """Ask the system for the addresses of a host name, on a thread of this call's own: it blocks.

    A call that is cancelled raises its CancelledError when the look-up ends.
    """

    def ask() -> list[tuple[Any, ...]]:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

    return await to_thread(ask, what=f"looks up {host}")


def server_name(backend: Backend) -> str:
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


def checked_context(context: tls.SSLContext | None) -> tls.SSLContext | None:
    """Return the context, None for none. Raises TypeError or ValueError.

    A context that does not check who is at the other end brings a RuntimeWarning, where the connector was made.
    """
    if context is None:
        return None
    if not isinstance(context, tls.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext or None, not {type(context).__name__}")
    if context.protocol is tls.PROTOCOL_TLS_SERVER:
        raise ValueError("ssl must be a context for clients; make it with ssl.create_default_context()")
    if context.verify_mode is tls.CERT_NONE:
        _warn(
            "ssl: this context checks no certificate, so anybody may be at the other end; use "
            "ssl.create_default_context(), with cafile= for an authority of your own; a filter silences this",
        )
    elif not context.check_hostname:
        _warn(
            "ssl: this context accepts the certificate of anybody whom its authorities have signed; set "
            "check_hostname=True and, where the certificate has another name than the address, Backend.server_name",
        )
    return context


def _warn(text: str) -> None:
    level, frame = 1, inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, RuntimeWarning, stacklevel=level)


def reason(error: Exception) -> str:
    """Say in a few words why there is no connection."""
    if isinstance(error, tls.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, tls.SSLError | socket.gaierror):  # their numbers are none of the system's
        return error.strerror or str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def shown_address(address: tuple[Any, ...] | None) -> str:
    """Write an address as "host:port"."""
    if not address:
        return "nobody"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def close_without_loop(
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
