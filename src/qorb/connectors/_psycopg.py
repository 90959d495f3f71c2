"""The connection that PsycopgConnector makes: psycopg's own, which can be looked at without I/O and ended at once."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from psycopg import AsyncConnection, errors, generators, pq, waiting
from psycopg.rows import Row, tuple_row

from qorb.connectors._postgres import Farewell
from qorb.credentials import Secret
from qorb.errors import shown

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult
    from psycopg.rows import AsyncRowFactory

    from qorb.connectors._postgres import RoleKeeper

T = TypeVar("T")
Settings: TypeAlias = tuple[object, ...]

IDLE = int(pq.TransactionStatus.IDLE)
ACTIVE = int(pq.TransactionStatus.ACTIVE)
_TUPLES: Any = tuple_row
_LOOK = 0.1
"""Seconds after which psycopg's wait looks whether it has been missed; it is its own default."""
_DECIDED = {
    "host": "the backends come from the resolver",
    "hostaddr": "the backends come from the resolver",
    "port": "the backends come from the resolver",
    "service": "the backends come from the resolver",
    "load_balance_hosts": "the backends come from the resolver",
    "target_session_attrs": "use the parameter role",
    "user": "use the parameter user",
    "password": "use the parameter password",
    "dbname": "use the parameter database",
    "application_name": "use the parameter application_name",
}
"""Of libpq's parameters those that cannot be given as such, and why."""
DEFAULTS: dict[str, str | int] = {
    "fallback_application_name": "qorb",
    # A peer that vanishes is noticed within about 40 seconds, as by TcpConnector.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    # Which server it is to be is not for the environment to say.
    "target_session_attrs": "any",
    "load_balance_hosts": "disable",
}
_SECRETS = {"sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}


class PsycopgConnection(AsyncConnection[Row]):
    """A psycopg.AsyncConnection that a PsycopgConnector has made. Return it to the pool instead of closing it."""

    def __init__(
        self,
        pgconn: PGconn,
        row_factory: AsyncRowFactory[Row] = _TUPLES,
    ) -> None:
        """Called by psycopg when it is logged in."""
        super().__init__(pgconn, row_factory)
        self.backend: str = ""
        """The name of the backend that it leads to."""
        self.proof: int = 0
        """By which the RoleKeeper knows when the server was seen to have the role."""
        self.doubted: bool = False
        """The server has refused to write, which may be the transaction's doing or the server's."""
        self.settled: Settings = ()
        """What settings() gave when the connection was new; see settle()."""
        self._pool = None  # psycopg's word for: it is not for its finalizer to complain
        self._keeper: RoleKeeper | None = None
        self._waits = 0
        self._patient = True
        self._aborted = False
        self._farewell = Farewell()
        self.add_notice_handler(self._farewell.listen)

    def entrust(self, backend: str, keeper: RoleKeeper) -> None:
        """Say where the connection leads, and who is to know when the server turns out to refuse writes."""
        self.backend = backend
        self._keeper = keeper

    def settings(self) -> Settings:
        """What psycopg itself keeps of a claimer's wishes; some of it may change under who holds it."""
        # Not by the properties of psycopg, which take longer: this is asked at every release.
        return (
            self._autocommit,
            self._isolation_level,
            self._read_only,
            self._deferrable,
            self.row_factory,
            self.cursor_factory,
            self.server_cursor_factory,
            self._tpc,
            self._notice_handlers,
            self._notify_handlers,
        )

    def settle(self) -> None:
        """Note the settings that put_back() goes back to."""
        *settings, notices, notifies = self.settings()
        self.settled = (*settings, [*cast("Any", notices)], [*cast("Any", notifies)])

    def leave_two_phase(self) -> None:
        """Have psycopg know of no two-phase transaction: one that was prepared is kept by the server alone."""
        self._tpc = None

    async def put_back(self) -> None:
        """Have the settings as they were when the connection was new. No I/O; needs a connection that is idle."""
        autocommit, isolation, read_only, deferrable, *others = cast("Any", self.settled)
        if self.settings() != self.settled:
            await self.set_autocommit(autocommit)
            await self.set_isolation_level(isolation)
            await self.set_read_only(read_only)
            await self.set_deferrable(deferrable)
            self.row_factory, self.cursor_factory, self.server_cursor_factory, _, notices, notifies = others
            self._notice_handlers[:], self._notify_handlers[:] = notices, notifies

    @property
    def has_news(self) -> bool:
        """Whether psycopg keeps notifications that nobody has taken."""
        return bool(self._notifies_backlog)

    def forget_news(self) -> None:
        """Have it keep none."""
        if self._notifies_backlog:
            self._notifies_backlog.clear()

    def seems_open(self) -> bool:
        """Say whether neither end has closed it, as far as can be seen without waiting."""
        if self._aborted or self._farewell.heard:
            return False
        if self.pgconn.transaction_status != IDLE:
            return not self.closed
        return not self._farewell.is_there(self.pgconn)

    @property
    def in_use(self) -> bool:
        """Whether a conversation is under way that nobody can bring to an end any more."""
        return (
            self._waits > 0
            or self._pipeline is not None
            or self.lock.locked()
            or self.pgconn.transaction_status == ACTIVE
        )

    def reported_read_only(self) -> bool | None:
        """Whether the server has said that it refuses writes; None when it says nothing of it (before PostgreSQL 14).

        A session may have set one of the two parameters for itself.
        """
        standby = self.pgconn.parameter_status(b"in_hot_standby")
        if standby is None:
            return None
        return standby == b"on" or self.pgconn.parameter_status(b"default_transaction_read_only") == b"on"

    async def run(self, statements: str) -> list[PGresult]:
        """Run statements as they are, whatever autocommit is, and give their results. Raises psycopg.Error.

        Cancelled, it leaves the connection good for nothing but closing.
        """
        async with self.lock:
            with self.impatient():
                self.pgconn.send_query(statements.encode())
                results: list[PGresult] = await self.wait(generators.execute(self.pgconn))
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result)
        return results

    @contextlib.contextmanager
    def impatient(self) -> Generator[None]:
        """Meanwhile, a cancellation does not wait until the server has cancelled the query, as psycopg has it.

        That takes seconds when the server does not answer, and the connection is closed anyway.
        """
        before, self._patient = self._patient, False
        try:
            yield
        finally:
            self._patient = before

    async def wait(self, gen: PQGen[T], *arguments: Any, **options: Any) -> T:  # noqa: ANN401 - as they are
        """Do what needs the server's answer; all that psycopg does with the connection comes by here.

        Cancelled, it cancels the query on the server and waits for that, for some seconds at most.
        """
        self._waits += 1
        try:
            if self._patient:
                return await super().wait(gen, *arguments, **options)
            return await waiting.wait_async(gen, self.pgconn.socket, *(arguments or (_LOOK,)), **options)
        except errors.ReadOnlySqlTransaction:
            self._heed_refusal()
            raise
        finally:
            self._waits -= 1
            if self._aborted and not self._waits:
                self.pgconn.finish()

    def _heed_refusal(self) -> None:
        """See whether it is the server that refuses to write. Where that does not show, it is asked at the release."""
        if self._keeper is None or self._keeper.role != "primary":
            return
        self.doubted = True
        if self.reported_read_only():
            self._keeper.lose(self.backend)

    def abort(self) -> None:
        """Close at once. Whoever waits for the server gets an OperationalError in the loop's next turn."""
        if self.closed:
            return
        self._aborted = True
        if not self._waits:
            self.pgconn.finish()
            return
        # The number of its socket must not go to another connection while the loop still waits on it for this one: so
        # the socket is shut down, which wakes who waits, and closed by wait() as that ends.
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=self.pgconn.socket)
            try:
                sock.shutdown(socket.SHUT_RDWR)
            finally:
                sock.detach()


def checked_parameters(parameters: Mapping[str, str | int | Secret]) -> dict[str, str | int | Secret]:
    """Give what may be kept of parameters of libpq. Raises TypeError or ValueError naming the one."""
    known = {one.keyword.decode() for one in pq.Conninfo.get_defaults()}
    for name in parameters:
        if name in _DECIDED:
            raise ValueError(f"parameters must not have {name!r}: {_DECIDED[name]}")
        if name not in known:
            raise ValueError(f"parameters: this libpq knows no {shown(name)}")
    values = {name: _checked_value(f"parameters[{name!r}]", value) for name, value in parameters.items()}
    return {
        name: Secret(str(one)) if name in _SECRETS and not isinstance(one, Secret) else one
        for name, one in values.items()
    }


def _checked_value(what: str, value: object) -> str | int | Secret:
    if not isinstance(value, str | int | Secret) or isinstance(value, bool):
        raise TypeError(f"{what} must be a text or a whole number, not something of the class {type(value).__name__}")
    return value


def checked_text(what: str, value: object) -> str:
    """Give the text. Raises TypeError naming `what`."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a text, not something of the class {type(value).__name__}")
    return value
