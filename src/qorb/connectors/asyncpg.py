"""AsyncpgConnector: connections to PostgreSQL through asyncpg, kept to the primary or to replicas when that matters."""

# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false, reportMissingTypeStubs=false
# asyncpg comes without types.

from __future__ import annotations

import contextlib
import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from qorb.connector import Connector, Outcome
from qorb.connectors._dialling import DiallingLoop
from qorb.connectors._postgres import (
    READ_ONLY_QUERY,
    Reset,
    Role,
    RoleKeeper,
    call_on_connect,
    checked_hook,
    checked_reset,
)
from qorb.connectors._sockets import Dialler, checked_context, server_name
from qorb.credentials import Credential, Credentials, Login, Secret, connect_error
from qorb.errors import ConnectError, shown

try:
    import asyncpg  # type: ignore[import-untyped]
except ImportError as _error:
    raise ImportError('AsyncpgConnector needs asyncpg; run: pip install "qorb[asyncpg]"') from _error

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Awaitable, Callable, Mapping

    from qorb.backend import Backend

    Hook: TypeAlias = Callable[[asyncpg.Connection], Awaitable[object]]

__all__ = ["AsyncpgConnector", "Reset", "Role"]

_READ_ONLY = "25006"
_TOO_MANY = "53300"
_OWN_ROLE = "SET SESSION AUTHORIZATION DEFAULT; RESET ROLE;\n"
"""What RESET ALL leaves out."""
_OURS = {
    **dict.fromkeys(("host", "port", "dsn", "service"), "the backend says where to connect to"),
    **dict.fromkeys(("user", "password", "database", "ssl", "server_settings"), "it is a parameter of its own"),
    "timeout": "Policy.connect_timeout bounds it",
    "target_session_attrs": "use role",
    "loop": "it is the pool's",
}
"""Options of asyncpg.connect() that are refused, and why."""


@dataclass(slots=True)
class _Known:
    """What the connector knows of one of its connections."""

    backend: str
    loop: DiallingLoop
    settings: Any
    """What the server has reported; it keeps itself up to date."""
    proof: int = 0
    callbacks: tuple[set[Any], ...] = ()
    """What listens to the connection when nobody has claimed it."""


