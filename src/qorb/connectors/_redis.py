"""What a claim on Redis gets: a client of redis-py on one connection that knows whether it is in step."""

# pyright: reportUnknownMemberType=false
# redis-py does not tell all of its types.

from __future__ import annotations

import asyncio
from inspect import signature
from typing import TYPE_CHECKING, Any, NoReturn, cast

from qorb.connectors._redis_session import Session
from qorb.credentials import Secret, connect_error

try:
    import redis.asyncio
    from redis.asyncio.connection import AbstractConnection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as error:
    raise ImportError('RedisConnector needs redis; run: pip install "qorb[redis]"') from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis.typing import EncodableT

    from qorb.backend import Backend
    from qorb.connectors.tcp import TcpStream
    from qorb.errors import ConnectError

_CLOSED = "this connection is closed, and is not opened again: release the claim and make another"
_BUSY = (
    "this claim has one connection, and that is in use: by a command of another task, a pipeline with WATCH, a pubsub, "
    "a monitor or client(); finish that first, or claim another connection for it"
)
FAILURES = (redis.RedisError, OSError, ValueError)
"""What redis-py raises; ValueError for an answer that is none of Redis."""
REFUSED_LOGIN = redis.AuthenticationError
_UNTOLD = {"driver_info": None} if "driver_info" in signature(AbstractConnection).parameters else {}
"""Otherwise redis-py reads its own version from disk for each connection; it came with version 7."""
_MOST_WORDS = 2
"""So many words of a command say what it leaves behind."""


class Wire(redis.asyncio.Connection):
    """A connection of redis-py over a stream that is open already. It counts commands and replies, never reconnects.

    `read_only` is called when the server has refused a write for being a replica. Must be dropped in the end.
    """

    def __init__(
        self, stream: TcpStream, backend: Backend, options: dict[str, Any], read_only: Callable[[], None]
    ) -> None:
        """Bind the stream. Sends nothing; `options` are those of redis-py's Connection."""
        host, port = backend.address
        plain: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_timeout": None, **_UNTOLD}
        super().__init__(host=host, port=port, **plain, **options)
        self.stream: TcpStream = stream
        self.backend: str = backend.name
        self.proof: int = 0
        self.session: Session = Session()
        self.lost: bool = False
        """Whether the server has ended the connection, or answered with what is no answer: not so when we closed it."""
        self._read_only = read_only
        self._packed: list[Sequence[object]] = []
        self._reader = stream.reader
        self._writer = stream.writer
        self._parser.on_connect(self)  # type: ignore[no-untyped-call]

    @property
    def fault(self) -> str | None:
        """Why the connection must not be used again, without I/O; None: it is in step."""
        if self._packed:
            return "a command was packed and not sent, so the connection may be out of step"
        return self.session.fault

    @property
    def has_unread(self) -> bool:
        """Whether the parser holds bytes that nobody has read; those of the stream are its own to tell."""
        in_c = getattr(self._parser, "_reader", None)  # of hiredis, where that is installed
        return in_c is not None and bool(in_c.has_data())

    def drop(self) -> None:
        """Close at once, without waiting; also when the loop is gone."""
        self.stream.abort()
        self.forget()

    def forget(self) -> None:
        """Let go of the stream, which somebody else closes."""
        self._parser.on_disconnect()  # type: ignore[no-untyped-call]
        self._reader = self._writer = None

    def begin(self) -> None:
        """Forget what was sent: a handshake is done. A fault stays."""
        if self.session.pending == 0:
            self.session = Session()

    async def ask(self, *commands: Sequence[Any]) -> list[Any]:
        """Send commands together and give their replies; raises the first error among them. Cancelled, it closes."""
        await self.send_packed_command(self.pack_commands(commands))
        return [await self.read_response() for _ in commands]

    # What redis-py calls.

    async def connect(self) -> None:
        """Raise redis-py's ConnectionError when the connection is closed. Never suspends."""
        await self.connect_check_health()

    async def connect_check_health(
        self,
        check_health: bool = True,  # noqa: ARG002, FBT001, FBT002 - redis-py's
        retry_socket_connect: bool = True,  # noqa: ARG002, FBT001, FBT002 - redis-py's
    ) -> None:
        """Raise redis-py's ConnectionError when the connection is closed. Never suspends."""
        if not self.is_connected:
            raise redis.ConnectionError(_CLOSED)

    async def _connect(self) -> NoReturn:
        raise redis.ConnectionError(_CLOSED)

    async def disconnect(self, *_: object, **__: object) -> None:
        """Close at once. Never suspends: redis-py calls it when a command fails or is cancelled."""
        self.drop()

    def pack_command(self, *args: EncodableT) -> list[bytes]:
        """Pack a command, and note that it is to be sent."""
        packed = super().pack_command(*args)
        self._packed.append(args[:_MOST_WORDS])
        return packed

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Pack commands, and note that they are to be sent; none of them when one cannot be packed."""
        try:
            return super().pack_commands(commands)
        except BaseException:
            self._packed.clear()
            raise

    async def send_packed_command(
        self,
        command: bytes | str | Iterable[bytes],
        check_health: bool = True,  # noqa: ARG002, FBT001, FBT002 - redis-py's
    ) -> None:
        """Send what was packed, counted as sent from the first byte on. Cancelled, it closes the connection."""
        packed, self._packed = self._packed, []
        await self.connect()
        if not packed:
            self.session.spoil("bytes were sent that were not packed here, so the connection may be out of step")
        for one in packed:
            self.session.sent(one)
        try:
            await super().send_packed_command(command, check_health=False)
        except Exception:
            self.lost = True
            raise

    async def read_response(
        self,
        disable_decoding: bool = False,  # noqa: FBT001, FBT002 - redis-py's
        timeout: float | None = None,
        *,
        push_request: bool | None = False,
        disconnect_on_error: bool = True,
    ) -> Any:  # noqa: ANN401 - what Redis keeps
        """Read a reply and count it. Cancelled, it closes the connection."""
        await self.connect()
        try:
            reply = await super().read_response(
                disable_decoding, timeout, disconnect_on_error=disconnect_on_error, push_request=push_request
            )
        except redis.ResponseError as error:
            self.session.answered(error=True)
            if _says_read_only(error):
                self._read_only()
            raise
        except Exception:
            self.lost = True
            raise
        if push_request:
            self.session.spoil("messages were read, which are not counted, so the connection may be out of step")
        elif timeout is None or reply is not None:
            self.session.answered(error=False)
        return reply


class OneConnection:
    """Stands where redis-py's clients have their pool: it lends the one connection there is, to one at a time."""

    def __init__(self, wire: Wire, options: dict[str, Any]) -> None:
        """Lend `wire`; `options` are those of redis-py's Connection."""
        self.wire: Wire = wire
        self.connection_kwargs: dict[str, Any] = options
        self.lent: bool = False
        self._released: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._released.set_result(None)

    def __repr__(self) -> str:
        return f"<the one connection to {self.wire.host}:{self.wire.port}>"

    async def get_connection(self, *_: object, **__: object) -> Wire:
        """Lend the connection. Raises redis-py's errors when it is closed or lent. Never suspends."""
        if self.lent:
            raise redis.RedisError(_BUSY)
        await self.wire.connect()
        self.lent = True
        return self.wire

    def release(self, connection: object) -> asyncio.Future[None]:  # noqa: ARG002 - there is no other
        """Take it back, at once: what is awaited has been done. So nothing is left undone by a cancellation."""
        self.lent = False
        return self._released

    def get_encoder(self) -> object:
        """Give what turns values into bytes."""
        return self.wire.encoder

    def get_protocol(self) -> int:
        """Say which version of RESP is spoken."""
        return 3

    @property
    def himport_registry(self) -> object:
        """What redis-py keeps for HIMPORT."""
        return self.wire.himport_registry

    async def disconnect(self, *_: object, **__: object) -> None:
        """Close the connection. Never suspends."""
        self.wire.drop()

    aclose = disconnect

    def set_retry(self, retry: object) -> NoReturn:
        """Refuse: a command that is sent again by redis-py would need another connection."""
        raise redis.RedisError(f"a claim's connection is never opened again, so nothing is retried: {retry!r}")


