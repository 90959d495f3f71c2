"""Site: what is answered to whom, whatever server has taken the question."""

from __future__ import annotations

import base64
import hashlib
import importlib
import re
import weakref
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from typing import TYPE_CHECKING, Any

from qorb.errors import PoolError
from qorb.pool import Pool
from qorb.stats import PoolState
from qorb.top._feed import Feed
from qorb.top._gate import Answer, sentence
from qorb.top._numbers import encoded, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qorb.top._gate import Gate, Request

PORT = 7672
"""Where serve() listens when it is told nothing else."""

SOCKET = "/qtop/stats"
_MOST_SECONDS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What clients may cost. Seconds, but for `clients`."""

    clients: int = 8
    """WebSockets at a time."""
    patience: float = 10.0
    """For sending one frame."""
    ping: float = 20.0
    """Between pings, and until their answer; in a server of our own."""


_DEFAULT_LIMITS = Limits()


class Site:
    """The pools, and what can be asked of them."""

    def __init__(self, pools: Iterable[Pool[Any]], gate: Gate, limits: Limits = _DEFAULT_LIMITS) -> None:
        """Check the pools. Raises TypeError and ValueError."""
        self.limits = limits
        self._gate = gate
        self._pools: dict[str, weakref.ref[Pool[Any]]] = {}
        for pool in pools:
            if not isinstance(pool, Pool):
                raise TypeError(f"what is shown must be Pools, not a {type(pool).__name__}")
            if pool.name in self._pools:
                raise ValueError(f"two pools of the name {pool.name!r} cannot be told apart here; rename one")
            self._pools[pool.name] = weakref.ref(pool)
        if not self._pools:
            raise ValueError("there is no pool to be shown; give one at least")
        self._feeds: dict[Feed, None] = {}

    def pools(self) -> list[Pool[Any]]:
        """Give the pools that have not been dropped."""
        return [pool for reference in self._pools.values() if (pool := reference()) is not None]

    def answer(self, request: Request) -> Answer:
        """Answer a question that is no WebSocket's."""
        if request.path in {"", "/"}:
            return self._gate.not_meant(request) or page()
        answers = {
            "/stats.json": self._stats,
            "/metrics": self._metrics,
            "/healthz": self._health,
            SOCKET: _not_a_socket,
        }
        refusal = self._gate.refusal(request)
        if refusal is not None:
            return refusal
        if request.path not in answers:
            return sentence(HTTPStatus.NOT_FOUND, f"There is nothing here. There are: /, {', '.join(answers)}.")
        try:
            return answers[request.path]()
        except PoolError as error:  # in a child process
            return sentence(HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    def admit(self, request: Request) -> Feed | Answer:
        """Take a WebSocket in, or say why not. The feed is to be left in any case."""
        refusal = self._gate.refusal(request)
        if refusal is not None:
            return refusal
        if request.path != SOCKET:
            return sentence(HTTPStatus.NOT_FOUND, f"The WebSocket is {SOCKET}.")
        if len(self._feeds) >= self.limits.clients:
            text = f"{self.limits.clients} clients at a time are served, and there are as many."
            return sentence(HTTPStatus.SERVICE_UNAVAILABLE, text)
        return self._feed(request)

    def _feed(self, request: Request) -> Feed | Answer:
        try:
            parameters = request.parameters()
            seconds = _seconds(parameters.get("update_secs", ["1"])[-1])
        except ValueError:
            text = f"update_secs must be a whole number from 0 to {_MOST_SECONDS}."
            return sentence(HTTPStatus.BAD_REQUEST, text)
        pool = self._pool(parameters.get("pool", [""])[-1])
        if pool is None:
            return sentence(HTTPStatus.NOT_FOUND, "There is no such pool.")
        try:
            feed = Feed(pool, seconds, self._left)
        except PoolError as error:  # it does not run, or elsewhere
            return sentence(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        self._feeds[feed] = None
        return feed

    def _pool(self, name: str) -> Pool[Any] | None:
        """Give the pool of that name; without a name the first one."""
        if not name:
            return next(iter(self.pools()), None)
        reference = self._pools.get(name)
        return reference() if reference is not None else None

    def _left(self, feed: Feed) -> None:
        self._feeds.pop(feed, None)

    def _stats(self) -> Answer:
        content = encoded({"pools": [snapshot(pool) for pool in self.pools()]})
        return Answer(HTTPStatus.OK, content, "application/json")

    def _metrics(self) -> Answer:
        try:
            prometheus = importlib.import_module("qorb.observers.prometheus")
        except ModuleNotFoundError as error:
            return sentence(HTTPStatus.NOT_IMPLEMENTED, f"There are no metrics here: {error}.")
        text: str = prometheus.exposition(self.pools())
        return Answer(HTTPStatus.OK, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    def _health(self) -> Answer:
        wrong = [words for reference in self._pools.items() if (words := _what_is_wrong(*reference))]
        if wrong:
            return sentence(HTTPStatus.SERVICE_UNAVAILABLE, "\n".join(wrong))
        return sentence(HTTPStatus.OK, "ok")


def _what_is_wrong(name: str, reference: weakref.ref[Pool[Any]]) -> str:
    pool = reference()
    if pool is None:
        return f"pool {name} is gone"
    stats = pool.stats()
    if stats.state is not PoolState.RUNNING:
        return f"pool {name} is {stats.state.value}"
    if not stats.backends:
        return f"pool {name} knows no backend"
    if not any(backend.online for backend in stats.backends.values()):
        return f"pool {name} has no backend online, of {len(stats.backends)}"
    return ""


def _not_a_socket() -> Answer:
    return sentence(HTTPStatus.UPGRADE_REQUIRED, "This is a WebSocket.", ("Upgrade", "websocket"))


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 3):  # noqa: PLR2004 - digits of 255
        raise ValueError(text)
    seconds = int(text)
    if seconds > _MOST_SECONDS:
        raise ValueError(text)
    return seconds


def page() -> Answer:
    """Give the page, with a policy under which only its own style and script are heeded."""
    html = resources.files("qorb.top").joinpath("page.html").read_bytes()
    policy = (
        "default-src 'none'",
        f"script-src {_hashes(html, b'script')}",
        f"style-src {_hashes(html, b'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return Answer(HTTPStatus.OK, html, "text/html; charset=utf-8", (("Content-Security-Policy", "; ".join(policy)),))


def _hashes(html: bytes, element: bytes) -> str:
    found = re.findall(b"<" + element + b">(.*?)</" + element + b">", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(content).digest()).decode() for content in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
