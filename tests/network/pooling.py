"""What the tests of pools over real sockets have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qorb import Policy, Pool
from qorb.connectors import TcpConnector, TcpStream
from qorb.resolvers import FixedResolver
from tests.connectors.peers import eventually

if TYPE_CHECKING:
    from tests.connectors.peers import Listener
    from tests.network.servers import Server

BRISK = Policy(
    spares_wanted=4,
    max_slots=8,
    connect_timeout=0.3,
    min_connection_backoff=0.01,
    max_connection_backoff=0.2,
    health_interval=0.1,
    health_check_timeout=0.3,
)
# No checks: only claims look at the connections.
QUIET = Policy(spares_wanted=4, max_slots=8, health_interval=3600)


class Pinging(TcpConnector):
    """Checks that the server still answers."""

    async def validate(self, connection: TcpStream) -> None:
        await super().validate(connection)
        await ask(connection)


def pool_over(
    *backends: Listener | str, connector: TcpConnector | None = None, policy: Policy = BRISK
) -> Pool[TcpStream]:
    resolver = FixedResolver([one if isinstance(one, str) else one.backend for one in backends])
    return Pool("test", resolver, connector or TcpConnector(), policy)


async def ask(stream: TcpStream, question: bytes = b"ping") -> None:
    """Send a question to an echo server, and check its answer."""
    stream.writer.write(question)
    assert await stream.reader.readexactly(len(question)) == question


async def claim_and_ask(pool: Pool[TcpStream]) -> str:
    """Return the name of the backend that answered."""
    claim = await pool.claim()
    with claim as stream:
        await ask(stream)
        return claim.backend.name


async def at_rest(pool: Pool[Any], server: Server) -> None:
    """Wait until the pool has its spares, and each of its connections is idle at both ends."""

    def is_at_rest() -> bool:
        return any(
            stats.unclaimed_slots >= pool.policy.spares_wanted
            and stats.connecting_slots == stats.checking_slots == 0
            and stats.unclaimed_slots == len(server.connections)
            for stats in pool.stats().backends.values()
        )

    await eventually(is_at_rest)
