"""How many slots each backend should have, and what to start and what to stop for that.

Nothing is remembered here: a plan follows from what exists, from the policy and from the time. What has been decided
once is decided again while nothing else changes, so a plan that was carried out is followed by an empty one.

The words. The *budget* is what the leaving backends leave of max_slots. Backends that are online or in their first
attempt *share* the wanted total; each has a *floor*, its claims or at least one slot, below which it is never planned.
Offline backends live on what the sharing ones leave: one slot each, or turns. When nothing is left, one slot above the
floors is *lent* to them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from operator import add, attrgetter, sub
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

S = TypeVar("S", bound="Holding")


class Holding(Protocol):
    """What the planner needs to know of one backend and its slots. Times are in seconds of the loop's clock."""

    @property
    def online(self) -> bool:
        """At least one connected slot (unclaimed, checking or claimed) that has not been told to end."""
        ...

    @property
    def untried(self) -> bool:
        """No connect attempt has ended yet since the backend appeared; also true before the first one began."""
        ...

    @property
    def leaving(self) -> bool:
        """Vanished from the resolver's set: gets nothing, its slots only count against max_slots."""
        ...

    @property
    def connecting(self) -> int:
        """Slots without a connection, attempting or backing off."""
        ...

    @property
    def unclaimed(self) -> int:
        """Idle slots."""
        ...

    @property
    def checking(self) -> int:
        """Slots in a health check or being recycled."""
        ...

    @property
    def claimed(self) -> int:
        """Slots handed out; those of a leaving backend too."""
        ...

    @property
    def ending(self) -> int:
        """Told to end and not gone yet. They count against the caps and in none of the other numbers."""
        ...

    @property
    def attempting(self) -> int:
        """Of the connecting ones, those with an attempt in flight."""
        ...

    @property
    def next_attempt(self) -> float:
        """No new attempt begins before this moment."""
        ...

    @property
    def last_attempt(self) -> float:
        """When the last attempt ended or, if it is in flight, began; -inf: never tried."""
        ...

    @property
    def since(self) -> float:
        """When the backend appeared."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The part of the policy that a plan depends on. The backoff is in seconds."""

    spares_wanted: int
    max_slots: int
    max_slots_per_backend: int
    max_connection_backoff: float


@dataclass(frozen=True, slots=True)
class Plan(Generic[S]):
    """What to start and what to stop, and when to ask again. True when there is something to do."""

    start: tuple[tuple[S, int], ...]
    """So many new slots each, in this order. All of them fit into the caps before anything is stopped."""
    stop: tuple[tuple[S, int], ...]
    """So many slots each to end, none of them claimed. The slot set chooses: unconnected ones first, then the longest
    idle."""
    starved: bool
    """Something was not to be had, or is only lent, or would be shared otherwise: plan again when a slot ends, demand
    falls (a claim is released, a waiting one gives up) or an attempt fails. Otherwise none of these matters."""
    forgotten: S | None
    """This backend gets the next slot that comes free from `forgotten_at` on, even when claims wait: plan again then
    before a released slot is handed on. Plan again at that moment too: there may be a slot that nobody uses."""
    forgotten_at: float
    """Loop time in seconds; math.inf when no backend is forgotten."""
    saturated: bool
    """More demand would change nothing: no need to plan again for a claim."""
    wanted: int
    """How many slots the sharing backends should have, all together."""

    def __bool__(self) -> bool:
        """Whether there is something to start or to stop."""
        return bool(self.start or self.stop)


def grow(sets: Sequence[S], waiting: int, limits: Limits, now: float) -> Plan[S]:
    """Plan what is missing; stop only what stands in the way of that at the cap.

    `waiting` is the number of claims in the waiting line, `now` the loop's time in seconds.
    """
    aim = _aim(sets, waiting, limits, now)
    return _plan(aim, _make_room(aim, now) if aim.short else [], now)


def rebalance(sets: Sequence[S], waiting: int, limits: Limits, now: float) -> Plan[S]:
    """Plan what is missing, and stop everything above the targets."""
    aim = _aim(sets, waiting, limits, now)
    return _plan(aim, aim.surplus(), now)


def targets(sets: Sequence[S], waiting: int, limits: Limits, now: float) -> tuple[int, ...]:
    """How many slots each of the sets should have, in their order; 0 for leaving ones."""
    aim = _aim(sets, waiting, limits, now)
    of = {id(each): target for each, target in zip(aim.sets, aim.targets, strict=True)}
    return tuple(of.get(id(each), 0) for each in sets)


