"""The waiting line: first come, first served, and who falls due."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qorb._core.line import Line, Place

USUAL = 30.0


class Waiter(Place):
    __slots__ = ("name",)

    def __init__(self, name: object, deadline: float, *, common: bool) -> None:
        self.name = name
        self.deadline = deadline
        self.common = common


def common(name: object, deadline: float = 1.0) -> Waiter:
    return Waiter(name, deadline, common=True)


def other(name: object, deadline: float) -> Waiter:
    return Waiter(name, deadline, common=False)


def joined(*waiters: Waiter) -> Line[Waiter]:
    line: Line[Waiter] = Line()
    for waiter in waiters:
        line.join(waiter)
    return line


def names(line: Line[Waiter]) -> list[object]:
    return [waiter.name for waiter in line]


def popped(line: Line[Waiter]) -> list[object]:
    out = []
    while (waiter := line.pop()) is not None:
        out.append(waiter.name)
    return out


def test_an_empty_line_serves_nobody_and_nobody_falls_due():
    line: Line[Waiter] = Line()

    assert line.pop() is None
    assert line.waiting == 0
    assert line.next_deadline() == math.inf
    assert list(line.pop_overdue(1e12)) == []
    assert list(line) == []


def test_first_come_first_served_whatever_the_timeouts():
    line = joined(common(1, 30), other(2, 5), common(3, 31), other(4, math.inf), other(5, 1), common(6, 32))

    assert names(line) == popped(line) == [1, 2, 3, 4, 5, 6]


def test_who_rejoins_stands_where_he_stood():
    waiters = [common(1, 0.5), other(2, 5), common(3, 0.7), other(4, 4), common(5), other(6, 6)]
    line = joined(*waiters)
    for _ in range(4):
        line.pop()
    for waiter in (waiters[2], waiters[1], waiters[3], waiters[0]):
        line.rejoin(waiter)

    assert line.next_deadline() == 0.5
    assert names(line) == popped(line) == [1, 2, 3, 4, 5, 6]


def test_who_was_served_on_arrival_rejoins_before_all_who_came_later():
    early, late = common(1, 0.5), common(2, 0.7)
    line: Line[Waiter] = Line()
    line.arrive(early)
    line.join(late)
    line.rejoin(early)

    assert line.waiting == 2
    assert [waiter.name for waiter in line.pop_overdue(0.6)] == [1]
    assert popped(line) == [2]


def test_who_leaves_is_not_served_and_leaving_twice_is_nothing():
    waiters = [common(1), other(2, 5), common(3), other(4, 6)]
    line = joined(*waiters)
    for waiter in (waiters[0], waiters[3], waiters[0]):
        line.leave(waiter)

    assert line.waiting == 2
    assert popped(line) == [2, 3]
    line.leave(waiters[1])
    assert line.waiting == 0


def test_the_earliest_deadline_is_that_of_whoever_falls_due_first():
    last = other(4, 7)
    line = joined(common(1, 30), other(2, math.inf), other(3, 9), last)

    assert line.next_deadline() == 7
    line.leave(last)
    assert line.next_deadline() == 9
    assert [waiter.name for waiter in line.pop_overdue(30)] == [3, 1]
    assert line.next_deadline() == math.inf
    assert names(line) == [2]


def test_nobody_is_taken_out_early():
    line = joined(common(1, 30), other(2, 30.0000001))

    assert [waiter.name for waiter in line.pop_overdue(29.9999999)] == []
    assert [waiter.name for waiter in line.pop_overdue(30)] == [1]


@pytest.mark.parametrize("kind", [common, other])
def test_thousands_who_leave_cost_no_memory(kind):
    line = joined(kind("stays", 1e9))
    for i in range(5000):
        waiter = kind(i, 1e9 + i)
        line.join(waiter)
        line.leave(waiter)

    assert len(line._common) + len(line._others) + len(line._heap) < 500
    assert popped(line) == ["stays"]


def test_thousands_who_leave_are_not_kept_alive_by_one_who_stays():
    waiters = [other(n, 1000.0 + n) for n in range(5000)]
    line = joined(common("stays", 1e6), *waiters)

    for waiter in waiters:
        line.leave(waiter)

    assert names(line) == ["stays"]
    assert len(line._heap) + len(line._others) < 100
    assert line.next_deadline() == 1e6


def test_thousands_who_are_served_leave_no_deadline_behind():
    line: Line[Waiter] = Line()
    for i in range(5000):
        line.join(other(i, i))
        assert popped(line) == [i]

    assert len(line._heap) < 500
    assert line.next_deadline() == math.inf


class LineAgainstAList(RuleBasedStateMachine):
    """The line against a plain list that is searched through."""

    def __init__(self) -> None:
        super().__init__()
        self.line: Line[Waiter] = Line()
        self.model: list[Waiter] = []
        self.now = 0.0
        self.serial = 0

    def make(self, timeout: float | None) -> Waiter:
        self.serial += 1
        deadline = self.now + (USUAL if timeout is None else timeout)
        return Waiter(self.serial, deadline, common=timeout is None)

    @rule(passed=st.floats(0, 20), timeout=st.none() | st.floats(0, 60) | st.just(math.inf))
    def join(self, passed: float, timeout: float | None) -> None:
        self.now += passed
        waiter = self.make(timeout)
        self.line.join(waiter)
        self.model.append(waiter)

    @rule()
    def pop(self) -> None:
        expected = self.model.pop(0) if self.model else None
        assert self.line.pop() is expected

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def some_are_served_and_rejoin(self, data: st.DataObject) -> None:
        served = [self.line.pop() for _ in range(data.draw(st.integers(1, min(4, len(self.model)))))]
        assert served == self.model[: len(served)]
        for waiter in data.draw(st.permutations(served)):
            self.line.rejoin(waiter)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = self.model.pop(data.draw(st.integers(0, len(self.model) - 1)))
        self.line.leave(waiter)

    @precondition(lambda self: len(self.model) > 3)
    @rule()
    def all_but_one_leave(self) -> None:
        for waiter in self.model[1:]:
            self.line.leave(waiter)
        del self.model[1:]

    @rule(passed=st.floats(0, 40))
    def fall_due(self, passed: float) -> None:
        self.now += passed
        due = [waiter for waiter in self.model if waiter.deadline <= self.now]
        taken = list(self.line.pop_overdue(self.now))
        assert [waiter.deadline for waiter in taken] == sorted(waiter.deadline for waiter in due)
        assert set(map(id, taken)) == set(map(id, due))
        self.model = [waiter for waiter in self.model if waiter.deadline > self.now]

    @invariant()
    def it_is_the_same(self) -> None:
        assert [waiter.name for waiter in self.line] == [waiter.name for waiter in self.model]
        assert self.line.waiting == len(self.model)
        assert self.line.next_deadline() == min((waiter.deadline for waiter in self.model), default=math.inf)
        assert all(waiter.in_line for waiter in self.model)


TestLineAgainstAList = LineAgainstAList.TestCase
TestLineAgainstAList.settings = settings(max_examples=100, stateful_step_count=60, deadline=None, derandomize=True)


@given(st.lists(st.booleans(), max_size=200))
def test_leaving_in_any_order_keeps_the_order_of_the_others(leaves):
    waiters = [common(i, 1e6 + i) if i % 3 else other(i, 1e6 - i) for i in range(len(leaves))]
    line = joined(*waiters)
    for waiter, go in zip(waiters, leaves, strict=True):
        if go:
            line.leave(waiter)

    assert popped(line) == [i for i, go in enumerate(leaves) if not go]
