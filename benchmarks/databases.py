"""Pools over a real PostgreSQL: one unit of work is to claim a connection, to ask `SELECT 1`, and to release it.

All do the same on the wire: one query, prepared by the driver, each a transaction of its own. What a pool does there
besides by default is turned off where its documentation says how, and the pool with its defaults is measured too. But
for the number of connections, everything else is the default.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from benchmarks.alone import Effort, Figure
from benchmarks.measure import by_turns, percentile, ratio
from benchmarks.peers import bare_deque
from benchmarks.scenarios import all_done
from qorb._demo.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from qorb import Connector

CONNECTIONS = 8
CROWDS: Mapping[str, int] = {"1 task, idle pool": 1, f"64 tasks, {CONNECTIONS} connections": 64}
QORB = "qorb"
NO_POOL = "a bare deque (no pool)"

Unit = Callable[[], Awaitable[Any]]
"""Claims a connection, asks, and releases it, as the pool's documentation has it."""

Open = Callable[[PostgresServer], AbstractAsyncContextManager[Unit]]
"""Opens a pool to a server, with all its connections."""


@dataclass(frozen=True, slots=True)
class Client:
    """One contestant: a pool over one of the drivers, and the distributions that it needs."""

    driver: str
    name: str
    open: Open
    needs: Sequence[str]
    rival: bool = True
    """Whether qorb is to be as fast as this."""

    @property
    def title(self) -> str:
        """What tells it from all the others."""
        return f"{self.driver}: {self.name}"

    @property
    def versions(self) -> Mapping[str, str] | None:
        """What is installed of what it needs; None when something is missing."""
        try:
            return {distribution: version(distribution) for distribution in self.needs}
        except PackageNotFoundError:
            return None


@dataclass(frozen=True, slots=True)
class Pace:
    """What one unit took, in seconds."""

    clock: float
    """From the first claim to the last release, for each of the units: the reverse of the throughput."""
    p99: float
    """From the claim to the release of a single one, waiting included; 99 % took no longer."""
    processor: float
    """Of the client's process alone. The server's, and other programs', are not in it."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one contestant did with one crowd: medians of the rounds."""

    driver: str
    client: str
    crowd: str
    pace: Pace
    beside_qorb: Pace | None
    """Ratios to qorb's pace with the same driver, of the same round."""


@dataclass(frozen=True, slots=True)
class Contest:
    """How the pools did on one server."""

    server: str
    versions: Mapping[str, str]
    standings: Sequence[Standing]
    figures: Sequence[Figure]


# The contestants.


@asynccontextmanager
async def open_qorb_asyncpg(server: PostgresServer) -> AsyncIterator[Unit]:
    """Open a pool of AsyncpgConnector's connections. A claim that ends cleanly costs no round trip by default."""
    from qorb.connectors.asyncpg import AsyncpgConnector

    async with _qorb(server, AsyncpgConnector(user="postgres", database="postgres")) as borrow:
        yield partial(_fetch, borrow)


@asynccontextmanager
async def open_asyncpg(server: PostgresServer) -> AsyncIterator[Unit]:
    """Open asyncpg.Pool with a `reset` that does nothing, in place of the one that asks the server."""

    async def reset(connection: Any) -> None:
        pass

    async with _asyncpg_pool(server, reset=reset) as unit:
        yield unit


@asynccontextmanager
async def open_asyncpg_by_default(server: PostgresServer) -> AsyncIterator[Unit]:
    """Open asyncpg.Pool as it is: each release resets the session, which is another query."""
    async with _asyncpg_pool(server) as unit:
        yield unit


@asynccontextmanager
async def open_bare_asyncpg(server: PostgresServer) -> AsyncIterator[Unit]:
    """Hold asyncpg's connections in a deque: what the driver takes by itself."""
    import asyncpg  # type: ignore[import-untyped, unused-ignore]

    async with AsyncExitStack() as stack:
        connections = [await asyncpg.connect(**_address(server), ssl=False) for _ in range(CONNECTIONS)]
        for connection in connections:
            stack.push_async_callback(connection.close)
        yield partial(_fetch, bare_deque(connections))


@asynccontextmanager
async def open_sqlalchemy_asyncpg(server: PostgresServer) -> AsyncIterator[Unit]:
    """Open an AsyncEngine over asyncpg."""
    async with _sqlalchemy(server, "postgresql+asyncpg") as unit:
        yield unit


@asynccontextmanager
async def open_qorb_psycopg(server: PostgresServer) -> AsyncIterator[Unit]:
    """Open a pool of PsycopgConnector's connections, which commit each statement by default."""
    from qorb.connectors.psycopg import PsycopgConnector

    async with _qorb(server, PsycopgConnector(user="postgres", database="postgres")) as borrow:
        yield partial(_execute, borrow)


