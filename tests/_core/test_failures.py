"""How many failures there were lately."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from qorb._core.failures import MAX_REMEMBERED, FailureWindow


def test_a_failure_counts_until_the_window_has_passed():
    window = FailureWindow(60)
    window.add(100)
    window.add(130)

    assert window.count(159.9) == 2
    assert window.next_change() == 160
    assert window.count(160) == 1
    assert window.next_change() == 190
    assert window.count(190) == 0
    assert window.next_change() is None


def test_a_window_of_for_ever_forgets_nothing():
    window = FailureWindow(math.inf)
    window.add(1)

    assert window.count(1e12) == 1
    assert window.next_change() == math.inf


def test_a_storm_of_failures_costs_no_memory():
    window = FailureWindow(60)
    for i in range(10 * MAX_REMEMBERED):
        window.add(i / 1e6)

    assert window.count(1) == MAX_REMEMBERED


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0, 200), st.floats(0.1, 50))
def test_counting_is_what_looking_at_each_would_give(times, now, length):
    times.sort()
    window = FailureWindow(length)
    for time in times:
        window.add(time)

    assert window.count(now) == sum(time + length > now for time in times)


def test_asking_how_many_there_are_held_forgets_none():
    window = FailureWindow(10.0)
    assert window.held(0.0) == 0
    for moment in (0.0, 1.0, 5.0):
        window.add(moment)
    assert [window.held(now) for now in (5.0, 9.9, 10.0, 11.0, 15.0)] == [3, 3, 2, 1, 0]
    assert window.held(5.0) == 3
