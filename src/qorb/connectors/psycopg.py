"""PsycopgConnector: connections to PostgreSQL by psycopg 3, to primaries or replicas only if that is wanted."""

from __future__ import annotations

import functools
import logging
import traceback
from typing import TYPE_CHECKING, Any, Generic

from qorb.connector import Connector, Outcome
from qorb.connectors._postgres import (
    READ_ONLY_QUERY,
    REFUSED_LOGIN,
    Reset,
    Role,
    RoleKeeper,
    call_on_connect,
    checked_hook,
    checked_reset,
    libpq_host,
)
from qorb.connectors._sockets import addresses_of, shown_address
from qorb.credentials import Credential, Credentials, Login, Secret, connect_error, summed_up
from qorb.errors import ConnectError, shown

try:
    import psycopg
    from psycopg._compat import TypeVar  # Python's own has no defaults before 3.13
    from psycopg.rows import TupleRow

    from qorb.connectors._psycopg import DEFAULTS, IDLE, PsycopgConnection, checked_parameters, checked_text
except ImportError as _error:
    raise ImportError('PsycopgConnector needs psycopg; run: pip install "qorb[psycopg]"') from _error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from psycopg.rows import AsyncRowFactory

    from qorb.backend import Backend

__all__ = ["PsycopgConnection", "PsycopgConnector", "Reset", "Role"]

R = TypeVar("R", default=TupleRow)
_logger = logging.getLogger("qorb")
_connect: Any = PsycopgConnection.connect

# DISCARD ALL without that for which psycopg keeps books (prepared statements), and in one message.
_RESET = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; "
    "SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)
_PING = "SELECT 1"


