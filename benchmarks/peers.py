"""The contestants: every pool over connections that do nothing.

What is faked is the connection alone, and in each case as little of it as the pool looks at. What is measured is the
pool's own code: the way its documentation tells people to borrow a connection and to give it back, with its default
settings but for the number of connections. Where a pool does work on the connection itself at release (a rollback, a
reset), the fake makes that free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

Borrow = Callable[[], AbstractAsyncContextManager[Any]]
"""Calling it gives what stands in `async with …:` to hold one connection."""

Open = Callable[[int], AbstractAsyncContextManager[Borrow]]
"""Opens a pool with so many connections, all of them connected when it is entered."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One contestant: its name, the distribution that holds it (None: written here), and how to open its pool."""

    name: str
    distribution: str | None
    open: Open
    can_wait: bool = True
    """Whether a task may ask for a connection when none is at hand."""

    @property
    def version(self) -> str | None:
        """The installed version; None when it is not installed or has none."""
        if self.distribution is None:
            return None
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    @property
    def installed(self) -> bool:
        """Whether it can be measured here."""
        return self.distribution is None or self.version is not None


@asynccontextmanager
async def open_qorb(size: int) -> AsyncIterator[Borrow]:
    """Three backends that share the connections. The connector's hooks are all the defaults."""
    from benchmarks.fakes import NoOpConnector, backends
    from qorb import Policy, Pool
    from qorb.resolvers import FixedResolver

    policy = Policy(max_slots=size, max_slots_per_backend=size, spares_wanted=size)
    async with Pool("bench", FixedResolver(backends(3)), NoOpConnector(), policy) as pool:
        await pool.ready()
        yield pool.claim


@asynccontextmanager
async def open_asyncio_connection_pool(size: int) -> AsyncIterator[Borrow]:
    """Faked: the strategy makes bare objects, which are never closed. The pool connects on demand, so it is filled."""
    from asyncio_connection_pool import ConnectionPool, ConnectionStrategy

    class NoOpStrategy(ConnectionStrategy[object]):
        async def make_connection(self) -> object:
            return object()

        def connection_is_closed(self, conn: object) -> bool:  # noqa: ARG002
            return False

        async def close_connection(self, conn: object) -> None:
            pass

    pool = ConnectionPool(strategy=NoOpStrategy(), max_size=size)
    await _fill(pool.get_connection, size)
    yield pool.get_connection


@asynccontextmanager
async def open_psycopg_pool(size: int) -> AsyncIterator[Borrow]:
    """Faked: the connection class. Its transaction is always idle, and the commit that ends `connection()` is empty."""
    from psycopg.pq import TransactionStatus
    from psycopg_pool import AsyncConnectionPool

    class NoOpServerConnection:
        transaction_status = TransactionStatus.IDLE

    class NoOpConnection:
        _pool: Any
        _created_at: float
        _expire_at: float
        pgconn = NoOpServerConnection()

        @classmethod
        async def connect(cls, conninfo: str, **kwargs: Any) -> Self:  # noqa: ARG003
            return cls()

        async def close(self) -> None:
            pass

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *exc: object) -> None:
            pass

    connection_class: Any = NoOpConnection
    pool: Any = AsyncConnectionPool(connection_class=connection_class, min_size=size, max_size=size, open=False)
    await pool.open(wait=True)
    try:
        yield pool.connection
    finally:
        await pool.close()


@asynccontextmanager
async def open_asyncpg(size: int) -> AsyncIterator[Borrow]:
    """Faked: the connection, as far as pool, holder and proxy look at it. Its reset(), a round trip, is empty."""
    import asyncpg  # type: ignore[import-untyped, unused-ignore]

    class NoOpProtocol:
        queries_count = 0

        def is_connected(self) -> bool:
            return True

        def _is_cancelling(self) -> bool:
            return False

    class NoOpConnection(asyncpg.Connection):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self._protocol = NoOpProtocol()
            self._aborted = False
            self._proxy: Any = None
            self._pool_holder: Any = None
            self._pool_release_ctr = 0
            self._listeners: dict[Any, Any] = {}
            self._log_listeners: set[Any] = set()

        def __del__(self) -> None:
            pass

        async def reset(self, *, timeout: float | None = None) -> None:
            pass

        async def close(self, *, timeout: float | None = None) -> None:  # noqa: ARG002
            self._pool_holder()._release_on_close()

    async def connect(*args: Any, **kwargs: Any) -> NoOpConnection:  # noqa: ARG001
        return NoOpConnection()

    async with asyncpg.create_pool(
        min_size=size, max_size=size, connect=connect, connection_class=NoOpConnection
    ) as pool:
        yield pool.acquire


