"""Writes go to the primary and reads to its standbys, also when another server becomes the primary.

`python examples/postgres.py` starts a cluster of three that DNS names, for itself alone; kills the primary under load,
promotes a standby, and brings the old primary back. Needs `pip install "qorb[demo-postgres]"`. With servers of your own
it only writes and reads (a table qorb_example, which it makes and drops), as the driver's PGPASSWORD lets it:
`python examples/postgres.py db1.example.org:5432 db2.example.org:5432 --user app --database shop`, or a name in DNS,
`python examples/postgres.py _postgresql._tcp.example.org`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import sys
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from qorb import Backend, ClaimError, Policy, Pool, PoolError, events
from qorb._demo.postgres import SERVICE, PostgresServer, cluster, published
from qorb.connectors.asyncpg import AsyncpgConnector
from qorb.resolvers import DnsResolver, FixedResolver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from qorb import Event, Resolver

AsyncpgPool: TypeAlias = Pool[asyncpg.Connection]

APPLICATION = "qorb-example"
# A server that was away is tried again after a second at most, not after half a minute.
POLICY = Policy(spares_wanted=2, max_slots=8, connect_timeout=2.0, max_connection_backoff=1.0, health_interval=1.0)
# What a query may raise when its server goes away. Whether a write was done, only the server knows then.
BROKEN = (OSError, PoolError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Clients:
    """So many writers and readers, and what they have seen."""

    def __init__(self, writes: AsyncpgPool, reads: AsyncpgPool, count: int) -> None:
        """Send them off."""
        self.writes, self.reads = writes, reads
        self.acknowledged: set[int] = set()
        self.read_count = self.failed_claims = self.broken = 0
        self.numbers = itertools.count(1)
        self.tasks = [asyncio.create_task(self.repeat(what)) for what in (self.write, self.read) for _ in range(count)]

    async def write(self) -> None:
        """Insert a row."""
        number = next(self.numbers)
        async with self.writes.claim() as connection:
            await connection.execute("INSERT INTO qorb_example VALUES ($1)", number)
        self.acknowledged.add(number)

    async def read(self) -> None:
        """Look for the newest row."""
        async with self.reads.claim() as connection:
            await connection.fetchval("SELECT max(number) FROM qorb_example")
        self.read_count += 1

    async def repeat(self, what: Callable[[], Awaitable[None]]) -> None:
        """Do it again and again until cancelled."""
        while True:
            try:
                await what()
            except ClaimError as error:
                self.failed_claims += 1
                print(f"       a claim failed: {error}", flush=True)
            except BROKEN as error:
                self.broken += 1
                print(f"       a query broke: {type(error).__name__}: {error}", flush=True)
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Cancel them all, in whatever they do."""
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)

    async def lost(self) -> int:
        """Count the acknowledged writes that the primary does not have, and drop the table."""
        async with self.writes.claim(timeout=5.0) as connection:
            rows = await connection.fetch("SELECT number FROM qorb_example")
            await connection.execute("DROP TABLE qorb_example")
        return len(self.acknowledged - {row["number"] for row in rows})


def tell(event: Event) -> None:
    """Say which servers a pool finds fit for it, and which no more."""
    if isinstance(event, events.SlotSetOnline | events.SlotSetOffline):
        state = "online" if isinstance(event, events.SlotSetOnline) else "offline"
        print(f"       {event.pool}: {event.backend} is {state}", flush=True)


async def use(resolver: Resolver, servers: Sequence[PostgresServer], options: argparse.Namespace) -> int:
    """Write and read for so many seconds, or until Ctrl-C. Give 0 when no claim failed, else 1."""
    task = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: task is not None and task.cancel())
    access = {"user": options.user, "database": options.database, "application_name": APPLICATION}
    to_write, to_read = AsyncpgConnector(role="primary", **access), AsyncpgConnector(role="replica", **access)
    async with (
        Pool("writes", resolver, to_write, POLICY, observer=tell) as writes,
        Pool("reads", resolver, to_read, POLICY, observer=tell) as reads,
    ):
        async with writes.claim() as connection:
            await connection.execute("CREATE TABLE qorb_example (number int PRIMARY KEY)")
        await asyncio.sleep(0.5)  # until the standbys have it too
        clients = Clients(writes, reads, options.clients)
        if servers:
            clients.tasks.append(asyncio.create_task(fail_over(servers, options.seconds)))
        try:
            for second in range(1, options.seconds + 1):
                written, read = len(clients.acknowledged), clients.read_count
                await asyncio.sleep(1)
                written, read = len(clients.acknowledged) - written, clients.read_count - read
                print(
                    f"{second:3} s  {written} writes, {read} reads, {writes.stats().waiting} wait to write; "
                    f"so far {clients.failed_claims} claims failed, {clients.broken} queries broke",
                    flush=True,
                )
        finally:
            await clients.stop()
            await conclude(clients, servers)
    return 1 if clients.failed_claims else 0


