"""The bad days, each as a story: what happens to the servers, one thing after the other, while the load goes on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.cluster.account import Account, Marks, account
from benchmarks.cluster.contestants import APPLICATION, SERVICE, USER, Place, Role
from benchmarks.cluster.load import Load
from qorb._demo.dns import DnsServer, Zone
from qorb._demo.postgres import PostgresServer, cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cluster.contestants import Contestant

_CALM = 0.5
"""Seconds of load before the fault."""
_QUIET = 0.5
"""Seconds without a failure after which all is well again."""
_POLL = 0.02
PASSWORD, NEW_PASSWORD = "tr0ub4dor", "c0rrect-h0rse"
READ = "SELECT pg_sleep(0.004)"
_WRITE = "INSERT INTO things DEFAULT VALUES"
_GONE = 10.0


class Stage:
    """What a scenario may do: strike, mend, go on. Whatever blocks is done on threads, so that the load goes on."""

    def __init__(self, servers: Sequence[PostgresServer], place: Place, load: Load) -> None:
        """Take the servers, the primary first, and the load that is under way."""
        self.servers = servers
        self.place = place
        self.load = load
        self.marks = Marks()
        self._now = asyncio.get_running_loop().time

    @property
    def primary(self) -> PostgresServer:
        """The one that is the primary in the beginning."""
        return self.servers[0]

    @property
    def victim(self) -> PostgresServer:
        """A replica; the one that the pools are told of first."""
        return self.servers[1]

    async def strike(self, *faults: Callable[[], object]) -> None:
        """Do the harm, all at once. Meanwhile no claim is begun: each is open as it strikes, or comes afterwards."""
        self.load.hold()
        begun = self._now()
        await asyncio.gather(*(asyncio.to_thread(fault) for fault in faults))
        self.marks.strikes.append((begun, self._now()))
        self.load.go_on()

    async def mend(self, repair: Callable[[], object], returning: PostgresServer | None = None) -> None:
        """Take the harm away."""
        await asyncio.to_thread(repair)
        self.marks.mended = self._now()
        self.marks.returning = None if returning is None else returning.host

    async def go_on(self, seconds: float) -> None:
        """Let the load go on."""
        await asyncio.sleep(seconds)

    async def recover(self, seconds: float) -> None:
        """Let the load go on until no claim fails any more and the server that came back is used; at most so long."""
        end = self._now() + seconds
        while self._now() < end and not self._is_well():  # noqa: ASYNC110 - what is waited for is calm
            await asyncio.sleep(_POLL)

    def _is_well(self) -> bool:
        mended = max(self.marks.mended or 0.0, self.marks.strikes[-1][1])
        since = max(mended, self._now() - _QUIET)
        if self._now() - _QUIET < mended:
            return False
        tries = list(itertools.takewhile(lambda one: one.begun > mended, reversed(self.load.tries)))
        lately = [one for one in tries if one.ended is not None and one.ended >= since]
        back = self.marks.returning
        return (
            any(one.error is None for one in lately)
            and not any(one.error is not None for one in lately)
            and (back is None or any(one.where == back for one in tries))
        )


async def kill_a_replica(stage: Stage) -> None:
    """Kill all processes of a replica, and start it again a second later."""
    await stage.strike(stage.victim.kill)
    await stage.go_on(1.0)
    await stage.mend(stage.victim.start, stage.victim)
    await stage.recover(3.0)


async def cut_all_sessions(stage: Stage) -> None:
    """Have each server end all sessions at once."""
    await stage.strike(*_cuts(stage.servers))
    await stage.recover(2.0)


async def move_the_primary(stage: Stage) -> None:
    """Have the primary refuse writes in place, and promote a replica when that has everything."""
    await stage.strike(stage.primary.demote_in_place)
    await stage.go_on(0.3)
    await asyncio.to_thread(stage.victim.caught_up)
    await stage.mend(stage.victim.promote)
    await stage.recover(3.0)


async def lose_the_primary(stage: Stage) -> None:
    """Kill the primary, and promote a replica."""
    await stage.strike(stage.primary.kill)
    await stage.go_on(0.3)
    await stage.mend(stage.victim.promote)
    await stage.recover(3.0)


async def reach_a_limit(stage: Stage) -> None:
    """Let each server accept two sessions, six in all, and cut all; then lift the limit."""

    def limit_to(number: int) -> None:
        _tell(stage.servers, f"ALTER ROLE {USER} CONNECTION LIMIT {number}")

    await asyncio.to_thread(limit_to, 2)
    await stage.strike(*_cuts(stage.servers))
    await stage.go_on(1.5)
    await asyncio.to_thread(limit_to, -1)
    await stage.recover(2.0)


async def change_the_password(stage: Stage) -> None:
    """Change the password, cut all sessions, and tell the application of the new password a second later."""
    await asyncio.to_thread(_tell, stage.servers, f"ALTER ROLE {USER} PASSWORD '{NEW_PASSWORD}'")
    await stage.strike(*_cuts(stage.servers))
    await stage.go_on(1.0)
    await stage.mend(lambda: setattr(stage.place, "password", NEW_PASSWORD))
    await stage.recover(9.0)


async def freeze_a_replica(stage: Stage) -> None:
    """Stop a replica with SIGSTOP, and let it go on three seconds later."""
    await stage.strike(stage.victim.pause)
    await stage.go_on(3.0)
    await stage.mend(stage.victim.resume, stage.victim)
    await stage.recover(4.0)


async def restart_one_after_the_other(stage: Stage) -> None:
    """Restart all servers, one at a time, the primary last, half a second apart."""
    for server in (*stage.servers[1:], stage.primary):
        await stage.strike(server.stop)
        await asyncio.to_thread(server.start)
        await stage.go_on(0.5)
    await stage.recover(2.0)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One bad day."""

    title: str
    play: Callable[[Stage], Awaitable[None]]
    role: Role = "any"
    served_meanwhile: bool = True
    """Whether the other servers could serve everything before the fault is mended."""

    @property
    def story(self) -> str:
        """What happens, in a sentence."""
        return (self.play.__doc__ or "").strip()

    @property
    def moves(self) -> bool:
        """Whether it leaves servers that are of no use to other scenarios."""
        return self.role == "primary"


