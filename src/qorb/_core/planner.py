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
from dataclasses import dataclass
from heapq import heappop, heapreplace
from operator import attrgetter, sub
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
    """This backend gets the next slot that comes free from `forgotten_at` on, even when claims wait, unless that is
    the only slot of its backend. Plan again at that moment too: there may be a slot to take that nobody uses."""
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
    return _plan(aim, _make_room(aim, now), now)


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
    """What exists, read once. `sharing`, `held` and `floors` run in parallel."""

    sharing: list[S]
    held: list[int]
    """Slots that exist and have not been told to end."""
    floors: list[int]
    unplaced: list[S]
    """Never tried, without a slot, and not even a first one is left for them."""
    offline: list[S]
    demand: int
    budget: int
    room: int
    """How many slots may start this moment."""
    ending: int


def _read(sets: Sequence[S], waiting: int, limits: Limits) -> _Roll[S]:
    """Take the roll: who shares, who is offline, what is in use."""
    sharing: list[S] = []
    held: list[int] = []
    floors: list[int] = []
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
        elif not each.untried:
            offline.append(each)
        elif exist:
            sharing.append(each)
            held.append(exist)
            floors.append(1)
        else:
            fresh.append(each)
    budget = limits.max_slots - leaving - leaving_ending
    # More backends than slots: the ones that have a slot already were read above, so only these can be too many.
    placed = fresh[: max(0, budget - sum(floors))] if fresh else fresh
    sharing += placed
    held += [0] * len(placed)
    floors += [1] * len(placed)
    room = limits.max_slots - leaving - alive - ending
    return _Roll(sharing, held, floors, fresh[len(placed) :], offline, demand, budget, room, ending)


@dataclass(slots=True)
class _Aim(Generic[S]):
    """What there should be. `sets`, `held` and `targets` run in parallel: the sharing ones, then the offline ones."""

    roll: _Roll[S]
    limits: Limits
    sets: list[S]
    held: list[int]
    targets: list[int]
    sharing: int
    """How many of the sets share."""
    wanted: int
    passed_over: list[S]
    """Backends to be tried for which no slot is to be had."""
    starved: bool
    saturated: bool

    def missing(self) -> list[tuple[int, int]]:
        """(position, how many), for the sets that have too few."""
        lacks = list(map(sub, self.targets, self.held))
        return [(i, lack) for i, lack in enumerate(lacks) if lack > 0] if lacks and max(lacks) > 0 else []

    def surplus(self) -> list[tuple[S, int]]:
        """(set, how many), for the sets that have too many. Floors keep the claimed ones out of it."""
        rows = zip(self.sets, self.held, self.targets, strict=True)
        return [(each, held - target) for each, held, target in rows if held > target]


def _aim(sets: Sequence[S], waiting: int, limits: Limits, now: float) -> _Aim[S]:
    """Decide how many slots there should be of each backend."""
    roll = _read(sets, waiting, limits)
    cap, floor, in_use = limits.max_slots_per_backend, sum(roll.floors), roll.demand >= roll.budget
    asked = roll.demand + limits.spares_wanted
    total = max(min(asked, roll.budget), floor)
    shares = _share(roll.floors, roll.held, total, cap)
    wanted = sum(shares)
    at_most = wanted >= min(roll.budget, cap * len(shares))
    turns, lent = _turns(roll, roll.budget - wanted, roll.budget - floor, limits, now)
    if lent:
        shares = _share(roll.floors, roll.held, total - 1, cap)
        wanted = sum(shares)
    others = _without(roll.offline, turns)
    offline = turns + others
    short = bool(others or roll.unplaced)
    # Two more that wait for something to change: at the cap the others' share grows when a claim above the level is
    # released, and everybody's when a slot of a leaving backend ends.
    capped = asked >= roll.budget and bool(shares)
    uneven = capped and max(roll.floors) > min(shares) + 1
    confined = capped and roll.budget < limits.max_slots
    return _Aim(
        roll,
        limits,
        sets=roll.sharing + offline,
        held=roll.held + [each.connecting for each in offline],
        targets=shares + [1] * len(turns) + [0] * len(others),
        sharing=len(shares),
        wanted=wanted,
        passed_over=[] if turns else others + roll.unplaced,
        starved=short or uneven or confined or (lent and in_use),
        saturated=in_use or (at_most and not lent and not short),
    )