@dataclass(slots=True)
class _Roll(Generic[S]):
    """What exists, read once. `sharing`, `held`, `floors` and `endings` run in parallel."""

    sharing: list[S]
    held: list[int]
    """Slots that exist and have not been told to end."""
    floors: list[int]
    endings: list[int]
    """Slots that were told to end."""
    offline: list[S]
    unplaced: list[S]
    """Never tried, without a slot, and the floors leave not even one for them."""
    demand: int
    budget: int
    room: int
    """How many slots may start this moment."""
    ending: int
    """How many will come free besides."""


def _read(sets: Sequence[S], waiting: int, limits: Limits) -> _Roll[S]:
    """Take the roll: who shares, who is offline, what is in use."""
    sharing: list[S] = []
    held: list[int] = []
    floors: list[int] = []
    endings: list[int] = []
    fresh: list[S] = []
    offline: list[S] = []
    demand, alive, leaving, ending, leaving_ending = waiting, 0, 0, 0, 0
    for each in sets:
        claimed = each.claimed
        exist = each.connecting + each.unclaimed + each.checking + claimed
        ends = each.ending
        ending += ends
        if each.leaving:
            leaving += exist
            leaving_ending += ends
            continue
        alive += exist
        demand += claimed
        if each.online:
            sharing.append(each)
            held.append(exist)
            floors.append(claimed or 1)
            endings.append(ends)
        elif not each.untried:
            offline.append(each)
        elif exist:
            sharing.append(each)
            held.append(exist)
            floors.append(1)
            endings.append(ends)
        else:
            fresh.append(each)
    budget = limits.max_slots - leaving - leaving_ending
    room = limits.max_slots - leaving - alive - ending
    # Those that have a slot come first: with more backends than slots, only ones without can be too many.
    placed = fresh[: max(0, budget - sum(floors))] if fresh else fresh
    sharing += placed
    held += [0] * len(placed)
    floors += [1] * len(placed)
    endings += [each.ending for each in placed]
    return _Roll(sharing, held, floors, endings, offline, fresh[len(placed) :], demand, budget, room, ending)


@dataclass(slots=True)
class _Aim(Generic[S]):
    """What there should be. `sets`, `held` and `targets` run in parallel: the sharing ones, then the offline ones."""

    roll: _Roll[S]
    limits: Limits
    sets: list[S]
    held: list[int]
    targets: list[int]
    wanted: int
    """The sum of the sharing ones' targets."""
    turns: list[S]
    """The offline backends that get their slot."""
    passed_over: list[S]
    """Those that should be tried and get none."""
    lent: bool
    missing: list[tuple[int, int]]
    """(position in sets, how many), where there are too few."""
    short: int
    """The sum of what is missing."""

    def surplus(self) -> list[tuple[S, int]]:
        """(set, how many), where there are too many. Floors keep the claimed ones out of it."""
        rows = zip(self.sets, self.held, self.targets, strict=True)
        return [(each, held - target) for each, held, target in rows if held > target]


def _aim(sets: Sequence[S], waiting: int, limits: Limits, now: float) -> _Aim[S]:
    """Decide how many slots there should be of each backend."""
    roll = _read(sets, waiting, limits)
    cap, floor = limits.max_slots_per_backend, sum(roll.floors)
    total = max(min(roll.demand + limits.spares_wanted, roll.budget), floor)
    shares = _share(roll, total, cap)
    turns, lent = _turns(roll, roll.budget - sum(shares), roll.budget - floor, limits, now)
    if lent:
        shares = _share(roll, total - 1, cap)
    others = _without(roll.offline, turns)
    offline = turns + others
    held = roll.held + [each.connecting for each in offline]
    goals = shares + [1] * len(turns) + [0] * len(others)
    lacks = list(map(sub, goals, held))
    missing = [(i, lack) for i, lack in enumerate(lacks) if lack > 0] if lacks and max(lacks) > 0 else []
    return _Aim(
        roll,
        limits,
        sets=roll.sharing + offline,
        held=held,
        targets=goals,
        wanted=sum(shares),
        turns=turns,
        passed_over=others + roll.unplaced,
        lent=lent,
        missing=missing,
        short=sum([lack for _, lack in missing]),
    )


