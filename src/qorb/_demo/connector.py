"""How the demo's pool opens and checks a connection to an echo server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qorb import ConnectError
from qorb.connectors.tcp import TcpConnector, TcpStream

if TYPE_CHECKING:
    from qorb import Backend

_PROBE = b"\n"


class EchoConnector(TcpConnector):
    """TCP connections that are good when a byte sent comes back."""

    async def connect(self, backend: Backend) -> TcpStream:
        """Connect and ask once. A server that hangs accepts connections too: only its answer says that it is well."""
        stream = await super().connect(backend)
        try:
            await self.validate(stream)
        except BaseException:
            self.abort(stream)
            raise
        return stream

    async def validate(self, connection: TcpStream) -> None:
        """Send a byte and read it. Raises ConnectError when another one, or none, comes back."""
        await super().validate(connection)
        connection.writer.write(_PROBE)
        reply = await connection.reader.read(1)
        if reply != _PROBE:
            raise ConnectError(
                f"sent {_PROBE!r} and got {reply!r} back" if reply else "the server closed the connection"
            )
