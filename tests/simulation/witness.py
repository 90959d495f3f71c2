"""The witness: an observer that checks the story that the pool tells of itself."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from qorb import events
from qorb._core.states import MOVES, SlotState
from tests.simulation.laws import BrokenError, Law, in_line, require, upholding

if TYPE_CHECKING:
    from qorb._engine import Engine
    from qorb.events import Event
    from qorb.testing import FakeConnection
    from tests.simulation.books import Books
    from tests.simulation.service import Service
    from tests.simulation.world import World

CONNECTING = SlotState.CONNECTING.value
CALLS = {SlotState.CHECKING: "check", SlotState.RECYCLING: "recycle"}
"""What a slot in such a state is doing."""
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
        self._known: set[str] = set()
        self._rebalancing = False
        self._ending = False
        self._over = False

    def __call__(self, event: Event) -> None:
        kind = type(event).__name__
        self.count[kind] += 1
        try:
            with upholding(Law.STORY):
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
        require("canary" not in event.reason, f"a secret in {event}", Law.SECRETS)
        require(event.claim_id not in self._handles.values(), f"claim {event.claim_id} failed, and keeps its slot")

    def _HandleClaimed(self, event: events.HandleClaimed) -> None:  # noqa: N802
        require(event.slot_id not in self._handles, f"slot {event.slot_id} was handed out twice")
        self._handles[event.slot_id] = event.claim_id
        require(event.claim_id in self._claims, f"a slot for claim {event.claim_id}, which is over")
        for attempt in in_line(self._world.engine):
            text = f"claim {event.claim_id} was served before claim {attempt.id}"
            require(attempt.id > event.claim_id, text, Law.LINE)

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
        require("canary" not in event.reason, f"a secret in {event}", Law.SECRETS)

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

    def _RebalanceStart(self, event: events.RebalanceStart) -> None:  # noqa: N802
        del event
        require(not self._rebalancing, "a plan is carried out in the midst of another")
        self._rebalancing = True

    def _RebalanceDone(self, event: events.RebalanceDone) -> None:  # noqa: N802
        del event
        require(self._rebalancing, "a plan is done that was not begun")
        self._rebalancing = False

    def _ResolverUpdated(self, event: events.ResolverUpdated) -> None:  # noqa: N802
        added, removed, changed = set(event.added), set(event.removed), set(event.changed)
        require(not added & self._known and removed | changed <= self._known, f"{event}, known were {self._known}")
        self._known = (self._known | added) - removed

    def _PoolTerminateStart(self, event: events.PoolTerminateStart) -> None:  # noqa: N802
        del event
        require(not self._ending, "the end begins twice")
        self._ending = True

    def _PoolTerminateDone(self, event: events.PoolTerminateDone) -> None:  # noqa: N802
        del event
        require(self._ending, "the end is over and has not begun")
        self._over = True

    @upholding(Law.STORY)
    def at_rest(self, engine: Engine[FakeConnection], service: Service, books: Books) -> None:
        """Compare what was told with what is; the pool is running, and nothing is under way at this moment."""
        slots = [slot for slots in engine.sets.values() for slot in slots.slots]
        handed = {slot.id for slot in slots if slot.state is SlotState.CLAIMED}
        require(set(self._handles) == handed, lambda: f"told to be handed out {self._handles}, and are {handed}")
        states = {slot.id: slot.state.value for slot in slots if slot.state is not SlotState.TERMINATED}
        told = {number: state for number, state in self._states.items() if state != SlotState.TERMINATED.value}
        require(states == dict.fromkeys(states, CONNECTING) | told, lambda: f"told {told}, are {states}")
        for slot in slots:
            call = "connect" if slot.attempting else CALLS.get(slot.state)
            told_of = self._calls.get(slot.id)
            if slot.state is not SlotState.TERMINATED:
                require(told_of == call, lambda a=slot, b=call, c=told_of: f"slot {a.id} does {b}, told was {c}")
        online = {name for name, slots in engine.sets.items() if slots.online}
        told_online = {name for name, is_online in self._online.items() if is_online}
        require(online == told_online, lambda: f"online are {online}, told {told_online}")
        require(self._known == set(engine.backends), lambda: f"known are {set(engine.backends)}, told {self._known}")
        require(not self._rebalancing, "a plan is being carried out for ever")
        under_way = len(in_line(engine)) + len(engine.desk.acquiring)
        require(len(self._claims) == under_way, lambda: f"{under_way} claims are under way, told {self._claims}")
        self._numbers(service, books)

    def _numbers(self, service: Service, books: Books) -> None:
        count = self.count
        for kind in ("PoolClaim", "SlotSetClaim"):
            ends = count[f"{kind}Done"] + count[f"{kind}Failed"]
            require(count[f"{kind}Start"] == ends, lambda k=kind, n=ends: f"{count[f'{k}Start']} {k}Start, {n} ends")
            require(count[f"{kind}Done"] == count["HandleClaimed"], f"{kind}Done and HandleClaimed differ in number")
        done = count["ClaimDone"]
        require(done == books.granted_count, lambda: f"{done} ClaimDone, {books.granted_count} were served")
        failed = count["ClaimAcquireFailed"]
        require(failed >= service.refused, lambda: f"{failed} ClaimAcquireFailed, {service.refused} were refused")
        asked = {"ConnectStart": "connect"}
        overridden = self._world.plan.overridden
        if "on_recycle" in overridden:  # otherwise recycling is up to validate
            asked |= {"RecycleStart": "on_recycle"} | (
                {"HealthCheckStart": "validate"} if "validate" in overridden else {}
            )
        for kind, operation in asked.items():
            calls = service.count[operation]
            require(count[kind] == calls, f"{count[kind]} {kind}, {calls} calls of {operation}")

    @upholding(Law.STORY)
    def check_end(self) -> None:
        """Check that every story that began has ended."""
        require(not self._claims, f"claims without an end: {list(self._claims)}")
        require(self._over, "nobody told of the end")