def _share(roll: _Roll[S], total: int, cap: int) -> list[int]:
    """Share the total: to each its floor or the level, whichever is more, but no more than the cap.

    The level is the highest whose sum fits. What then remains goes, one each, to those that hold most already, so that
    nothing is torn down here to be built up there.
    """
    floors = roll.floors
    rest, sharers = total, len(floors)
    for floor in sorted(floors, reverse=True):
        if floor * sharers <= rest:
            break
        rest -= floor
        sharers -= 1
    if not sharers:
        return floors
    level, remainder = divmod(rest, sharers)
    if level >= cap:
        return [cap] * len(floors)
    shares = [max(floor, level) for floor in floors] if sharers < len(floors) else [level] * len(floors)
    if remainder:
        takers = [i for i, floor in enumerate(floors) if floor <= level]
        takers.sort(key=roll.held.__getitem__, reverse=True)
        if roll.ending:
            # Those whose own ending slots leave no room for one more come last: what they cannot have yet, the next
            # plan would give to another.
            takers.sort(key=lambda i: level + roll.endings[i] >= cap)
        for i in takers[:remainder]:
            shares[i] += 1
    return shares


def _turns(roll: _Roll[S], left: int, lendable: int, limits: Limits, now: float) -> tuple[list[S], bool]:
    """Say which offline backends get their one slot, and whether the sharing ones have to lend it."""
    offline = roll.offline
    if left >= len(offline):
        return offline, False
    if left > 0:
        return sorted(offline, key=_turn)[:left], False
    if lendable <= 0:
        return [], False
    if roll.demand < roll.budget:
        return [min(offline, key=_turn)], True
    extra = _extra_attempt(offline, limits, now)
    return extra, bool(extra)


def _turn(each: Holding) -> tuple[bool, float, bool]:
    """Order those who take turns: an attempt in flight is never interrupted for it; then the earliest next attempt."""
    return not _in_flight(each), each.next_attempt, not each.connecting


def _in_flight(each: Holding) -> bool:
    """Whether an attempt is under way that has not been told to end."""
    return each.attempting > 0 and each.connecting > 0


def _extra_attempt(offline: list[S], limits: Limits, now: float) -> list[S]:
    """While every slot is in use: the attempt that is under way already, else the one that is due for longest."""
    in_flight = [each for each in offline if _in_flight(each)]
    if in_flight:
        return [min(in_flight, key=attrgetter("last_attempt"))]
    due = [each for each in offline if _due_at(each, limits) <= now]
    # The one that got a slot for this keeps it until its attempt has begun.
    return [min(due, key=lambda each: (not each.connecting, _due_at(each, limits)))] if due else []


def _due_at(each: Holding, limits: Limits) -> float:
    """When a backend counts as forgotten: not tried for max_connection_backoff, and not backing off any more."""
    tried = each.last_attempt if each.last_attempt > -math.inf else each.since
    return max(tried + limits.max_connection_backoff, each.next_attempt)


def _without(backends: list[S], some: list[S]) -> list[S]:
    """Return those of the backends that are not among some."""
    if len(some) == len(backends):
        return []
    known = set(map(id, some))
    return [each for each in backends if id(each) not in known]


def _plan(aim: _Aim[S], stop: list[tuple[S, int]], now: float) -> Plan[S]:
    """Put the plan together: what can start now, and what has to wait."""
    start = _starts(aim) if aim.short else []
    waits = aim.short > sum([count for _, count in start])
    forgotten, forgotten_at = _forgotten(aim, stop, now)
    saturated = _saturated(aim)
    starved = waits or bool(aim.passed_over) or _unsettled(aim, saturated=saturated)
    return Plan(tuple(start), tuple(stop), starved, forgotten, forgotten_at, saturated, aim.wanted)


def _starts(aim: _Aim[S]) -> list[tuple[S, int]]:
    """Start what the caps allow this moment: for the sharing backends first, for the poorest of them first."""
    room, cap, sharing = aim.roll.room, aim.limits.max_slots_per_backend, len(aim.roll.sharing)
    wants: list[tuple[int, int, int]] = []
    offline: list[S] = []
    for i, lack in aim.missing:
        each, held = aim.sets[i], aim.held[i]
        fits = min(lack, cap - held - each.ending)
        if fits <= 0:
            continue
        if i < sharing:
            wants.append((held, i, fits))
        else:
            offline.append(each)
    start = [(aim.sets[i], count) for i, count in _poorest_first(wants, room)]
    room -= sum([count for _, count in start])
    if len(offline) > room:
        offline = sorted(offline, key=_turn)[: max(0, room)]
    return start + [(each, 1) for each in offline]