class AsyncpgConnector(Connector["asyncpg.Connection"]):
    """Opens connections to PostgreSQL; the pool hands out asyncpg.Connection.

    user, password: texts, Secrets, or (async) functions that are asked at every connect. None: as asyncpg finds them,
        in PGUSER, PGPASSWORD and ~/.pgpass.
    database: its name; None: PGDATABASE, else the user's name.
    ssl: the context for TLS, or None for none. The certificate must be good for `backend.server_name`, or for
        `backend.host` when that is None, whatever address is connected to. As with TcpConnector, a context that does
        not check brings a RuntimeWarning.
    role: which servers are wanted: "primary" accepts writes, "replica" does not, "any" is either.
    application_name, server_settings: settings of the sessions; a reset goes back to them.
    options: further arguments of asyncpg.connect(), such as command_timeout or statement_cache_size.
    reset: "when needed" rolls back and resets the session (the role, RESET ALL, UNLISTEN *, advisory locks, cursors)
        after a claim that was cancelled, or left a transaction, a cancelled query, or a listener; what a claim has SET
        stays.
        "always" does it after every claim, which costs a round trip or two.
    on_connect, on_acquire: coroutine functions called with each new connection, and with each before a claim gets it.
        What they raise counts as a failure of the backend.

    Raises TypeError or ValueError, naming the parameter, for anything else.
    """

    def __init__(  # noqa: PLR0913 - each is one setting of PostgreSQL's or of the driver's, and has a default
        self,
        *,
        user: Credential | None = None,
        password: Credential | None = None,
        database: str | None = None,
        ssl: tls.SSLContext | None = None,
        role: Role = "any",
        application_name: str | None = None,
        server_settings: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        reset: Reset = "when needed",
        on_connect: Hook | None = None,
        on_acquire: Hook | None = None,
    ) -> None:
        """Check the settings. Opens nothing."""
        self._login = Login(user, password)
        self._database = database
        self._ssl = checked_context(ssl)
        self._role = RoleKeeper(role)
        self._settings = _checked_settings(application_name, server_settings)
        self._options = _checked_options(options)
        own = type(self).on_recycle is not AsyncpgConnector.on_recycle
        self._recycles_always = checked_reset(reset) == "always" or own
        self._on_connect = checked_hook("on_connect", on_connect)
        if (hook := checked_hook("on_acquire", on_acquire)) is not None:
            self._call_at_claims(hook)
        self._dialler = Dialler()
        self._known: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()

    def __repr__(self) -> str:
        """Show the settings that can hold no secret."""
        context = "None" if self._ssl is None else "<SSLContext>"
        return f"{type(self).__name__}(ssl={context}, role={self._role.role!r})"

    async def connect(self, backend: Backend) -> asyncpg.Connection:
        """Connect, log in, see to the role, call on_connect. Raises ConnectError, BackendUnfitError when it is another.

        A host that is a name is looked up as TcpConnector does it. Cancelled, it leaves nothing open. What was
        refused is not tried again there for five seconds.
        """
        login = await self._login.ask(backend.name)
        loop = DiallingLoop(self._dialler, backend, None if self._ssl is None else server_name(backend))
        try:
            connection = await self._open(backend, loop, login)
        except BaseException as error:
            loop.abort()
            if isinstance(error, Exception) and not isinstance(error, ConnectError):
                told = self._told(backend, error, login)
                raise told from told.__cause__
            raise
        loop.listen_in(connection)
        self._known[connection] = _Known(backend.name, loop, connection.get_settings())
        try:
            await self._prepare(connection, login.secrets)
        except BaseException:
            self.abort(connection)
            raise
        return connection

    async def validate(self, connection: asyncpg.Connection) -> None:
        """Ask the server whether it accepts writes. Raises BackendUnfitError when the role wants it otherwise."""
        known = self._known[connection]
        question = self._role.question()
        answer: Any = await connection.fetchval(READ_ONLY_QUERY)
        known.proof = self._role.prove(known.backend, question, read_only=answer == "on")

    def _call_at_claims(self, hook: Hook) -> None:
        """Have an on_acquire, before that of a class derived from this one: for a pool each claim takes longer then."""
        own = self.on_acquire

        async def on_acquire(connection: asyncpg.Connection) -> None:
            await hook(connection)
            await own(connection)

        vars(self)["on_acquire"] = on_acquire

    async def on_recycle(self, connection: asyncpg.Connection, outcome: Outcome) -> None:
        """Roll back, reset the session, take away what listens, and see to the role."""
        known = self._known[connection]
        if connection.is_closed():
            raise ConnectError("the connection is closed", known.backend)
        if outcome is Outcome.LEAKED:
            raise ConnectError(
                "the claim was lost without release, and somebody may still use the connection", known.backend
            )
        if known.loop.cancels_in_vain:
            raise ConnectError("a COPY was given up when it was over, which asyncpg does not bear", known.backend)
        await _protocol(connection)._wait_for_cancellation()  # noqa: SLF001 - as every query does
        if known.loop.awaits_an_answer:
            raise ConnectError(
                "a query is still under way on the connection, though its claim has ended", known.backend
            )
        try:
            await self._reset(connection, known)
        except asyncpg.InternalClientError as error:
            self.abort(connection)  # the driver would wait for an answer, to a query that was not sent
            raise ConnectError("a COPY was given up in the middle of its rows", known.backend) from error
        await self.validate(connection)

    async def _reset(self, connection: asyncpg.Connection, known: _Known) -> None:
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK")
        # As connection.reset() does it, which reports to the loop's exception handler what it has rolled back.
        connection._top_xact = None  # noqa: SLF001 - as above
        connection._listeners.clear()  # noqa: SLF001 - as above
        await connection.execute(_OWN_ROLE + (connection.get_reset_query() or ""))
        for now, before in zip(_callbacks(connection), known.callbacks, strict=True):
            now.clear()
            now.update(before)

    async def close(self, connection: asyncpg.Connection) -> None:
        """Say goodbye to the server, and wait until it has closed. When it is cancelled, it aborts.

        A server that has ended the session is told nothing: asyncpg would connect again, to cancel what it believes to
        be under way.
        """
        loop = self._known[connection].loop
        if loop.is_closing or loop.cancels_in_vain:
            self.abort(connection)
            return
        try:
            await connection.close()
        except BaseException:
            self.abort(connection)
            raise

    def abort(self, connection: asyncpg.Connection) -> None:
        """Close at once, also when the loop has stopped or is closed. A query under way goes on until it notices."""
        known = self._known[connection]
        with contextlib.suppress(RuntimeError):  # the loop is closed; the transport cannot ask it to go on
            connection.terminate()
        known.loop.abort()

    def is_closed(self, connection: asyncpg.Connection) -> bool:
        """Say whether the connection is closed, or its server has lost the role since it was last asked."""
        known = self._known[connection]
        return connection.is_closed() or known.loop.is_closing or self._role.is_void(known.backend, known.proof)

    def needs_recycle(self, connection: asyncpg.Connection, outcome: Outcome) -> bool:
        """Say whether anything must be done before the next claim. By what the driver knows; nothing is asked.

        An exception in the claim is no reason by itself: the transaction was rolled back, or is still open. True as
        well for a subclass with an on_recycle of its own.
        """
        if outcome is Outcome.CANCELLED or outcome is Outcome.LEAKED or self._recycles_always or connection.is_closed():
            return True
        known = self._known[connection]
        return (
            connection.is_in_transaction()
            # A BEGIN failed, or the transaction was ended behind the driver's back: the next one would be a nested one.
            or connection._top_xact is not None  # noqa: SLF001 - there is no public word for it
            or known.loop.is_in_answer
            or _protocol(connection)._is_cancelling()  # noqa: SLF001 - as above
            or bool(connection._listeners)  # noqa: SLF001 - as above
            or _callbacks(connection) != known.callbacks
            or (self._role.matters and self._may_have_lost_role(known, outcome))
        )

    async def _open(self, backend: Backend, loop: DiallingLoop, login: Credentials) -> asyncpg.Connection:
        unbounded: dict[str, Any] = {"timeout": None}  # the pool bounds it
        return await asyncpg.connect(
            host=backend.host,
            port=backend.port,
            user=None if login.user is None else login.user.reveal(),
            # The connection keeps what it is given.
            password=None if login.password is None else login.password.reveal,
            database=self._database,
            ssl=False if self._ssl is None else self._ssl,
            server_settings=self._settings,
            target_session_attrs="any",
            loop=loop,
            **unbounded,
            **self._options,
        )

    def _told(self, backend: Backend, error: Exception, login: Credentials) -> ConnectError:
        """Make the error to raise for what the driver has raised."""
        where = f"{backend.host}:{backend.port}"
        state = getattr(error, "sqlstate", None) or ""
        if state.startswith("28"):
            return self._login.refusal(f"authentication failed at {where}", error, backend.name, login)
        what = f"{where} has too many connections"
        if state != _TOO_MANY:
            name = "" if self._ssl is None else f" as {server_name(backend)!r}"
            what = f"connecting to PostgreSQL at {where}{name} failed"
        return connect_error(what, error, backend.name, login.secrets)

    async def _prepare(self, connection: asyncpg.Connection, secrets: tuple[Secret | None, ...]) -> None:
        """Make what is open a connection of the pool's."""
        known = self._known[connection]
        if self._role.matters:
            await self.validate(connection)
            known.loop.tell_errors_to(self._watch(known))
        if self._on_connect is not None:
            failed = functools.partial(connect_error, backend=known.backend, secrets=secrets)
            await call_on_connect(self._on_connect, connection, failed)
            self._role.confirm(known.backend, known.proof)
        known.callbacks = tuple(map(set, _callbacks(connection)))

    def _watch(self, known: _Known) -> Callable[[BaseException], None]:
        """Make what is told of errors: a refused write says at once that the primary is none any more.

        Unless it was refused for the transaction's own sake: the server reports its state with every answer.
        """
        backend, settings = known.backend, known.settings  # not what holds this function

        def look(error: BaseException) -> None:
            refused = getattr(error, "sqlstate", None) == _READ_ONLY
            if refused and (read_only := _reported(settings)) is not None and self._role.unfit(read_only=read_only):
                self._role.lose(backend)

        return look

    def _may_have_lost_role(self, known: _Known, outcome: Outcome) -> bool:
        read_only = _reported(known.settings)
        if read_only is None:
            return outcome is not Outcome.CLEAN
        return self._role.unfit(read_only=read_only)


