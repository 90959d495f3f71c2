"""Gate: who may ask for statistics.

A server on the machine's own address is reachable from every page that a browser on this machine has open. What such a
page can do is kept out by the names that the server answers to (`Host`) and by the page's own (`Origin`).
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import parse_qs, urlsplit

from qorb.credentials import Secret
from qorb.errors import kind_of, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"
Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

SUBPROTOCOL = "qorb"
"""What a WebSocket client may offer, beside TOKEN_SUBPROTOCOL and its token in base64url: browsers set no headers."""
TOKEN_SUBPROTOCOL = "qorb.token."  # noqa: S105 - not one
_LEAST_TOKEN = 16
_TOKEN = re.compile(r"[!-~]+")
_NAME = re.compile(r"[a-z0-9_.:-]{1,253}")
_LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_ANY = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody asks for, whatever server has taken the question."""

    method: str
    path: str
    """Below where the statistics are mounted."""
    query: str
    headers: tuple[tuple[str, str], ...]
    """With names in lower case."""
    client: str | None
    """The address that it comes from, and"""
    server: str | None
    """the one that it came to, where they are known."""

    def all_of(self, name: str) -> list[str]:
        """Give every value of a header."""
        return [value for key, value in self.headers if key == name]

    def parameters(self) -> dict[str, list[str]]:
        """Give what stands behind the question mark. Raises ValueError for more than a few."""
        return parse_qs(self.query, keep_blank_values=True, max_num_fields=16)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said to it."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """All headers but those that belong to the transport."""
        return (
            ("Content-Type", self.content_type),
            ("Content-Length", str(len(self.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            *self.extra,
        )


def sentence(status: HTTPStatus, text: str, *extra: tuple[str, str]) -> Answer:
    """Answer in words."""
    return Answer(status, f"{text}\n".encode(), extra=extra)


class Gate:
    """Lets requests in, or says why not."""

    def __init__(self, token: str | Secret | None, hosts: Iterable[str], trusted: Iterable[str] | None) -> None:
        """Check the settings. Raises TypeError and ValueError, never with the token in the text."""
        self._token = _checked_token(token)
        self._hosts = _checked_hosts(hosts)
        if trusted is not None:
            self._trusted = _checked_networks(trusted)
        else:
            self._trusted = _LOOPBACK if token is None else ()

    def refusal(self, request: Request) -> Answer | None:
        """Say why a request is not let in, or None. The page itself, which tells nothing, asks not_meant() only."""
        return self.not_meant(request) or self._unknown(request)

    def not_meant(self, request: Request) -> Answer | None:
        """Refuse what is no question, or what a page from elsewhere has made a browser ask."""
        if request.method != "GET":
            return sentence(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET is answered here.", ("Allow", "GET"))
        hosts = request.all_of("host")
        if len(hosts) != 1 or not self._answers_to(hosts[0], request.server):
            text = "This name is not one of this server's; give it to hosts= where the statistics are served."
            return sentence(HTTPStatus.FORBIDDEN, text)
        if any(_authority_of(origin) != hosts[0].lower() for origin in request.all_of("origin")):
            return sentence(HTTPStatus.FORBIDDEN, "Pages from elsewhere are not answered.")
        return None

    def _answers_to(self, host: str, server: str | None) -> bool:
        name = _host_name(host.lower())
        if name is None:
            return False
        address = _address(name)
        if _ANY in self._hosts or (name if address is None else str(address)) in self._hosts:
            return True
        return address is not None and (address in _BY_NAME or address == _address(server))

    def _unknown(self, request: Request) -> Answer | None:
        address = _address(request.client)
        if address is not None and any(address in network for network in self._trusted):
            return None
        if self._token is None:
            text = "Only this machine is answered; give token= or trusted= where the statistics are served."
            return sentence(HTTPStatus.FORBIDDEN, text)
        wanted = self._token.reveal().encode()
        # Each of them, always: how long it takes must not tell how far a guess is right.
        if sum(hmac.compare_digest(given, wanted) for given in _tokens_of(request)):
            return None
        text = "A token is needed: `Authorization: Bearer TOKEN`, or ?token=TOKEN."
        return sentence(HTTPStatus.UNAUTHORIZED, text, ("WWW-Authenticate", 'Bearer realm="qorb"'))


_BY_NAME = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
"""What "localhost" is called by number."""


def check_access(host: str, token: object, trusted: object) -> None:
    """Raise ValueError for an address to listen on that others reach, when nothing says whom to let in."""
    address = listening_address(host)
    if not address.is_loopback and token is None and trusted is None:
        raise ValueError(
            f"{host} can be reached from other machines: give token=, or trusted= with the networks that need none"
        )


def listening_address(host: str) -> Address:
    """Give the address to listen on. Raises ValueError for what is none."""
    address = _address("127.0.0.1" if host == "localhost" else host)
    if address is None:
        raise ValueError(f"host must be an IP address or 'localhost', not {shown(host)}")
    return address


def _checked_token(token: str | Secret | None) -> Secret | None:
    if token is None:
        return None
    secret = token if isinstance(token, Secret) else Secret(token)
    text = secret.reveal()
    if len(text) < _LEAST_TOKEN or _TOKEN.fullmatch(text) is None:
        raise ValueError(
            f"token must be at least {_LEAST_TOKEN} printable ASCII characters without spaces; "
            "secrets.token_urlsafe() makes one"
        )
    return secret


def _checked_hosts(hosts: Iterable[str]) -> frozenset[str]:
    if isinstance(hosts, str):
        raise TypeError("hosts must be several names, such as ['stats.example.com'], not one text")
    names = {"localhost"}
    for host in hosts:
        if not isinstance(host, str):
            raise TypeError(f"hosts must be texts, such as 'stats.example.com', not {kind_of(host)}")
        name = host.lower().removesuffix(".").removeprefix("[").removesuffix("]")
        address = _address(name)
        if address is not None:
            name = str(address)  # there are several ways to write it
        elif name != _ANY and (":" in name or _NAME.fullmatch(name) is None):
            raise ValueError(
                f"hosts must be names without scheme and port, such as 'stats.example.com', not {shown(host)}"
            )
        names.add(name)
    return frozenset(names)


def _checked_networks(networks: Iterable[str]) -> tuple[Network, ...]:
    if isinstance(networks, str):
        raise TypeError("trusted must be several networks, such as ['10.0.0.0/8'], not one text")
    try:
        return tuple(ipaddress.ip_network(network) for network in networks)
    except ValueError as error:
        raise ValueError(f"trusted must be networks, such as '10.0.0.0/8': {error}") from None


def _address(text: str | None) -> Address | None:
    """Give the address that a text is, an IPv4 address mapped to IPv6 as the former."""
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped if mapped is not None else address


def _host_name(host: str) -> str | None:
    """Give the name in `name:port` or `[address]:port`, without the dot at its end."""
    name, port = host, ""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        if not bracket:
            return None
    elif ":" in host:
        name, _, digits = host.rpartition(":")
        port = f":{digits}"
    valid = port == "" or (port.startswith(":") and port[1:].isdecimal())
    name = name.removesuffix(".")
    return name if valid and _NAME.fullmatch(name) is not None else None


def _authority_of(origin: str) -> str:
    """Give host and port of an origin, "" for one that has none."""
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return ""
    return parts.netloc if parts.scheme in {"http", "https"} else ""


def _tokens_of(request: Request) -> list[bytes]:
    tokens: list[bytes] = []
    for value in request.all_of("authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            tokens.append(token.strip().encode())
    for protocol in offered(request):
        if protocol.startswith(TOKEN_SUBPROTOCOL):
            encoded = protocol.removeprefix(TOKEN_SUBPROTOCOL)
            with contextlib.suppress(ValueError):
                tokens.append(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    with contextlib.suppress(ValueError):
        tokens += [token.encode() for token in request.parameters().get("token", ())]
    return tokens


def offered(request: Request) -> list[str]:
    """Give the subprotocols that a WebSocket client offers."""
    return [one.strip() for value in request.all_of("sec-websocket-protocol") for one in value.split(",")]