def _without(backends: list[S], some: list[S]) -> list[S]:
    """Return those of the backends that are not among some."""
    if len(some) == len(backends):
        return []
    known = set(map(id, some))
    return [each for each in backends if id(each) not in known]


def _share(floors: list[int], held: list[int], total: int, cap: int) -> list[int]:
    """Share the total: to each its floor or the level, whichever is more, but no more than the cap.

    The level is the highest whose sum fits. What then remains goes, one each, to those that hold most already, so that
    nothing is torn down here to be built up there.
    """
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
        takers.sort(key=held.__getitem__, reverse=True)
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


def _plan(aim: _Aim[S], stop: list[tuple[S, int]], now: float) -> Plan[S]:
    """Put the plan together: what can start now, and what has to wait."""
    missing = aim.missing()
    start = _starts(aim, missing) if missing else []
    short = sum(lack for _, lack in missing) - sum(count for _, count in start)
    forgotten, forgotten_at = _forgotten(aim, missing, stop, now)
    starved = aim.starved or short > 0
    return Plan(tuple(start), tuple(stop), starved, forgotten, forgotten_at, aim.saturated, aim.wanted)


def _starts(aim: _Aim[S], missing: list[tuple[int, int]]) -> list[tuple[S, int]]:
    """Start what the caps allow this moment, for the sharing backends first, the poorest of them first."""
    room, cap = aim.roll.room, aim.limits.max_slots_per_backend
    start: list[tuple[S, int]] = []
    wants: list[tuple[int, int]] = []
    for i, lack in missing:
        fits = min(lack, cap - aim.held[i] - aim.sets[i].ending)
        if fits > 0:
            wants.append((i, fits))
    shared = [(aim.held[i], i, fits) for i, fits in wants if i < aim.sharing]
    for i, count in _poorest_first(shared, room):
        start.append((aim.sets[i], count))
        room -= count
    offline = [aim.sets[i] for i, _ in wants if i >= aim.sharing]
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
    dealt: dict[int, int] = {}
    hands = list(wants)
    for _ in range(room):
        held, i, fits = hands[0]
        dealt[i] = dealt.get(i, 0) + 1
        if fits > 1:
            heapreplace(hands, (held + 1, i, fits - 1))
        else:
            heappop(hands)
    return list(dealt.items())


def _make_room(aim: _Aim[S], now: float) -> list[tuple[S, int]]:
    """Stop as many as stand in the way of what is missing, less those that are ending already.

    No connection is closed for a backend that is still backing off: the slot would only wait. Without this, demand
    that goes up and down round the cap would close and open a connection each time.
    """
    missing = aim.missing()
    need = sum(lack for _, lack in missing) - aim.roll.room - aim.roll.ending
    if need <= 0:
        return []
    patient = sum(1 for i, _ in missing if i >= aim.sharing and aim.sets[i].next_attempt > now)
    surplus = aim.surplus()
    surplus.sort(key=lambda row: (row[0].attempting > 0, -row[1]))
    stop: dict[int, int] = {}
    for position, (each, count) in enumerate(surplus):
        stop[position] = min(count, each.connecting, need)
        need -= stop[position]
    need -= patient
    for position, (_, count) in enumerate(surplus):
        idle = min(count - stop[position], max(0, need))
        stop[position] += idle
        need -= idle
    return [(surplus[position][0], count) for position, count in stop.items() if count]


def _forgotten(
    aim: _Aim[S], missing: list[tuple[int, int]], stop: list[tuple[S, int]], now: float
) -> tuple[S | None, float]:
    """Say which backend waits for a slot to come free, and from when on it gets it."""
    if aim.passed_over:
        floors = aim.roll.floors
        if sum(floors) >= aim.roll.budget and max(floors, default=0) <= 1:
            return None, math.inf  # nothing comes free but the only slots of online backends
        return _first(aim.passed_over, lambda each: _due_at(each, aim.limits))
    if sum(lack for _, lack in missing) > aim.roll.room + aim.roll.ending + sum(count for _, count in stop):
        patient = [aim.sets[i] for i, _ in missing if aim.sets[i].next_attempt > now]
        return _first(patient, attrgetter("next_attempt"))
    return None, math.inf


def _first(backends: list[S], moment: Callable[[S], float]) -> tuple[S | None, float]:
    """Return whose moment comes first, and the moment; nobody when it never comes."""
    first = min(backends, key=moment, default=None)
    at = math.inf if first is None else moment(first)
    return (first, at) if at < math.inf else (None, math.inf)