class PsycopgConnector(Connector[PsycopgConnection[R]], Generic[R]):
    """Opens connections to PostgreSQL with psycopg 3; the pool hands out psycopg.AsyncConnections.

    user, password: texts, Secrets, or functions, coroutine functions too, that are asked at every connect. None: what
        libpq finds in the environment, for the password also in its password file.
    database, application_name: None: as libpq has it; the application is "qorb" then.
    parameters: more of libpq's, by name: sslmode, sslrootcert, options, ... Not those that say where to connect to.
    role: "primary": only servers that accept writes are used; "replica": only those that do not; "any": all.
    autocommit: True: each statement is a transaction of its own, and `async with connection.transaction()` makes
        longer ones. False: as psycopg has it by itself, and what a claim has not committed is rolled back, always.
    reset: "when needed": a claim that ended cleanly leaves SET, LISTEN, temporary tables and advisory locks to the
        next; "always": nothing of that is left, for a round trip after each claim.
    on_connect: awaited with each new connection. on_acquire: awaited with the connection before each claim gets it.
    row_factory, prepare_threshold: as in psycopg.

    Raises TypeError or ValueError, naming the parameter, for what is not usable.
    """

    def __init__(  # noqa: PLR0913 - what is to be said of a database session; none of it goes without its name
        self,
        *,
        user: Credential | None = None,
        password: Credential | None = None,
        database: str | None = None,
        application_name: str | None = None,
        parameters: Mapping[str, str | int | Secret] | None = None,
        role: Role = "any",
        autocommit: bool = True,
        reset: Reset = "when needed",
        on_connect: Callable[[PsycopgConnection[R]], Awaitable[object]] | None = None,
        on_acquire: Callable[[PsycopgConnection[R]], Awaitable[object]] | None = None,
        row_factory: AsyncRowFactory[R] | None = None,
        prepare_threshold: int | None = 5,
    ) -> None:
        """Check the settings. Opens nothing."""
        self._login = Login(user, password)
        self._parameters = checked_parameters(parameters or {})
        if database is not None:
            self._parameters["dbname"] = checked_text("database", database)
        if application_name is not None:
            self._parameters["application_name"] = checked_text("application_name", application_name)
        self._keeper = RoleKeeper(role)
        self._reset = checked_reset(reset)
        self._recycles_always = reset == "always" or type(self).on_recycle is not PsycopgConnector.on_recycle
        self._on_connect = checked_hook("on_connect", on_connect)
        if (hook := checked_hook("on_acquire", on_acquire)) is not None:
            self._call_at_claims(hook)
        self._options: dict[str, Any] = {
            "autocommit": _checked_bool("autocommit", autocommit),
            "row_factory": row_factory,
            "prepare_threshold": prepare_threshold,
        }
        self._has_warned = False

    def __repr__(self) -> str:
        """Show some settings; never who logs in."""
        autocommit = self._options["autocommit"]
        return f"{type(self).__name__}(role={self._keeper.role!r}, autocommit={autocommit}, reset={self._reset!r})"

    # Connecting.

    async def connect(self, backend: Backend) -> PsycopgConnection[R]:
        """Log in at `backend.address`, and see that the server has the role. Raises ConnectError.

        libpq's `host`, which a certificate must be good for, is `backend.server_name`, or `backend.host` when that is
        None. A host that is a name is looked up on a thread, as by TcpConnector. A call that is cancelled leaves
        nothing open.
        """
        login = await self._login.ask(backend.name)
        secrets = [value for value in self._parameters.values() if isinstance(value, Secret)]
        connection = await self._log_in(backend, login, secrets)
        try:
            await self._settle(connection, backend, (*login.secrets, *secrets))
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _log_in(self, backend: Backend, login: Credentials, secrets: list[Secret]) -> PsycopgConnection[R]:
        host = libpq_host(backend)
        failures: list[ConnectError] = []
        for _, address in await addresses_of(backend):
            where: dict[str, str | int] = {"host": host, "hostaddr": str(address[0]), "port": backend.port}
            result = await self._open(where, login)
            if isinstance(result, PsycopgConnection):
                return result
            failures.append(self._failure(result, shown_address(address), backend.name, login, secrets))
            if failures[-1].min_backoff:  # it will not be another password at the next address
                break
        told = summed_up(failures, backend.name)
        raise told from told.__cause__

    def _failure(
        self, error: psycopg.Error, where: str, backend: str, login: Credentials, secrets: list[Secret]
    ) -> ConnectError:
        if REFUSED_LOGIN.search(str(error)):
            return self._login.refusal(f"authentication at {where} failed", error, backend, login, secrets)
        return connect_error(f"connecting to {where} failed", error, backend, (*login.secrets, *secrets))

    async def _open(self, where: dict[str, str | int], login: Credentials) -> PsycopgConnection[R] | psycopg.Error:
        """Log in, or give the error: it must not be raised here, where a traceback would show the password."""
        known = {**DEFAULTS, **self._parameters, "user": login.user, "password": login.password, **where}
        keywords = {name: one.reveal() if isinstance(one, Secret) else one for name, one in known.items()}
        try:
            connection: PsycopgConnection[R] = await _connect(**self._options, **keywords)
        except psycopg.Error as error:
            return _without_connection(error)
        except BaseException as error:
            # What psycopg has begun is held by its frames alone, and ends when they let go of it.
            traceback.clear_frames(error.__traceback__)
            keywords.clear()
            raise
        return connection

    async def _settle(
        self, connection: PsycopgConnection[R], backend: Backend, secrets: tuple[Secret | None, ...]
    ) -> None:
        connection.entrust(backend.name, self._keeper)
        if self._keeper.matters:
            await self._prove(connection)
        if self._on_connect is not None:
            failed = functools.partial(connect_error, backend=backend.name, secrets=secrets)
            with connection.impatient():
                await call_on_connect(self._on_connect, connection, failed)
            if connection.pgconn.transaction_status != IDLE:
                raise ConnectError("on_connect has left a transaction open; it must commit what it does", backend.name)
            self._keeper.confirm(connection.backend, connection.proof)
        connection.settle()

    async def _prove(self, connection: PsycopgConnection[R]) -> None:
        """Ask the server whether it has the role. Raises BackendUnfitError, or ConnectError."""
        question = self._keeper.question()
        results = await self._run(connection, "asking whether the server accepts writes", READ_ONLY_QUERY)
        read_only = results[0].get_value(0, 0) == b"on"
        connection.proof = self._keeper.prove(connection.backend, question, read_only=read_only)
        connection.doubted = False

    async def _run(self, connection: PsycopgConnection[R], what: str, statements: str) -> list[Any]:
        try:
            return await connection.run(statements)
        except psycopg.Error as error:
            told = connect_error(f"{what} failed", error, connection.backend)
            raise told from told.__cause__

    # Being pooled.

    async def validate(self, connection: PsycopgConnection[R]) -> None:
        """Ask the server for a sign of life, and for its role if that matters. Raises ConnectError.

        Cancelled, it leaves a connection that must be closed.
        """
        if self._keeper.matters:
            await self._prove(connection)
        else:
            await self._run(connection, "a sign of life", _PING)

    def _call_at_claims(self, hook: Callable[[PsycopgConnection[R]], Awaitable[object]]) -> None:
        """Have an on_acquire, before that of a class derived from this one: for a pool each claim takes longer then."""
        own = self.on_acquire

        async def on_acquire(connection: PsycopgConnection[R]) -> None:
            with connection.impatient():
                await hook(connection)
            await own(connection)

        vars(self)["on_acquire"] = on_acquire

    def needs_recycle(self, connection: PsycopgConnection[R], outcome: Outcome) -> bool:
        """Say whether the claim has left anything behind that can be seen from here: no round trip if not.

        True as well for a subclass with an on_recycle of its own.
        """
        return (
            outcome is not Outcome.CLEAN
            or self._recycles_always
            or connection.pgconn.transaction_status != IDLE
            or connection.in_use
            or connection.settings() != connection.settled
            or connection.has_news
            or self._in_doubt(connection)
        )

    def _in_doubt(self, connection: PsycopgConnection[R]) -> bool:
        """Whether the server must be asked for its role before the connection is used again."""
        if not self._keeper.matters:
            return False
        read_only = connection.reported_read_only()
        return connection.doubted or (read_only is not None and self._keeper.unfit(read_only=read_only))

    async def on_recycle(self, connection: PsycopgConnection[R], outcome: Outcome) -> None:
        """Roll back what is open, put the session back, and see to the role. Raises ConnectError to have it closed.

        Never commits. An exception of the application, or its cancellation, does not cost the connection, unless a
        query was not brought to its end. Cancelled, it leaves a connection that must be closed.
        """
        if connection.closed:
            raise ConnectError("the connection is closed", connection.backend)
        if connection.in_use or outcome is Outcome.LEAKED:
            why = "nobody released the claim" if outcome is Outcome.LEAKED else "a query or a pipeline is under way"
            raise ConnectError(f"{why}, so the connection is not used again", connection.backend)
        connection.leave_two_phase()
        if connection.pgconn.transaction_status != IDLE:
            await self._roll_back(connection, outcome)
        await connection.put_back()
        if outcome is not Outcome.CLEAN or self._reset == "always":
            await self._run(connection, "resetting the session", _RESET)
        if self._in_doubt(connection):
            await self._settle_doubt(connection)
        connection.forget_news()  # those too that came with what was just asked

    async def _settle_doubt(self, connection: PsycopgConnection[R]) -> None:
        """Ask for the role what the session has not set for itself."""
        await self._run(connection, "resetting the session", "RESET default_transaction_read_only")
        await self._prove(connection)

    async def _roll_back(self, connection: PsycopgConnection[R], outcome: Outcome) -> None:
        if outcome is Outcome.CLEAN and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "a claim on %s ended with its transaction open; that was rolled back, as the pool always does: "
                "commit before the claim ends (this is said once)",
                connection.backend,
            )
        try:
            with connection.impatient():
                await connection.rollback()
        except psycopg.Error as error:
            told = connect_error("rolling back failed", error, connection.backend)
            raise told from told.__cause__

    async def close(self, connection: PsycopgConnection[R]) -> None:
        """Say goodbye and close, without suspending."""
        self.abort(connection)

    def abort(self, connection: PsycopgConnection[R]) -> None:
        """Close at once, whoever waits for an answer on it: that gets an OperationalError."""
        connection.abort()

    def is_closed(self, connection: PsycopgConnection[R]) -> bool:
        """Say whether either end has closed it, or its server has lost the role since."""
        return not connection.seems_open() or self._keeper.is_void(connection.backend, connection.proof)


def _checked_bool(what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, not {shown(value)}")
    return value


def _without_connection(error: psycopg.Error) -> psycopg.Error:
    """Give the error in one line, and without what psycopg hangs on it: that has the password."""
    lines = (line.strip() for line in str(error).splitlines())
    return type(error)("; ".join(filter(None, lines)))
