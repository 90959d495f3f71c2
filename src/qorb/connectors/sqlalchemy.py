"""SqlAlchemyConnector and create_engine_over: SQLAlchemy's asynchronous engines over a pool."""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING, Any, cast

from qorb.connector import Connector, Outcome
from qorb.connectors._sockets import Dialler, checked_context
from qorb.connectors._sqlalchemy import EnginePool, Entry
from qorb.connectors._sqlalchemy_drivers import (
    DRIVERS,
    believes_in_transaction,
    cut,
    failed_login,
    forget_transaction,
    has_transaction,
    is_dead,
    listen,
    ways,
)
from qorb.credentials import Credential, Credentials, Login, Secret, connect_error, summed_up
from qorb.errors import ConnectError, shown
from qorb.stats import PoolState

try:
    from sqlalchemy import event, exc, make_url
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
    from sqlalchemy.pool import ConnectionPoolEntry
    from sqlalchemy.util import greenlet_spawn
except ImportError as _error:
    raise ImportError('SqlAlchemyConnector needs SQLAlchemy; run: pip install "qorb[sqlalchemy]"') from _error

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Callable

    from sqlalchemy import URL
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.engine.interfaces import Dialect

    from qorb.backend import Backend
    from qorb.pool import Pool

_INSTEAD = {
    "pool": "create_engine_over(pool)",
    "poolclass": "create_engine_over(pool)",
    "creator": "a resolver, and `connect_args`",
    "async_creator": "a resolver, and `connect_args`",
    "pool_size": "Policy.max_slots",
    "max_overflow": "Policy.max_slots",
    "pool_timeout": "Policy.claim_timeout",
    "pool_recycle": "Policy.max_lifetime",
    "pool_use_lifo": "nothing: connections are taken by the load of their backends",
}


