"""Ranking: which backend serves the next claim."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qorb._core.ranking import Ranked, Ranking


class Backend(Ranked):
    __slots__ = ("idle", "name", "priority", "weight")

    def __init__(self, name: str, idle: int = 0, priority: int = 0, weight: int = 1) -> None:
        super().__init__()
        self.name = name
        self.idle = idle
        self.priority = priority
        self.weight = weight

    def __repr__(self) -> str:
        return self.name

    @property
    def has_idle(self) -> bool:
        return self.idle > 0


def ranking(*backends: Backend, seed: int = 1) -> Ranking[Backend]:
    made: Ranking[Backend] = Ranking(Random(seed))
    for backend in backends:
        made.add(backend, backend.priority, backend.weight)
    return made


def claim(made: Ranking[Backend]) -> Backend | None:
    backend = made.choose()
    if backend is not None:
        backend.idle -= 1
        backend.load += 1
        backend.total_claims += 1
    return backend


def release(made: Ranking[Backend], backend: Backend) -> None:
    backend.idle += 1
    backend.load -= 1
    made.improve(backend)


def fail(made: Ranking[Backend], backend: Backend, count: int) -> None:
    backend.load += count


def served(made: Ranking[Backend], count: int) -> Counter[str]:
    """Claim and release so many times, one after the other."""
    names: Counter[str] = Counter()
    for _ in range(count):
        backend = claim(made)
        assert backend is not None
        names[backend.name] += 1
        release(made, backend)
    return names


def test_nobody_serves_where_nobody_is_and_where_nothing_is_idle():
    assert ranking().choose() is None
    assert ranking(Backend("a"), Backend("b")).choose() is None


@pytest.mark.parametrize("count", [2, 3, 7])
def test_equals_are_served_in_turn(count):
    made = ranking(*(Backend(f"b{i}", 1) for i in range(count)))

    assert set(served(made, 10 * count).values()) == {10}


def test_fewer_claims_outstanding_go_first():
    a, b = Backend("a", 5), Backend("b", 5)
    made = ranking(a, b)
    a.load = 3

    assert [claim(made) for _ in range(3)] == [b, b, b]
    assert {claim(made), claim(made)} == {a, b}


def test_a_failure_counts_like_a_claim():
    a, b = Backend("a", 9), Backend("b", 9)
    made = ranking(a, b)
    fail(made, a, 8)

    assert [claim(made) for _ in range(8)] == [b] * 8


def test_a_load_that_shrinks_is_seen_at_once():
    a, b = Backend("a", 5), Backend("b", 5)
    made = ranking(a, b)
    a.load = 4
    assert claim(made) is b
    a.load = 0
    made.improve(a)

    assert claim(made) is a


def test_a_weight_of_three_serves_three_at_a_time_for_one():
    a, b = Backend("a", 400, weight=3), Backend("b", 400)
    made = ranking(a, b)
    for _ in range(400):
        claim(made)

    assert (a.load, b.load) == (300, 100)


def test_a_weight_of_three_serves_three_in_turn_for_one():
    made = ranking(Backend("a", 4, weight=3), Backend("b", 4))

    assert served(made, 400) == {"a": 300, "b": 100}


def test_a_weight_of_nothing_counts_as_a_tenth():
    a, b = Backend("a", 400, weight=0), Backend("b", 400)
    made = ranking(a, b)
    for _ in range(110):
        claim(made)

    assert (a.load, b.load) == (10, 100)
    assert claim(ranking(Backend("only", 1, weight=0))) is not None


def test_a_worse_class_serves_only_when_no_better_one_has_an_idle_connection():
    good, worse = Backend("good", 2), Backend("worse", 2, priority=5)
    made = ranking(worse, good)

    assert [claim(made) for _ in range(4)] == [good, good, worse, worse]
    release(made, good)
    assert claim(made) is good


def test_a_worse_class_waits_for_the_first_attempts_of_a_better_one():
    good, worse = Backend("good"), Backend("worse", 1, priority=5)
    made = ranking(worse, good)
    assert good.lane is not None
    good.lane.owner.untried = 1

    assert made.choose() is None
    assert not made.admits(worse)
    assert made.admits(good)
    good.lane.owner.untried = 0
    assert made.admits(worse)
    assert claim(made) is worse


def test_a_class_that_has_nothing_idle_admits_the_next():
    good, worse = Backend("good", 1), Backend("worse", 1, priority=5)
    made = ranking(worse, good)

    assert not made.admits(worse)
    claim(made)
    assert made.admits(worse)


def test_a_backend_that_left_serves_no_more_and_leaves_no_class_behind():
    a, b = Backend("a", 3), Backend("b", 3, priority=1)
    made = ranking(a, b)
    made.remove(a)
    made.remove(a)

    assert claim(made) is b
    assert not made.admits(a)
    assert [group.priority for group in made.classes] == [1]
    made.remove(b)
    assert made.choose() is None
    assert made.classes == []
    made.improve(a)
    made.back_online(a)
    made.take(a)
    assert made.choose() is None


@pytest.mark.parametrize("weights", [(1, 1), (1, 3)])
def test_a_newcomer_does_not_catch_up_on_what_it_missed(weights):
    first = Backend("first", 4, weight=weights[0])
    other = Backend("other", 4, weight=weights[0])
    made = ranking(first, other, Backend("third", 4, weight=2))
    served(made, 600)

    newcomer = Backend("new", 4, weight=weights[1])
    made.add(newcomer, 0, weights[1])

    total = sum((*weights[:1], *weights[:1], 2, weights[1]))
    assert served(made, 100 * total)["new"] == pytest.approx(100 * weights[1], abs=3)


def test_a_backend_that_was_offline_does_not_catch_up_on_what_it_missed():
    a, b = Backend("a", 4), Backend("b", 4, weight=2)
    made = ranking(a, b)
    served(made, 30)
    a.idle = 0
    served(made, 3000)
    a.idle = 4

    made.back_online(a)
    made.improve(a)

    assert served(made, 300)["a"] == pytest.approx(100, abs=3)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1), (1, 0)])
def test_a_backend_whose_weight_changes_does_not_catch_up_either(before, after):
    a, b = Backend("a", 4, weight=1), Backend("b", 4, weight=before)
    made = ranking(a, b)
    served(made, 6000)

    made.remove(b)
    made.add(b, 0, after)

    weight = after or 0.1
    assert served(made, 1100)["b"] == pytest.approx(1100 * weight / (1 + weight), abs=3)


def test_a_newcomer_of_another_weight_does_not_catch_up_where_connections_were_handed_on():
    a, b = Backend("a", 4), Backend("b", 4, weight=2)
    made = ranking(a, b)
    a.total_claims, b.total_claims = 5000, 10_000  # from one claim to the next, without a choice

    made.add(Backend("new", 4), 0, 1)

    assert served(made, 400)["new"] == pytest.approx(100, abs=3)


def test_of_equals_a_newcomer_and_one_that_was_offline_do_not_stand_first_for_ever():
    a, b, new = Backend("a", 8), Backend("b", 8), Backend("new", 8)
    made = ranking(a, b)
    served(made, 3000)
    b.idle = 0
    served(made, 9000)
    b.idle = 8
    made.improve(b)
    made.back_online(b)
    made.add(new, 0, 1)
    before, rng, held = b.total_claims, Random(3), []

    for _ in range(6000):
        if len(held) == 4:
            release(made, held.pop(rng.randrange(4)))
        held.append(claim(made))

    shares = [b.total_claims - before, new.total_claims]
    assert shares == [pytest.approx(2000, rel=0.05)] * 2


def test_the_order_among_equals_who_never_served_is_drawn():
    firsts = Counter()
    for seed in range(200):
        backends = [Backend(f"b{i}") for i in range(4)]
        made = ranking(*backends, seed=seed)
        for backend in backends:
            backend.idle = 1
            made.improve(backend)
        firsts[str(claim(made))] += 1

    assert len(firsts) == 4
    assert max(firsts.values()) < 130


def test_many_changes_cost_no_memory():
    a, b = Backend("a", 4), Backend("b", 4, weight=2)
    made = ranking(a, b)
    served(made, 10_000)

    assert len(made.classes[0]._heap) < 50


def test_weights_that_change_for_ever_cost_no_memory():
    a, b = Backend("a", 4), Backend("b", 4)
    made = ranking(a, b)

    for weight in range(1, 5000):
        made.remove(b)
        made.add(b, 0, weight)
        release(made, claim(made))

    (group,) = made.classes
    assert set(group.lanes) == {1.0, 4999.0}
    assert len(group._heap) <= 9


def test_weights_that_are_alike_again_are_one_lane_as_before():
    a, b = Backend("a", 4), Backend("b", 4)
    made = ranking(a, b)
    only = made.best
    served(made, 50)
    made.remove(b)
    made.add(b, 0, 2)
    assert made.best is None
    served(made, 30)

    made.remove(b)
    made.add(b, 0, 1)

    assert made.best is only
    assert served(made, 100) == {"a": 50, "b": 50}
    made.remove(a)
    made.add(a, 0, 3)
    assert served(made, 400)["a"] == pytest.approx(300, abs=3)


def test_many_changes_between_two_claims_cost_no_memory_and_no_order():
    a, b = Backend("a", 4), Backend("b", 4, weight=2)
    made = ranking(a, b)
    for load in range(1000, 0, -1):
        a.load = load
        made.improve(a)

    assert len(made.classes[0]._heap) < 50
    assert claim(made) is b
    a.load = 0
    made.improve(a)
    assert claim(made) is a


def test_who_served_less_goes_eight_places_forward_at_the_most():
    late = Backend("late", 1)
    others = [Backend(f"b{i}", 1) for i in range(12)]
    made = ranking(*others, late)
    for other in others:
        other.total_claims = 1
    for late.load in (1, 0):  # away from where it stood, and back
        made.improve(late)

    assert [claim(made) for _ in range(13)].index(late) == 12 - 8


class RankingAgainstSorting(RuleBasedStateMachine):
    """The ranking against looking at every backend's score."""

    def __init__(self) -> None:
        super().__init__()
        self.ranking: Ranking[Backend] = Ranking(Random(7))
        self.backends: list[Backend] = []
        self.out: list[Backend] = []
        self.serial = 0

    @precondition(lambda self: len(self.backends) < 6)
    @rule(priority=st.integers(0, 1), weight=st.integers(0, 3), idle=st.integers(0, 3))
    def add(self, priority: int, weight: int, idle: int) -> None:
        self.serial += 1
        backend = Backend(f"b{self.serial}", idle, priority, weight)
        self.ranking.add(backend, priority, weight)
        self.backends.append(backend)

    @precondition(lambda self: self.backends)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        backend = self.backends.pop(data.draw(st.integers(0, len(self.backends) - 1)))
        self.out = [other for other in self.out if other is not backend]
        self.ranking.remove(backend)

    @precondition(lambda self: self.backends)
    @rule(data=st.data())
    def reweigh(self, data: st.DataObject) -> None:
        backend = data.draw(st.sampled_from(self.backends))
        backend.weight = data.draw(st.integers(0, 3))
        self.ranking.remove(backend)
        self.ranking.add(backend, backend.priority, backend.weight)

    @precondition(lambda self: self.backends)
    @rule(data=st.data())
    def connect(self, data: st.DataObject) -> None:
        backend = data.draw(st.sampled_from(self.backends))
        backend.idle += 1
        self.ranking.improve(backend)

    @precondition(lambda self: self.backends)
    @rule(data=st.data())
    def lose_all_idle(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.backends)).idle = 0

    @precondition(lambda self: self.backends)
    @rule(data=st.data(), count=st.integers(1, 8))
    def fail(self, data: st.DataObject, count: int) -> None:
        data.draw(st.sampled_from(self.backends)).load += count

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        release(self.ranking, self.out.pop(data.draw(st.integers(0, len(self.out) - 1))))

    @rule()
    def claim(self) -> None:
        able = [backend for backend in self.backends if backend.idle]
        chosen = claim(self.ranking)
        if not able:
            assert chosen is None
            return
        assert chosen is not None
        chosen.load -= 1
        best = min(able, key=self.key)
        assert self.key(chosen) == self.key(best)
        chosen.load += 1
        self.out.append(chosen)

    def key(self, backend: Backend) -> tuple[int, float]:
        return backend.priority, backend.load / (backend.weight or 0.1)

    @invariant()
    def rings_are_whole(self) -> None:
        standing = []
        for group in self.ranking.classes:
            for lane in group.lanes.values():
                for ring in lane.rings:
                    one = ring.head
                    while one is not None:
                        assert one.next.previous is one
                        assert one.level == ring.level
                        standing.append(one)
                        one = one.next if one.next is not ring.head else None
        assert len(standing) == len(set(map(id, standing)))
        assert {id(one) for one in self.backends if one.idle} <= set(map(id, standing))


TestRankingAgainstSorting = RankingAgainstSorting.TestCase
TestRankingAgainstSorting.settings = settings(max_examples=150, stateful_step_count=60, deadline=None, derandomize=True)
