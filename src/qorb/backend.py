"""Backend: one place where a service runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from qorb.errors import check_name, is_name, masked, shown

_MAX_PORT = 65_535
_MAX_DIGITS = 20
_MAX_WEIGHT = 65_535


@dataclass(frozen=True, order=True, slots=True)
class Backend:
    """One place where a service runs. Identity is `name`; everything else may change under the same name.

    `host` is what is connected to (an IP address when DNS found it); `server_name` is what a TLS certificate must be
    good for (None: `host`). `priority` and `weight` mean what they mean in an SRV record (RFC 2782): a lower priority
    is tried first, the weight is the share among backends of equal priority.

    Name and host are printable texts of 512 characters at the most, without blanks at their ends; a host is a host name
    or an IP address and nothing else: no URL, no path, no user.
    """

    name: str
    host: str
    port: int
    server_name: str | None = None
    priority: int = 0
    weight: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, for what can be no backend."""
        check_name("a backend's name", self.name)
        _check_host(self.name, self.host)
        if self.server_name is not None and (not isinstance(self.server_name, str) or not self.server_name):
            what = f"the server_name of backend {masked(self.name)}"
            raise ValueError(f"{what} must be None or a text that is not empty, not {shown(self.server_name)}")
        _check_integer(self.name, "port", self.port, 1, _MAX_PORT)
        _check_integer(self.name, "priority", self.priority, 0, _MAX_WEIGHT)
        _check_integer(self.name, "weight", self.weight, 0, _MAX_WEIGHT)

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Self:
        """Read "10.0.0.1:5432", "[::1]:5432" or "db.local:5432"; the port may be left out when `default_port` is given.

        The name of the backend is the textual address, with its port. Raises ValueError for anything else.
        """
        host, port = _split(text)
        if port is None:
            if default_port is None:
                raise ValueError(f"{shown(text)} has no port; write it as host:port")
            port = default_port
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return cls(name, host, port)

    @property
    def address(self) -> tuple[str, int]:
        """What is connected to: (host, port)."""
        return self.host, self.port

    def __str__(self) -> str:
        """Return the name."""
        return self.name


def _check_host(name: str, host: object) -> None:
    """Raise ValueError for what is no host name and no IP address, such as a URL, a path or a connection string."""
    if is_name(host) and not ("@" in host or "/" in host or " " in host):
        return  # the texts of errors take longer to make than all the rest
    what = f"the host of backend {masked(name)}"
    if isinstance(host, str) and any(mark in host for mark in ("@", "/", " ")):
        raise ValueError(f"{what} must be a host name or an IP address alone, not {without_user(host)}")
    check_name(what, host)


def without_user(text: str) -> str:
    """Give the text of a refused address, without what stands before an @: that may be a user with a password."""
    user, at, rest = text.rpartition("@")
    scheme, colon, user = user.rpartition("://")
    user = user.partition(":")[0] + ":" if colon and ":" in user else ""
    return shown(f"{scheme}{colon}{user}***@{rest}" if at else text)


def _check_integer(name: str, field: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        wanted = f"must be a whole number from {least} to {most}"
        text = without_user(value) if isinstance(value, str) else shown(value)
        raise ValueError(f"the {field} of backend {masked(name)} {wanted}, not {text}")


def _split(text: str) -> tuple[str, int | None]:
    if not isinstance(text, str):
        raise ValueError(f"a backend's address must be a text such as '10.0.0.1:5432', not {_kind(text)}")  # noqa: TRY004 - one class of error for every unreadable address
    if "://" in text:
        raise ValueError(f"{without_user(text)} is a URL; write host:port")
    if "@" in text:
        raise ValueError(f"{without_user(text)} names a user; write host:port alone")
    if not text.isprintable() or "/" in text or " " in text:
        raise ValueError(f"{shown(text)} is no address; write host:port alone")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not host or (rest and not rest.startswith(":")):
            raise ValueError(f"{shown(text)} is no address; write an IPv6 address as [::1]:5432")
        return host, _port(text, rest[1:]) if rest else None
    if text.count(":") > 1:
        raise ValueError(f"{shown(text)} is ambiguous; write an IPv6 address in brackets, as [::1]:5432")
    host, colon, rest = text.partition(":")
    if not host:
        raise ValueError(f"{shown(text)} has no host; write it as host:port")
    return host, _port(text, rest) if colon else None


def _port(text: str, digits: str) -> int:
    usable = digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS and 1 <= int(digits) <= _MAX_PORT
    if not usable:
        raise ValueError(f"{shown(text)} has no usable port; it must be a number from 1 to {_MAX_PORT}")
    return int(digits)


def read_backends(backends: Iterable[str | tuple[str, int] | Backend]) -> tuple[Backend, ...]:
    """Turn what a user may write for a set of backends into Backends. A name given twice is a ValueError too."""
    if isinstance(backends, str):
        raise ValueError(f"backends must be a list of addresses, not one text; write [{without_user(backends)}]")  # noqa: TRY004 - one class of error for every unreadable address
    if isinstance(backends, bytes) or not isinstance(backends, Iterable):
        raise ValueError(f"backends must be a list of addresses, not {_kind(backends)}; write ['10.0.0.1:5432']")  # noqa: TRY004 - as above
    read = tuple(_read(one) for one in backends)
    check_names(read)
    return read


def check_names(backends: Iterable[Backend]) -> None:
    """Raise ValueError when two backends of one set bear the same name."""
    seen: set[str] = set()
    for backend in backends:
        if backend.name in seen:
            raise ValueError(f"two backends are named {shown(backend.name)}; names must be unique within a set")
        seen.add(backend.name)


def _kind(value: object) -> str:
    """Name what a value is: a list or a connection may have a secret in it."""
    return f"something of the class {type(value).__name__}" if value is not None else "None"


def _read(one: str | tuple[str, int] | Backend) -> Backend:
    if isinstance(one, Backend):
        return one
    if isinstance(one, tuple):
        if len(one) != 2:  # noqa: PLR2004 - (host, port)
            raise ValueError(f"a tuple of {len(one)} is no address; write (host, port)")
        host, port = one
        _check_host("a backend's host", host)  # before it becomes a part of the name
        _check_integer(host, "port", port, 1, _MAX_PORT)
        return Backend(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", host, port)
    return Backend.parse(one)
