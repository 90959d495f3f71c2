"""Backend: one place where a service runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from qorb.errors import masked, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_PORT = 65_535
_MAX_DIGITS = 20
_MAX_WEIGHT = 65_535


@dataclass(frozen=True, order=True, slots=True)
class Backend:
    """One place where a service runs. Identity is `name`; everything else may change under the same name.

    `host` is what is connected to (an IP address when DNS found it); `server_name` is what a TLS certificate must be
    good for (None: `host`). `priority` and `weight` mean what they mean in an SRV record (RFC 2782): a lower priority
    is tried first, the weight is the share among backends of equal priority.
    """

    name: str
    host: str
    port: int
    server_name: str | None = None
    priority: int = 0
    weight: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, for what can be no backend."""
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a backend's name must be a text that is not empty, not {shown(self.name)}")
        if not isinstance(self.host, str) or not self.host:
            wanted = "must be a text that is not empty"
            raise ValueError(f"the host of backend {self.name} {wanted}, not {shown(self.host)}")
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
                raise ValueError(f"{text!r} has no port; write it as host:port")
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


def _check_integer(name: str, field: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        wanted = f"must be a whole number from {least} to {most}"
        raise ValueError(f"the {field} of backend {name} {wanted}, not {shown(value)}")


def _split(text: str) -> tuple[str, int | None]:
    if not isinstance(text, str):
        raise ValueError(f"a backend's address must be a text such as '10.0.0.1:5432', not {text!r}")  # noqa: TRY004 - one class of error for every unreadable address
    if "://" in text:
        raise ValueError(f"{masked(text)!r} is a URL; write host:port")
    if "@" in text:
        raise ValueError(f"{'***@' + text.rpartition('@')[2]!r} names a user; write host:port alone")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not host or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is no address; write an IPv6 address as [::1]:5432")
        return host, _port(text, rest[1:]) if rest else None
    if text.count(":") > 1:
        raise ValueError(f"{text!r} is ambiguous; write an IPv6 address in brackets, as [::1]:5432")
    host, colon, rest = text.partition(":")
    if not host:
        raise ValueError(f"{text!r} has no host; write it as host:port")
    return host, _port(text, rest) if colon else None


def _port(text: str, digits: str) -> int:
    usable = digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS and 1 <= int(digits) <= _MAX_PORT
    if not usable:
        raise ValueError(f"{shown(text)} has no usable port; it must be a number from 1 to {_MAX_PORT}")
    return int(digits)


def read_backends(backends: Iterable[str | tuple[str, int] | Backend]) -> tuple[Backend, ...]:
    """Turn what a user may write for a set of backends into Backends. A name given twice is a ValueError too."""
    if isinstance(backends, str):
        raise ValueError(f"backends must be a list of addresses, not one text; write [{masked(backends)!r}]")  # noqa: TRY004 - one class of error for every unreadable address
    read = tuple(_read(one) for one in backends)
    check_names(read)
    return read


def check_names(backends: Iterable[Backend]) -> None:
    """Raise ValueError when two backends of one set bear the same name."""
    seen: set[str] = set()
    for backend in backends:
        if backend.name in seen:
            raise ValueError(f"two backends are named {backend.name!r}; names must be unique within a set")
        seen.add(backend.name)


def _read(one: str | tuple[str, int] | Backend) -> Backend:
    if isinstance(one, Backend):
        return one
    if isinstance(one, tuple):
        if len(one) != 2:  # noqa: PLR2004 - (host, port)
            raise ValueError(f"{one!r} is no address; write (host, port)")
        host, port = one
        return Backend(f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}", host, port)
    return Backend.parse(one)
