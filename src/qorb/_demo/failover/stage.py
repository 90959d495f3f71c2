"""A PostgreSQL cluster that DNS names, and what can be done to it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from qorb._demo.dns import DnsServer, Zone
from qorb._demo.postgres import DOMAIN, SERVICE, PostgresServer, cluster
from qorb._demo.report import Servers
from qorb.resolvers import DnsPolicy, DnsResolver

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SIZE = 3
APPLICATION = "qorb-demo"
TTL = 1
"""Seconds for which a record of the zone holds."""
_TO_END = 0.1
_DNS_POLICY = DnsPolicy(query_timeout=1.5, retry_interval=1.0)
# A write is acknowledged when a standby has it: what is promoted has it too.
_SETTINGS = {"synchronous_standby_names": "ANY 1 (*)"}


class ClusterStage(Servers):
    """A primary, db-1, two standbys that stream from it, and a DNS server. Entering it starts them all.

    What is done to the servers takes its time, on one thread, while the loop goes on. Cancelled, it is done all the
    same, and leaving waits for it.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self.servers: dict[str, PostgresServer] = {}
        """By name."""
        self.dns = DnsServer(Zone(DOMAIN, TTL))
        self._conditions: dict[str, str] = {}
        self._well_since: dict[str, float] = {}
        self._primary = "db-1"
        self._thread = ThreadPoolExecutor(1, "servers of the demo")
        self._cluster = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        try:
            servers = await self._in_thread(self._start)
            for number, server in enumerate(servers, 1):
                self._publish(f"db-{number}", server)
            await self.dns.start()
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop()

    def resolver(self) -> DnsResolver:
        """Give what asks the DNS server for the servers."""
        return DnsResolver(SERVICE, [self.dns.address], _DNS_POLICY)

    def sockets(self) -> list[int]:
        """Give the descriptors of all sockets that the DNS server has open; the others are processes of their own."""
        return [*self.dns.sockets()]

    @property
    def primary(self) -> str | None:
        """Who takes writes; None when nobody does."""
        return self._primary if self._conditions[self._primary] == "primary" else None

    async def connections(self) -> int:
        """Count the sessions of the pools, by pg_stat_activity of each server that can answer."""
        asked = [server for name, server in self.servers.items() if self._conditions[name] in {"primary", "standby"}]
        return await self._in_thread(lambda: sum(server.sessions(APPLICATION) for server in asked))

    async def lines(self) -> set[tuple[int, int]]:
        """Give what the primary's table has: the client and the turn of each write."""
        primary = self.servers[self._primary]
        rows = await self._in_thread(lambda: primary.sql("SELECT client, turn FROM lines"))
        pairs = (row.split("|") for row in rows.splitlines())
        return {(int(client), int(turn)) for client, turn in pairs}

    def condition(self, name: str) -> str:
        """Say in a word how a server really is."""
        return self._conditions[name]

    def condition_of_dns(self) -> str:
        """Say how the DNS server really is."""
        return f"DNS: {len(self.servers)} servers, {self.dns.answered} answers"

    def was_well_since(self, name: str, moment: float) -> bool:
        """Say whether nothing was done to a server since that moment of the loop's time."""
        return self._well_since[name] <= moment

    # The steps.

    async def kill(self, name: str) -> None:
        """Kill all processes of a server."""
        await self._disturb(name, "killed", self.servers[name].kill)

    async def start(self, name: str) -> None:
        """Start a standby that was killed."""
        await self._disturb(name, "starts", self.servers[name].start)
        self._become(name, "standby")

    async def cut(self) -> str:
        """Cut all sessions of the pools, at all servers."""
        cut = 0
        for name, server in self.servers.items():
            cut += await self._disturb(name, self._conditions[name], partial(server.end_sessions, APPLICATION))
        # The servers' processes end, and close their sockets, a moment after they were told to.
        await asyncio.sleep(_TO_END)
        for name in self.servers:
            self._become(name, self._conditions[name])
        return f"{cut} sessions were cut"

    async def freeze(self, name: str) -> None:
        """Stop all processes of a server, which keep everything open."""
        await self._disturb(name, "hung", self.servers[name].pause)

    async def thaw(self, name: str) -> None:
        """Let them go on."""
        await self._disturb(name, "hung", self.servers[name].resume)
        self._become(name, "standby")

    async def thaw_all(self) -> None:
        """Let all servers go on that hang, so that they see who has left."""
        for name in [name for name, condition in self._conditions.items() if condition == "hung"]:
            await self.thaw(name)

    async def kill_primary(self) -> None:
        """Kill the primary."""
        await self.kill(self._primary)

    async def promote(self) -> str:
        """Promote the standby that has received most, and let the other one follow it."""
        standbys = {name: server for name, server in self.servers.items() if name != self._primary}
        received = {name: await self._in_thread(server.received) for name, server in standbys.items()}
        name = max(received, key=received.__getitem__)
        promoted = standbys.pop(name)
        await self._disturb(name, "standby", promoted.promote)
        self._primary = name
        self._become(name, "primary")
        for other in standbys.values():
            await self._in_thread(partial(other.stream_from, promoted))
        return f"{name} is the primary"

    async def follow(self, name: str) -> str:
        """Make a standby of a server that was killed: a new copy of the primary."""
        primary = self.servers[self._primary]
        await self._disturb(name, "copies", partial(self.servers[name].follow, primary))
        self._become(name, "standby")
        return f"{name} streams from {self._primary}"

    async def _disturb(self, name: str, condition: str, act: Callable[[], T]) -> T:
        self._conditions[name] = condition
        self._well_since[name] = math.inf
        return await self._in_thread(act)

    def _become(self, name: str, condition: str) -> None:
        self._conditions[name] = condition
        self._well_since[name] = asyncio.get_running_loop().time()

    async def _in_thread(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)

    def _start(self) -> list[PostgresServer]:
        servers = self._cluster.enter_context(cluster(SIZE, _SETTINGS))
        servers[0].sql("CREATE TABLE lines (client int, turn int, PRIMARY KEY (client, turn))")
        for server in servers[1:]:
            server.caught_up()
        return servers

    def _publish(self, name: str, server: PostgresServer) -> None:
        self.servers[name] = server
        self._become(name, "primary" if name == self._primary else "standby")
        self.dns.zone.add(SERVICE, "SRV", f"0 1 {server.port} {name}.{DOMAIN}.")
        self.dns.zone.add(f"{name}.{DOMAIN}", "A", server.host)

    def _stop(self) -> None:
        self.dns.stop()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._cluster.close()