def _poorest_first(wants: list[tuple[int, int, int]], room: int) -> list[tuple[int, int]]:
    """Deal the room out one by one, always to the one that holds least; (held, position, how many) each.

    Two sharing backends that lack slots have the same target, but for one: who holds least lacks most.
    """
    wants.sort()
    if sum(fits for _, _, fits in wants) <= room:
        return [(i, fits) for _, i, fits in wants]
    at: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for held, i, fits in wants:
        at[held].append((i, fits))
    dealt: dict[int, int] = {}
    level = min(at, default=0)
    while room > 0:
        for i, fits in at[level][:room]:
            dealt[i] = dealt.get(i, 0) + 1
            room -= 1
            if fits > 1:
                at[level + 1].append((i, fits - 1))
        level += 1
    return list(dealt.items())


def _make_room(aim: _Aim[S], now: float) -> list[tuple[S, int]]:
    """Stop as many as stand in the way of what is missing, less those that are ending already.

    Unconnected ones first, of those the ones that only back off. No connection is closed for a backend that is backing
    off: the slot would only wait. (Else demand that goes up and down round the cap would cost a connection each time.)
    """
    need = aim.short - aim.roll.room - aim.roll.ending
    if need <= 0:
        return []
    surplus = aim.surplus()
    surplus.sort(key=lambda row: (row[0].attempting > 0, -row[1]))
    unconnected = [min(count, each.connecting) for each, count in surplus]
    connected = [count - spent for (_, count), spent in zip(surplus, unconnected, strict=True)]
    stopped = list(
        map(add, _take(unconnected, need), _take(connected, need - sum(unconnected) - len(_patient(aim, now))))
    )
    return [(each, count) for (each, _), count in zip(surplus, stopped, strict=True) if count]


def _take(amounts: list[int], need: int) -> list[int]:
    """Take as much of each, one after another, as the need asks for."""
    before = accumulate(amounts, initial=0)
    return [min(amount, max(0, need - taken)) for amount, taken in zip(amounts, before, strict=False)]


def _patient(aim: _Aim[S], now: float) -> list[S]:
    """Offline backends without their slot that would only back off with it."""
    sharing = len(aim.roll.sharing)
    return [aim.sets[i] for i, _ in aim.missing if i >= sharing and aim.sets[i].next_attempt > now]


def _forgotten(aim: _Aim[S], stop: list[tuple[S, int]], now: float) -> tuple[S | None, float]:
    """Say which backend waits for a slot to come free, and from when on it gets it."""
    roll = aim.roll
    if aim.passed_over and not aim.turns:
        if sum(roll.floors) >= roll.budget and max(roll.floors, default=0) <= 1:
            return None, math.inf  # nothing comes free but the only slots of online backends
        return _first(aim.passed_over, lambda each: _due_at(each, aim.limits))
    if aim.short > roll.room + roll.ending + sum([count for _, count in stop]):
        return _first(_patient(aim, now), attrgetter("next_attempt"))
    return None, math.inf


def _first(backends: list[S], moment: Callable[[S], float]) -> tuple[S | None, float]:
    """Return whose moment comes first, and the moment; nobody when it never comes."""
    first = min(backends, key=moment, default=None)
    at = math.inf if first is None else moment(first)
    return (first, at) if at < math.inf else (None, math.inf)


def _saturated(aim: _Aim[S]) -> bool:
    """Whether more demand would change nothing: every slot is in use, or the total is at its maximum for good."""
    roll = aim.roll
    if roll.demand >= roll.budget:
        return True
    most = min(roll.budget, aim.limits.max_slots_per_backend * len(roll.sharing))
    return aim.wanted >= most and not aim.lent and not aim.passed_over


def _unsettled(aim: _Aim[S], *, saturated: bool) -> bool:
    """Whether slots would be shared otherwise after a claim's end, a slot's end or a failed attempt."""
    roll, limits = aim.roll, aim.limits
    if aim.lent and roll.demand >= roll.budget:
        return True  # the extra attempt of a forgotten backend gives its slot back
    at_cap = roll.demand + limits.spares_wanted >= roll.budget
    if roll.budget < limits.max_slots and (at_cap or saturated):
        return True  # what the leaving ones free is for the others
    # Claims above the level: what is released of them is for the others.
    return at_cap and bool(roll.floors) and max(roll.floors) > min(aim.targets[: len(roll.sharing)]) + 1