class RedisClient(redis.asyncio.Redis):
    """redis-py's client, bound to the one connection of a claim.

    Commands, pipelines, transactions, pubsub and blocking commands all use that connection, one at a time; another
    raises redis.RedisError meanwhile. None is ever opened beside it, nothing is retried: once the connection is closed,
    everything raises redis.ConnectionError.
    """

    def __init__(self, *, connection_pool: OneConnection, single_connection_client: bool = False) -> None:
        """Be made by the connector, and by client()."""
        super().__init__(
            connection_pool=cast("Any", connection_pool),
            single_connection_client=single_connection_client,
        )
        self._one = connection_pool

    @property
    def wire(self) -> Wire:
        """The connection."""
        return self._one.wire

    @property
    def fault(self) -> str | None:
        """Why the connection must not be used again, without I/O; None: it is in step."""
        if self._one.lent:
            return "a command, a pipeline, a pubsub, a monitor or client() still uses the connection"
        return self._one.wire.fault

    def set_response_callback(self, command: str, callback: Callable[..., Any]) -> None:
        """As redis-py's; it is for this claim alone, and costs the connection."""
        super().set_response_callback(command, callback)
        self.wire.session.spoil("set_response_callback() was called, which was for that claim alone")

    def load_external_module(self, funcname: str, func: object) -> None:
        """As redis-py's; it is for this claim alone, and costs the connection."""
        super().load_external_module(funcname, func)  # type: ignore[no-untyped-call]
        self.wire.session.spoil("load_external_module() was called, which was for that claim alone")


def _says_read_only(error: redis.ResponseError) -> bool:
    """Whether an error tells that the server is, or has just become, a replica."""
    return isinstance(error, redis.ReadOnlyError) or (
        str(error).startswith("UNBLOCKED") and "instance state changed" in str(error)
    )


def told(what: str, error: Exception, backend: str, secrets: Sequence[Secret | None] = ()) -> ConnectError:
    """Make the error to raise for one of redis-py, with how soon to try again. Raise it `from` its own cause."""
    if isinstance(error, redis.BusyLoadingError):
        return connect_error("the server is still loading its data", error, backend, secrets)
    if "max number of clients" in str(error):
        return connect_error("the server has as many clients as it takes (maxclients)", error, backend, secrets)
    return connect_error(what, error, backend, secrets)
