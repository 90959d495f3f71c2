"""One connection to a statistics server, by the package websockets."""

from __future__ import annotations

import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus, WebSocketException

from qorb.top.terminal.dialling import dial
from qorb.top.terminal.following import PATIENCE, TroubleError
from qorb.top.terminal.words import harmless

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qorb.top.terminal.address import Address
    from qorb.top.terminal.following import Receive

_LARGEST = 16 * 2**20
"""Bytes of a message: several times what 10,000 backends take."""
_TOO_LARGE = 1009
"""The code with which a connection is closed by whoever gets something larger."""
_FAREWELL = 0.5
"""Seconds for the server to say good-bye, too."""
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
_LONGEST_ANSWER = 200


class _Straight(connect):
    """Goes where it is sent by the user, and nowhere else."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class _Brisk(ClientConnection):
    """Ends at once when something comes that is against the protocol or too large, and not when the server ends it."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.protocol.parser_exc is not None:
            self.transport.abort()


@asynccontextmanager
async def connected(address: Address) -> AsyncGenerator[Receive, None]:
    """Connect, and give what receives. Raises TroubleError. Cancellation closes the connection first."""
    headers = {} if address.token is None else {"Authorization": f"Bearer {address.token.reveal()}"}
    try:
        connection = await _Straight(
            address.url,
            sock=await dial(address.host, address.port, PATIENCE),
            additional_headers=headers,
            user_agent_header="qorb top",
            compression=None,  # what is small when it is sent and large when it is read has no place here
            proxy=None,
            open_timeout=PATIENCE,
            # The original's server reads nothing, so it answers no ping. Whether it is there its frames tell.
            ping_interval=None,
            close_timeout=_FAREWELL,
            max_size=_LARGEST,
            max_queue=2,
            create_connection=_Brisk,
        )
    except (OSError, WebSocketException, ValueError) as error:
        raise TroubleError(harmless(_why_not_connected(error))) from None

    async def receive() -> bytes:
        return await _receive(connection)

    async with connection:
        yield receive


async def _receive(connection: ClientConnection) -> bytes:
    try:
        return await connection.recv(decode=False)
    except ConnectionClosed as closed:
        raise TroubleError(harmless(_why_closed(closed))) from None


def _why_closed(closed: ConnectionClosed) -> str:
    if closed.sent is not None and not closed.rcvd_then_sent:
        if closed.sent.code == _TOO_LARGE:
            return f"the server sent more than {_LARGEST // 2**20} MiB at once"
        return f"the server does not keep to the WebSocket protocol ({closed.sent.reason or closed.sent.code})"
    if closed.rcvd is not None:
        reason = f"{closed.rcvd.code} {closed.rcvd.reason}".strip()
        return f"the server closed the connection ({reason})"
    return "the connection is lost"


def _why_not_connected(error: Exception) -> str:
    match error:
        case ConnectionRefusedError():
            reason = "the connection is refused: nobody listens there"
        case TimeoutError():
            reason = f"no answer within {PATIENCE:.0f} s"
        case socket.gaierror():
            reason = f"the host is not found ({error.strerror})"
        case UnicodeError():
            reason = f"the host has a name that cannot be one ({error})"
        case ssl.SSLCertVerificationError():
            reason = f"the server's certificate cannot be verified ({error.verify_message})"
        case ssl.SSLError():
            reason = f"TLS cannot be agreed upon ({error.reason}); does the server speak it?"
        case OSError():
            reason = f"cannot connect ({error.strerror or error})"
        case InvalidStatus():
            reason = _why_refused(error)
        case InvalidMessage():
            reason = "what answers there is no HTTP server"
        case _:
            reason = f"what answers there does not speak WebSocket ({error})"
    return reason


def _why_refused(refused: InvalidStatus) -> str:
    response = refused.response
    code = response.status_code
    answer = bytes(response.body or b"")[:_LONGEST_ANSWER].decode(errors="replace").strip().rstrip(".")
    said = f": {answer}" if answer and not answer.startswith(("<", "{")) else ""
    answered = f"{code} {response.reason_phrase}".strip() + said
    if code == _UNAUTHORIZED:
        return f"the server wants a token, or another one ({answered}); give it by QORB_TOP_TOKEN or --token"
    if code == _FORBIDDEN:
        return f"the server does not let us in ({answered})"
    if code == _NOT_FOUND:
        return f"there are no such statistics ({answered}); is the path right, and the pool's name?"
    return f"the server answered {answered}"
