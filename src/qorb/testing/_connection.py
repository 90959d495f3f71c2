"""FakeConnection, and Call: what FakeConnector makes, and what it remembers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qorb.errors import ConnectError

if TYPE_CHECKING:
    from qorb.backend import Backend
    from qorb.testing._fakes import FakeConnector


@dataclass(slots=True, eq=False, repr=False)
class FakeConnection:
    """A connection to nowhere."""

    id: int
    """Unique within its connector, from 1."""
    backend: Backend
    closed: bool = False
    """No longer open, whichever side has closed it."""
    opened_by: str = ""
    """The name of the task that called connect()."""
    connector: FakeConnector | None = None

    def __repr__(self) -> str:
        """Say which one it is."""
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} {self.id} to {self.backend}, {state}>"

    async def request(self, text: str = "ping") -> str:
        """Stand for the conversation of a claimer: send a text and get the same text back after the usual latency.

        As on a real wire, an answer that nobody waits for any more stays in the way: after a request() that was
        cancelled the next one reads the answer to the former, and fails the test, because that is an answer that
        reached somebody else. Two requests at a time on one connection fail it, too. Raises ConnectError when the
        connection is closed, or is closed meanwhile.
        """
        if self.connector is None:
            raise ConnectError("this connection was not made by a FakeConnector", self.backend.name)
        return await self.connector.exchange(self, text)


@dataclass(slots=True, eq=False)
class Call:
    """One call of a connector's method."""

    operation: str
    backend: Backend
    connection: FakeConnection | None
    """None for connect."""
    task: str
    """The name of the task that made the call; empty outside a task."""
    started: float
    """By the loop's clock; NaN when no loop was running."""
    ended: float | None = None
    """None while the call is in flight."""
    raised: type[BaseException] | None = None
    """The class of what it raised, CancelledError included. Not the exception, which would keep its frames alive."""
