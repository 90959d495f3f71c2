"""The states of a slot and the moves between them: the table is the law.

A slot is a commitment to hold one connection. Every change of its state is checked against MOVES, and the diagram in
the documentation is drawn from it.
"""

from __future__ import annotations

import enum


class SlotState(enum.Enum):
    """Where a slot is in its life. The value is the name that travels on the wire."""

    CONNECTING = "Connecting"
    """No connection: attempting, or backing off."""
    UNCLAIMED = "ConnectedUnclaimed"
    """Idle, ready to be claimed."""
    CHECKING = "ConnectedChecking"
    """A health check is under way."""
    CLAIMED = "ConnectedClaimed"
    """Handed out."""
    RECYCLING = "ConnectedRecycling"
    """Released, being made fit for the next claim."""
    TERMINATED = "Terminated"
    """Told to end; what it held is being closed. Absorbing."""


CONNECTED = frozenset({SlotState.UNCLAIMED, SlotState.CHECKING, SlotState.CLAIMED, SlotState.RECYCLING})

MOVES: dict[tuple[SlotState, SlotState], str] = {
    (SlotState.CONNECTING, SlotState.UNCLAIMED): "connected",
    (SlotState.CONNECTING, SlotState.TERMINATED): "ended",
    (SlotState.UNCLAIMED, SlotState.CLAIMED): "claimed",
    (SlotState.UNCLAIMED, SlotState.CHECKING): "check due",
    (SlotState.UNCLAIMED, SlotState.CONNECTING): "dead, too old or moved",
    (SlotState.UNCLAIMED, SlotState.TERMINATED): "ended",
    (SlotState.CHECKING, SlotState.UNCLAIMED): "check passed",
    (SlotState.CHECKING, SlotState.CONNECTING): "check failed",
    (SlotState.CHECKING, SlotState.TERMINATED): "ended",
    (SlotState.CLAIMED, SlotState.UNCLAIMED): "released",
    (SlotState.CLAIMED, SlotState.RECYCLING): "released, to be recycled",
    (SlotState.CLAIMED, SlotState.CONNECTING): "discarded, or on_acquire failed",
    (SlotState.CLAIMED, SlotState.TERMINATED): "released by a leaving backend, or revoked",
    (SlotState.RECYCLING, SlotState.UNCLAIMED): "recycled",
    (SlotState.RECYCLING, SlotState.CONNECTING): "recycling failed",
    (SlotState.RECYCLING, SlotState.TERMINATED): "ended",
}
"""(from, to) -> why. What is not here cannot happen."""


class IllegalMoveError(RuntimeError):
    """A move that the table does not know: a bug in the pool."""


def check_move(old: SlotState, new: SlotState) -> None:
    """Raise IllegalMoveError unless the table has the move."""
    if (old, new) not in MOVES:
        raise IllegalMoveError(f"a slot cannot go from {old.name} to {new.name}")


def diagram() -> str:
    """Draw the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> CONNECTING: slot created"]
    lines += [f"    {old.name} --> {new.name}: {why}" for (old, new), why in MOVES.items()]
    lines.append("    TERMINATED --> [*]")
    return "\n".join(lines) + "\n"
