"""How a pool stands at one moment, in words: the verdict on claims, and all that speaks for it.

What its errors say is made of the same words, in _diagnosis.py.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from itertools import islice
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

from qorb._core.planner import Limits, targets
from qorb._slot import CLAIMED, CONNECTING
from qorb._tasks import where
from qorb.errors import Holder, masked
from qorb.explanation import Explanation, SlotPlan, Standing, Waiting, duration, kind_of, name_of, shortened
from qorb.stats import PoolState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from qorb._engine import Engine
    from qorb._slot import Slot
    from qorb._slot_set import SlotSet
    from qorb.policy import Policy

_NAMED = 3
_WAITERS_NAMED = 10
_WAITERS_LOOKED_AT = 1000
"""Among so many at the front of the line those are looked for who hold connections themselves."""
_HOLDERS_LOCATED = 50
"""Of so many of those that hold connections it is found out where they stand: that costs microseconds each."""
_JUST_NOW = 1.0
"""Seconds; what is older is dated."""
_STALL = 1.0
"""A deadline that is overdue by so many seconds says that the loop does not get on."""
_LONG = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 43_200, 86_400, 172_800, 604_800)
"""Seconds that a claim may be said to have been held for longer than."""
_OWN = os.path.dirname(__file__) + os.sep  # noqa: PTH120 - compared as text
"""Where a task stands in the library itself, when it waits for a connection, tells less than where it asked for it."""
_ENDED = "terminated: nothing of it is left; make a new one"


def explain_unopened(name: str, state: PoolState, policy: Policy) -> Explanation:
    """Say of a pool that it has not been started, or was ended before it was."""
    new = state is PoolState.NEW
    return blank(
        name, state, "not started yet; use `async with pool:` or `await pool.start()`" if new else _ENDED, policy
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
        self.held = _held(self.claimed)
        self.preparing = {slot: call for call, slot in tuple(engine.desk.acquiring.items())}
        policy = engine.policy
        self.limit = min(policy.max_slots, policy.max_slots_per_backend * len(engine.backends))
        line = engine.desk.line
        self.waiting = line.waiting
        self.front = tuple(islice(line, _WAITERS_LOOKED_AT if self.held else _WAITERS_NAMED)) if line.waiting else ()
        asking = {attempt.task for attempt in self.front if attempt.task in self.held}
        self.holders = tuple(
            [_holder_of(slot, self, asking, located=i < _HOLDERS_LOCATED) for i, slot in enumerate(self.claimed)]
        )

    def explanation(self) -> Explanation:
        """Put it in words."""
        engine = self.engine
        advice = tuple(_advice(self)) if engine.state is PoolState.RUNNING else ()
        plan, goals = _plan(self)
        return Explanation(
            engine.name,
            engine.state,
            _verdict(self),
            self.holders,
            _waiting(self),
            tuple(sorted(map(self._standing, self.sets, goals), key=attrgetter("backend"))),
            plan,
            advice,
        )

    def _standing(self, slots: SlotSet[Any], wanted: int) -> Standing:
        error, moment, pause = slots.last_error_text, slots.last_error_time, slots.next_attempt - self.now
        off = slots.connecting > 0 or not slots.online
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
            self._under_way(slots),
        )

    def _under_way(self, slots: SlotSet[Any]) -> str | None:
        """Say what of the connector has been under way for longest, whatever it is, and where."""
        calls = [slot.call for slot in tuple(slots.slots) if slot.call is not None]
        calls += [call for slot, call in self.preparing.items() if slot.owner is slots]
        oldest = min(calls, key=attrgetter("since"), default=None)
        return oldest.describe() if oldest is not None and self.now - oldest.since > _JUST_NOW else None


# The verdict.


def _verdict(look: Look) -> str:
    engine = look.engine
    if engine.state is PoolState.TERMINATED:
        return _ENDED
    if engine.loop.is_closed():
        return "its event loop is closed, and serves no claim; end a pool before its loop"
    if engine.state is PoolState.TERMINATING:
        return f"terminating, and serves no claim any more; left of it: {engine.ledger()}"
    text = _want(look)
    if look.waiting >= engine.policy.max_waiters > 0:
        text += "; the waiting line is full"
    overdue = max([look.now - attempt.deadline for attempt in look.front], default=0.0)
    if overdue > _STALL:
        place = f", and is now in {look.running}" if look.running is not None else ""
        text += f". Its event loop does not get on: it has been late for {duration(overdue)}{place}"
    return text


def _want(look: Look) -> str:
    """Say what a claim lacks in a pool that runs."""
    engine, sets = look.engine, look.current
    if not engine.backends:
        return unresolved(engine)
    offline = sum([not slots.online for slots in sets])
    if offline == len(sets):
        return unconnected(len(sets)) + _blame(look)
    idle = sum([len(slots.idle) for slots in sets])
    if idle:
        return _at_hand(look, idle) + (f"; {offline} of {len(sets)} backends without a connection" if offline else "")
    others = f"; {'the others: ' * bool(look.claimed)}{unused(look)}" if len(look.claimed) < look.limit else ""
    return _in_use(look) + _charge(look) + others


def _blame(look: Look) -> str:
    """Say why most backends are not connected: for the same reason, or for one of the same kind."""
    if len(look.current) == 1:
        return f": {shortened(plight(look.current[0], look.now))}"
    reasons = Counter([slots.last_error_text or plight(slots, look.now) for slots in look.current])
    ((reason, count),) = reasons.most_common(1)
    kind = ""
    if count == 1:
        kinds = Counter([reason.partition(":")[0] for reason in reasons])
        ((kind, count),) = kinds.most_common(1)
        reason = next(reason for reason in reasons if reason.partition(":")[0] == kind)
        kind = " with something like"
    who = "all of them" if count == len(look.current) else f"{count} of them"
    return f"; {who}{kind}: {shortened(reason)}"


def _at_hand(look: Look, idle: int) -> str:
    classes = [slots.lane.owner for slots in look.current if slots.lane is not None]
    first = min([group.priority for group in classes if group.untried], default=math.inf)
    served = sum([len(slots.idle) for slots in look.current if slots.backend.priority <= first])
    connected = sum([len(slots.idle) + slots.checking + slots.claimed for slots in look.current])
    text = f"{idle} of {connected} idle"
    if not served:
        return f"{text}, but claims wait for the first attempt to connect to backends of a better priority"
    return f"{text}: nothing keeps a claim waiting"


def _in_use(look: Look) -> str:
    count = len(look.claimed)
    if count < look.limit:
        return f"{count or 'none'} of at most {look.limit} connections {'is' if count <= 1 else 'are'} in use"
    return "the only connection is in use" if look.limit == 1 else f"all {count} connections are in use"


def _charge(look: Look) -> str:
    """Say who has the connections that are in use, and whether for long: a leak, or more work than they can carry."""
    holders = look.holders
    if not holders:
        return ""
    if _most_prepare(look):
        return f"; most of them wait for the connector's on_acquire: {sum([holder.preparing for holder in holders])}"
    asking = sum([holder.asks for holder in holders])
    if asking == len(holders):
        if asking == 1:
            return f"; the task that holds it, {name_of(holders)}, asks for another one meanwhile: it waits for itself"
        return "; all tasks that hold them ask for another one meanwhile: they wait for themselves"
    text = f"; {_by_whom(look)}"
    if asking:
        text += f"; {asking} by {'a task that asks' if asking == 1 else 'tasks that ask'} for another one meanwhile"
    return text


def _most_prepare(look: Look) -> bool:
    """Whether it is the connector that has most of what is in use, and not yet those who claimed it."""
    return 2 * len(look.preparing) > len(look.holders)


def _by_whom(look: Look) -> str:
    holders = look.holders
    longest, half = holders[0].seconds, holders[len(holders) // 2].seconds
    limit = max([limit for limit in _LONG if limit < half], default=0)
    limit = limit or max([limit for limit in _LONG if limit < longest], default=0)
    if not limit:
        text = f"none of them for longer than {duration(longest)}"
        return f"{text}: there are more claims than they can serve" if look.waiting else text
    long = [holder for holder in holders if holder.seconds > limit]
    by_kind: dict[str, list[Holder]] = {}
    for holder in long:
        by_kind.setdefault(kind_of(holder), []).append(holder)
    most = max(by_kind.values(), key=len)
    if len(by_kind) > 1 and 2 * len(most) <= len(long):
        return f"{_share(len(long), look)} for over {_bound(limit)}, by tasks of {len(by_kind)} kinds"
    return f"{_share(len(most), look)} for over {_bound(limit)} by {name_of(most)}"


def _bound(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else duration(seconds)  # noqa: PLR2004 - as duration() does


def _share(count: int, look: Look) -> str:
    """Say how many of the claims that are out."""
    if count < len(look.holders):
        return f"{count} of them"
    return "all of them" if count > 1 else "held"


# What else is told.


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
    if engine.state is not PoolState.RUNNING:
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
    if min(asked, policy.max_slots) > policy.max_slots_per_backend * backends:
        found.append(f"max_slots_per_backend allows {policy.max_slots_per_backend} for each of {backends}")
    return found


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
        found.append(f"no slot is left to try {_few(turns)}: those without a connection take turns")
    return found


def _counted(slots: dict[str, int]) -> str:
    few = [f"{count} to {name}" for name, count in islice(sorted(slots.items()), _NAMED)]
    rest = sum(slots.values()) - sum([count for _, count in islice(sorted(slots.items()), _NAMED)])
    return ", ".join(few) + (f", {rest} to others" if rest else "")


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(sorted(names)[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _advice(look: Look) -> list[str]:
    """Say what may help, when claims wait or would have to."""
    if any(slots.idle for slots in look.current) or not look.current:
        return []
    found: list[str] = []
    if look.claimed and len(look.claimed) >= look.limit and not _most_prepare(look):
        found.append(remedy(look))
    if any(holder.asks for holder in look.holders):
        found.append("Claim once and pass the connection on, instead of claiming another while one is held")
    if any(holder.ended for holder in look.holders):
        found.append(
            "Tasks have ended that claimed and did not release: use `async with pool.claim()`, unless others release it"
        )
    if look.claimed and not look.engine.tracing:
        found.append(
            "To see where claims were made, start the pool in asyncio's debug mode (PYTHONASYNCIODEBUG=1) or with "
            "tracemalloc on (python -X tracemalloc)"
        )
    return found


# Words that errors are made of, too.


def unresolved(engine: Engine[Any]) -> str:
    """Say that no backend is known, and why."""
    text = f"the resolver {type(engine.resolver).__name__} knows no backend"
    if engine.resolver_error_text is not None:
        return f"{text}; its last error: {engine.resolver_error_text}"
    if not engine.published:
        return f"{text} yet; it may need more time than the claim had"
    return f"{text}; the last set that it published is empty: look at what it reads"


def unconnected(count: int) -> str:
    """Say of so many backends that none is connected."""
    return (
        "the only backend has no live connection" if count == 1 else f"none of {count} backends has a live connection"
    )


def remedy(look: Look) -> str:
    """Say what to do when every connection is in use."""
    cap = "max_slots" if look.limit == look.engine.policy.max_slots else "max_slots_per_backend"
    return f"Hold claims for less time, or raise {cap}"


def plight(slots: SlotSet[Any], now: float) -> str:
    """Say what keeps a backend from being connected: what is under way, and what went wrong last and how long ago."""
    under_way = _under_way(slots, now)
    trouble, moment = slots.last_error_text, slots.last_error_time
    if slots.lost_at > moment:
        trouble, moment = "its connections were closed", slots.lost_at
    if trouble is None:
        return under_way or ("waiting to connect" if slots.last_attempt > -math.inf else "not tried yet")
    if now - moment < _JUST_NOW:
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
    counts = [(idle, "idle"), (connecting, "connecting"), (checking, "being checked or recycled")]
    text = ", ".join(f"{count} {what}" for count, what in counts if count) or "none connected yet"
    return f"{text} ({'; '.join(errors[:_NAMED])})" if errors else text


# Who holds connections.


def _holder_of(slot: Slot[Any], look: Look, asking: set[Any], *, located: bool) -> Holder:
    name = slot.owner.backend.name
    if slot.holder is None:
        return Holder(name, slot.id, 0.0, None, None, handed_off=True)
    task, seconds = slot.holder(), look.now - slot.since
    if task is None:
        return Holder(name, slot.id, seconds, None, slot.site, ended=True)
    call = look.preparing.get(slot)
    now = None
    if located:
        now = where(call.coroutine) if call is not None else place_of(task, look.running)
    of_task = len(look.held[task])
    asks, ended = task in asking, task.done()
    return Holder(
        name,
        slot.id,
        seconds,
        task_name(task),
        slot.site,
        now,
        _function(task),
        of_task,
        asks,
        handed_off=False,
        preparing=call is not None,
        ended=ended,
    )


def _function(task: asyncio.Task[Any]) -> str | None:
    """Name the function that a task runs; None when it has ended."""
    # An eager task that has ended has no coroutine any more, and CPython 3.12 crashes when it is asked for it.
    if task.done():
        return None
    coroutine = task.get_coro()
    name: str = getattr(coroutine, "__qualname__", None) or type(coroutine).__name__
    return name.rpartition("<locals>.")[2]


def task_name(task: asyncio.Task[Any]) -> str:
    """Give the name of a task without what looks like a password."""
    return masked(task.get_name())


def task_of(slot: Slot[Any]) -> asyncio.Task[Any] | None:
    """Give the task that has the connection, if there is one and it has not gone."""
    return slot.holder() if slot.holder is not None else None


def place_of(task: asyncio.Task[Any], running: str | None = None) -> str | None:
    """Say where a task stands; None when it has ended, and `running` when it is the one that runs."""
    coroutine: Any = task.get_coro() if not task.done() else None
    if coroutine is None:
        return None
    if getattr(coroutine, "cr_running", False):
        return running
    return where(coroutine, _OWN)


def _held(claimed: Sequence[Slot[Any]]) -> dict[asyncio.Task[Any], list[Slot[Any]]]:
    held: dict[asyncio.Task[Any], list[Slot[Any]]] = {}
    for slot in claimed:
        task = task_of(slot)
        if task is not None:
            held.setdefault(task, []).append(slot)
    return held
