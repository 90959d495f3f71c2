"""How SQLAlchemy's pooling stands on a pool of qorb: each of its records is one connection of that pool.

SQLAlchemy keeps its events, its reset on return and its detection of disconnects. It opens and closes nothing: that is
done in the slots of qorb's pool, in tasks that the pool owns and within its policy.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any, cast

from qorb.connectors._postgres import Farewell
from qorb.errors import ClaimError, PoolTerminatedError, WrongLoopError

try:
    from sqlalchemy import event, exc
    from sqlalchemy import pool as pooling
    from sqlalchemy.pool.base import _ConnectionRecord
    from sqlalchemy.util import await_only
except ImportError as error:
    raise ImportError('SqlAlchemyConnector needs SQLAlchemy; run: pip install "qorb[sqlalchemy]"') from error

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from sqlalchemy import URL
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from qorb.backend import Backend
    from qorb.claim import Claim
    from qorb.connectors._dialling import DiallingLoop
    from qorb.pool import Pool

_TRIES = 3
"""How many connections a checkout takes when listeners refuse them; SQLAlchemy's own number."""


class Entry(_ConnectionRecord):
    """One connection of qorb's pool as SQLAlchemy knows it, from its first event to its last. It never reconnects."""

    def __init__(self, home: EnginePool, backend: Backend, number: int) -> None:
        """Belong to a backend; open() connects. Of two entries the later one has the higher number."""
        super().__init__(home, connect=False)
        self.backend = backend
        self.number = number
        self.url: URL | None = None
        """Where to connect to, credentials included; only while it is connecting."""
        self.options: dict[str, Any] = {}
        """What is to be told to the driver besides."""
        self.loop: DiallingLoop | None = None
        """What dials for asyncpg."""
        self.farewell = Farewell()
        """What hears of psycopg that the server has ended the session."""
        self.opened: DBAPIConnection | None = None
        """What is to be closed in the end, also after SQLAlchemy has given it up."""
        self.given_up = False
        self.claim: Claim[ConnectionPoolEntry] | None = None

    def __repr__(self) -> str:
        """Name the backend; nothing that could be a secret."""
        return f"<connection of SQLAlchemy to {self.backend.name}, {'closed' if self.opened is None else 'open'}>"

    def open(self) -> None:
        """Connect, and have the listeners of `connect` called. In a greenlet."""
        super().get_connection()

    def get_connection(self) -> DBAPIConnection:
        """Give the connection. Raises Unfit where SQLAlchemy would reconnect: that is done in the slot."""
        if self.dbapi_connection is None or self._is_hard_or_soft_invalidated():
            raise Unfit
        return self.dbapi_connection

    @property
    def is_invalidated(self) -> bool:
        """Whether SQLAlchemy wants this one not to be used again."""
        return self._is_hard_or_soft_invalidated()


class Unfit(Exception):  # noqa: N818 - it is caught one step above, and seen by nobody
    """A connection that was claimed is not to be used; another is to be had."""


