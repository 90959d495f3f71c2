"""Why a claim could not be served, in words that help."""

from __future__ import annotations

import math
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from qorb._slot import CLAIMED, CONNECTING
from qorb._tasks import where
from qorb.errors import (
    AllClaimsUsedError,
    ClaimTimeoutError,
    Holder,
    NoBackendsError,
    NoBackendsOnlineError,
)

if TYPE_CHECKING:
    import asyncio

    from qorb._desk import Attempt
    from qorb._engine import Engine
    from qorb._slot import Slot
    from qorb._slot_set import SlotSet

_BACKENDS_LISTED = 10
_HOLDERS_LISTED = 3
_WAITERS_LISTED = 3
_JUST_NOW = 1.0
"""Seconds; what is older is dated."""
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


class Diagnosis:
    """Why claims cannot be served at this moment; one for all that fail in the same turn."""

    def __init__(
        self,
        kind: type[ClaimTimeoutError],
        reason: str,
        cause: BaseException | None = None,
        held: dict[asyncio.Task[Any], list[Slot[Any]]] | None = None,
        **facts: Any,  # noqa: ANN401 - what the class of the error wants
    ) -> None:
        """Take the class of the error, its text, what it is chained to, who holds what, and the error's attributes."""
        self._kind = kind
        self._facts = facts
        self._reason = reason
        self._cause = cause
        self._held = held or {}

    def error(self, attempt: Attempt, missing: str = "no connection") -> ClaimTimeoutError:
        """Make the error for one claim; `missing` says what there was not in time."""
        text = self._reason
        if attempt.timeout > 0:
            text = f"{missing} within {attempt.timeout:g} s: {text}"
        own = self._held.get(attempt.task, []) if attempt.task is not None else []
        if own:
            count = "a connection" if len(own) == 1 else f"{len(own)} connections"
            text += f". This task itself already holds {count} of this pool: it may be waiting for itself"
        if attempt.failure is not None:
            text += ". on_acquire refused every connection that it was given"
        error = self._kind(text, **self._facts)
        error.__cause__ = attempt.failure if attempt.failure is not None else self._cause
        return error


def diagnose(engine: Engine[Any]) -> Diagnosis:
    """Look at the pool and say what keeps it from serving a claim."""
    if not engine.backends:
        return _no_backends(engine)
    if not any(engine.sets[name].online for name in engine.backends):
        return _none_online(engine)
    return _all_used(engine)


def _no_backends(engine: Engine[Any]) -> Diagnosis:
    text = f"pool {engine.name}: the resolver {type(engine.resolver).__name__} knows no backend"
    if engine.resolver_error_text is not None:
        text += f"; its last error: {engine.resolver_error_text}"
    elif not engine.published:
        text += " yet; it may need more time than the claim had"
    else:
        text += "; the last set that it published is empty: look at what it reads"
    last_error = engine.resolver_error_text
    return Diagnosis(NoBackendsError, text, engine.resolver_error, pool=engine.name, last_error=last_error)


def _none_online(engine: Engine[Any]) -> Diagnosis:
    sets = [engine.sets[name] for name in sorted(engine.backends)]
    now = engine.loop.time()
    listed = [f"{slots.backend.name}: {_plight(slots, now)}" for slots in sets[:_BACKENDS_LISTED]]
    if len(sets) > _BACKENDS_LISTED:
        listed.append(f"and {len(sets) - _BACKENDS_LISTED} more")
    newest = max(sets, key=lambda slots: slots.last_error_time)
    count = "the only backend has" if len(sets) == 1 else f"none of {len(sets)} backends has"
    text = f"pool {engine.name}: {count} {'no' if len(sets) == 1 else 'a'} live connection ({'; '.join(listed)})"
    errors = {slots.backend.name: slots.last_error_text for slots in sets}
    return Diagnosis(NoBackendsOnlineError, text, newest.last_error, _held(engine), pool=engine.name, errors=errors)


def _all_used(engine: Engine[Any]) -> Diagnosis:
    claimed = [slot for slots in engine.sets.values() for slot in slots.slots if slot.state is CLAIMED]
    claimed.sort(key=lambda slot: slot.since)
    now = engine.loop.time()
    limit = min(engine.policy.max_slots, engine.policy.max_slots_per_backend * len(engine.backends))
    text = f"pool {engine.name}: {len(claimed)} of at most {limit} connections are in use"
    if len(claimed) < limit:
        text += f"; the others: {_not_ready(engine)}"
    if claimed:
        text += "; held longest: " + "; ".join(_longest(claimed, now))
    waiting = engine.desk.line.waiting
    if waiting:
        names = [_task_name(attempt) for _, attempt in zip(range(_WAITERS_LISTED), engine.desk.line, strict=False)]
        more = ", ..." if waiting > len(names) else ""
        text += f"; others still waiting: {waiting} ({', '.join(names)}{more})"
    if len(claimed) >= limit:
        cap = "max_slots" if limit == engine.policy.max_slots else "max_slots_per_backend"
        text += f". Hold claims for less time, or raise {cap}"
    holders = tuple(_holder_of(slot, now) for slot in claimed)
    facts = {"pool": engine.name, "holders": holders, "limit": limit, "waiting": waiting}
    return Diagnosis(AllClaimsUsedError, text, None, _held(engine), **facts)


