"""The verdict on a pool: in a few words why it serves claims, or does not."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from qorb._plight import outdated, plight, unconnected, unresolved, unused
from qorb.explanation import duration, kind_of, name_of, shortened
from qorb.stats import PoolState

if TYPE_CHECKING:
    from qorb._look import Look
    from qorb.errors import Holder

_STALL = 1.0
"""A deadline that is overdue by so many seconds says that the loop does not get on."""
_LONG = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 43_200, 86_400, 172_800, 604_800)
"""Seconds that a claim may be said to have been held for longer than."""
ENDED = "terminated: nothing of it is left; make a new one"


def verdict(look: Look) -> str:
    """Give the short answer."""
    engine = look.engine
    if engine.state is PoolState.TERMINATED:
        return ENDED
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
    if not sets:  # asked by an observer or a signal handler while a set of others takes effect
        return f"{unconnected(len(engine.backends))}: only now has the resolver named {_them(len(engine.backends))}"
    offline = sum([not slots.online for slots in sets])
    if offline == len(sets):
        return unconnected(len(sets)) + _blame(look) + outdated(engine)
    idle = sum([len(slots.idle) for slots in sets])
    if idle:
        return _at_hand(look, idle) + (f"; {offline} of {len(sets)} backends without a connection" if offline else "")
    others = f"; {'the others: ' * bool(look.claimed)}{unused(look)}" if len(look.claimed) < look.limit else ""
    return _in_use(look) + _charge(look) + others


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


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
    if count == 1:
        return f"; each for a reason of its own, such as: {shortened(reason)}"
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
    if most_prepare(look):
        return f"; most of them wait for the connector's on_acquire: {sum([holder.preparing for holder in holders])}"
    asking = sum([holder.asks for holder in holders])
    if asking == len(holders):
        if asking == 1:
            return f"; the task that holds it, {name_of(holders)}, asks for another one meanwhile: it waits for itself"
        return "; all tasks that hold them ask for another one meanwhile: they wait for themselves"
    text = f"; {_by_whom(look)}"
    ended = sum([holder.ended for holder in holders])
    if ended and not text.endswith("a task that has ended"):
        text += f"; {_share(ended, look)} by {'a task that has' if ended == 1 else 'tasks that have'} ended"
    if asking:
        text += f"; {asking} by {'a task that asks' if asking == 1 else 'tasks that ask'} for another one meanwhile"
    return text


def most_prepare(look: Look) -> bool:
    """Whether it is the connector that has most of what is in use, and not yet those who claimed it."""
    return 2 * len(look.preparing) > len(look.holders)


def _by_whom(look: Look) -> str:
    holders = look.holders
    longest, half = holders[0].seconds, holders[len(holders) // 2].seconds
    limit = max([limit for limit in _LONG if limit < half], default=0)
    limit = limit or max([limit for limit in _LONG if limit < longest], default=0)
    if not limit:
        one = len(holders) == 1
        text = f"{'not' if one else 'none of them'} for longer than {duration(longest)}"
        return f"{text}: there are more claims than {'it' if one else 'they'} can serve" if look.waiting else text
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