class EnginePool(pooling.Pool):
    """What an engine takes for its pool: its connections are claims on a pool of qorb."""

    def __init__(self, creator: Any, **settings: Any) -> None:  # noqa: ANN401 - SQLAlchemy's affair
        """Take what SQLAlchemy's engines give to their pools."""
        super().__init__(creator, **settings)
        self._source: Callable[[], Pool[ConnectionPoolEntry] | None] = lambda: None
        self._next: Callable[[], int] = itertools.count(1).__next__
        self._void: dict[str, int] = {}
        self._disposed = 0
        self._owners: dict[int, Entry] = {}
        # Before all others: from then on the connection is closed by whoever opened it, whatever they raise.
        event.listen(self, "connect", self._own, insert=True)

    # For the connector.

    def bind(self, pool: Pool[ConnectionPoolEntry]) -> None:
        """Say where connections are claimed. Raises ValueError when it is another pool that they came from."""
        if self.source not in {None, pool}:
            raise ValueError("this connector has an engine over another pool; each pool needs a connector of its own")
        # The pool must not be kept alive by its own tasks, and those have the connector.
        self._source = weakref.ref(pool)

    @property
    def source(self) -> Pool[ConnectionPoolEntry] | None:
        """The pool of qorb."""
        return self._source()

    def new_entry(self, backend: Backend) -> Entry:
        """Make an entry that is to be opened."""
        return Entry(self, backend, self._next())

    def is_void(self, entry: Entry) -> bool:
        """Whether the engine was disposed of, or a connection to the same backend broken, since it was opened."""
        return entry.number < max(self._void.get(entry.backend.name, 0), self._disposed)

    def end(self, entry: Entry) -> DBAPIConnection | None:
        """Tell the listeners that an entry is closed, and give what its caller has to close now."""
        try:
            entry.close()
        finally:
            entry.dbapi_connection = None
            connection = self._disown(entry)
        return connection

    # For SQLAlchemy.

    def connect(self) -> PoolProxiedConnection:
        """Check a connection out; where a listener refuses one, another."""
        refusal: BaseException | None = None
        for _ in range(_TRIES):
            try:
                return super().connect()
            except Unfit as error:
                refusal = error.__context__
        raise exc.InvalidRequestError("This connection is closed") from refusal

    def _do_get(self) -> ConnectionPoolEntry:
        claim = await_only(self._claim())
        entry = cast("Entry", claim.connection)
        entry.claim = claim
        return entry

    async def _claim(self) -> Claim[ConnectionPoolEntry]:
        pool = self.source
        if pool is None:
            raise PoolTerminatedError("the pool that this engine stands on is gone; keep it as long as the engine")
        try:
            return await pool.claim()
        except ClaimError as error:
            raise exc.TimeoutError(str(error)) from error

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        entry = cast("Entry", record)
        claim, entry.claim = entry.claim, None
        if entry.dbapi_connection is None and not entry.given_up:
            self._disown(entry)  # it was detached: whoever did that closes it
        if claim is None:
            return
        try:
            if entry.is_invalidated or self.is_void(entry):
                claim.discard()
            else:
                claim.release()
        except WrongLoopError:
            # The garbage collector runs in any thread. Nobody has the claim any more, and so it goes home by itself.
            return

    def _close_connection(self, connection: DBAPIConnection, *, terminate: bool = False) -> None:
        owner = self._owners.get(id(connection))
        if owner is not None:
            owner.given_up = True  # the slot closes it, without the user waiting for that
        else:
            super()._close_connection(connection, terminate=terminate)

    def _invalidate(
        self,
        connection: PoolProxiedConnection,
        exception: BaseException | None = None,
        _checkin: bool = True,  # noqa: FBT001, FBT002 - the signature is SQLAlchemy's
    ) -> None:
        """Give up the connections to one backend: what happens to it says nothing about the others."""
        entry = getattr(connection, "_connection_record", None)
        if isinstance(entry, Entry) and not self.is_void(entry):
            self._void[entry.backend.name] = self._next()
        if _checkin and getattr(connection, "is_valid", False):
            connection.invalidate(exception)

    def recreate(self) -> Self:
        """Stay what it is: the pool of qorb goes on."""
        return self

    def dispose(self) -> None:
        """Use none of the connections any more that there are now."""
        self._disposed = self._next()

    def status(self) -> str:
        """Say how many connections there are, and how many are in use."""
        pool = self.source
        if pool is None:
            return "no pool"
        backends = pool.stats().backends.values()
        claimed = sum(one.claimed_slots for one in backends)
        idle = sum(one.unclaimed_slots + one.checking_slots for one in backends)
        return f"Pool {pool.name}: {claimed + idle} connections to {len(backends)} backends, {claimed} of them in use"

    def _own(self, connection: DBAPIConnection, record: Entry) -> None:
        record.opened = connection
        self._owners[id(connection)] = record

    def _disown(self, entry: Entry) -> DBAPIConnection | None:
        connection, entry.opened = entry.opened, None
        if connection is not None:
            self._owners.pop(id(connection), None)
        return connection
