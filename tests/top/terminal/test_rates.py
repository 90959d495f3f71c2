import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qorb.top.terminal.rates import HISTORY, Latency, Rates
from tests.top.terminal.frames import counts, frame, histogram, read


def take(rates, now, claims=0, **totals):
    return rates.take(read(frame(claims, {name: counts(total) for name, total in totals.items()})), now)


def test_the_first_frame_tells_no_rate():
    reading = take(Rates(1), 5.0, claims=1_000, a=1_000)
    assert reading.claims_per_second is None
    assert reading.per_second == {}
    assert reading.samples == ()


@pytest.mark.parametrize("interval", [1, 5, 60, 255])
def test_figures_are_per_second_whatever_the_interval(interval):
    rates = Rates(interval)
    take(rates, 0.0, a=0, b=50)
    reading = take(rates, float(interval), claims=30 * interval, a=20 * interval, b=50 + 10 * interval)
    assert reading.claims_per_second == 30
    assert reading.per_second == {"a": 20, "b": 10}


def test_a_frame_that_comes_late_is_divided_by_the_time_that_has_passed():
    rates = Rates(1)
    take(rates, 0.0, a=0)
    assert take(rates, 4.0, claims=40, a=40).claims_per_second == 10


def test_a_frame_that_comes_early_shows_no_spike_and_what_it_says_of_claims_is_not_lost():
    rates = Rates(1)
    for second in range(3):
        take(rates, float(second), claims=100, a=100 * second)
    # 1 ms after a regular one, because a backend came; 50 claims ended within it.
    early = take(rates, 2.001, claims=50, a=250, b=0)
    assert early.claims_per_second == pytest.approx(150 / 1.001)
    assert early.per_second == {"a": pytest.approx(150 / 1.001)}
    assert len(early.samples) == 2
    late = take(rates, 3.0, claims=60, a=310, b=0)
    assert late.claims_per_second == pytest.approx(60 / 0.999)


def test_a_regular_frame_after_an_early_one_in_the_middle_covers_a_whole_interval():
    rates = Rates(1)
    take(rates, 0.0, a=0)
    take(rates, 1.0, claims=100, a=100)
    assert take(rates, 1.5, claims=50, a=150).claims_per_second == pytest.approx(100)
    assert take(rates, 2.0, claims=50, a=200).claims_per_second == pytest.approx(100)


def test_frames_that_the_network_held_back_show_neither_a_hole_nor_a_spike_afterwards():
    rates = Rates(1)
    take(rates, 0.0, a=0)
    # Five seconds' frames arrive together, then it goes on as before: 10 claims a second all the time.
    for number in range(1, 6):
        held = take(rates, 5.0 + number / 1000, claims=10, a=10 * number)
    assert held.claims_per_second == pytest.approx(10, rel=0.01)
    assert take(rates, 6.0, claims=10, a=60).claims_per_second == pytest.approx(10, rel=0.01)


def test_a_new_backend_has_no_rate_before_two_frames_are_an_interval_apart():
    rates = Rates(1)
    take(rates, 0.0, a=0)
    assert take(rates, 1.0, a=5, b=1_000).per_second == {"a": 5}
    assert take(rates, 2.0, a=5, b=1_007).per_second == {"a": 0, "b": 7}


def test_a_counter_that_falls_begins_anew():
    rates = Rates(1)
    take(rates, 0.0, a=1_000)
    assert take(rates, 1.0, a=4).per_second == {}
    assert take(rates, 2.0, a=10).per_second == {"a": 6}


def test_a_counter_that_fell_between_two_frames_an_interval_apart_shows_no_wrong_rate():
    rates = Rates(1)
    take(rates, 0.0, a=100)
    take(rates, 0.5, a=0)
    assert take(rates, 1.0, a=150).per_second == {}


def test_a_backend_that_was_away_is_a_new_one():
    rates = Rates(1)
    take(rates, 0.0, a=100)
    take(rates, 0.5)
    reading = take(rates, 1.0, a=200)
    assert reading.per_second == {}
    assert reading.samples_of == {"a": (None,)}


def test_after_a_lost_connection_there_is_a_gap_and_no_wrong_figure():
    rates = Rates(1)
    take(rates, 0.0, a=0)
    take(rates, 1.0, claims=10, a=10)
    rates.lose()
    back = take(rates, 4.0, claims=500, a=510)
    assert back.claims_per_second is None
    assert back.samples == (10, None, None, None)
    after = take(rates, 5.0, claims=10, a=520)
    assert after.claims_per_second == 10
    assert after.samples_of == {"a": (10, None, None, None, 10)}


