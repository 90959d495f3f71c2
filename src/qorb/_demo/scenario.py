"""What happens in the demo, and when: a table of steps, and the stage that they act on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from qorb._demo.dns import DnsServer, Zone
from qorb._demo.report import Servers
from qorb._demo.servers import EchoServer
from qorb.resolvers import DnsPolicy, DnsResolver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_DOMAIN = "demo.test"
SERVICE = f"_echo._tcp.{_DOMAIN}"
TTL = 1
"""Seconds for which a record of the zone holds."""
# So short that a person sees in time that DNS fails, and that it is back.
_DNS_POLICY = DnsPolicy(query_timeout=1.5, retry_interval=1.0)


S_contra = TypeVar("S_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Step(Generic[S_contra]):
    """One thing that the demo does to the pool's surroundings. The pool is not told."""

    at: float
    """When, as a share of the run."""
    title: str
    say: str
    """What is happening."""
    look: str
    """What to look at."""
    act: Callable[[S_contra], Awaitable[object]]


def scenario(backends: int) -> tuple[Step[Stage], ...]:
    """Give the steps, in order, for that many backends (2 at least: one is always left to serve)."""
    names = _names(backends + 1)
    first, second, third = (names[number % backends] for number in range(3))
    fresh = names[backends]
    return (
        Step(
            0.12,
            f"kill {first}",
            f"{first} is killed: its connections drop, its port refuses.",
            f"{first} is soon offline, the others take over, no claim fails.",
            lambda stage: stage.kill(first),
        ),
        Step(
            0.26,
            f"revive {first}",
            f"{first} is back on the same port.",
            f"{first} is online at its next try (1 s at most) and has claims.",
            lambda stage: stage.revive(first),
        ),
        Step(
            0.37,
            f"hang {second}",
            f"{second} hangs: it accepts and reads, but never answers.",
            f"checks and clients time out, {second} goes offline, others go on.",
            lambda stage: stage.hang(second),
        ),
        Step(
            0.51,
            f"heal {second}",
            f"{second} answers again, beginning with all that it owed.",
            "no late reply reaches a client: wrong echoes stay 0.",
            lambda stage: stage.heal(second),
        ),
        Step(
            0.59,
            f"remove {third}",
            f"{third}'s SRV record is taken out of DNS, though it is well.",
            f"when the TTL ({TTL} s) is over idle connections close, claims finish.",
            lambda stage: stage.remove(third),
        ),
        Step(
            0.69,
            "silence DNS",
            "DNS falls silent: every query is lost.",
            "the TTLs pass, and nothing else happens: what is known stays.",
            lambda stage: stage.silence(),
        ),
        Step(
            0.81,
            f"add {fresh}",
            f"DNS answers again, and has an SRV record for {fresh}.",
            f"{fresh} gets connections (in 1 s at most), and claims like others.",
            lambda stage: stage.add(fresh),
        ),
    )


class Stage(Servers):
    """The echo servers, and the DNS server whose zone says which of them serve. Entering it starts them all."""

    def __init__(self, backends: int) -> None:
        """Start nothing yet."""
        self.servers = {name: EchoServer(name) for name in _names(backends + 1)[:backends]}
        """All that ever were, by name."""
        self.dns = DnsServer(Zone(_DOMAIN, TTL))
        self._published: dict[str, None] = {}

    async def __aenter__(self) -> Self:
        try:
            for name, server in self.servers.items():
                await server.start()
                self._publish(name)
            await self.dns.start()
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop()

    def resolver(self) -> DnsResolver:
        """Give what asks the DNS server for the servers that serve."""
        return DnsResolver(SERVICE, [self.dns.address], _DNS_POLICY)

    async def connections(self) -> int:
        """Count the connections that are open, seen from the servers."""
        return sum(server.connections for server in self.servers.values())

    def sockets(self) -> list[int]:
        """Give the descriptors of all sockets that the servers have open."""
        return [*self.dns.sockets(), *(one for server in self.servers.values() for one in server.sockets())]

    def condition(self, name: str) -> str:
        """Say in a word how a server really is."""
        return self.servers[name].health.value if name in self._published else "removed"

    def condition_of_dns(self) -> str:
        """Say how the DNS server really is."""
        records = self.dns.zone.count(SERVICE, "SRV")
        state = "silent" if self.dns.silent else "answers"
        return f"DNS {state}, {records} SRV records, TTL {TTL} s, {self.dns.answered} queries answered"

    async def deserted(self, patience: float) -> None:
        """Wait until no server has a connection, at most `patience` seconds. May be cancelled."""
        try:
            async with asyncio.timeout(patience):
                for server in self.servers.values():
                    await server.deserted()
        except TimeoutError:
            # Who asked counts what is left.
            return

    async def kill(self, name: str) -> None:
        """Let a server die."""
        self.servers[name].kill()

    async def revive(self, name: str) -> None:
        """Start a killed server again."""
        await self.servers[name].revive()

    async def hang(self, name: str) -> None:
        """Let a server hold its answers back."""
        self.servers[name].hang()

    async def heal(self, name: str) -> None:
        """Let a server that hangs answer again."""
        self.servers[name].heal()

    async def remove(self, name: str) -> None:
        """Take a server out of the zone; it goes on by itself."""
        del self._published[name]
        self.dns.zone.remove(SERVICE, "SRV", self._srv(name))

    async def silence(self) -> None:
        """Let the DNS server answer nothing."""
        self.dns.fall_silent()

    async def add(self, name: str) -> None:
        """Start a new server, put it into the zone, and let the DNS server answer, if it did not."""
        server = EchoServer(name)
        self.servers[name] = server
        await server.start()
        self._publish(name)
        self.dns.answer_again()

    def _publish(self, name: str) -> None:
        self._published[name] = None
        self.dns.zone.add(SERVICE, "SRV", self._srv(name))
        self.dns.zone.add(f"{name}.{_DOMAIN}", "A", self.servers[name].backend.host)

    def _srv(self, name: str) -> str:
        return f"0 1 {self.servers[name].backend.port} {name}.{_DOMAIN}."

    def _stop(self) -> None:
        self.dns.stop()
        for server in self.servers.values():
            server.stop()


def _names(count: int) -> list[str]:
    """Give so many names, whose order in the alphabet is that of their numbers."""
    digits = len(str(count))
    return [f"echo-{number:0{digits}}" for number in range(1, count + 1)]