class SqlAlchemyConnector(Connector[ConnectionPoolEntry]):
    """Opens connections for an engine of SQLAlchemy: create_engine_over(pool) gives it.

    url: what create_async_engine() takes, without host and port, for they come from the pool's resolver:
        "postgresql+asyncpg:///shop" or "postgresql+psycopg://app@/shop". A password in it is taken out and kept secret.
    user, password: instead of those in the URL; functions are asked at every connect.
    ssl: with asyncpg the context for TLS, or None for none. The certificate must be good for `backend.server_name`, or
        for `backend.host` when that is None, whatever address is connected to; a context that does not check brings a
        RuntimeWarning. With psycopg say
        "?sslmode=verify-full&sslrootcert=..." in the URL; the same name is verified.
    engine_options: the other options of create_async_engine(). Those of its pool are settings of Policy;
        `pool_pre_ping=True` asks each connection at checkout whether it answers, `pool_reset_on_return` is as ever.

    Raises TypeError or ValueError, naming the parameter, for anything else, and what create_async_engine() raises.

    What the pool hands out are SQLAlchemy's own ConnectionPoolEntry: `driver_connection` of one is the connection of
    the driver, for those who claim without an engine.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        user: Credential | None = None,
        password: Credential | None = None,
        ssl: tls.SSLContext | None = None,
        **engine_options: Any,  # noqa: ANN401 - SQLAlchemy checks them
    ) -> None:
        """Check the settings. Opens nothing."""
        told = _checked_url(url)
        self._login = Login(told.username if user is None else user, told.password if password is None else password)
        self._url = told.set(username=None, password=None)
        if ssl is not None and self._url.get_driver_name() != "asyncpg":
            raise ValueError('ssl is for asyncpg; with psycopg say "?sslmode=verify-full&sslrootcert=..." in the URL')
        self._ssl = checked_context(ssl)
        self._pings = bool(engine_options.pop("pool_pre_ping", False))
        self._arguments = dict(engine_options.pop("connect_args", {}))
        for name in _INSTEAD.keys() & engine_options.keys():
            raise TypeError(f"{name} is not for an engine over a pool of qorb; instead there is {_INSTEAD[name]}")
        self._engine = create_async_engine(self._url, poolclass=EnginePool, **engine_options)
        self._home = cast("EnginePool", self._engine.sync_engine.pool)
        self._dialect = self._engine.dialect
        self._dialler = Dialler()
        event.listen(self._engine.sync_engine, "do_connect", self._prepare)
        event.listen(self._engine.sync_engine, "handle_error", self._explain)

    def __repr__(self) -> str:
        """Show where it connects to; of credentials nothing."""
        return f"{type(self).__name__}({shown(str(self._url))})"

    def engine_over(self, pool: Pool[ConnectionPoolEntry]) -> AsyncEngine:
        """Give the engine, whose connections are claims on this pool. Raises ValueError for a second pool."""
        self._home.bind(pool)
        return self._engine

    async def connect(self, backend: Backend) -> ConnectionPoolEntry:
        """Connect to `backend.address`, log in, have the listeners of `connect` called. Raises ConnectError.

        A host that is a name, not an IP address, is looked up by the system, on a thread, and its addresses are tried
        in the order given; a call that is cancelled meanwhile ends when the look-up does. Cancelled anywhere else, it
        ends as soon as the driver lets it. Either way nothing stays open.
        """
        login = await self._login.ask(backend.name)
        failures: list[ConnectError] = []
        for options in await ways(self._dialect.driver, backend, self._dialler, self._ssl):
            try:
                return await self._open(backend, options, login)
            except ConnectError as error:
                failures.append(error)
                if error.min_backoff:  # it will not be another password at the next address
                    break
        told = summed_up(failures, backend.name)
        raise told from told.__cause__

    async def _open(self, backend: Backend, options: dict[str, Any], login: Credentials) -> Entry:
        entry = self._home.new_entry(backend)
        entry.url = self._url.set(
            username=_text(login.user), password=_text(login.password), host=backend.host, port=backend.port
        )
        entry.options, entry.loop = options, options.get("loop")
        if entry.loop is not None and login.password is not None:
            options["password"] = login.password.reveal  # the connection keeps what it is given
        try:
            await greenlet_spawn(entry.open)
            listen(entry.driver_connection, entry.loop, entry.farewell)
        except BaseException as error:
            self.abort(entry)
            # What psycopg has begun is held by its frames alone, and ends when they let go of it.
            traceback.clear_frames(error.__traceback__)
            if not isinstance(error, Exception):
                raise
            host = options.get("hostaddr", backend.host)
            what = f"connecting to {host} port {backend.port} failed"
            if failed_login(error):
                told = self._login.refusal(what, error, backend.name, login)
            else:
                told = connect_error(what, error, backend.name, login.secrets)
            raise told from told.__cause__
        finally:
            entry.url, entry.options = None, {}
        return entry

    def _prepare(self, dialect: Dialect, entry: Entry, arguments: list[Any], options: dict[str, Any]) -> None:
        """Say where to connect to, before SQLAlchemy does; listeners that come later may change it."""
        if entry.url is None:
            raise exc.InvalidRequestError("connections are opened by the pool alone")
        positional, named = dialect.create_connect_args(entry.url)
        arguments[:] = positional
        if entry.loop is not None and self._ssl is None:
            options["ssl"] = False  # asyncpg would try TLS that proves nothing
        options |= {**named, **self._arguments, **entry.options}

    def _explain(self, context: ExceptionContext) -> None:
        """Say why a connection is gone when it was taken back."""
        pool = self._home.source
        error = context.sqlalchemy_exception
        if not context.is_disconnect or error is None or pool is None:
            return
        if pool.state in {PoolState.TERMINATING, PoolState.TERMINATED}:
            text = f"pool {pool.name} has taken the connection back, because it was ended"
            error.add_note(f'{text}; give terminate() more `grace`, or held="detach"')

    async def validate(self, connection: ConnectionPoolEntry) -> None:
        """Raise ConnectError when the connection does not answer. Cancelled, it must be closed: an answer may come."""
        entry = cast("Entry", connection)
        await _ask("asking the server for a sign of life", self._dialect.do_ping, entry)

    async def on_acquire(self, connection: ConnectionPoolEntry) -> None:
        """With pool_pre_ping do as validate() does. Cancellation passes."""
        if self._pings:
            await self.validate(connection)

    async def on_recycle(self, connection: ConnectionPoolEntry, outcome: Outcome) -> None:
        """Roll back what was left open, or raise ConnectError unless the claim ended cleanly. Cancellation passes."""
        if outcome is not Outcome.CLEAN:
            await super().on_recycle(connection, outcome)
        entry = cast("Entry", connection)
        await _ask("rolling back", self._dialect.do_rollback, entry)
        if has_transaction(entry.driver_connection):
            raise ConnectError("a transaction was begun behind SQLAlchemy's back and is open", entry.backend.name)
        forget_transaction(entry.driver_connection)

    def needs_recycle(self, connection: ConnectionPoolEntry, outcome: Outcome) -> bool:
        """Say whether a transaction is open, or believed to be, or the claim did not end cleanly.

        SQLAlchemy has reset the others. True as well for a subclass with an on_recycle of its own.
        """
        own = type(self).on_recycle is not SqlAlchemyConnector.on_recycle
        driver = connection.driver_connection
        return own or outcome is not Outcome.CLEAN or has_transaction(driver) or believes_in_transaction(driver)

    def is_closed(self, connection: ConnectionPoolEntry) -> bool:
        """Say whether the connection is closed, or SQLAlchemy wants it not to be used again."""
        entry = cast("Entry", connection)
        if entry.dbapi_connection is None or entry.is_invalidated or self._home.is_void(entry):
            return True
        return is_dead(entry.driver_connection, entry.loop, entry.farewell)

    async def close(self, connection: ConnectionPoolEntry) -> None:
        """Log out and close, as the driver does; at once where the server has ended the session.

        When it is cancelled, the pool aborts.
        """
        entry = cast("Entry", connection)
        await greenlet_spawn(entry.close)
        if entry.opened is None:
            return
        driver = self._dialect.get_driver_connection(entry.opened)
        if is_dead(driver, entry.loop, entry.farewell):
            cut(driver, entry.loop)
        else:
            await driver.close()
        self._home.end(entry)

    def abort(self, connection: ConnectionPoolEntry) -> None:
        """Close at once, without a word to the server."""
        entry = cast("Entry", connection)
        opened = entry.opened
        with contextlib.suppress(Exception):  # listeners are users' code
            self._home.end(entry)
        cut(None if opened is None else self._dialect.get_driver_connection(opened), entry.loop)


def create_engine_over(pool: Pool[ConnectionPoolEntry]) -> AsyncEngine:
    """Give the engine of SQLAlchemy whose connections are claims on this pool, made with a SqlAlchemyConnector.

    It is the same one at every call. Engine options are given to the connector. Its errors are SQLAlchemy's own: where
    no connection is to be had in time, sqlalchemy.exc.TimeoutError, with the ClaimError as its cause. The pool is
    ended by pool.terminate(); engine.dispose() makes it replace its connections. Raises TypeError for a pool with
    another connector, ValueError for a second pool of the same connector.
    """
    connector: object = pool.connector
    if not isinstance(connector, SqlAlchemyConnector):
        raise TypeError(f"the pool's connector must be a SqlAlchemyConnector, not a {type(connector).__name__}")
    return connector.engine_over(pool)


def _checked_url(url: str | URL) -> URL:
    """Give the URL of a database without a place. Raises ValueError, without the password in it."""
    try:
        made = make_url(url)
        driver = made.get_dialect(_is_async=True).driver
    except exc.ArgumentError:
        raise ValueError(f"url is none of SQLAlchemy's: {shown(url)}") from None
    if made.get_backend_name() != "postgresql" or driver not in DRIVERS:
        raise ValueError(
            f"url must begin with postgresql+asyncpg:// or postgresql+psycopg://, not {shown(made.drivername)}"
        )
    if made.host is not None or made.port is not None or "host" in made.query or "port" in made.query:
        raise ValueError(
            "url must name no host and no port: those come from the pool's resolver; write ...://user@/database"
        )
    return made


async def _ask(what: str, ask: Callable[[Any], object], entry: Entry) -> None:
    """Have SQLAlchemy ask something of the server. Raises ConnectError that says what."""
    if entry.dbapi_connection is None:
        raise ConnectError("the connection is closed", entry.backend.name)
    try:
        await greenlet_spawn(ask, entry.dbapi_connection)
    except Exception as error:  # noqa: BLE001 - drivers raise what they like
        told = connect_error(f"{what} failed", error, entry.backend.name)
        raise told from told.__cause__


def _text(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()
