"""Where the statistics are, as people write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

from qorb.credentials import Secret

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_PATH = "/qtop/stats"
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect to, and with what right."""

    url: str
    """Of the WebSocket, with everything that is asked for; no token is in it."""
    shown: str
    """The same for people."""
    host: str
    port: int
    token: Secret | None


def read_address(text: str, *, interval: int, pool: str | None = None, token: str | None = None) -> Address:
    """Read `host:port`, or a URL of the schemes http, https, ws and wss.

    A path that does not end in /qtop/stats is taken for where the statistics are mounted. A token in the query is taken
    out of it; the argument goes before it. Anything else raises ValueError with a sentence.
    """
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"a URL consists of printable ASCII characters, without spaces, not {text!r}")
    parts = _split(text)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    token = query.pop("token", None) if token is None else token
    query["update_secs"] = str(interval)
    if pool is not None:
        query["pool"] = pool
    path = parts.path.rstrip("/")
    if not path.endswith(_PATH):
        path += _PATH
    place = f"{_SCHEMES[parts.scheme]}://{parts.netloc}"
    shown = place + path.removesuffix(_PATH)
    return Address(
        url=f"{place}{path}?{urlencode(query)}",
        shown=shown,
        host=parts.hostname or "",
        port=parts.port or (443 if place.startswith("wss") else 80),
        token=None if token is None else _secret(token),
    )


def _split(text: str) -> SplitResult:
    wanted = "host:port, or a URL that begins with http://, https://, ws:// or wss://"
    bare = "://" not in text
    try:
        parts = urlsplit(f"ws://{text}" if bare else text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"cannot read {text!r}: {error}; give {wanted}") from error
    if "@" in parts.netloc:
        # Not repeated: there may be a password in it.
        raise ValueError("a URL with user or password is of no use here; give the server's token by QORB_TOP_TOKEN")
    if parts.scheme not in _SCHEMES or not parts.hostname or port == 0 or (bare and port is None):
        raise ValueError(f"give {wanted}, not {text!r}")
    return parts


def _secret(token: str) -> Secret:
    # It travels in a header.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("a token consists of printable ASCII characters, without spaces, and of at least one")
    return Secret(token)
