"""Connector: how to open, check, prepare, clean and close one connection."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

from qorb.errors import ConnectError

if TYPE_CHECKING:
    from qorb.backend import Backend

C = TypeVar("C")


class Outcome(enum.Enum):
    """How a claim ended."""

    CLEAN = "clean"
    ERROR = "error"
    """The `async with` body raised."""
    CANCELLED = "cancelled"
    """The `async with` body was cancelled."""
    LEAKED = "leaked"
    """The Claim was garbage-collected without release."""


class Connector(ABC, Generic[C]):
    """How to open, check, prepare, clean and close one connection. Any method may be cancelled at any await.

    Whatever a method raises counts as a failure of that connection's backend and never harms the pool. The pool bounds
    every call by its policy, never runs two calls on one connection at a time, and calls nothing after it terminated.
    """

    @abstractmethod
    async def connect(self, backend: Backend) -> C:
        """Open a connection to `backend.address`. Not lazy: what is returned is known to be good.

        Bounded by Policy.connect_timeout. A call that is cancelled must leave nothing open.
        """

    async def validate(self, connection: C) -> None:
        """Raise when the connection is bad. Default: it is good.

        Bounded by Policy.health_check_timeout. It is cancelled when that is over, or the slot ends meanwhile; the
        connection is closed then.
        """

    async def on_acquire(self, connection: C) -> None:
        """Prepare the connection for a claim, in the claimer's task and context. Default: nothing.

        Raise when it is not fit: it is closed then, and the claim goes on with another until its deadline. Bounded by
        Policy.health_check_timeout. When the claimer is cancelled, so is this: let it pass; the connection is
        released with Outcome.CANCELLED then.
        """

    async def on_recycle(self, connection: C, outcome: Outcome) -> None:
        """Make the connection fit for the next claim, or raise to have it closed.

        Default: raise unless `outcome` is CLEAN (an interrupted conversation may still have an answer on its way, which
        the next claimer would read), then validate(). Bounded by Policy.health_check_timeout. It is cancelled when that
        is over, or the slot ends meanwhile; the connection is closed then.
        """
        if outcome is not Outcome.CLEAN:
            raise ConnectError(f"the claim did not end cleanly ({outcome.value}), so the connection is not used again")
        await self.validate(connection)

    async def close(self, connection: C) -> None:
        """End the connection gracefully. Default: abort().

        Bounded by Policy.close_timeout. One that fails, or is cancelled because its time is over, is followed by
        abort().
        """
        self.abort(connection)

    def abort(self, connection: C) -> None:
        """End the connection at once, without waiting and without an exception. Default: nothing."""

    def is_closed(self, connection: C) -> bool:  # noqa: ARG002 - for overriding
        """Say whether the connection is visibly dead. Cheap, no I/O: it is asked at every claim. Default: False."""
        return False

    def needs_recycle(self, connection: C, outcome: Outcome) -> bool:  # noqa: ARG002 - for overriding
        """Say whether on_recycle must run before the next claim. Cheap, no I/O: it is asked at every release.

        Default: False only when the outcome is CLEAN and neither on_recycle nor validate is overridden. A driver that
        can see its own state (no open transaction, nothing unread) answers False and saves the round trip.
        """
        return outcome is not Outcome.CLEAN or overrides(self, "on_recycle") or overrides(self, "validate")


def overrides(connector: Connector[C], method: str) -> bool:
    """Say whether the connector has a method of its own instead of Connector's default."""
    return getattr(type(connector), method) is not getattr(Connector, method) or method in vars(connector)
