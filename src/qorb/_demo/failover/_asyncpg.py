"""The clients of the demo with PostgreSQL, and how their connections are made."""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# asyncpg comes without types.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import asyncpg  # type: ignore[import-untyped]

from qorb import PoolError
from qorb._demo.clients import PATIENCE, Clients
from qorb._demo.failover.stage import APPLICATION
from qorb.connectors.asyncpg import AsyncpgConnector

if TYPE_CHECKING:
    from collections.abc import Callable

    from qorb import Pool

_FAILURES: tuple[type[Exception], ...] = (
    *(OSError, PoolError, asyncpg.PostgresError, asyncpg.InterfaceError),
    asyncpg.InternalClientError,  # between the server's last word to a session and the end of the connection
)


def connector(role: Literal["primary", "replica"]) -> AsyncpgConnector:
    """Give what connects to the servers that have this role."""
    options = {"command_timeout": PATIENCE}
    return AsyncpgConnector(
        user="postgres", database="postgres", role=role, application_name=APPLICATION, options=options
    )


class Writers(Clients["asyncpg.Connection"]):
    """Each inserts rows, and remembers those whose insertion was acknowledged."""

    failures: ClassVar[tuple[type[Exception], ...]] = _FAILURES

    def __init__(self, pool: Pool[Any], was_well_since: Callable[[str, float], bool], *, count: int, seed: int) -> None:
        """Start nothing yet."""
        super().__init__(pool, was_well_since, count=count, seed=seed)
        self.acknowledged: set[tuple[int, int]] = set()
        """Client and turn of each."""

    async def exchange(self, connection: asyncpg.Connection, client: int, turn: int) -> None:
        """Insert a row. One whose answer does not come may have been inserted or not."""
        answer = await connection.fetchval("INSERT INTO lines VALUES ($1, $2) RETURNING turn", client, turn)
        if answer != turn:
            raise self.wrong(turn, answer)
        self.acknowledged.add((client, turn))


class Readers(Clients["asyncpg.Connection"]):
    """Each reads, with a number in its question that must be in the answer."""

    failures: ClassVar[tuple[type[Exception], ...]] = _FAILURES

    async def exchange(self, connection: asyncpg.Connection, client: int, turn: int) -> None:
        """Read a row."""
        row: Any = await connection.fetchrow(
            "SELECT $2::int AS turn, max(turn) AS last FROM lines WHERE client = $1", client, turn
        )
        if row["turn"] != turn:
            raise self.wrong(turn, row["turn"])
