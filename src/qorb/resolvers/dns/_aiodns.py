"""Asking one DNS server through aiodns (c-ares): the only module that knows it."""

# pyright: reportUnknownMemberType=false
# The constants of pycares come from C, without types.

from __future__ import annotations

import asyncio
import os
import socket
import weakref
from typing import TYPE_CHECKING, Any, cast

from qorb.errors import ResolveError, describe
from qorb.resolvers.dns._names import canonical
from qorb.resolvers.dns._sifting import in_slices
from qorb.resolvers.dns._values import Failed, NoRecords, Srv

try:
    import aiodns
    import pycares
except ImportError as error:
    raise ImportError('DnsResolver needs aiodns; run: pip install "qorb[dns]"') from error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qorb.resolvers.dns._servers import Server
    from qorb.resolvers.dns._sifting import Sieve
    from qorb.resolvers.dns._values import Question, Reply

_FIRST_TRY = 1.0
"""Seconds after which a query is sent again; c-ares doubles it from one try to the next."""
_TRIES = 4
MAX_CNAMES = 8
_ENOSERVER = 26
"""ARES_ENOSERVER, which pycares does not name: c-ares leaves out a server on an interface that there is not."""
_WORDS = {
    pycares.errno.ARES_ESERVFAIL: "SERVFAIL: the server could not answer",
    pycares.errno.ARES_EREFUSED: "REFUSED: the server does not want to answer",
    pycares.errno.ARES_ENOTIMP: "NOTIMP: the server does not know such queries",
    pycares.errno.ARES_EFORMERR: "FORMERR: the server did not understand the query",
    pycares.errno.ARES_EBADRESP: "malformed answer",
    pycares.errno.ARES_EBADNAME: "a name that cannot be asked for",
    pycares.errno.ARES_ETIMEOUT: "no answer",
    pycares.errno.ARES_ECONNREFUSED: "nobody listens there",
    _ENOSERVER: "there is no such network interface",
}


class AiodnsClient:
    """Asks one server. A fresh one for each round: the cache of c-ares cannot hide a change then."""

    def __init__(self, server: Server, sieve: Sieve) -> None:
        """Open no socket yet: they come with the first query. Raises ResolveError when c-ares cannot begin."""
        self.server = server
        self._sieve = sieve
        self._loop = asyncio.get_running_loop()
        flags = pycares.ARES_FLAG_EDNS | pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_NOALIASES
        try:
            self._resolver = aiodns.DNSResolver(
                nameservers=[_written(server)], loop=self._loop, timeout=_FIRST_TRY, tries=_TRIES, flags=flags
            )
        except (pycares.AresError, OSError) as error:
            raise ResolveError(f"DNS server {server} cannot be asked: {describe(error)}") from error
        self._resolver.loop = cast("Any", _Mailbox(self._loop))
        _open.add(self._resolver)

    def ask(self, question: Question) -> asyncio.Future[Any]:
        """Send a query over UDP; c-ares sends it again when it gets lost, and over TCP when the answer is truncated."""
        try:
            return self._resolver.query_dns(question.name, question.kind)
        except Exception as error:  # noqa: BLE001 - whatever it does not like about a name that came from outside
            failed: asyncio.Future[Any] = self._loop.create_future()
            failed.set_exception(error)
            return failed

    async def read(self, question: Question, asked: asyncio.Future[Any]) -> Reply:
        """Read what came of a query."""
        error = None if asked.cancelled() else asked.exception()
        if asked.cancelled():
            return Failed("cancelled")
        if isinstance(error, aiodns.error.DNSError):
            return _failure(error)
        if error is not None:
            return Failed(describe(error))
        return await read_records(question, asked.result().answer, self._sieve, loopback=self.server.on_loopback)

    async def close(self) -> None:
        """Cancel every query, and leave no socket. Never waits, so no cancellation can strike here."""
        if self._resolver in _open:
            _open.discard(self._resolver)
            await self._resolver.close()


async def read_records(
    question: Question, found: Sequence[pycares.DNSRecord], sieve: Sieve, *, loopback: bool
) -> Reply:
    """Follow the CNAMEs from the name that was asked for; only what stands at their end counts.

    `loopback`: the answer may name addresses of this machine.
    """
    cnames: dict[str, tuple[str, int]] = {}
    targets: dict[str, list[Srv]] = {}
    addresses: dict[str, list[str]] = {}
    ttls: dict[str, int] = {}
    async for record in in_slices(found):
        if record.record_class != pycares.QUERY_CLASS_IN:
            continue
        owner, datum = canonical(record.name), record.data
        if isinstance(datum, pycares.CNAMERecordData):
            cnames[owner] = (canonical(datum.cname), record.ttl)
            continue
        if isinstance(datum, pycares.SRVRecordData) and question.kind == "SRV":
            srv = Srv(datum.priority, datum.weight, datum.port, canonical(datum.target))
            targets.setdefault(owner, []).append(srv)
        elif isinstance(datum, pycares.ARecordData | pycares.AAAARecordData) and _is_of(datum, question):
            addresses.setdefault(owner, []).append(datum.addr)
        else:
            continue
        ttls[owner] = min(record.ttl, ttls.get(owner, record.ttl))
    owner = question.name
    passed: list[int] = []
    while owner not in ttls and owner in cnames:
        owner, ttl = cnames[owner]
        passed.append(ttl)
        if len(passed) > MAX_CNAMES:
            return Failed(f"more than {MAX_CNAMES} CNAMEs in a row, or a loop of them")
    lasts = float(min([*passed, ttls.get(owner, 0)]))
    if question.kind == "SRV":
        return await sieve.targets(targets.get(owner, []), lasts, len(passed))
    return await sieve.addresses(question, addresses.get(owner, []), lasts, len(passed), loopback=loopback)


class _Mailbox:
    """The event loop, as the thread of c-ares sees it: what comes after it was closed is nobody's any more.

    Without this, "Event loop is closed" would go to stderr from there, once for each query.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


_open: weakref.WeakSet[aiodns.DNSResolver] = weakref.WeakSet()
_of_the_parent: list[aiodns.DNSResolver] = []
"""In a child process: those that were open at the fork. Their threads do not exist here; who closed one would hang."""


def _begin_anew_after_fork() -> None:
    """Let pycares start its thread again, which no child has: without it nothing that is closed there ever ends."""
    _of_the_parent.extend(_open)
    _open.clear()
    manager = getattr(pycares, "_shutdown_manager", None)
    if manager is not None:
        manager.__init__()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_after_fork)


def _written(server: Server) -> str:
    """Write the address as c-ares wants it: the interface of a link-local one stands behind the port."""
    host, percent, interface = server.host.partition("%")
    return f"[{host}]:{server.port}%{interface}" if percent else str(server)


def _is_of(datum: pycares.ARecordData | pycares.AAAARecordData, question: Question) -> bool:
    return question.kind == ("A" if isinstance(datum, pycares.ARecordData) else "AAAA")


def _failure(error: aiodns.error.DNSError) -> Reply:
    code, text = error.args[0], error.args[1] if len(error.args) > 1 else ""
    if code == pycares.errno.ARES_ENOTFOUND:
        return NoRecords("NXDOMAIN: there is no such name")
    if code == pycares.errno.ARES_ENODATA:
        return NoRecords("no records of this kind")
    if code == pycares.errno.ARES_ECONNREFUSED:
        try:
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
        except OSError as reason:  # to c-ares, a socket that cannot be had is a connection that is refused
            return Failed(describe(reason))
    return Failed(_WORDS.get(code, str(text)))
