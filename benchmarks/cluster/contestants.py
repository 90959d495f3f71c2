"""The contestants: each pool, set up for several hosts with what its documentation offers for that.

All have the same number of connections and the same patience. `settings` says in words what else was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.cluster.load import PATIENCE, Ask, Claim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SIZE = 9
"""Connections of each pool."""
CONNECT_TIMEOUT = 2.0
"""Seconds; the least that libpq accepts."""
SERVICE = "_postgresql._tcp.cluster.test"
USER, DATABASE, APPLICATION = "app", "postgres", "qorb-compare"
Role = Literal["any", "primary"]
_ROLES = {"any": "any", "primary": "read-write"}
"""The words for target_session_attrs."""


@dataclass(slots=True)
class Place:
    """Where a pool is to connect to, and how it logs in."""

    addresses: Sequence[tuple[str, int]]
    name_server: str
    """Who says the same through DNS, as "host:port"."""
    role: Role = "any"
    password: str = field(default="", repr=False)
    """It may change: whoever connects asks for it each time."""

    def tell_password(self) -> str:
        """Give the password of this moment."""
        return self.password

    @property
    def hosts(self) -> list[str]:
        """The addresses' hosts."""
        return [host for host, _ in self.addresses]

    @property
    def ports(self) -> list[int]:
        """The addresses' ports."""
        return [port for _, port in self.addresses]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A pool: what it is called, the distributions that it is made of, and how it is opened."""

    name: str
    distributions: Sequence[str]
    settings: str
    open: Callable[[Place], AbstractAsyncContextManager[Claim]]

    @property
    def versions(self) -> list[str]:
        """The installed versions, with names. Raises PackageNotFoundError when one is not installed."""
        return [f"{name} {version(name)}" for name in self.distributions]


@asynccontextmanager
async def _qorb(place: Place, connector: Any, ask: Callable[[Any], Ask]) -> AsyncIterator[Claim]:
    from qorb import Policy, Pool
    from qorb.resolvers import DnsResolver
    from qorb.testing import assert_nothing_left

    policy = Policy(max_slots=SIZE, spares_wanted=SIZE, claim_timeout=PATIENCE, connect_timeout=CONNECT_TIMEOUT)
    pool = Pool("compare", DnsResolver(SERVICE, [place.name_server]), connector, policy)

    @asynccontextmanager
    async def claim() -> AsyncIterator[Ask]:
        async with pool.claim() as connection:
            yield ask(connection)

    async with pool:
        yield claim
    assert_nothing_left(pool)


def open_qorb_asyncpg(place: Place) -> AbstractAsyncContextManager[Claim]:
    """Open qorb over asyncpg."""
    from qorb.connectors.asyncpg import AsyncpgConnector

    connector = AsyncpgConnector(
        user=USER,
        password=place.tell_password,
        database=DATABASE,
        role=place.role,
        application_name=APPLICATION,
    )
    return _qorb(place, connector, lambda connection: connection.fetchval)


def open_qorb_psycopg(place: Place) -> AbstractAsyncContextManager[Claim]:
    """Open qorb over psycopg."""
    from qorb.connectors.psycopg import PsycopgConnector

    connector = PsycopgConnector(
        user=USER,
        password=place.tell_password,
        database=DATABASE,
        role=place.role,
        application_name=APPLICATION,
    )
    return _qorb(place, connector, _ask_psycopg)


def _ask_psycopg(connection: Any) -> Ask:
    async def ask(statement: str) -> Any:
        cursor = await connection.execute(statement)
        return (await cursor.fetchone())[0] if cursor.description is not None else None

    return ask


def open_psycopg_pool(place: Place) -> AbstractAsyncContextManager[Claim]:
    """Open psycopg_pool as it is by itself."""
    return _psycopg_pool(place)


def open_psycopg_pool_checked(place: Place) -> AbstractAsyncContextManager[Claim]:
    """Open psycopg_pool with the check of each connection before it is handed out."""
    from psycopg_pool import AsyncConnectionPool

    return _psycopg_pool(place, check=AsyncConnectionPool.check_connection)


@asynccontextmanager
async def _psycopg_pool(place: Place, **options: Any) -> AsyncIterator[Claim]:
    from psycopg_pool import AsyncConnectionPool

    def settings() -> dict[str, Any]:
        return {
            "host": ",".join(place.hosts),
            "port": ",".join(map(str, place.ports)),
            "user": USER,
            "password": place.password,
            "dbname": DATABASE,
            "application_name": APPLICATION,
            "connect_timeout": int(CONNECT_TIMEOUT),
            "load_balance_hosts": "random",
            "target_session_attrs": _ROLES[place.role],
            "autocommit": True,
        }

    pool: Any = AsyncConnectionPool(
        kwargs=settings, min_size=SIZE, max_size=SIZE, timeout=PATIENCE, open=False, **options
    )

    @asynccontextmanager
    async def claim() -> AsyncIterator[Ask]:
        async with pool.connection() as connection:
            yield _ask_psycopg(connection)

    async with pool:
        await pool.wait()
        yield claim


@asynccontextmanager
async def open_asyncpg(place: Place) -> AsyncIterator[Claim]:
    """Open asyncpg's own pool."""
    import asyncpg

    @asynccontextmanager
    async def claim() -> AsyncIterator[Ask]:
        async with pool.acquire(timeout=PATIENCE) as connection:
            yield connection.fetchval

    async with asyncpg.create_pool(
        host=place.hosts,
        port=place.ports,
        user=USER,
        password=place.tell_password,
        database=DATABASE,
        target_session_attrs=_ROLES[place.role],
        server_settings={"application_name": APPLICATION},
        timeout=CONNECT_TIMEOUT,
        min_size=SIZE,
        max_size=SIZE,
    ) as pool:
        yield claim


