"""Telling failures from what was not wanted any longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qorb import events

if TYPE_CHECKING:
    from qorb.events import Event


def given_up(event: Event) -> bool:
    """Say whether a Failed event says nothing about the service: the claimer was cancelled, the pool or slot ended."""
    if isinstance(event, events.ClaimFailed):
        return event.reason.startswith(("CancelledError", "PoolTerminatedError", "GeneratorExit"))
    return str(getattr(event, "reason", "")).startswith("given up")
