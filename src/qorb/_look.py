"""How a pool stands at one moment, as an Explanation: the verdict on claims, and all that speaks for it."""

from __future__ import annotations

import math
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from qorb._core.planner import Limits, targets
from qorb._holders import held_by_task, holder_of, task_name
from qorb._plight import JUST_NOW, NAMED, plight
from qorb._slot import CLAIMED
from qorb._verdict import ENDED, most_prepare, verdict
from qorb.explanation import Explanation, SlotPlan, Standing, Waiting
from qorb.stats import PoolState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qorb._engine import Engine
    from qorb._slot_set import SlotSet
    from qorb.policy import Policy

_WAITERS_NAMED = 10
_WAITERS_LOOKED_AT = 1000
"""Among so many at the front of the line those are looked for who hold connections themselves."""
_HOLDERS_LOCATED = 50
"""Of so many of those that hold connections it is found out where they stand: that costs microseconds each."""


def explain_unopened(name: str, state: PoolState, policy: Policy) -> Explanation:
    """Say of a pool that it has not been started, or was ended before it was."""
    new = state is PoolState.NEW
    return blank(
        name, state, "not started yet; use `async with pool:` or `await pool.start()`" if new else ENDED, policy
    )


def blank(name: str, state: PoolState, verdict: str, policy: Policy) -> Explanation:
    """Explain with nothing to show."""
    return Explanation(name, state, verdict, (), Waiting(0, policy.max_waiters), (), SlotPlan(0, 0, 0, 0, 0, ()))


class Look:
    """The pool as it is at one moment, as far as it concerns claims."""

    def __init__(self, engine: Engine[Any], running: str | None = None) -> None:
        """Read what there is. `running`: where the pool's own thread is, if this is another one."""
        self.engine = engine
        self.running = running
        self.now = now = engine.loop.time()
        self.sets = tuple(engine.sets.values())
        self.current = [slots for slots in self.sets if not slots.leaving]
        self.claimed = [slot for slots in self.sets for slot in tuple(slots.slots) if slot.state is CLAIMED]
        self.claimed.sort(key=lambda slot: slot.since if slot.holder is not None else now)
        self.held = held_by_task(self.claimed)
        self.preparing = {slot: call for call, slot in tuple(engine.desk.acquiring.items())}
        policy = engine.policy
        reach = policy.max_slots_per_backend * len(engine.backends)
        if reach:  # besides, those who leave keep what is out; with nobody but them there is nothing to be had
            reach += sum([slots.claimed for slots in self.sets if slots.leaving])
        self.limit = min(policy.max_slots, reach)
        line = engine.desk.line
        self.waiting = line.waiting
        self.front = tuple(islice(line, _WAITERS_LOOKED_AT if self.held else _WAITERS_NAMED)) if line.waiting else ()
        asking = {attempt.task for attempt in self.front if attempt.task in self.held}
        self.holders = tuple(
            [holder_of(slot, self, asking, located=i < _HOLDERS_LOCATED) for i, slot in enumerate(self.claimed)]
        )

    def explanation(self) -> Explanation:
        """Put it in words."""
        engine = self.engine
        advice = tuple(_advice(self)) if engine.state is PoolState.RUNNING else ()
        plan, goals = _plan(self)
        return Explanation(
            engine.name,
            engine.state,
            verdict(self),
            self.holders,
            _waiting(self),
            tuple(sorted(map(self._standing, self.sets, goals), key=attrgetter("backend"))),
            plan,
            advice,
        )

    def _standing(self, slots: SlotSet[Any], wanted: int) -> Standing:
        error, moment, pause = slots.last_error_text, slots.last_error_time, slots.next_attempt - self.now
        off = (slots.connecting > 0 or not slots.online) and self.engine.state is PoolState.RUNNING
        return Standing(
            slots.backend.name,
            _state(slots),
            slots.claimed,
            len(slots.idle),
            slots.checking,
            slots.connecting,
            max(0, slots.ending),
            wanted,
            error,
            self.now - moment if error is not None else None,
            pause if pause > 0 and slots.connecting > slots.attempting else None,
            plight(slots, self.now) if off and not slots.leaving else "",
            self.under_way(slots),
        )

    def under_way(self, slots: SlotSet[Any]) -> str | None:
        """Say what of the connector has been under way for longest, whatever it is, and where."""
        calls = [slot.call for slot in tuple(slots.slots) if slot.call is not None]
        calls += [call for slot, call in self.preparing.items() if slot.owner is slots]
        oldest = min(calls, key=attrgetter("since"), default=None)
        return oldest.describe() if oldest is not None and self.now - oldest.since > JUST_NOW else None


def _waiting(look: Look) -> Waiting:
    front, now = look.front, look.now
    longest = next((now - one.deadline + one.timeout for one in front if one.deadline < math.inf), None)
    ends = min([attempt.deadline for attempt in front], default=math.inf)
    return Waiting(
        look.waiting,
        look.engine.policy.max_waiters,
        longest,
        ends - now if ends < math.inf else None,
        tuple([task_name(attempt.task) for attempt in front[:_WAITERS_NAMED] if attempt.task is not None]),
    )


