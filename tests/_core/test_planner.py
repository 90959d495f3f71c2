"""The planner: hand-computed examples of each rule, properties of single plans, and a pool in miniature that lives by
them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qorb._core.planner import Limits, Plan, grow, rebalance, targets

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMITS = Limits(spares_wanted=8, max_slots=16, max_slots_per_backend=16, max_connection_backoff=30.0)
NOW = 1000.0


def limits(spares: int = 8, slots: int = 16, per_backend: int = 16) -> Limits:
    return replace(LIMITS, spares_wanted=spares, max_slots=slots, max_slots_per_backend=per_backend)


@dataclass(eq=False)
class Fake:
    """A backend as the planner sees it, by numbers alone."""

    name: str
    connecting: int = 0
    unclaimed: int = 0
    checking: int = 0
    claimed: int = 0
    ending: int = 0
    attempting: int = 0
    untried: bool = False
    failing: bool = False
    leaving: bool = False
    next_attempt: float = 0.0
    last_attempt: float = -math.inf
    since: float = 0.0

    @property
    def online(self) -> bool:
        return self.unclaimed + self.checking + self.claimed > 0

    @property
    def held(self) -> int:
        return self.connecting + self.unclaimed + self.checking + self.claimed

    @property
    def idle(self) -> int:
        return self.unclaimed + self.checking

    def start(self, count: int) -> None:
        self.connecting += count

    def stop(self, count: int) -> None:
        for kind in ("connecting", "unclaimed", "checking"):
            gone = min(count, getattr(self, kind))
            setattr(self, kind, getattr(self, kind) - gone)
            self.ending += gone
            count -= gone
        self.attempting = min(self.attempting, self.connecting)
        assert count == 0, "a claimed slot was to be stopped"


def new(name: str, connecting: int = 0, attempting: int = 0) -> Fake:
    return Fake(name, connecting=connecting, attempting=attempting, untried=True, since=NOW)


def dead(
    name: str, connecting: int = 1, *, tried: float = NOW - 1, again: float = NOW + 1, attempting: int = 0
) -> Fake:
    return Fake(name, connecting=connecting, attempting=attempting, last_attempt=tried, next_attempt=again)


def failing(name: str, connected: int, connecting: int = 0, *, claimed: int = 0, again: float = NOW + 1) -> Fake:
    """Make a backend that keeps `connected` connections and refuses new ones."""
    return Fake(
        name,
        connecting=connecting,
        unclaimed=connected - claimed,
        claimed=claimed,
        failing=True,
        last_attempt=NOW - 1,
        next_attempt=again,
    )


def said(pairs: Sequence[tuple[Fake, int]]) -> dict[str, int]:
    return {each.name: count for each, count in pairs}


def apply(plan: Plan[Fake]) -> None:
    for each, count in plan.start:
        each.start(count)
    for each, count in plan.stop:
        each.stop(count)


# Rule 1: the caps.


def test_slots_that_are_still_ending_count_against_max_slots() -> None:
    a = Fake("a", unclaimed=3, ending=2)
    plan = grow([a], 0, limits(spares=8, slots=6), NOW)
    assert said(plan.start) == {"a": 1}
    assert plan.starved


def test_slots_that_are_still_ending_count_against_the_cap_of_their_backend() -> None:
    a = Fake("a", unclaimed=1, ending=3)
    plan = grow([a], 0, limits(slots=16, per_backend=4), NOW)
    assert not plan
    assert plan.starved


def test_claims_of_a_leaving_backend_count_against_the_cap_and_not_as_demand() -> None:
    leaving, a = Fake("x", leaving=True, claimed=3, ending=1), Fake("a", unclaimed=1)
    assert targets([leaving, a], 0, limits(spares=2, slots=16), NOW) == (0, 2)
    assert targets([leaving, a], 9, limits(spares=2, slots=16), NOW) == (0, 11)
    assert targets([leaving, a], 20, limits(spares=2, slots=16), NOW) == (0, 12)


def test_a_start_with_more_backends_than_slots_takes_no_more_than_max_slots() -> None:
    """The original: 20 of 16."""
    backends = [new(f"b{i}") for i in range(20)]
    plan = grow(backends, 0, LIMITS, NOW)
    assert said(plan.start) == {f"b{i}": 1 for i in range(16)}
    assert plan.wanted == 16
    assert plan.starved


def test_a_backend_that_comes_back_does_not_lift_the_pool_over_its_cap() -> None:
    """The original: 18 of 16."""
    a, b, c = Fake("a", unclaimed=8), Fake("b", unclaimed=8), new("c")
    plan = grow([a, b, c], 16, LIMITS, NOW)
    assert plan.start == ()
    assert sum(said(plan.stop).values()) == 5
    apply(plan)
    assert a.held + b.held + c.held + a.ending + b.ending == 16


# Rule 2: the wanted total.


def test_the_wanted_total_is_claims_and_waiting_and_spares_up_to_max_slots() -> None:
    a = Fake("a", claimed=2, unclaimed=1)
    assert targets([a], 0, limits(spares=3), NOW) == (5,)
    assert targets([a], 4, limits(spares=3), NOW) == (9,)
    assert targets([a], 400, limits(spares=3), NOW) == (16,)


def test_without_spares_an_idle_backend_keeps_its_one_slot() -> None:
    """The original: 62,000 reconnects a second."""
    a = Fake("a", unclaimed=1)
    for decide in (grow, rebalance):
        plan = decide([a], 0, limits(spares=0), NOW)
        assert not plan
        assert not plan.starved


def test_more_spares_than_slots_is_as_many_as_there_are() -> None:
    assert targets([Fake("a", unclaimed=1)], 0, limits(spares=1000), NOW) == (16,)


# Rule 3: sharing.


@pytest.mark.parametrize(
    ("claimed", "total", "expected"),
    [
        ((0, 0, 0), 9, (3, 3, 3)),
        ((0, 0, 0), 10, (4, 3, 3)),
        ((0, 0, 0), 11, (4, 4, 3)),
        ((6, 0, 0), 9, (6, 2, 1)),
        ((6, 0, 0), 10, (6, 2, 2)),
        ((6, 1, 1), 14, (6, 4, 4)),
        ((7, 4, 1), 15, (7, 4, 4)),
        ((7, 4, 1), 16, (7, 5, 4)),
        ((5, 5, 5), 16, (6, 5, 5)),
        ((8, 8, 0), 16, (8, 7, 1)),
    ],
)
def test_the_level_is_the_highest_whose_sum_fits(
    claimed: tuple[int, ...], total: int, expected: tuple[int, ...]
) -> None:
    if sum(max(1, count) for count in claimed) > total:
        claimed = tuple(min(count, 7) if i == 1 else count for i, count in enumerate(claimed))
    backends = [Fake(f"b{i}", claimed=count, unclaimed=int(not count)) for i, count in enumerate(claimed)]
    assert targets(backends, 0, limits(spares=total - sum(claimed), slots=64, per_backend=64), NOW) == expected


def test_the_remainder_goes_to_those_that_have_most_already() -> None:
    a, b, c = Fake("a", unclaimed=2), Fake("b", unclaimed=4), Fake("c", unclaimed=3)
    assert targets([a, b, c], 0, limits(spares=10), NOW) == (3, 4, 3)
    assert targets([a, b, c], 0, limits(spares=11), NOW) == (3, 4, 4)


def test_slots_told_to_end_do_not_count_for_the_remainder() -> None:
    a, b = Fake("a", unclaimed=2, ending=5), Fake("b", unclaimed=3)
    assert targets([a, b], 0, limits(spares=7), NOW) == (3, 4)


def test_the_remainder_does_not_go_to_one_that_cannot_have_it_yet() -> None:
    a, b, c = new("a"), Fake("b", unclaimed=2, ending=1), Fake("c", unclaimed=2)
    small = limits(spares=13, slots=14, per_backend=5)
    assert targets([a, b, c], 0, small, NOW) == (4, 4, 5)
    apply(grow([a, b, c], 0, small, NOW))
    assert not grow([a, b, c], 0, small, NOW)


def test_no_backend_gets_more_than_its_cap() -> None:
    a, b = Fake("a", claimed=5), Fake("b", unclaimed=1)
    assert targets([a, b], 0, limits(spares=11, per_backend=6), NOW) == (6, 6)
    assert targets([a, b], 0, limits(spares=4, per_backend=6), NOW) == (5, 4)


def test_a_backend_in_its_first_attempt_shares_as_if_it_were_online() -> None:
    a, b, c = Fake("a", unclaimed=1), new("b", connecting=1, attempting=1), new("c")
    plan = grow([a, b, c], 0, limits(spares=9), NOW)
    assert said(plan.start) == {"c": 3, "a": 2, "b": 2}


def test_an_online_backend_keeps_one_slot_when_others_claims_want_everything() -> None:
    a, b = Fake("a", claimed=15), Fake("b", unclaimed=1)
    plan = rebalance([a, b], 100, LIMITS, NOW)
    assert not plan
    assert targets([a, b], 100, LIMITS, NOW) == (15, 1)


def test_a_new_backend_gets_its_share_at_once_even_when_the_pool_is_full() -> None:
    a, b = Fake("a", unclaimed=12, claimed=4), new("b")
    plan = grow([a, b], 0, LIMITS, NOW)  # wanted: 12
    assert targets([a, b], 0, LIMITS, NOW) == (6, 6)
    assert said(plan.stop) == {"a": 6}
    assert plan.start == ()


# Rule 4: offline backends.


def test_each_offline_backend_gets_one_slot_from_what_is_left() -> None:
    a, x, y = Fake("a", unclaimed=4), dead("x", 0), dead("y", 0)
    plan = grow([a, x, y], 0, limits(spares=4), NOW)
    assert said(plan.start) == {"x": 1, "y": 1}
    assert not plan.starved


def test_with_more_offline_backends_than_slots_left_they_take_turns_on_what_is_left() -> None:
    a, others = Fake("a", unclaimed=4), [dead(f"x{i}", 0, again=NOW - i) for i in range(4)]
    assert targets([a, *others], 0, limits(spares=4, slots=6), NOW) == (4, 0, 0, 1, 1)


def test_one_live_backend_among_eight_dead_ones_keeps_its_slots() -> None:
    """The original: each dead backend takes one from the living; no claims at all and 34,000 reconnects a second."""
    a, others = Fake("a", unclaimed=8), [dead(f"x{i}") for i in range(8)]
    for decide in (grow, rebalance):
        assert not decide([a, *others], 0, LIMITS, NOW)
    busy = Fake("a", claimed=8)
    plan = grow([busy, *others], 0, LIMITS, NOW)  # 16 are wanted, but one spare gives way
    assert plan.wanted == 15
    assert said(plan.stop) == {f"x{i}": 1 for i in range(1, 8)}
    plan = grow([busy, *others], 8, LIMITS, NOW)  # there is no spare any more
    assert plan.wanted == 16
    assert said(plan.stop) == {f"x{i}": 1 for i in range(8)}


def test_when_nothing_is_left_one_spare_gives_way_to_the_earliest_next_attempt() -> None:
    a = Fake("a", unclaimed=16)
    x, y = dead("x", 0, again=NOW - 1), dead("y", 0, again=NOW - 2)
    plan = grow([a, x, y], 0, limits(spares=16), NOW)
    assert said(plan.stop) == {"a": 1}
    assert targets([a, x, y], 0, limits(spares=16), NOW) == (15, 0, 1)
    apply(plan)
    assert not grow([a, x, y], 0, limits(spares=16), NOW)
    a.ending = 0
    assert said(grow([a, x, y], 0, limits(spares=16), NOW).start) == {"y": 1}


def test_an_attempt_in_flight_keeps_the_turn_and_a_failed_one_passes_it_on() -> None:
    a = Fake("a", unclaimed=15)
    x, y = dead("x", 1, attempting=1, again=NOW), dead("y", 0, again=NOW - 1)
    full = limits(spares=16)
    assert not grow([a, x, y], 0, full, NOW)
    x.attempting, x.next_attempt = 0, NOW + 5
    plan = grow([a, x, y], 0, full, NOW)
    assert said(plan.stop) == {"x": 1}
    apply(plan)
    x.ending = 0
    plan = grow([a, x, y], 0, full, NOW)
    assert said(plan.start) == {"y": 1}


def test_an_attempt_that_was_told_to_end_does_not_keep_the_turn() -> None:
    a = Fake("a", unclaimed=14)
    x, y = dead("x", 0, attempting=1, again=NOW - 2), dead("y", 1, attempting=1, again=NOW - 1)
    x.ending = 1
    assert not grow([a, x, y], 0, limits(spares=16), NOW)


def test_the_only_slot_of_an_online_backend_never_gives_way() -> None:
    a, b, x = Fake("a", unclaimed=1), Fake("b", unclaimed=1), dead("x", 0, tried=0, again=0)
    for decide in (grow, rebalance):
        plan = decide([a, b, x], 0, limits(slots=2), NOW)
        assert not plan
        assert plan.forgotten is None


def test_the_extra_slot_of_a_backend_in_its_first_attempt_may_give_way() -> None:
    a, x = new("a", connecting=4, attempting=4), dead("x", 0, again=NOW)
    plan = grow([a, x], 0, limits(slots=4), NOW)
    assert said(plan.stop) == {"a": 1}


def test_no_connection_is_closed_for_a_backend_that_would_only_back_off() -> None:
    a, x = Fake("a", unclaimed=16), dead("x", 0, again=NOW + 3)
    plan = grow([a, x], 0, limits(spares=16), NOW)
    assert not plan
    assert (plan.forgotten, plan.forgotten_at) == (x, NOW + 3)
    assert said(grow([a, x], 0, limits(spares=16), NOW + 3).stop) == {"a": 1}


def test_an_unconnected_slot_is_ended_for_a_backend_that_backs_off() -> None:
    a, x = Fake("a", unclaimed=14, connecting=2), dead("x", 0, again=NOW + 3)
    plan = grow([a, x], 0, limits(spares=16), NOW)
    assert said(plan.stop) == {"a": 1}
    assert plan.forgotten is None


def test_a_slot_that_ends_for_a_backend_is_enough_for_it() -> None:
    a, x = Fake("a", unclaimed=15, ending=1), dead("x", 0, again=NOW + 3)
    plan = grow([a, x], 0, limits(spares=16), NOW)
    assert not plan
    assert plan.starved
    assert plan.forgotten is None


def test_under_full_load_a_forgotten_backend_is_named_with_its_moment() -> None:
    a, x, y = Fake("a", claimed=16), dead("x", 0, tried=NOW - 10), dead("y", 0, tried=NOW - 20)
    plan = grow([a, x, y], 0, LIMITS, NOW)
    assert not plan
    assert (plan.forgotten, plan.forgotten_at) == (y, NOW + 10)
    assert plan.starved
    assert plan.saturated


def test_a_forgotten_backend_gets_the_slot_that_comes_free_and_gives_it_back_after_one_failure() -> None:
    a, x = Fake("a", claimed=16), dead("x", 0, tried=NOW - 31, again=NOW - 1)
    plan = grow([a, x], 5, LIMITS, NOW)
    assert (plan.forgotten, plan.forgotten_at) == (x, NOW - 1)
    a.claimed, a.ending = 15, 1
    plan = grow([a, x], 5, LIMITS, NOW)
    assert not plan
    assert plan.forgotten is None
    a.ending = 0
    plan = grow([a, x], 5, LIMITS, NOW)
    assert said(plan.start) == {"x": 1}
    apply(plan)
    assert not grow([a, x], 5, LIMITS, NOW)
    x.attempting, x.last_attempt = 1, NOW
    plan = grow([a, x], 5, LIMITS, NOW + 9)
    assert not plan
    assert plan.starved
    x.attempting, x.last_attempt, x.next_attempt = 0, NOW + 10, NOW + 40
    plan = grow([a, x], 5, LIMITS, NOW + 10)
    assert said(plan.stop) == {"x": 1}
    apply(plan)
    x.ending = 0
    plan = grow([a, x], 5, LIMITS, NOW + 10)
    assert said(plan.start) == {"a": 1}
    assert (plan.forgotten, plan.forgotten_at) == (x, NOW + 40)


def test_at_the_very_moment_named_the_forgotten_backend_gets_a_slot_that_is_not_claimed() -> None:
    a, x = Fake("a", claimed=15, checking=1), dead("x", 0, tried=NOW - 20)
    plan = grow([a, x], 5, LIMITS, NOW)
    assert not plan
    assert (plan.forgotten, plan.forgotten_at) == (x, NOW + 10)
    plan = grow([a, x], 5, LIMITS, NOW + 10)
    assert said(plan.stop) == {"a": 1}
    assert plan.forgotten is None


def test_one_extra_attempt_at_a_time_goes_on_under_full_load() -> None:
    a = Fake("a", claimed=15)
    x, y = dead("x", 1, attempting=1, tried=NOW), dead("y", 0, tried=0, again=0)
    plan = grow([a, x, y], 5, LIMITS, NOW)
    assert not plan
    assert plan.forgotten is None
    x.attempting = 0
    plan = grow([a, x, y], 5, LIMITS, NOW)
    assert said(plan.stop) == {"x": 1}
    assert targets([a, x, y], 5, LIMITS, NOW) == (15, 0, 1)


def test_a_backend_never_tried_for_lack_of_a_slot_is_forgotten_from_its_appearance_on() -> None:
    a, b = Fake("a", claimed=16), new("b")
    plan = grow([a, b], 5, LIMITS, NOW)
    assert (plan.forgotten, plan.forgotten_at) == (b, NOW + 30)


def test_two_slots_are_enough_for_a_forgotten_backend_to_be_named() -> None:
    a, x = Fake("a", claimed=2), dead("x", 0)
    assert grow([a, x], 5, limits(slots=2), NOW).forgotten is x


def test_with_one_slot_nothing_is_taken_from_the_only_online_backend() -> None:
    a, x = Fake("a", claimed=1), dead("x", 0, tried=0, again=0)
    plan = grow([a, x], 5, limits(slots=1), NOW)
    assert not plan
    assert plan.forgotten is None


def test_a_backoff_that_never_ends_is_never_forgotten() -> None:
    a, x = Fake("a", claimed=16), new("x")
    plan = grow([a, x], 5, replace(LIMITS, max_connection_backoff=math.inf), NOW)
    assert (plan.forgotten, plan.forgotten_at) == (None, math.inf)


def test_with_nothing_online_each_of_a_few_backends_is_tried() -> None:
    x, y = dead("x", 0), dead("y", 0)
    plan = grow([x, y], 50, LIMITS, NOW)
    assert said(plan.start) == {"x": 1, "y": 1}
    assert not plan.starved


def test_with_nothing_online_and_few_slots_the_backends_take_turns() -> None:
    x, y, z = dead("x", 1, again=NOW + 5), dead("y", 0, again=NOW + 2), dead("z", 1, attempting=1, again=NOW + 9)
    plan = grow([x, y, z], 50, limits(slots=2), NOW)
    assert said(plan.stop) == {"x": 1}
    apply(plan)
    x.ending = 0
    assert said(grow([x, y, z], 50, limits(slots=2), NOW).start) == {"y": 1}


# Backends that are online and refuse more.


@pytest.mark.parametrize(
    ("waiting", "spares", "expected"),
    [
        (1, 0, (2, 1)),
        (2, 0, (2, 2)),
        (3, 0, (2, 3)),
        (4, 0, (2 + 1, 4)),
        (5, 0, (2 + 1, 5)),
        (6, 0, (2, 6)),
        (9, 0, (2, 6)),
        (3, 3, (2 + 1, 5)),
        (0, 9, (2 + 1, 5)),
    ],
)
def test_a_failing_backend_counts_with_its_connections_and_is_probed_where_that_takes_no_slot_from_a_waiting_claim(
    waiting: int, spares: int, expected: tuple[int, int]
) -> None:
    for connecting in (0, 1, 3):
        a, b = failing("a", 2, connecting, claimed=2), Fake("b", unclaimed=1)
        assert targets([a, b], waiting, limits(spares, 8), NOW) == expected
        assert grow([a, b], waiting, limits(spares, 8), NOW).wanted == sum(expected) - (expected[0] - 2)


def test_what_a_failing_backend_cannot_have_starts_elsewhere_at_once() -> None:
    a, b = failing("a", 2, 6, claimed=2), Fake("b", claimed=1)
    plan = grow([a, b], 4, limits(0, 9), NOW)
    assert said(plan.stop) == {"a": 4}
    apply(plan)
    a.ending = 0
    plan = grow([a, b], 4, limits(0, 9), NOW)
    assert said(plan.start) == {"b": 4}


def test_a_failing_backend_is_above_no_floor_and_below_no_claim() -> None:
    a, b, c = failing("a", 5, claimed=5), failing("b", 1), Fake("c", unclaimed=1)
    assert targets([a, b, c], 0, limits(2), NOW) == (5, 1, 1)
    assert targets([a, b, c], 3, limits(2), NOW) == (5, 1 + 1, 4)


def test_the_levels_rise_past_one_failing_backend_after_another() -> None:
    backends = [failing("a", 1), failing("b", 3), Fake("c", unclaimed=1), failing("d", 6, claimed=6)]
    room = limits(0, 64)
    totals = {10: (1, 2, 1, 6), 11: (1, 2, 2, 6), 12: (1 + 1, 3, 2, 6), 13: (1 + 1, 3, 3, 6), 15: (1 + 1, 3 + 1, 5, 6)}
    for total, expected in totals.items():
        assert targets(backends, total - 6, room, NOW) == expected


def test_when_all_are_failing_and_more_is_wanted_each_is_probed() -> None:
    a, b = failing("a", 2), failing("b", 3, claimed=3)
    plan = grow([a, b], 2, limits(0), NOW)
    assert not plan
    plan = grow([a, b], 3, limits(0), NOW)
    assert said(plan.start) == {"a": 1, "b": 1}
    assert plan.wanted == 5


def test_failing_and_offline_backends_take_turns_on_what_is_left() -> None:
    a, b = failing("a", 2, again=NOW + 3), failing("b", 3, again=NOW + 1)
    x = dead("x", 0, again=NOW + 2)
    for slots, expected in {5: (2, 3, 0), 6: (2, 4, 0), 7: (2, 4, 1), 8: (3, 4, 1)}.items():
        assert targets([a, b, x], 9, limits(0, slots), NOW) == expected


def test_a_failing_backend_at_its_cap_is_not_probed() -> None:
    a, b = failing("a", 3), Fake("b", unclaimed=3)
    plan = grow([a, b], 9, limits(0, 16, 3), NOW)
    assert not plan
    assert not plan.starved
    assert plan.saturated


def test_supply_starts_before_a_probe() -> None:
    a, b = failing("a", 1), Fake("b", unclaimed=1, ending=10)
    for order in ([a, b], [b, a]):
        assert said(grow(order, 8, limits(0, 15), NOW).start) == {"b": 3}


def test_a_spare_is_lent_for_a_probe_and_given_back_to_claims_that_wait() -> None:
    a, b = failing("a", 2, again=NOW), Fake("b", unclaimed=6)
    plan = grow([a, b], 0, limits(8, 8), NOW)
    assert said(plan.stop) == {"b": 1}
    apply(plan)
    b.ending = 0
    assert said(grow([a, b], 0, limits(8, 8), NOW).start) == {"a": 1}
    a.connecting, b.unclaimed, b.claimed = 1, 0, 5
    plan = grow([a, b], 5, limits(8, 8), NOW)
    assert said(plan.stop) == {"a": 1}
    assert plan.starved


def test_no_connection_is_closed_for_a_probe_that_would_only_back_off() -> None:
    a, b = failing("a", 2, again=NOW + 3), Fake("b", unclaimed=6)
    plan = grow([a, b], 0, limits(8, 8), NOW)
    assert not plan
    assert (plan.forgotten, plan.forgotten_at) == (a, NOW + 3)


def test_a_backend_that_serves_is_never_the_forgotten_one_while_claims_wait_for_every_slot() -> None:
    a, b = failing("a", 2, claimed=2, again=NOW - 9), Fake("b", claimed=6)
    a.last_attempt = NOW - 100
    plan = grow([a, b], 5, limits(0, 8), NOW)
    assert not plan
    assert plan.forgotten is None
    assert plan.starved
    x = dead("x", 0, tried=NOW - 10)
    assert grow([a, b, x], 5, limits(0, 8), NOW).forgotten is x


def test_a_failing_backend_that_has_enough_leaves_room_for_more_demand() -> None:
    a, b = failing("a", 2, claimed=2), Fake("b", claimed=3)
    assert not grow([a, b], 0, limits(0, 16, 3), NOW).saturated
    assert grow([a, b], 1, limits(0, 16, 3), NOW).saturated
    assert said(grow([a, b], 1, limits(0, 16, 3), NOW).start) == {"a": 1}


# Rule 5: growth at once, shrinking damped.


def test_growth_leaves_surplus_alone_and_rebalance_removes_it() -> None:
    a, b = Fake("a", unclaimed=6), Fake("b", unclaimed=5, checking=1)
    assert not grow([a, b], 0, LIMITS, NOW)
    assert said(rebalance([a, b], 0, LIMITS, NOW).stop) == {"a": 2, "b": 2}


def test_the_slots_of_a_backend_that_went_offline_stay_until_they_are_in_the_way() -> None:
    a, x = Fake("a", unclaimed=4), dead("x", 4)
    assert said(grow([a, x], 0, LIMITS, NOW).start) == {"a": 4}
    assert said(rebalance([a, x], 0, LIMITS, NOW).stop) == {"x": 3}
    a.claimed, a.unclaimed = 12, 0
    plan = grow([a, x], 0, LIMITS, NOW)  # 15 and one turn
    assert said(plan.stop) == {"x": 3}


def test_spares_that_became_claims_are_replaced_at_once() -> None:
    a = Fake("a", unclaimed=5, claimed=3)
    assert said(grow([a], 0, LIMITS, NOW).start) == {"a": 3}


# Rule 6: what is stopped.


def test_unconnected_slots_go_before_idle_ones_and_claimed_ones_never() -> None:
    a, b, c = Fake("a", unclaimed=7), Fake("b", connecting=3, unclaimed=2, claimed=4), new("c")
    plan = grow([a, b, c], 0, limits(spares=12), NOW)
    assert targets([a, b, c], 0, limits(spares=12), NOW) == (5, 6, 5)
    assert said(plan.stop) == {"b": 3, "a": 2}


def test_exactly_as_many_are_stopped_as_are_needed_less_those_that_end_already() -> None:
    """The original counts some twice."""
    a, b = Fake("a", unclaimed=12, ending=4), new("b")
    plan = grow([a, b], 0, limits(spares=12), NOW)
    assert targets([a, b], 0, limits(spares=12), NOW) == (6, 6)
    assert said(plan.stop) == {"a": 2}
    assert plan.start == ()


# Rule 7: vanished backends.


def test_the_others_share_grows_at_once_when_a_backend_vanishes() -> None:
    """The original: after up to 60 seconds."""
    a, x = Fake("a", unclaimed=8), Fake("x", leaving=True, claimed=2, ending=6)
    plan = grow([a, x], 4, LIMITS, NOW)
    assert plan.start == ()
    assert plan.starved
    x.ending = 0
    assert said(grow([a, x], 4, LIMITS, NOW).start) == {"a": 4}


def test_nothing_is_stopped_for_what_a_vanished_backend_is_about_to_free() -> None:
    a, b, x = Fake("a", unclaimed=2), new("b"), Fake("x", leaving=True, ending=2)
    plan = grow([a, b, x], 0, limits(spares=4, slots=4), NOW)
    assert not plan
    assert plan.starved


# Growth when room is short, and what the flags promise.


def test_when_room_is_short_those_that_have_least_come_first() -> None:
    a, b, c = Fake("a", unclaimed=3, ending=6), new("b", connecting=1), new("c")
    plan = grow([a, b, c], 0, limits(spares=12, slots=13), NOW)
    assert targets([a, b, c], 0, limits(spares=12, slots=13), NOW) == (4, 4, 4)
    assert said(plan.start) == {"c": 2, "b": 1}


def test_when_room_is_short_nobody_gets_more_than_its_own_cap_allows() -> None:
    a, b = Fake("a", unclaimed=1, ending=3), Fake("b", unclaimed=1)
    plan = grow([a, b], 0, limits(spares=8, slots=8, per_backend=5), NOW)
    assert said(plan.start) == {"a": 1, "b": 2}
    a.ending = 4
    plan = grow([a, b], 0, limits(spares=12, slots=12, per_backend=7), NOW)
    assert said(plan.start) == {"a": 2, "b": 4}


def test_offline_backends_start_after_those_that_share() -> None:
    a, x = Fake("a", unclaimed=1, ending=13), dead("x", 0)
    plan = grow([x, a], 0, limits(spares=8), NOW)
    assert said(plan.start) == {"a": 2}


def test_a_pool_in_full_use_by_equal_shares_is_not_starved() -> None:
    backends = [Fake("a", claimed=6), Fake("b", claimed=5), Fake("c", claimed=5)]
    assert not grow(backends, 100, LIMITS, NOW).starved


def test_claims_above_the_level_at_the_cap_make_a_plan_starved() -> None:
    a, b = Fake("a", claimed=9), Fake("b", claimed=7)
    assert grow([a, b], 0, LIMITS, NOW).starved
    a.claimed, a.unclaimed = 8, 1
    assert said(grow([a, b], 0, LIMITS, NOW).stop) == {"a": 1}


def test_a_plan_is_true_when_there_is_something_to_do() -> None:
    assert bool(grow([Fake("a", unclaimed=1)], 0, LIMITS, NOW)) is True
    assert bool(rebalance([Fake("a", unclaimed=9)], 0, LIMITS, NOW)) is True
    assert bool(grow([Fake("a", unclaimed=9)], 0, LIMITS, NOW)) is False


def test_no_backends_is_an_empty_plan() -> None:
    plan: Plan[Fake] = grow([], 3, LIMITS, NOW)
    assert not plan
    assert plan.wanted == 0


@pytest.mark.parametrize(
    ("waiting", "per_backend", "saturated"), [(0, 16, False), (7, 16, False), (8, 16, True), (0, 4, True)]
)
def test_a_pool_at_its_maximum_says_so(waiting: int, per_backend: int, saturated: bool) -> None:
    a, b = Fake("a", unclaimed=4), Fake("b", unclaimed=4)
    assert grow([a, b], waiting, limits(per_backend=per_backend), NOW).saturated is saturated


# What holds for every plan, whatever exists.

FEW = st.integers(0, 4)
MOMENTS = st.sampled_from([-math.inf, NOW - 40, NOW - 30, NOW - 5, NOW, NOW + 5])
ONLINE = st.builds(
    Fake, st.just("online"), connecting=FEW, unclaimed=FEW, checking=FEW, claimed=FEW, ending=FEW, attempting=FEW
).filter(lambda each: each.online)
FAILING = st.builds(
    Fake,
    st.just("failing"),
    connecting=FEW,
    unclaimed=FEW,
    checking=FEW,
    claimed=FEW,
    ending=FEW,
    attempting=FEW,
    failing=st.just(value=True),
    next_attempt=MOMENTS,
    last_attempt=MOMENTS,
).filter(lambda each: each.online)
UNTRIED = st.builds(
    Fake, st.just("untried"), connecting=FEW, attempting=FEW, untried=st.just(value=True), since=MOMENTS
)
OFFLINE = st.builds(
    Fake, st.just("off"), connecting=FEW, ending=FEW, attempting=FEW, next_attempt=MOMENTS, last_attempt=MOMENTS
)
LEAVING = st.builds(
    Fake, st.just("leaving"), unclaimed=st.integers(0, 1), claimed=FEW, ending=FEW, leaving=st.just(value=True)
)


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[Fake], int, Limits]:
    """Some backends, a waiting line, and limits that what exists keeps to."""
    backends = draw(st.lists(st.one_of(ONLINE, ONLINE, FAILING, UNTRIED, OFFLINE, LEAVING), max_size=8))
    for i, each in enumerate(backends):
        each.name += str(i)
        each.attempting = min(each.attempting, each.connecting)
    exist = sum(each.held + each.ending for each in backends)
    most = max([1, *(each.held + each.ending for each in backends)])
    extra = draw(st.one_of(st.just(0), st.integers(0, 20)))
    return backends, draw(FEW), limits(draw(st.integers(0, 30)), max(1, exist + extra), most + draw(FEW))


@settings(max_examples=max(500, settings().max_examples))
@given(pools())
def test_every_plan_keeps_to_the_caps_and_is_followed_by_an_empty_one(pool: tuple[list[Fake], int, Limits]) -> None:
    backends, waiting, policy = pool
    for decide in (grow, rebalance):
        plan = decide(backends, waiting, policy, NOW)
        goals = targets(backends, waiting, policy, NOW)
        was_online = [each.online for each in backends]
        assert not any(each.leaving for each, _ in plan.start + plan.stop)
        for each, count in plan.start:
            each.start(count)
            assert each.held <= goals[backends.index(each)]
            assert each.held + each.ending <= policy.max_slots_per_backend
        assert sum(each.held + each.ending for each in backends) <= policy.max_slots
        for each, count in plan.stop:
            each.stop(count)
            assert each.held >= goals[backends.index(each)]
        assert [each.online for each in backends] == was_online
        assert not decide(backends, waiting, policy, NOW)


@settings(max_examples=max(500, settings().max_examples))
@given(pools())
def test_the_targets_fit_and_grow_stops_no_more_than_it_needs(pool: tuple[list[Fake], int, Limits]) -> None:
    backends, waiting, policy = pool
    goals = targets(backends, waiting, policy, NOW)
    budget = policy.max_slots - sum(each.held + each.ending for each in backends if each.leaving)
    assert sum(goals) <= budget
    plan = grow(backends, waiting, policy, NOW)
    missing = sum(max(0, goal - each.held) for goal, each in zip(goals, backends, strict=True) if not each.leaving)
    free = policy.max_slots - sum(each.held for each in backends)
    stopped = sum(count for _, count in plan.stop)
    assert stopped <= max(0, missing - free)
    if stopped < max(0, missing - free):
        assert plan.forgotten is not None
        assert plan.forgotten_at > NOW
    for goal, each in zip(goals, backends, strict=True):
        if each.online and not each.leaving:
            assert goal >= max(1, each.claimed)
        if each.leaving:
            assert goal == 0


@settings(max_examples=max(500, settings().max_examples))
@given(st.lists(ONLINE, min_size=1, max_size=6), FEW, st.integers(0, 30), st.integers(0, 10), st.integers(20, 24))
def test_sharing_equals_dealing_slots_out_one_by_one(
    backends: list[Fake], waiting: int, spares: int, extra: int, cap: int
) -> None:
    policy = limits(spares, sum(each.held + each.ending for each in backends) + extra, cap)
    shares = [max(1, each.claimed) for each in backends]
    total = min(sum(each.claimed for each in backends) + waiting + spares, policy.max_slots)
    while sum(shares) < total and min(shares) < policy.max_slots_per_backend:
        poorest = min(shares)
        # All those at the bottom rise together while that fits, then those that hold most.
        bottom = [i for i, share in enumerate(shares) if share == poorest]
        bottom.sort(key=lambda i: -backends[i].held)
        for i in bottom[: total - sum(shares)]:
            shares[i] += 1
    assert list(targets(backends, waiting, policy, NOW)) == shares


@settings(max_examples=max(200, settings().max_examples))
@given(pools(), st.integers(1, 20))
def test_a_saturated_plan_stays_as_it_is_when_more_claims_wait(pool: tuple[list[Fake], int, Limits], more: int) -> None:
    backends, waiting, policy = pool
    plan = grow(backends, waiting, policy, NOW)
    if plan.saturated:
        assert grow(backends, waiting + more, policy, NOW) == plan