@asynccontextmanager
async def open_sqlalchemy(size: int) -> AsyncIterator[Borrow]:
    """Open the pool of an AsyncEngine. Faked: the DBAPI connection, whose rollback at release is empty.

    An AsyncConnection reaches its pool through greenlet_spawn(), once to connect and once to close, and so does this.
    """
    from sqlalchemy.pool import AsyncAdaptedQueuePool
    from sqlalchemy.util import greenlet_spawn

    creator: Any = _NoOpDbapiConnection
    pool = AsyncAdaptedQueuePool(creator, pool_size=size, max_overflow=0)

    class Borrowed:
        __slots__ = ("_connection",)

        async def __aenter__(self) -> Any:
            self._connection = await greenlet_spawn(pool.connect)
            return self._connection

        async def __aexit__(self, *exc: object) -> None:
            await greenlet_spawn(self._connection.close)

    await _fill(Borrowed, size)
    try:
        yield Borrowed
    finally:
        await greenlet_spawn(pool.dispose)


@asynccontextmanager
async def open_sqlalchemy_directly(size: int) -> AsyncIterator[Borrow]:
    """Open the same pool, to be used without greenlets, which cost more than it does. It cannot wait then."""
    from sqlalchemy.pool import AsyncAdaptedQueuePool

    creator: Any = _NoOpDbapiConnection
    pool = AsyncAdaptedQueuePool(creator, pool_size=size, max_overflow=0)

    class Borrowed:
        __slots__ = ("_connection",)

        async def __aenter__(self) -> Any:
            self._connection = pool.connect()
            return self._connection

        async def __aexit__(self, *exc: object) -> None:
            self._connection.close()

    await _fill(Borrowed, size)
    try:
        yield Borrowed
    finally:
        pool.dispose()


class _NoOpDbapiConnection:
    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass


@asynccontextmanager
async def open_connpool(size: int) -> AsyncIterator[Borrow]:
    """Faked: the factory makes bare objects; its validate() and reset() are the library's own empty defaults."""
    from connpool import AsyncConnectionFactory, AsyncConnectionPool, PoolConfig

    class NoOpFactory(AsyncConnectionFactory[object]):
        async def create(self) -> object:
            return object()

    async with AsyncConnectionPool(NoOpFactory(), PoolConfig(min_size=size, max_size=size)) as pool:
        yield pool.connection


@asynccontextmanager
async def open_bare_deque(size: int) -> AsyncIterator[Borrow]:
    """No pool at all: a deque of objects and a fair line of futures. A floor, to tell the loop's cost from a pool's."""
    yield bare_deque(object() for _ in range(size))


def bare_deque(connections: Iterable[object]) -> Borrow:
    """Lend the connections out of a deque. It knows no deadline, no cancellation, no dead connection and no end."""
    import asyncio

    loop = asyncio.get_running_loop()
    idle = deque(connections)
    line: deque[asyncio.Future[object]] = deque()

    class Borrowed:
        __slots__ = ("_connection",)

        async def __aenter__(self) -> object:
            if idle:
                self._connection = idle.pop()
            else:
                turn = loop.create_future()
                line.append(turn)
                self._connection = await turn
            return self._connection

        async def __aexit__(self, *exc: object) -> None:
            if line:
                line.popleft().set_result(self._connection)
            else:
                idle.append(self._connection)

    return Borrowed


async def _fill(borrow: Borrow, size: int) -> None:
    """Hold `size` connections at once, for a pool that connects only on demand."""
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as held:
        for _ in range(size):
            await held.enter_async_context(borrow())


QORB = Peer("qorb", "qorb", open_qorb)
ASYNCIO_CONNECTION_POOL = Peer("asyncio-connection-pool", "asyncio-connection-pool", open_asyncio_connection_pool)
PEERS = (
    QORB,
    ASYNCIO_CONNECTION_POOL,
    Peer("SQLAlchemy, its pool alone", "SQLAlchemy", open_sqlalchemy_directly, can_wait=False),
    Peer("SQLAlchemy, as AsyncEngine uses it", "SQLAlchemy", open_sqlalchemy),
    Peer("psycopg_pool", "psycopg-pool", open_psycopg_pool),
    Peer("connpool", "connpool", open_connpool),
    Peer("asyncpg", "asyncpg", open_asyncpg),
    Peer("a bare deque (no pool)", None, open_bare_deque),
)