@asynccontextmanager
async def open_psycopg_pool(server: PostgresServer) -> AsyncIterator[Unit]:
    """Open psycopg_pool over connections in autocommit: otherwise a claim asks for BEGIN and COMMIT too."""
    async with _psycopg_pool(server, autocommit=True) as unit:
        yield unit


@asynccontextmanager
async def open_psycopg_pool_by_default(server: PostgresServer) -> AsyncIterator[Unit]:
    """Open psycopg_pool as it is: each claim is a transaction, which is two more queries."""
    async with _psycopg_pool(server) as unit:
        yield unit


@asynccontextmanager
async def open_bare_psycopg(server: PostgresServer) -> AsyncIterator[Unit]:
    """Hold psycopg's connections in a deque, in autocommit: what the driver takes by itself."""
    from psycopg import AsyncConnection

    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(await AsyncConnection.connect(_conninfo(server), autocommit=True))
            for _ in range(CONNECTIONS)
        ]
        yield partial(_execute, bare_deque(connections))


@asynccontextmanager
async def open_sqlalchemy_psycopg(server: PostgresServer) -> AsyncIterator[Unit]:
    """Open an AsyncEngine over psycopg."""
    async with _sqlalchemy(server, "postgresql+psycopg_async") as unit:
        yield unit


@asynccontextmanager
async def _qorb(server: PostgresServer, connector: Connector[Any]) -> AsyncIterator[Callable[[], Any]]:
    from qorb import Backend, Policy, Pool
    from qorb.resolvers import FixedResolver

    policy = Policy(max_slots=CONNECTIONS, max_slots_per_backend=CONNECTIONS, spares_wanted=CONNECTIONS)
    resolver = FixedResolver([Backend("server", server.host, server.port)])
    async with Pool("bench", resolver, connector, policy) as pool:
        await pool.ready()
        yield pool.claim


@asynccontextmanager
async def _asyncpg_pool(server: PostgresServer, **options: Any) -> AsyncIterator[Unit]:
    import asyncpg

    sizes = {"min_size": CONNECTIONS, "max_size": CONNECTIONS}
    async with asyncpg.create_pool(**_address(server), ssl=False, **sizes, **options) as pool:
        yield partial(_fetch, pool.acquire)


@asynccontextmanager
async def _psycopg_pool(server: PostgresServer, **options: Any) -> AsyncIterator[Unit]:
    from psycopg_pool import AsyncConnectionPool

    pool: Any = AsyncConnectionPool(
        _conninfo(server), min_size=CONNECTIONS, max_size=CONNECTIONS, open=False, kwargs=options
    )
    async with pool:
        await pool.wait()
        yield partial(_execute, pool.connection)


@asynccontextmanager
async def _sqlalchemy(server: PostgresServer, dialect: str) -> AsyncIterator[Unit]:
    """Autocommit, and no rollback at release then, as SQLAlchemy's documentation has it for that.

    The statement goes straight to the driver: nothing is compiled.
    """
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(
        f"{dialect}://postgres@{server.address}/postgres",
        pool_size=CONNECTIONS,
        max_overflow=0,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
    )

    async def unit() -> Any:
        async with engine.connect() as connection:
            return (await connection.exec_driver_sql("SELECT 1")).scalar()

    try:
        async with AsyncExitStack() as held:  # it connects on demand
            for _ in range(CONNECTIONS):
                await held.enter_async_context(engine.connect())
        yield unit
    finally:
        await engine.dispose()


async def _fetch(borrow: Callable[[], Any]) -> Any:
    async with borrow() as connection:
        return await connection.fetchval("SELECT 1")


async def _execute(borrow: Callable[[], Any]) -> Any:
    async with borrow() as connection:
        cursor = await connection.execute("SELECT 1")
        return (await cursor.fetchone())[0]


def _address(server: PostgresServer) -> Mapping[str, Any]:
    return {"host": server.host, "port": server.port, "user": "postgres", "database": "postgres"}


def _conninfo(server: PostgresServer) -> str:
    return f"host={server.host} port={server.port} user=postgres dbname=postgres"


