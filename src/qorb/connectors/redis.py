"""RedisConnector: Redis and Valkey through redis-py, with connections that are provably in step."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from qorb.connector import Connector, Outcome
from qorb.connectors._postgres import Role, RoleKeeper
from qorb.connectors._redis import FAILURES, REFUSED_LOGIN, OneConnection, RedisClient, Wire, told
from qorb.connectors.tcp import TcpConnector
from qorb.credentials import Credential, Credentials, Login
from qorb.errors import ConnectError, shown

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Sequence

    from qorb.backend import Backend

__all__ = ["RedisClient", "RedisConnector", "Role"]

_CLIENT_NAME = re.compile("[!-~]{1,512}")


class RedisConnector(Connector[RedisClient]):
    """Opens connections to Redis (6 or later) and Valkey; the pool hands out redis-py's client, bound to one of them.

    username, password: values, Secrets, or functions (also coroutine functions) that are asked at every connect. With a
        password alone it is the user "default".
    db: the number of the database.
    client_name: what CLIENT LIST shows; None: nothing.
    ssl: the context for TLS, or None. As for TcpConnector: the certificate must be good for `backend.server_name`.
    role: which servers are wanted: "primary", "replica", or "any". The server is asked (ROLE) at every connect and
        check; one that refuses a write for being a replica is not used again until it says that it is a primary.
    decode_responses: whether replies are texts instead of bytes.

    Raises TypeError or ValueError, naming the parameter, for anything else.

    A connection is handed out again only when every command that was sent has its reply read, nothing is unread, and
    nobody uses it any more; all of that is known without I/O. A command that is cancelled closes its connection. What
    a claim leaves on the server, such as SELECT or WATCH, is undone by RESET and a new login.
    """

    def __init__(
        self,
        *,
        username: Credential | None = None,
        password: Credential | None = None,
        db: int = 0,
        client_name: str | None = None,
        ssl: tls.SSLContext | None = None,
        role: Role = "any",
        decode_responses: bool = False,
    ) -> None:
        """Check the settings. Opens nothing."""
        self._login = Login(username, password, user_is="username")
        if isinstance(db, bool) or not isinstance(db, int):
            raise TypeError(f"db must be a number, not {shown(db)}")
        if db < 0:
            raise ValueError(f"db must be 0 or more, not {shown(db)}")
        if client_name is not None and not (isinstance(client_name, str) and _CLIENT_NAME.fullmatch(client_name)):
            raise ValueError(
                f"client_name must be of printable characters of ASCII, without blanks, not {shown(client_name)}"
            )
        self._db = db
        self._client_name = client_name
        self._roles = RoleKeeper(role, "ROLE says that it is a replica")
        self._tcp = TcpConnector(ssl=ssl)
        self._options: dict[str, Any] = {
            "protocol": 3,
            "db": db,
            "client_name": client_name,
            "decode_responses": bool(decode_responses),
        }

    def __repr__(self) -> str:
        """Show the settings that are no secrets."""
        return f"{type(self).__name__}(db={self._db}, client_name={self._client_name!r}, role={self._roles.role!r})"

    async def connect(self, backend: Backend) -> RedisClient:
        """Connect to `backend.address`, log in, select the database. Raises ConnectError.

        When the server does not have the wanted role: BackendUnfitError. Cancelled at any await, it leaves nothing open
        (a host name is looked up as TcpConnector says).
        """
        login = await self._login.ask(backend.name)
        stream = await self._tcp.connect(backend)
        wire: Wire | None = None
        try:
            read_only = functools.partial(self._found_read_only, backend.name)
            wire = Wire(stream, backend, self._options, read_only)
            await self._shake_hands(wire, login)
            return RedisClient(connection_pool=OneConnection(wire, self._options))
        except BaseException:
            stream.abort()
            if wire is not None:
                wire.drop()
            raise

    async def validate(self, connection: RedisClient) -> None:
        """Raise ConnectError when the connection is out of step, does not answer PING, or has lost the wanted role.

        Cancelled, it closes the connection.
        """
        wire = connection.wire
        _check_usable(connection)
        try:
            if self._roles.matters:
                question = self._roles.question()
                (answer,) = await wire.ask(("ROLE",))
                wire.proof = self._roles.prove(wire.backend, question, read_only=_is_replica(answer))
            else:
                await wire.ask(("PING",))
        except FAILURES as error:
            failure = told("the check failed", error, wire.backend)
            raise failure from failure.__cause__

    async def on_recycle(self, connection: RedisClient, outcome: Outcome) -> None:
        """Undo what the claim has left on the server, or raise when that cannot be. How it ended does not matter.

        Cancelled, it closes the connection.
        """
        wire = connection.wire
        if outcome is Outcome.LEAKED:
            raise ConnectError("the claim was lost, so somebody may still use the connection", wire.backend)
        _check_usable(connection)
        if wire.session.is_changed:
            await self._shake_hands(wire, await self._login.ask(wire.backend), ("RESET",))

    async def close(self, connection: RedisClient) -> None:
        """Send what is still to be sent, end TLS, close. Cancelled, it aborts."""
        wire = connection.wire
        wire.forget()
        await self._tcp.close(wire.stream)

    def abort(self, connection: RedisClient) -> None:
        """Close at once; also when the loop has stopped or is closed."""
        connection.wire.drop()

    def is_closed(self, connection: RedisClient) -> bool:
        """Say whether the connection is closed or out of step, or the server has lost the role. No I/O."""
        wire = connection.wire
        return (
            not wire.is_connected
            or connection.fault is not None
            or self._tcp.is_closed(wire.stream)
            or wire.has_unread
            or self._roles.is_void(wire.backend, wire.proof)
        )

    def needs_recycle(self, connection: RedisClient, outcome: Outcome) -> bool:
        """Say whether the claim has left something on the server that must be undone. No I/O.

        Not for a connection that is closed or out of step because of what its claimer did: is_closed() has it replaced,
        and that is no failure of the server. True as well for a subclass with an on_recycle of its own.
        """
        wire = connection.wire
        return (
            outcome is Outcome.LEAKED
            or wire.lost
            or (wire.session.is_changed and connection.fault is None)
            or type(self).on_recycle is not RedisConnector.on_recycle
        )

    async def _shake_hands(self, wire: Wire, login: Credentials, first: Sequence[str] = ()) -> None:
        """Have the connection as every claim finds it, in one round trip. Raises ConnectError, BackendUnfitError."""
        commands: list[Sequence[str | int]] = [first] if first else []
        commands.append(self._hello(login))
        if self._db:
            commands.append(("SELECT", self._db))
        if self._roles.matters:
            commands.append(("ROLE",))
        question = self._roles.question()
        try:
            answers = await wire.ask(*commands)
            if self._roles.matters:
                wire.proof = self._roles.prove(wire.backend, question, read_only=_is_replica(answers[-1]))
        except FAILURES as error:
            if isinstance(error, REFUSED_LOGIN):
                failure = self._login.refusal("authentication failed", error, wire.backend, login)
            else:
                failure = told("the handshake failed", error, wire.backend, login.secrets)
            raise failure from failure.__cause__
        wire.begin()

    def _hello(self, login: Credentials) -> Sequence[str]:
        words = ["HELLO", "3"]
        if login.user is not None or login.password is not None:
            user = "default" if login.user is None else login.user.reveal()
            words += ["AUTH", user, "" if login.password is None else login.password.reveal()]
        if self._client_name is not None:
            words += ["SETNAME", self._client_name]
        return words

    def _found_read_only(self, backend: str) -> None:
        if self._roles.unfit(read_only=True):
            self._roles.lose(backend)


def _check_usable(connection: RedisClient) -> None:
    """Raise ConnectError when the connection must not be used again."""
    if connection.wire.lost or not connection.wire.is_connected:
        raise ConnectError("the connection is closed", connection.wire.backend)
    if (fault := connection.fault) is not None:
        raise ConnectError(fault, connection.wire.backend)


def _is_replica(answer: Any) -> bool:  # noqa: ANN401 - what the server says
    """Read the answer to ROLE. Raises ValueError for one that is none, such as a sentinel's."""
    role = answer[0] if isinstance(answer, list) and answer else answer
    text = role.decode("ascii", "replace") if isinstance(role, bytes) else str(role)
    if text not in {"master", "slave", "primary", "replica"}:
        raise ValueError(f"the answer to ROLE is neither of a primary nor of a replica: {shown(text)}")
    return text in {"slave", "replica"}