def _reported(settings: Any) -> bool | None:  # noqa: ANN401 - asyncpg.ConnectionSettings
    """Say whether the server refuses writes, by what it has reported; None for one older than PostgreSQL 14."""
    try:
        return bool(settings.in_hot_standby == "on" or settings.default_transaction_read_only == "on")
    except AttributeError:
        return None


def _protocol(connection: asyncpg.Connection) -> Any:  # noqa: ANN401 - written in C
    """Give the part of the driver that knows of queries being cancelled; there is no public word for it."""
    return connection._protocol  # noqa: SLF001 - see above


def _callbacks(connection: asyncpg.Connection) -> tuple[set[Any], ...]:
    """Give the driver's sets of what is called for a connection, but for notifications, which the server knows of."""
    return connection._log_listeners, connection._termination_listeners, connection._query_loggers  # noqa: SLF001


def _checked_settings(application_name: str | None, settings: Mapping[str, str] | None) -> dict[str, str]:
    all_settings = dict(settings or {})
    if application_name is not None:
        all_settings["application_name"] = application_name
    for name, text in all_settings.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"server_settings must be texts, unlike that of {shown(name)}")
    return all_settings


def _checked_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    known = inspect.signature(asyncpg.connect).parameters
    for name in options or {}:
        if name in _OURS:
            raise ValueError(f"options must not have {name!r}: {_OURS[name]}")
        if name not in known:
            raise ValueError(f"options must be arguments of asyncpg.connect(), unlike {shown(name)}")
    return dict(options or {})
