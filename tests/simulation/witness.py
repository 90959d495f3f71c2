"""The witness: an observer that checks the story that the pool tells of itself."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from qorb import events
from qorb._core.states import MOVES, SlotState
from tests.simulation.laws import BrokenError, in_line, require

if TYPE_CHECKING:
    from qorb.events import Event
    from tests.simulation.world import World

CONNECTING = SlotState.CONNECTING.value
LEGAL = {(old.value, new.value) for old, new in MOVES}


class Witness:
    """Hears every event. What does not fit is reported to the world: a pool survives whatever an observer raises."""

    def __init__(self, world: World, manner: str) -> None:
        self._world = world
        self._manner = manner
        self.count: Counter[str] = Counter()
        self._claims: dict[int, None] = {}
        """Claims that have begun and not ended."""
        self._handles: dict[int, int] = {}
        """Slots that were handed out, and to which claim."""
        self._states: dict[int, str] = {}
        self._calls: dict[int, str] = {}
        """What each slot is doing."""
        self._online: dict[str, bool] = {}
        self._over = False

    def __call__(self, event: Event) -> None:
        kind = type(event).__name__
        self.count[kind] += 1
        try:
            require(not self._over, f"{kind} after the end")
            hear = getattr(self, f"_{kind}", None)
            if hear is not None:
                hear(event)
        except BrokenError as broken:
            self._world.broken(broken)
        pool = self._world.__dict__.get("pool")
        if self._manner == "asking" and pool is not None:
            pool.stats()
            pool.ledger()
        self._world.manners.mind("observer")

    def _ClaimStart(self, event: events.ClaimStart) -> None:  # noqa: N802 - named after the event
        self._claims[event.claim_id] = None

    def _ClaimDone(self, event: events.ClaimDone) -> None:  # noqa: N802
        require(event.claim_id in self._claims, f"claim {event.claim_id} was done twice, or never begun")
        del self._claims[event.claim_id]
        require(self._handles.get(event.slot_id) == event.claim_id, f"{event}: the slot is not this claim's")
        require(event.wait >= 0, "a negative wait")

    def _ClaimFailed(self, event: events.ClaimFailed) -> None:  # noqa: N802
        require(event.claim_id in self._claims, f"claim {event.claim_id} failed twice, or never begun")
        del self._claims[event.claim_id]
        require("canary" not in event.reason, f"a secret in {event}")
        require(event.claim_id not in self._handles.values(), f"claim {event.claim_id} failed, and keeps its slot")

    def _HandleClaimed(self, event: events.HandleClaimed) -> None:  # noqa: N802
        require(event.slot_id not in self._handles, f"slot {event.slot_id} was handed out twice")
        self._handles[event.slot_id] = event.claim_id
        require(event.claim_id in self._claims, f"a slot for claim {event.claim_id}, which is over")
        for attempt in in_line(self._world.engine):
            require(attempt.id > event.claim_id, f"claim {event.claim_id} was served before claim {attempt.id}")

    def _HandleReturned(self, event: events.HandleReturned) -> None:  # noqa: N802
        claim = self._handles.pop(event.slot_id, None)
        require(
            claim == event.claim_id, f"slot {event.slot_id} came back from claim {event.claim_id}, it was {claim}'s"
        )

    def _SlotStateChange(self, event: events.SlotStateChange) -> None:  # noqa: N802
        before = self._states.get(event.slot_id, CONNECTING)
        require(event.old == before, f"slot {event.slot_id} was {before}, not {event.old}")
        require((event.old, event.new) in LEGAL, f"{event.old} to {event.new}")
        self._states[event.slot_id] = event.new

    def _ConnectStart(self, event: events.ConnectStart) -> None:  # noqa: N802
        self._begins(event.slot_id, "connect")

    def _ConnectDone(self, event: events.ConnectDone) -> None:  # noqa: N802
        self._ends(event.slot_id, "connect")

    def _ConnectFailed(self, event: events.ConnectFailed) -> None:  # noqa: N802
        self._ends(event.slot_id, "connect")
        require("canary" not in event.reason, f"a secret in {event}")

    def _HealthCheckStart(self, event: events.HealthCheckStart) -> None:  # noqa: N802
        self._begins(event.slot_id, "check")

    def _HealthCheckDone(self, event: events.HealthCheckDone) -> None:  # noqa: N802
        self._ends(event.slot_id, "check")

    _HealthCheckFailed = _HealthCheckDone

    def _RecycleStart(self, event: events.RecycleStart) -> None:  # noqa: N802
        self._begins(event.slot_id, "recycle")

    def _RecycleDone(self, event: events.RecycleDone) -> None:  # noqa: N802
        self._ends(event.slot_id, "recycle")

    _RecycleFailed = _RecycleDone

    def _begins(self, slot: int, what: str) -> None:
        before = self._calls.get(slot)
        # A check, a recycling and an attempt that are interrupted because the slot ends have no event of their own.
        require(before is None, f"slot {slot} begins to {what} in the midst of {before}")
        self._calls[slot] = what

    def _ends(self, slot: int, what: str) -> None:
        require(self._calls.pop(slot, None) == what, f"slot {slot} ends {what}, which it had not begun")

    def _SlotSetOnline(self, event: events.SlotSetOnline) -> None:  # noqa: N802
        require(not self._online.get(event.backend, False), f"{event.backend} went online twice")
        self._online[event.backend] = True

    def _SlotSetOffline(self, event: events.SlotSetOffline) -> None:  # noqa: N802
        require(self._online.get(event.backend, False), f"{event.backend} went offline twice")
        self._online[event.backend] = False

    def _PoolTerminateDone(self, event: events.PoolTerminateDone) -> None:  # noqa: N802
        del event
        self._over = True

    def check_end(self) -> None:
        """Check that every story that began has ended."""
        require(not self._claims, f"claims without an end: {list(self._claims)}")