async def conclude(clients: Clients, servers: Sequence[PostgresServer]) -> None:
    """Say what has become of the writes, and what is left of the pools."""
    try:
        lost = f"{await clients.lost()} of them lost"
    except ClaimError:
        lost = "and there is no primary to look for them"
    await clients.writes.terminate()
    await clients.reads.terminate()
    print(f"{len(clients.acknowledged)} writes acknowledged, {lost}; {clients.read_count} reads")
    print(f"left of the pools: {clients.writes.ledger()} for writes, {clients.reads.ledger()} for reads")
    if servers:
        sessions = sum(server.sessions(APPLICATION) for server in servers if server.running)
        print(f"sessions left in the servers: {sessions}")


async def fail_over(servers: Sequence[PostgresServer], seconds: float) -> None:
    """Kill the primary, promote the standby that has more of what it wrote, and let the others follow that."""
    names = {server: f"db-{number}" for number, server in enumerate(servers, 1)}
    primary, *standbys = servers
    await asyncio.sleep(seconds * 0.3)
    print(f"==> {names[primary]}, the primary, is killed", flush=True)
    await asyncio.to_thread(primary.kill)
    await asyncio.sleep(seconds * 0.1)
    other, promoted = sorted(standbys, key=PostgresServer.received)
    print(f"==> {names[promoted]} is promoted", flush=True)
    await asyncio.to_thread(promoted.promote)
    await asyncio.to_thread(other.stream_from, promoted)
    await asyncio.sleep(seconds * 0.2)
    print(f"==> {names[primary]} comes back, as a standby of {names[promoted]}", flush=True)
    await asyncio.to_thread(primary.follow, promoted)


async def use_embedded(servers: Sequence[PostgresServer], options: argparse.Namespace) -> int:
    """Find the servers of the cluster through DNS."""
    async with published(servers) as nameserver:
        return await use(DnsResolver(SERVICE, [nameserver]), servers, options)


def main(options: argparse.Namespace) -> int:
    """Choose the servers, and use them."""
    match options.servers:
        case []:
            print("starting a primary and two standbys", flush=True)
            options.user = options.database = "postgres"
            # So a write is acknowledged when a standby has it, and the one that has most has all of them.
            with cluster(3, {"synchronous_standby_names": "ANY 1 (*)"}) as servers:
                return asyncio.run(use_embedded(servers, options))
        case [name] if ":" not in name:
            return asyncio.run(use(DnsResolver(name, options.nameserver), (), options))
        case addresses:
            parts = [(one, *one.rpartition(":")[::2]) for one in addresses]
            backends = [Backend(name, host, int(port)) for name, host, port in parts]
            return asyncio.run(use(FixedResolver(backends), (), options))


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Write and read on a PostgreSQL cluster.")
    parser.add_argument(
        "servers", nargs="*", help="host:port of each, or one name that DNS has; without: its own cluster"
    )
    parser.add_argument("--nameserver", action="append", help="such as 10.0.0.2 or 127.0.0.1:5353; may be repeated")
    parser.add_argument("--user", help="the driver's default: PGUSER")
    parser.add_argument("--database", help="the driver's default: PGDATABASE")
    parser.add_argument("--clients", type=int, default=8, help="so many that write, and so many that read (8)")
    parser.add_argument("--seconds", type=int, default=15, help="how long (15)")
    return parser.parse_args()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: a cluster of its own is removed
    try:
        sys.exit(main(read_options()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    except ImportError as missing:
        sys.exit(str(missing))