def _holder_of(slot: Slot[Any], now: float) -> Holder:
    task = _task_of(slot)
    name = task.get_name() if task is not None else None
    return Holder(slot.owner.backend.name, slot.id, now - slot.since, name, slot.site)


def _plight(slots: SlotSet[Any], now: float) -> str:
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


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"  # noqa: PLR2004 - two digits are enough
    if seconds < 2 * _HOUR:
        return f"{seconds // _MINUTE:.0f} min"
    return f"{seconds // _HOUR:.0f} h" if seconds < 2 * _DAY else f"{seconds // _DAY:.0f} days"


def _not_ready(engine: Engine[Any]) -> str:
    idle = sum(slots.unclaimed for slots in engine.sets.values())
    connecting = sum(slots.connecting for slots in engine.sets.values())
    checking = sum(slots.checking for slots in engine.sets.values())
    now = engine.loop.time()
    errors = [
        f"{slots.backend.name}: {_plight(slots, now)}"
        for slots in engine.sets.values()
        if slots.connecting and slots.last_error_text
    ]
    counts = [(idle, "idle"), (connecting, "connecting"), (checking, "being checked or recycled")]
    text = ", ".join(f"{count} {what}" for count, what in counts if count) or "none connected yet"
    return f"{text} ({'; '.join(errors[:_HOLDERS_LISTED])})" if errors else text


def _longest(claimed: list[Slot[Any]], now: float) -> list[str]:
    """Describe the claims that are held longest, those of one task together; `claimed` are all, the longest first."""
    by_task: dict[asyncio.Task[Any] | None, list[Slot[Any]]] = {}
    for slot in claimed:
        by_task.setdefault(_task_of(slot), []).append(slot)
    texts: dict[asyncio.Task[Any] | None, str] = {}
    for slot in claimed[:_HOLDERS_LISTED]:
        task = _task_of(slot)
        if task is None or len(by_task[task]) == 1:
            texts.setdefault(task, "")
            texts[task] += ("; " if texts[task] else "") + describe_holder(slot, now)
        elif task not in texts:
            texts[task] = _describe_hoarder(task, by_task[task], claimed[:_HOLDERS_LISTED], now)
    return list(texts.values())


def _describe_hoarder(task: asyncio.Task[Any], own: list[Slot[Any]], longest: list[Slot[Any]], now: float) -> str:
    """Say what a task with several connections holds: how many, how long those of the longest held ones, and where."""
    listed = [slot for slot in own if slot in longest]
    times = ", ".join(f"{now - slot.since:.1f} s" for slot in listed)
    text = f"{times} by task {task.get_name()!r}, which holds {len(own)} of them"
    sites = dict.fromkeys(slot.site for slot in listed if slot.site is not None)
    if sites:
        text += f", claimed at {' and '.join(sites)}"
    return text + _now_in(task)


def describe_holder(slot: Slot[Any], now: float) -> str:
    """Say who holds a connection, for how long, where it was claimed if known, and where the holder is now."""
    if slot.holder is None:
        return holder(slot)
    text = f"{now - slot.since:.1f} s by {holder(slot)}"
    if slot.site is not None:
        text += f", claimed at {slot.site}"
    return text + _now_in(_task_of(slot))


def holder(slot: Slot[Any]) -> str:
    """Name the task that holds a connection."""
    if slot.holder is None:
        return "one that is being handed off to a waiting claim"
    task = _task_of(slot)
    return f"task {task.get_name()!r}" if task is not None else "a task that has ended"


def _task_of(slot: Slot[Any]) -> asyncio.Task[Any] | None:
    return slot.holder() if slot.holder is not None else None


def _now_in(task: asyncio.Task[Any] | None) -> str:
    coroutine: Any = task.get_coro() if task is not None and not task.done() else None
    if coroutine is None or getattr(coroutine, "cr_running", False):  # one that runs is the one that asks
        return ""
    return f", now in {where(coroutine)}"


def _task_name(attempt: Attempt) -> str:
    return repr(attempt.task.get_name()) if attempt.task is not None else "a task"


def _held(engine: Engine[Any]) -> dict[asyncio.Task[Any], list[Slot[Any]]]:
    held: dict[asyncio.Task[Any], list[Slot[Any]]] = {}
    for slots in engine.sets.values():
        for slot in slots.slots:
            if slot.state is CLAIMED and slot.holder is not None:
                task = slot.holder()
                if task is not None:
                    held.setdefault(task, []).append(slot)
    return held
