"""What keeps backends from being connected, in words that explanations and errors are made of."""

from __future__ import annotations

import math
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from qorb._slot import CONNECTING
from qorb.explanation import duration

if TYPE_CHECKING:
    from qorb._engine import Engine
    from qorb._look import Look
    from qorb._slot_set import SlotSet

NAMED = 3
"""So many of a kind are named, at the most."""
JUST_NOW = 1.0
"""Seconds; what is older is dated."""


def unresolved(engine: Engine[Any]) -> str:
    """Say that no backend is known, and why."""
    text = f"the resolver {type(engine.resolver).__name__} knows no backend"
    if engine.resolver_error_text is not None:
        return f"{text}; its last error: {engine.resolver_error_text}"
    if not engine.published:
        call = engine.watch.call if engine.watch is not None else None
        place = ""
        if call is not None and engine.loop.time() - call.since > JUST_NOW:
            place = f": {call.describe()}"
        return f"{text} yet{place}; it may need more time than the claim had"
    return f"{text}; the last set that it published is empty: look at what it reads"


def unconnected(count: int) -> str:
    """Say of so many backends that none is connected."""
    return (
        "the only backend has no live connection" if count == 1 else f"none of {count} backends has a live connection"
    )


def outdated(engine: Engine[Any]) -> str:
    """Add to what is said of the backends that they may be others by now, if the resolver fails."""
    error = engine.resolver_error_text
    return f"; and there may be others by now, for the resolver fails: {error}" if error is not None else ""


def plight(slots: SlotSet[Any], now: float) -> str:
    """Say what keeps a backend from being connected: what is under way, and what went wrong last and how long ago."""
    under_way = _under_way(slots, now)
    trouble, moment = slots.last_error_text, slots.last_error_time
    if slots.lost_at > moment:
        trouble, moment = "its connections were closed", slots.lost_at
    if trouble is None:
        return under_way or ("waiting to connect" if slots.last_attempt > -math.inf else "not tried yet")
    if now - moment < JUST_NOW:
        return trouble
    ago = f"{duration(now - moment)} ago"
    return f"{under_way} ({ago}: {trouble})" if under_way else f"{trouble} ({ago})"


def _under_way(slots: SlotSet[Any], now: float) -> str:
    """Say what of the connector has been under way for longest in those slots that are not connected."""
    calls = [(slot.call.since, slot) for slot in slots.slots if slot.state is CONNECTING and slot.call is not None]
    if not calls:
        return ""
    began, slot = min(calls, key=itemgetter(0))
    what = "connecting" if slot.attempting else "closing its last connection"
    return f"{what} for {duration(now - began)}"


def unused(look: Look) -> str:
    """Say what becomes of the connections that nobody uses and nobody can have, and what they suffer from."""
    idle = sum([slots.unclaimed for slots in look.sets])
    connecting = sum([slots.connecting for slots in look.sets])
    checking = sum([slots.checking for slots in look.sets])
    errors = [
        f"{slots.backend.name}: {plight(slots, look.now)}"
        for slots in look.sets
        if slots.connecting and slots.last_error_text
    ]
    hanging = [(slots.backend.name, look.under_way(slots)) for slots in look.sets if slots.checking]
    errors += [f"{name}: {call}" for name, call in hanging if call is not None]
    counts = [(idle, "idle"), (connecting, "connecting"), (checking, "being checked or recycled")]
    text = ", ".join(f"{count} {what}" for count, what in counts if count) or "none connected yet"
    return f"{text} ({'; '.join(errors[:NAMED])})" if errors else text
