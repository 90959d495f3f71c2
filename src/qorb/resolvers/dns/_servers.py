"""The DNS servers that are asked."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qorb.backend import without_user
from qorb.errors import ResolveError, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

_PORT = 53
_MAX_PORT = 65_535
_RESOLV_CONF = "/etc/resolv.conf"


@dataclass(frozen=True, slots=True, order=True)
class Server:
    """A DNS server: an IP address, a port, and whether the user named it."""

    host: str
    port: int
    explicit: bool = False

    @property
    def on_loopback(self) -> bool:
        """Whether it was named by the user and lies on this machine: then it may name addresses of this machine."""
        return self.explicit and ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        """Give "address:port"."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_servers(nameservers: Sequence[str]) -> tuple[Server, ...]:
    """Read "127.0.0.1:5353", "[::1]:53", "10.0.0.2" and "::1". Raises ValueError for anything else, and for none."""
    if isinstance(nameservers, str):
        raise ValueError(f"nameservers must be a list of addresses, not one text; write [{without_user(nameservers)}]")  # noqa: TRY004 - one class of error for every unusable value
    if not isinstance(nameservers, Iterable):
        raise ValueError(f"nameservers must be a list of addresses, not {shown(nameservers)}; write ['10.0.0.2']")  # noqa: TRY004 - as above
    servers = tuple(dict.fromkeys(_read(one) for one in nameservers))
    if not servers:
        raise ValueError("nameservers must name at least one DNS server; leave it out for the system's")
    return servers


def _read(text: str) -> Server:
    if not isinstance(text, str):
        raise ValueError(f"a DNS server must be a text such as '127.0.0.1:53', not {shown(text)}")  # noqa: TRY004 - as above
    host, port = text, str(_PORT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{without_user(text)} is no DNS server; write an IPv6 address as '[::1]:53'")
        port = rest[1:] if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"{without_user(text)} is no DNS server; it must be an IP address with or without a port, as '10.0.0.2:53'"
            ": a name would have to be looked up first"
        ) from None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= _MAX_PORT):  # noqa: PLR2004 - digits of 65535
        raise ValueError(f"{without_user(text)} has no usable port; it must be a number from 1 to {_MAX_PORT}")
    return Server(str(address), int(port), explicit=True)


class SystemServers:
    """The servers of the system's configuration, read again whenever that changes."""

    def __init__(self, path: str = _RESOLV_CONF) -> None:
        """Read nothing yet."""
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._servers: tuple[Server, ...] = ()

    def current(self) -> tuple[Server, ...]:
        """Give the servers; that of this machine when none is configured, as the C library does.

        Raises ResolveError when the configuration cannot be read.
        """
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                self._servers = _configured(self._path.read_text(encoding="utf-8", errors="replace"))
                self._seen = seen
        except FileNotFoundError:
            self._servers, self._seen = (), None
        except OSError as error:
            raise ResolveError(
                f"the system's DNS servers cannot be read from {self._path}: {error.strerror}"
            ) from error
        return self._servers or (Server("127.0.0.1", _PORT),)


def _configured(text: str) -> tuple[Server, ...]:
    servers: list[Server] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                servers.append(Server(str(ipaddress.ip_address(words[1])), _PORT))
            except ValueError:
                continue  # as the C library does
    return tuple(dict.fromkeys(servers))