CLIENTS = (
    Client("asyncpg", QORB, open_qorb_asyncpg, ("qorb", "asyncpg")),
    Client("asyncpg", "asyncpg.Pool, without reset", open_asyncpg, ("asyncpg",)),
    Client("asyncpg", "asyncpg.Pool", open_asyncpg_by_default, ("asyncpg",)),
    Client("asyncpg", "SQLAlchemy, autocommit", open_sqlalchemy_asyncpg, ("SQLAlchemy", "greenlet", "asyncpg")),
    Client("asyncpg", NO_POOL, open_bare_asyncpg, ("asyncpg",), rival=False),
    Client("psycopg", QORB, open_qorb_psycopg, ("qorb", "psycopg")),
    Client("psycopg", "psycopg_pool, autocommit", open_psycopg_pool, ("psycopg-pool", "psycopg")),
    Client("psycopg", "psycopg_pool", open_psycopg_pool_by_default, ("psycopg-pool", "psycopg")),
    Client("psycopg", "SQLAlchemy, autocommit", open_sqlalchemy_psycopg, ("SQLAlchemy", "greenlet", "psycopg")),
    Client("psycopg", NO_POOL, open_bare_psycopg, ("psycopg",), rival=False),
)


# The scenario.


async def pace(client: Client, server: PostgresServer, tasks: int, units: int) -> Pace:
    """Let so many tasks do `units` units of work between them, as fast as they can.

    In a crowd of 64 each should do 80 at the most: where newcomers overtake, 56 tasks wait once for as long as the
    other 8 need for all of theirs, and only if these waits are more than one in a hundred do the 99 % show them.
    """
    async with client.open(server) as unit:
        seconds: list[float] = []
        await all_done([asyncio.create_task(_work(unit, 20, seconds)) for _ in range(CONNECTIONS)])
        seconds.clear()  # that was for the drivers to prepare the statement on each connection
        crowd = [asyncio.create_task(_work(unit, units // tasks, seconds)) for _ in range(tasks)]
        clock, processor = perf_counter(), process_time()
        await all_done(crowd)
        clock, processor = perf_counter() - clock, process_time() - processor
    return Pace(clock / len(seconds), percentile(sorted(seconds), 0.99), processor / len(seconds))


async def _work(unit: Unit, times: int, seconds: list[float]) -> None:
    for _ in range(times):
        started = perf_counter()
        answer = await unit()
        seconds.append(perf_counter() - started)
        if answer != 1:
            raise AssertionError(f"SELECT 1 gave {answer!r}")


def contest(effort: Effort) -> Contest:
    """Put every pool whose parts are installed through the scenario, by turns, on a server of our own.

    Raises ImportError or PostgresError when there can be none.
    """
    clients = [client for client in CLIENTS if client.versions is not None]
    standings: list[Standing] = []
    figures: list[Figure] = []
    with PostgresServer() as server:
        number = server.sql("SHOW server_version").partition(" ")[0]
        for crowd, tasks in CROWDS.items():
            units = max(effort.claims // 6, tasks * 10)
            samplers = {client.title: partial(pace, client, server, tasks, units) for client in clients}
            paces = by_turns(samplers, effort.rounds)
            for driver in dict.fromkeys(client.driver for client in clients):
                field = {client: paces[client.title] for client in clients if client.driver == driver}
                standings += _standings(crowd, field)
                figures += _figures(crowd, field)
    versions = {name: number for client in clients for name, number in (client.versions or {}).items()}
    return Contest(number, versions, standings, figures)


Field = Mapping[Client, Sequence[Pace]]
"""The contestants with one driver, and how they did in each round."""


def _standings(crowd: str, field: Field) -> list[Standing]:
    ours = _ours(field)
    return [
        Standing(
            client.driver,
            client.name,
            crowd,
            Pace(*map(median, _columns(paces))),
            None if ours is None else Pace(*map(ratio, _columns(paces), _columns(ours))),
        )
        for client, paces in field.items()
    ]


def _figures(crowd: str, field: Field) -> list[Figure]:
    """Compare qorb with the fastest of its rivals: by what it takes on the clock, and by its 99 %."""
    ours = _ours(field)
    rivals = {client: paces for client, paces in field.items() if client.rival and client.name != QORB}
    if ours is None or not rivals:
        return []
    figures = []
    for place, measure in enumerate(("on the clock", "99 %")):
        times = {client: _columns(paces)[place] for client, paces in rivals.items()}
        fastest = min(times, key=lambda client: median(times[client]))
        what = f"{fastest.driver}, {crowd}, {measure}: qorb beside {fastest.name}"
        figures.append(Figure(what, ratio(_columns(ours)[place], times[fastest]), "times", 1.0))
    return figures


def _ours(field: Field) -> Sequence[Pace] | None:
    return next((paces for client, paces in field.items() if client.name == QORB), None)


def _columns(paces: Sequence[Pace]) -> list[tuple[float, ...]]:
    return list(zip(*((pace.clock, pace.p99, pace.processor) for pace in paces), strict=True))
