"""How many slots each backend should have, and what to start and what to stop for that.

Nothing is remembered here: a plan follows from what exists, from the policy and from the time. What has been decided
once is decided again while nothing else changes, so a plan that was carried out is followed by an empty one.

The words. The *budget* is what the leaving backends leave of max_slots. Backends that are online or in their first
attempt *share* the wanted total; each has a *floor*, its claims or at least one slot, below which it is never planned.
Offline backends live on what the sharing ones leave: one slot each, or turns. When nothing is left, one slot above the
floors is *lent* to them.

A backend that is online and *failing* counts with what it has and no more: its connections are its ceiling, so that
demand is met by others. One that would get more, were it not failing, wants a *probe*: one slot that is nobody's supply
and competes with those of the offline backends, never with a claim that waits.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
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
    def failing(self) -> bool:
        """What was tried last came to nothing: more slots would be in vain. Only asked of those that are online."""
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
    """The failing ones come last."""
    sound: int
    """How many of them are not failing."""
    held: list[int]
    """Slots that exist and have not been told to end."""
    floors: list[int]
    endings: list[int]
    """Slots that were told to end."""
    ceilings: list[int]
    """Of the failing ones: their connections."""
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
    failing: list[S] = []
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
            if each.failing:
                failing.append(each)
                continue
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
    last_floors = [each.claimed or 1 for each in failing]
    # Those that have a slot come first: with more backends than slots, only ones without can be too many.
    placed = fresh[: max(0, budget - sum(floors) - sum(last_floors))] if fresh else fresh
    sound = len(sharing) + len(placed)
    ceilings = [each.unclaimed + each.checking + each.claimed for each in failing]
    sharing += placed + failing
    held += [0] * len(placed) + list(map(add, ceilings, [each.connecting for each in failing]))
    floors += [1] * len(placed) + last_floors
    endings += [each.ending for each in placed + failing]
    unplaced = fresh[len(placed) :]
    return _Roll(sharing, sound, held, floors, endings, ceilings, offline, unplaced, demand, budget, room, ending)


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
    """The backends that get a slot for an attempt: offline ones, and failing ones that want a probe."""
    passed_over: list[S]
    """Those without a connection that should be tried and get no slot."""
    unprobed: bool
    """One wants a probe and gets none."""
    content: bool
    """A failing one is below its cap and wants no probe, since others do not get more than it has."""
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
    shares, reach = _share(roll, total, cap)
    able = [i for i, ceiling in enumerate(roll.ceilings, roll.sound) if ceiling < cap]
    wanting = [i for i in able if shares[i] + 1 < reach]
    probes = [roll.sharing[i] for i in wanting]
    turns, lent = _turns(roll, probes, roll.budget - sum(shares), roll.budget - floor, limits, now)
    if lent:
        shares, _ = _share(roll, total - 1, cap)
    goals = shares.copy()
    if probes:
        with_slot = set(map(id, turns))
        for i in wanting:
            goals[i] += id(roll.sharing[i]) in with_slot
    trying = _without(turns, probes) if probes else turns
    others = _without(roll.offline, trying) if len(trying) < len(roll.offline) else []
    offline = trying + others
    held = roll.held + [each.connecting for each in offline]
    goals += [1] * len(trying) + [0] * len(others)
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
        unprobed=len(probes) + len(trying) > len(turns),
        content=len(probes) < len(able),
        lent=lent,
        missing=missing,
        short=sum([lack for _, lack in missing]),
    )


def _share(roll: _Roll[S], total: int, cap: int) -> tuple[list[int], float]:
    """Share the total: to each its floor or the level, whichever is more, but no more than its ceiling or the cap.

    The level is the highest whose sum fits. What then remains goes, one each, to those that hold most already, so that
    nothing is torn down here to be built up there. Says also what those get that get most beyond their floors; without
    end when all are at their ceilings and more is wanted.
    """
    level, reach, rest = _level(roll, total, cap)
    even = level >= max(roll.floors, default=0)
    shares = [level] * len(roll.floors) if even else [max(floor, level) for floor in roll.floors]
    held = roll.held
    if roll.ceilings:
        shares = shares[: roll.sound] + _at_most(shares[roll.sound :], roll.ceilings)
        held = held[: roll.sound] + _at_most(held[roll.sound :], roll.ceilings)
    if rest:
        tops = [cap] * roll.sound + roll.ceilings
        takers = [i for i, (share, top) in enumerate(zip(shares, tops, strict=True)) if share == level < top]
        takers.sort(key=held.__getitem__, reverse=True)
        if roll.ending:
            # Those whose own ending slots leave no room for one more come last: what they cannot have yet, the next
            # plan would give to another.
            takers.sort(key=lambda i: level + roll.endings[i] >= cap)
        for i in takers[:rest]:
            shares[i] += 1
    return shares, reach


def _level(roll: _Roll[S], total: int, cap: int) -> tuple[int, float, int]:
    """Raise the level from zero for as long as the total lasts: each rises with it from its floor to its ceiling.

    Gives the level, what the takers of the rest will have, and the rest.
    """
    begins, ends = Counter(roll.floors), Counter(roll.ceilings)
    ends[cap] += roll.sound
    level, rising, rest = 0, 0, total - sum(roll.floors)
    for step in sorted({*begins, *ends}):
        if rising * (step - level) >= rest:
            break
        rest -= rising * (step - level)
        level = step
        rising += begins[step] - ends[step]
    if not rising:
        return level, math.inf if rest else level, rest
    more, rest = divmod(rest, rising)
    level += more
    return level, level + (rest > 0), rest


def _at_most(amounts: list[int], ceilings: list[int]) -> list[int]:
    """Cut each down to its ceiling."""
    return list(map(min, amounts, ceilings))


def _turns(
    roll: _Roll[S], probes: list[S], left: int, lendable: int, limits: Limits, now: float
) -> tuple[list[S], bool]:
    """Say which backends without supply get their one slot, and whether the sharing ones have to lend it."""
    everyone = roll.offline + probes
    if left >= len(everyone):
        return everyone, False
    if left > 0:
        return sorted(everyone, key=_turn)[:left], False
    if lendable <= 0:
        return [], False
    if roll.demand < roll.budget:
        return [min(everyone, key=_turn)], True
    extra = _extra_attempt(roll.offline, limits, now)
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
    known = set(map(id, some))
    return [each for each in backends if id(each) not in known]


def _plan(aim: _Aim[S], stop: list[tuple[S, int]], now: float) -> Plan[S]:
    """Put the plan together: what can start now, and what has to wait."""
    start = _starts(aim) if aim.short else []
    waits = aim.short > sum([count for _, count in start])
    forgotten, forgotten_at = _forgotten(aim, stop, now)
    saturated = _saturated(aim)
    starved = waits or bool(aim.passed_over) or aim.unprobed or _unsettled(aim, saturated=saturated)
    return Plan(tuple(start), tuple(stop), starved, forgotten, forgotten_at, saturated, aim.wanted)


def _starts(aim: _Aim[S]) -> list[tuple[S, int]]:
    """Start what the caps allow this moment: for the supply first, and of that for the poorest backends first."""
    room, cap, sound = aim.roll.room, aim.limits.max_slots_per_backend, aim.roll.sound
    wants: list[tuple[int, int, int]] = []
    trying: list[S] = []
    for i, lack in aim.missing:
        each, held = aim.sets[i], aim.held[i]
        fits = min(lack, cap - held - each.ending)
        if fits <= 0:
            continue
        if i < sound:
            wants.append((held, i, fits))
        else:
            trying.append(each)
    start = [(aim.sets[i], count) for i, count in _poorest_first(wants, room)]
    room -= sum([count for _, count in start])
    if len(trying) > room:
        trying = sorted(trying, key=_turn)[: max(0, room)]
    return start + [(each, 1) for each in trying]


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
    """Backends without the slot for their attempt that would only back off with it."""
    return [aim.sets[i] for i, _ in aim.missing if i >= aim.roll.sound and aim.sets[i].next_attempt > now]


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
    if aim.lent or aim.passed_over or aim.unprobed or aim.content:
        return False
    return aim.wanted >= min(roll.budget, aim.limits.max_slots_per_backend * roll.sound + sum(roll.ceilings))


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