def _state(slots: SlotSet[Any]) -> str:
    if slots.leaving:
        return "leaving"
    if slots.online:
        return "failing" if slots.failing else "online"
    return "untried" if slots.untried else "offline"


def _plan(look: Look) -> tuple[SlotPlan, Sequence[int]]:
    """Ask the planner what it wants, and compare that with what is there."""
    engine, policy, sets = look.engine, look.engine.policy, look.sets
    if engine.state is not PoolState.RUNNING:  # nothing is wanted any more
        return SlotPlan(0, look.limit, 0, 0, 0, ()), [0] * len(sets)
    limits = Limits(policy.spares_wanted, policy.max_slots, policy.max_slots_per_backend, policy.max_connection_backoff)
    goals = targets(sets, look.waiting, limits, look.now)
    claims = sum([slots.claimed for slots in look.current]) + look.waiting
    connected = sum([len(slots.idle) + slots.checking + slots.claimed for slots in look.current])
    asked, planned = claims + policy.spares_wanted, sum(goals)
    obstacles = [*(_caps(look, asked) if asked > connected else ()), *_lacks(look, goals)]
    return SlotPlan(claims, look.limit, policy.spares_wanted, planned, connected, tuple(obstacles)), goals


def _caps(look: Look, asked: int) -> list[str]:
    """Say which limits stand in the way."""
    policy, backends = look.engine.policy, len(look.current)
    leaving = sum([len(slots.slots) for slots in look.sets if slots.leaving])
    found: list[str] = []
    if asked > policy.max_slots:
        found.append(f"max_slots allows {policy.max_slots} of the {asked} that are wanted")
    if leaving and asked > policy.max_slots - leaving:
        found.append(f"slots of backends that are leaving count until they are closed: {leaving}")
    most = policy.max_slots_per_backend
    if backends and min(asked, policy.max_slots) > most * backends:
        found.append(f"max_slots_per_backend allows {most} for each of {backends}")
    elif full := _full(look):
        found.append(f"max_slots_per_backend allows no more than {most} on {_few(full)}, and no other is online")
    return found


def _full(look: Look) -> list[str]:
    """Name the backends that are online, if they have all they may and the pool could have more elsewhere."""
    most = look.engine.policy.max_slots_per_backend
    online = [slots for slots in look.current if slots.online]
    if len(online) == len(look.current) or most * len(online) >= look.limit:
        return []
    full = [slots.backend.name for slots in online if len(slots.idle) + slots.checking + slots.claimed >= most]
    return full if len(full) == len(online) else []


def _lacks(look: Look, goals: Sequence[int]) -> list[str]:
    """Say which slots there should be and are not, or are and have no connection."""
    unconnected = {slots.backend.name: slots.connecting for slots in look.current if slots.connecting}
    ending = sum([max(0, slots.ending) for slots in look.current])
    turns = [
        slots.backend.name
        for slots, goal in zip(look.sets, goals, strict=True)
        if not slots.leaving and not slots.online and not goal
    ]
    found: list[str] = []
    if unconnected:
        found.append(f"not connected: {_counted(unconnected)}")
    if ending:
        found.append(f"told to end, and not closed yet: {ending}")
    if turns:
        online, policy = sum([slots.online for slots in look.current]), look.engine.policy
        kept = online >= policy.max_slots > len(look.claimed) + look.waiting
        what = "those that are online keep the only one they have" if kept else "those without a connection take turns"
        found.append(f"no slot is left to try {_few(turns)}: {what}")
    return found


def _counted(slots: dict[str, int]) -> str:
    few = [f"{count} to {name}" for name, count in islice(sorted(slots.items()), NAMED)]
    rest = sum(slots.values()) - sum([count for _, count in islice(sorted(slots.items()), NAMED)])
    return ", ".join(few) + (f", {rest} to others" if rest else "")


def _few(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(sorted(names)[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _advice(look: Look) -> list[str]:
    """Say what may help, when claims wait or would have to."""
    count, most = len(look.current), look.engine.policy.max_slots
    few = [f"Raise max_slots, so that there is one for each of the {count} backends"] if most < count else []
    if any(slots.idle for slots in look.current) or not look.current:
        return few
    found = remedies(look) + few
    if any(holder.asks for holder in look.holders):
        found.append("Claim once and pass the connection on, instead of claiming another while one is held")
    if look.claimed and not look.engine.tracing:
        found.append(
            "To see where claims were made, start the pool in asyncio's debug mode (PYTHONASYNCIODEBUG=1) or with "
            "tracemalloc on (python -X tracemalloc)"
        )
    return found


def remedies(look: Look) -> list[str]:
    """Say what may help where claims wait for those that hold connections."""
    found: list[str] = []
    if any(holder.ended for holder in look.holders):
        found.append(
            "Tasks have ended that claimed and did not release: use `async with pool.claim()`, unless others release it"
        )
    if look.claimed and len(look.claimed) >= look.limit and not most_prepare(look):
        cap = "max_slots" if look.limit == look.engine.policy.max_slots else "max_slots_per_backend"
        found.append(f"Hold claims for less time, or raise {cap}")
    elif look.claimed and _full(look):
        found.append(
            "Bring the other backends back; until then hold claims for less time, or raise max_slots_per_backend"
        )
    return found
