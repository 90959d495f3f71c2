"""What the connectors for PostgreSQL share: which of the servers is the one that is wanted, and what it is called."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

from qorb.errors import BackendUnfitError, ConnectError, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qorb.backend import Backend

T = TypeVar("T")
Failure: TypeAlias = "Callable[[str, Exception], ConnectError]"

Role: TypeAlias = Literal["primary", "replica", "any"]
"""Which servers are wanted: those that accept writes, those that do not, or both."""

Reset: TypeAlias = Literal["when needed", "always"]
"""After which claims a session is reset: after those that may have left something, or after each."""

READ_ONLY_QUERY = "SELECT pg_catalog.current_setting('transaction_read_only')"
"""Asked outside of a transaction. Whether a server is in recovery says less: one that was demoted in place is not."""
# libpq tells no SQLSTATE of a login that failed: class 28 has to be known by its words.
REFUSED_LOGIN = re.compile(
    r"authentication|pg_hba\.conf|no password supplied|not permitted to log in|role .* does not exist"
)
_READY_FOR_QUERY = b"Z\0\0\0\5"
_ERROR = ord("E")
_UNASKED = b"ESNA"
"""The kinds of messages that come without a query: errors, new values of parameters, notices and notifications."""
_ASK_AGAIN = 0.5
"""Seconds between two looks at a server that has not the role: one that is promoted is used within a second."""


class RoleKeeper:
    """Keeps to one role for one connector: says what fits, and remembers which servers have lost the role since when.

    A connection that was seen to fit has a proof: the number of the question that its server has answered. When a
    server is found to have lost the role, all proofs for which it was asked before are void.
    """

    def __init__(self, role: Role, sign: str = "transaction_read_only is on") -> None:
        """Raise ValueError for a role that is none. `sign` is what tells that a server refuses writes."""
        if role not in get_args(Role):
            raise ValueError(f"role must be 'primary', 'replica' or 'any', not {shown(role)}")
        self.role: Role = role
        self._sign = sign
        self._next: Callable[[], int] = itertools.count(1).__next__
        self._lost: dict[str, int] = {}

    @property
    def matters(self) -> bool:
        """Whether there is anything to ask."""
        return self.role != "any"

    def question(self) -> int:
        """Give the number of a question that is about to be asked: what happens later, the answer may not know of."""
        return self._next()

    def prove(self, backend: str, question: int, *, read_only: bool) -> int:
        """Give the proof that a server fits, by its answer to a question. Raises BackendUnfitError."""
        if self.unfit(read_only=read_only):
            self.lose(backend)
            what = f"refuses writes ({self._sign})" if read_only else "accepts writes"
            raise BackendUnfitError(
                f"the server {what}, and role={self.role!r} is wanted", backend, max_backoff=_ASK_AGAIN
            )
        self.confirm(backend, question)
        return question

    def confirm(self, backend: str, proof: int) -> None:
        """Raise BackendUnfitError for a proof that is void."""
        if self.is_void(backend, proof):
            raise BackendUnfitError(
                f"the server has meanwhile lost the role, and role={self.role!r} is wanted",
                backend,
                max_backoff=_ASK_AGAIN,
            )

    def unfit(self, *, read_only: bool) -> bool:
        """Whether a server is not the one that is wanted."""
        return self.matters and read_only != (self.role == "replica")

    def lose(self, backend: str) -> None:
        """Note that a server has not the role, so that no connection from before is used again."""
        self._lost[backend] = self._next()

    def is_void(self, backend: str, proof: int) -> bool:
        """Whether the server has been found without the role since it was asked."""
        return proof < self._lost.get(backend, 0)


class Farewell:
    """Hears when a server ends a session of psycopg: that comes as a notice when nobody waits for an answer."""

    def __init__(self) -> None:
        self.heard = False

    def listen(self, notice: Any) -> None:  # noqa: ANN401 - psycopg.errors.Diagnostic
        """Take a notice; for add_notice_handler()."""
        if notice.severity_nonlocalized in {"FATAL", "PANIC"}:
            self.heard = True

    def is_there(self, pgconn: Any) -> bool:  # noqa: ANN401 - psycopg.pq.PGconn
        """Look whether the server has ended a session that nobody uses, which psycopg does not watch. Never waits.

        One look at the socket takes a microsecond.
        """
        try:
            pgconn.consume_input()
            pgconn.is_busy()  # it is this that reads what has come: a farewell, or new values of parameters
        except Exception:  # noqa: BLE001 - psycopg.OperationalError, in a module that does not import it
            return True
        return self.heard


class Overhearing:
    """Hears, in what a server sends, that it has ended a session.

    asyncpg makes nothing of such a message while no query is under way, and calls the connection open until its end
    comes, which may be later. The messages are those of PostgreSQL's documentation, "Message Formats".
    """

    def __init__(self) -> None:
        self.farewell = False
        """The server has ended the session."""
        self.rests = False
        """The last answer is complete, and what comes next begins with a message."""

    def asked(self) -> None:
        """Note that a query begins: what comes next is its answer."""
        self.rests = False

    def hear(self, received: bytes) -> None:
        """Take what has come, as it comes."""
        at, end = 0, len(received)
        if not self.rests:
            at = received.rfind(_READY_FOR_QUERY)
            if at < 0:
                return
            at += len(_READY_FOR_QUERY) + 1
        while at + 5 <= end and (kind := received[at]) in _UNASKED:
            if kind == _ERROR:
                self.farewell = True
            at += 1 + int.from_bytes(received[at + 1 : at + 5])
        self.rests = at == end


def checked_reset(reset: Reset) -> Reset:
    """Give the setting. Raises ValueError for what is none."""
    if reset not in get_args(Reset):
        raise ValueError(f"reset must be 'when needed' or 'always', not {shown(reset)}")
    return reset


def checked_hook(what: str, hook: T) -> T:
    """Give the function, or None. Raises TypeError naming `what`."""
    if hook is not None and not callable(hook):
        raise TypeError(f"{what} must be a coroutine function or None, not {shown(hook)}")
    return hook


async def call_on_connect(hook: Callable[[T], Awaitable[object]], connection: T, failed: Failure) -> None:
    """Await a user's function for a new connection. Raises ConnectError, made by `failed` for what it raises."""
    try:
        await hook(connection)
    except ConnectError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's function may raise anything
        told = failed("on_connect failed", error)
        raise told from told.__cause__


def libpq_host(backend: Backend) -> str:
    """Give what libpq is to take for the host's name. Raises ConnectError for what means more than a name to it."""
    name = (backend.server_name or backend.host).removesuffix(".")
    if not name or "," in name or name[0] in "/@" or not name.isprintable():
        raise ConnectError(f"no certificate can be good for the server name {name!r}", backend.name)
    return name
