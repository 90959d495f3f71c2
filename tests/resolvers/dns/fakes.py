"""DNS servers of the imagination, for tests in virtual time: they stand where aiodns would be asked."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeAlias

from qorb.resolvers import DnsPolicy, DnsResolver
from qorb.resolvers.dns._sifting import Sieve
from qorb.resolvers.dns._values import Failed, NoRecords, Question, Reply, Srv
from qorb.resolvers.dns._watch import MAX_LEARNED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from qorb.backend import Backend
    from qorb.errors import ResolveError
    from qorb.resolvers.dns._servers import Server

SERVICE = "_pg._tcp.example.com"
SRV = f"{SERVICE} SRV"
NXDOMAIN = NoRecords("NXDOMAIN: there is no such name")
NODATA = NoRecords("no records of this kind")
SERVFAIL = Failed("SERVFAIL: the server could not answer")
REFUSED = Failed("REFUSED: the server does not want to answer")
MALFORMED = Failed("malformed answer")
SILENCE = None
Entry: TypeAlias = "tuple[tuple[Any, ...], float] | NoRecords | Failed | None"


def srv(target: str, port: int = 5432, *, priority: int = 0, weight: int = 1) -> Srv:
    return Srv(priority, weight, port, target)


class FakeServer:
    """A DNS server with a zone, and what goes wrong with it."""

    def __init__(self, latency: float = 0.01) -> None:
        self.latency = latency
        self.zone: dict[str, Entry] = {}
        self.fault: Entry = ((), 0.0)
        """What it answers to whatever is asked, if it is NoRecords, Failed or SILENCE."""
        self.delays: dict[str, float] = {}
        self.asked: list[tuple[float, str]] = []

    def has(self, question: str, *records: Any, ttl: float = 30.0) -> None:
        """Have these records: an Srv each, or an address."""
        self.zone[question] = (records, ttl)

    def answers(self, question: str, reply: NoRecords | Failed | None) -> None:
        """Answer this question so."""
        self.zone[question] = reply

    def serves(self, targets: dict[str, Sequence[str]], *, ttl: float = 30.0) -> FakeServer:
        """Have an SRV record of the service for each of these targets, and nothing but their addresses."""
        self.zone.clear()
        self.has(SRV, *(srv(target) for target in targets), ttl=ttl)
        for target, addresses in targets.items():
            for kind, colon in (("A", False), ("AAAA", True)):
                found = [address for address in addresses if (":" in address) is colon]
                if found:
                    self.has(f"{target} {kind}", *found, ttl=ttl)
        return self

    def breaks(self, fault: NoRecords | Failed | None) -> None:
        """Answer everything so, from now on."""
        self.fault = fault

    def heals(self) -> None:
        self.fault = ((), 0.0)

    def entry(self, question: Question) -> Entry:
        if not isinstance(self.fault, tuple):
            return self.fault
        if str(question) in self.zone:
            return self.zone[str(question)]
        known = any(key.rpartition(" ")[0] == question.name for key in self.zone)
        return NODATA if known else NXDOMAIN

    def times(self, question: str = SRV) -> list[float]:
        """When it was asked this."""
        return [moment for moment, asked in self.asked if asked == question]


class FakeClient:
    """Asks a FakeServer. What is still asked when it is closed fails, as in c-ares."""

    def __init__(self, net: Net, server: Server, sieve: Sieve) -> None:
        self.server = server
        self._net = net
        self._sieve = sieve
        self._loop = asyncio.get_running_loop()
        self._asked: list[asyncio.Future[Any]] = []
        self._timers: list[asyncio.TimerHandle] = []
        self.closed = False
        if str(server) in net.broken:
            raise net.broken[str(server)]
        self.task = asyncio.current_task()
        """Whose client it is."""
        net.opened += 1
        net.open[self] = None

    def ask(self, question: Question) -> asyncio.Future[Any]:
        assert not self.closed, "asked after it was closed"
        net, server = self._net, self._net.servers.get(str(self.server))
        asked: asyncio.Future[Any] = self._loop.create_future()
        self._asked.append(asked)
        net.asked.append((self._loop.time() - net.began, str(self.server), str(question)))
        if server is None:
            return asked
        server.asked.append((self._loop.time() - net.began, str(question)))
        entry = server.entry(question)
        if entry is not SILENCE:
            delay = server.delays.get(str(question), server.latency)
            self._timers.append(self._loop.call_later(delay, self._answer, asked, entry))
        return asked

    def _answer(self, asked: asyncio.Future[Any], entry: Entry) -> None:
        if not asked.done():
            asked.set_result(entry)

    async def read(self, question: Question, asked: asyncio.Future[Any]) -> Reply:
        entry = asked.result()
        if isinstance(entry, NoRecords | Failed):
            return entry
        records, ttl = entry
        if question.kind == "SRV":
            return await self._sieve.targets(records, ttl, 0)
        return await self._sieve.addresses(question, records, ttl, 0, loopback=self.server.on_loopback)

    async def close(self) -> None:
        self.closed = True
        self._net.open.pop(self, None)
        for timer in self._timers:
            timer.cancel()
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(ConnectionAbortedError("the channel is being destroyed"))


class Net:
    """The DNS servers that there are, by "address:port". Another address never answers."""

    def __init__(self, **servers: FakeServer) -> None:
        """Make the servers; ns1 is 10.0.0.1:53, and so on."""
        self.servers = {f"10.0.0.{name.removeprefix('ns')}:53": server for name, server in servers.items()}
        self.nameservers: list[str] = list(self.servers)
        self.began = asyncio.get_running_loop().time()
        self.asked: list[tuple[float, str, str]] = []
        """When who was asked what."""
        self.broken: dict[str, ResolveError] = {}
        """Why no client can be made for a server."""
        self.open: dict[FakeClient, None] = {}
        self.opened = 0

    def resolver(
        self,
        service: str = SERVICE,
        *,
        nameservers: Sequence[str] | None = None,
        default_port: int | None = None,
        seed: bytes = b"",
        **policy: Any,
    ) -> DnsResolver:
        chosen = self.nameservers if nameservers is None else nameservers
        values = DnsPolicy(**policy)
        resolver = DnsResolver(service, chosen, values, default_port=default_port)
        self.replace_client(resolver, seed)
        return resolver

    def replace_client(self, resolver: DnsResolver, seed: bytes = b"") -> None:
        sieve = Sieve(seed, max(resolver._policy.max_backends, MAX_LEARNED))
        setattr(resolver, "_client", lambda server: FakeClient(self, server, sieve))  # noqa: B010 - a double in its place


class Seen:
    """What was published, and when."""

    def __init__(self) -> None:
        self.began = asyncio.get_running_loop().time()
        self.sets: list[tuple[float, tuple[Backend, ...]]] = []

    def __call__(self, backends: Iterable[Backend]) -> None:
        self.sets.append((asyncio.get_running_loop().time() - self.began, tuple(backends)))

    @property
    def times(self) -> list[float]:
        return [round(moment, 6) for moment, _ in self.sets]

    @property
    def latest(self) -> tuple[Backend, ...]:
        return self.sets[-1][1] if self.sets else ()

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.latest]

    @property
    def hosts(self) -> list[str]:
        return sorted(one.host for one in self.latest)

    @property
    def all_hosts(self) -> list[list[str]]:
        """The addresses of every published set."""
        return [sorted(one.host for one in backends) for _, backends in self.sets]


@contextlib.asynccontextmanager
async def watching(net: Net, resolver: DnsResolver | None = None, **policy: Any) -> AsyncIterator[Seen]:
    """Run a resolver's watch(); when it has been cancelled none of its clients may be open."""
    seen = Seen()
    watch = (net.resolver(**policy) if resolver is None else resolver).watch(seen)
    task = asyncio.create_task(watch)
    try:
        yield seen
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert not [client for client in net.open if client.task is task]