def test_there_is_one_sample_for_each_interval_however_many_frames_come():
    rates = Rates(2)
    taken = [take(rates, 0.5 * number, claims=5, a=5 * number).samples for number in range(9)]
    assert taken == [()] * 4 + [(10,)] * 4 + [(10, 10)]


def test_a_sample_for_a_longer_time_stands_for_all_of_it():
    rates = Rates(1)
    take(rates, 0.0, a=0)
    assert take(rates, 3.0, claims=30, a=30).samples == (10, 10, 10)
    assert take(rates, 1e9, claims=30, a=30).samples[-1] == pytest.approx(0, abs=1e-6)
    assert len(take(rates, 2e9, claims=30, a=30).samples) == HISTORY


def test_who_is_gone_is_forgotten_and_the_peak_is_that_of_those_who_are_there():
    rates = Rates(1)
    take(rates, 0.0, a=0, b=0)
    assert take(rates, 1.0, a=5, b=100).peak == 100
    gone = take(rates, 2.0, a=10)
    assert gone.peak == 5
    assert gone.samples_of == {"a": (5, 5)}


def test_a_reading_stays_what_it_is():
    rates = Rates(1)
    take(rates, 0.0, a=0)
    before = take(rates, 1.0, claims=3, a=3)
    take(rates, 2.0, claims=9, a=12, b=1)
    assert (before.samples, before.samples_of, before.per_second) == ((3,), {"a": (3,)}, {"a": 3})


def test_a_server_that_sends_without_end_is_remembered_in_bounded_space():
    rates = Rates(1)
    for number in range(20_000):
        reading = take(rates, number / 10_000, claims=1, a=number)
    assert len(rates._points) < 50
    assert reading.claims_per_second == pytest.approx(10_000, rel=0.1)


@given(
    st.lists(st.tuples(st.floats(0.001, 10), st.integers(0, 1000)), min_size=2, max_size=40),
    st.sampled_from([1, 2, 10]),
)
def test_no_rate_is_beyond_what_some_period_of_nearly_an_interval_had(frames, interval):
    rates = Rates(interval)
    now, total, points = 0.0, 0, []
    for passed, claims in frames:
        now += passed
        total += claims
        points.append((now, total))
        reading = take(rates, now, claims=claims, a=total)
        if reading.claims_per_second is None:
            assert all(now - at < 0.8 * interval + 1e-9 for at, _ in points)
            continue
        possible = [(total - old) / (now - at) for at, old in points if now - at >= 0.8 * interval - 1e-9]
        assert any(reading.claims_per_second == pytest.approx(one) for one in possible)
        assert reading.per_second["a"] == pytest.approx(reading.claims_per_second)
    assert all(later[0] > earlier[0] for earlier, later in pairwise(points))


def timed(rates, now, *numbers, total=0.0, bounds=(0.001, 0.01)):
    return rates.take(read(frame(timings={"wait": histogram(*numbers, total=total, bounds=bounds)})), now)


def test_latencies_are_those_of_the_last_interval():
    rates = Rates(1)
    assert timed(rates, 0.0, 1_000, 0, 0, total=0.5).latencies == {}
    reading = timed(rates, 1.0, 1_002, 97, 1, total=1.5)
    assert reading.latencies == {"wait": Latency(half=0.01, most=0.01, longest=0.01, mean=0.01)}
    reading = timed(rates, 2.0, 1_002, 97, 3, total=2.5)
    assert reading.latencies == {"wait": Latency(half=math.inf, most=math.inf, longest=0.01, mean=0.5)}


def test_without_any_there_is_no_latency():
    rates = Rates(1)
    timed(rates, 0.0, 1, 1, 1)
    assert timed(rates, 1.0, 1, 1, 1).latencies == {}


def test_a_histogram_that_begins_anew_or_has_other_bounds_tells_nothing_yet():
    rates = Rates(1)
    timed(rates, 0.0, 5, 5, 5)
    assert timed(rates, 1.0, 9, 4, 5).latencies == {}
    assert timed(rates, 2.0, 9, 9, 9, bounds=(0.002, 0.01)).latencies == {}
    assert timed(rates, 3.0, 10, 9, 9, bounds=(0.002, 0.01)).latencies["wait"].half == 0.002
    assert rates.take(read(frame()), 4.0).latencies == {}