@asynccontextmanager
async def open_sqlalchemy(place: Place) -> AsyncIterator[Claim]:
    """Open SQLAlchemy's async engine over asyncpg."""
    from sqlalchemy import event, text
    from sqlalchemy.ext.asyncio import create_async_engine

    hosts = "&".join(f"host={host}:{port}" for host, port in place.addresses)
    engine = create_async_engine(
        f"postgresql+asyncpg://{USER}@/{DATABASE}?{hosts}",
        pool_size=SIZE,
        max_overflow=0,
        pool_timeout=PATIENCE,
        pool_pre_ping=True,
        isolation_level="AUTOCOMMIT",
        connect_args={
            "timeout": CONNECT_TIMEOUT,
            "target_session_attrs": _ROLES[place.role],
            "server_settings": {"application_name": APPLICATION},
        },
    )

    @event.listens_for(engine.sync_engine, "do_connect")
    def provide_password(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        parameters["password"] = place.password

    @asynccontextmanager
    async def claim() -> AsyncIterator[Ask]:
        async with engine.connect() as connection:

            async def ask(statement: str) -> Any:
                result = await connection.execute(text(statement))
                return result.scalar() if result.returns_rows else None

            yield ask

    yield claim
    await engine.dispose()


QORB: Sequence[Contestant] = (
    Contestant(
        "qorb, asyncpg",
        ("qorb", "asyncpg"),
        '`AsyncpgConnector` and `DnsResolver`; for writes `role="primary"`',
        open_qorb_asyncpg,
    ),
    Contestant(
        "qorb, psycopg",
        ("qorb", "psycopg"),
        '`PsycopgConnector` and `DnsResolver`; for writes `role="primary"`',
        open_qorb_psycopg,
    ),
)
CONTESTANTS: Sequence[Contestant] = (
    *QORB,
    Contestant(
        "psycopg_pool",
        ("psycopg-pool", "psycopg"),
        "all hosts in one connection string, `load_balance_hosts=random`; for writes "
        "`target_session_attrs=read-write`; `kwargs` is a function, so that the password is asked for; `autocommit`",
        open_psycopg_pool,
    ),
    Contestant(
        "psycopg_pool, check",
        ("psycopg-pool", "psycopg"),
        "as psycopg_pool, and `check=AsyncConnectionPool.check_connection`",
        open_psycopg_pool_checked,
    ),
    Contestant(
        "asyncpg.Pool",
        ("asyncpg",),
        'a list of hosts; for writes `target_session_attrs="read-write"`; the password is a function',
        open_asyncpg,
    ),
    Contestant(
        "SQLAlchemy, asyncpg",
        ("SQLAlchemy", "asyncpg"),
        "`create_async_engine()` with a list of hosts, `pool_pre_ping=True`, `max_overflow=0`; for writes "
        '`target_session_attrs="read-write"`; the password comes by the event `do_connect`; `AUTOCOMMIT`',
        open_sqlalchemy,
    ),
)