SCENARIOS: dict[str, Scenario] = {
    "kill": Scenario("A replica is killed, and started again", kill_a_replica),
    "cut": Scenario("All sessions are cut", cut_all_sessions),
    "move": Scenario("The primary is demoted, a replica promoted", move_the_primary, "primary", served_meanwhile=False),
    "lose": Scenario("The primary is killed, a replica promoted", lose_the_primary, "primary", served_meanwhile=False),
    "limit": Scenario("Sessions are cut, and fewer than wanted are let in", reach_a_limit),
    "password": Scenario("The password is changed under the application", change_the_password, served_meanwhile=False),
    "hang": Scenario("A replica hangs", freeze_a_replica),
    "rolling": Scenario("A rolling restart", restart_one_after_the_other),
}


@contextlib.contextmanager
def servers_to_harm() -> Iterator[list[PostgresServer]]:
    """Run a primary, which comes first, and two replicas, with a user that has to say its password."""
    with cluster(3) as servers:
        primary = servers[0]
        primary.sql(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
        primary.sql(f"CREATE TABLE things (id serial); GRANT ALL ON things, things_id_seq TO {USER}")
        for server in servers:
            server.allow(f"host all {USER} 127.0.0.0/8 scram-sha-256")
        _wait_for_all(servers)
        yield servers


async def play(scenario: Scenario, contestant: Contestant, servers: Sequence[PostgresServer]) -> Account:
    """Put one pool through one scenario; the servers are as before in the end, unless it `moves` them.

    Raises RuntimeError when claims fail before anything has happened.
    """
    work = _WRITE if scenario.role == "primary" else READ
    async with places(servers, scenario.role) as place:
        async with contestant.open(place) as claim, Load(claim, work) as load:
            stage = Stage(servers, place, load)
            await stage.go_on(_CALM)
            _check_calm(contestant, load)
            await scenario.play(stage)
        left = await asyncio.to_thread(_left, servers)
    if place.password != PASSWORD:
        await asyncio.to_thread(_tell, servers, f"ALTER ROLE {USER} PASSWORD '{PASSWORD}'")
    return account(load.tries, stage.marks, left, served_meanwhile=scenario.served_meanwhile)


@contextlib.asynccontextmanager
async def places(servers: Sequence[PostgresServer], role: Role = "any") -> AsyncIterator[Place]:
    """Say where pools find the servers, replicas first, and have DNS say the same meanwhile."""
    primary, *replicas = servers
    addresses = [(server.host, server.port) for server in (*replicas, primary)]
    zone = Zone("cluster.test", 60)
    for number, (host, port) in enumerate(addresses, 1):
        zone.add(SERVICE, "SRV", f"0 1 {port} db{number}.cluster.test.")
        zone.add(f"db{number}.cluster.test", "A", host)
    name_server = DnsServer(zone)
    await name_server.start()
    try:
        yield Place(addresses, name_server.address, role, PASSWORD)
    finally:
        name_server.stop()
        while name_server.receiving:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)


def _check_calm(contestant: Contestant, load: Load) -> None:
    failed = [one.error for one in load.tries if one.error is not None]
    if failed or not any(one.ended for one in load.tries):
        raise RuntimeError(
            f"{contestant.name}: before anything has happened, {len(failed)} claims failed: {failed[:1]}"
        )


def _cuts(servers: Sequence[PostgresServer]) -> list[Callable[[], None]]:
    return [partial(_cut, server) for server in servers]


def _cut(server: PostgresServer) -> None:
    """End all sessions of the pool, and wait until these are gone; new ones may have come meanwhile."""
    end_all = (
        "SELECT coalesce(string_agg(pid::text, ','), '0') FROM (SELECT pid, pg_terminate_backend(pid) "  # noqa: S608 - ours
        f"FROM pg_stat_activity WHERE application_name = '{APPLICATION}')"
    )
    count = f"SELECT count(*) FROM pg_stat_activity WHERE pid IN ({server.sql(end_all)})"  # noqa: S608 - numbers
    while server.sql(count) != "0":
        time.sleep(_POLL)


def _tell(servers: Sequence[PostgresServer], statement: str) -> None:
    """Run a statement at the primary, and wait until all know of it."""
    servers[0].sql(statement)
    _wait_for_all(servers)


def _wait_for_all(servers: Sequence[PostgresServer]) -> None:
    for server in servers[1:]:
        server.caught_up()


def _left(servers: Sequence[PostgresServer]) -> int:
    """Count the pool's sessions; a server has some moments to notice that their clients are gone."""
    until = time.monotonic() + _GONE
    while (
        left := sum(server.sessions(APPLICATION) for server in servers if server.running)
    ) and time.monotonic() < until:
        time.sleep(_POLL)
    return left
