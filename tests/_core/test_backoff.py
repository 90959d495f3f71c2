"""How long a backend is left alone after failures."""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qorb._core.backoff import Backoff

LEAST, MOST, SPREAD = 0.020, 30.0, 0.020


def made(seed: int = 1, least: float = LEAST, most: float = MOST, spread: float = SPREAD) -> Backoff:
    return Backoff(least, most, spread, Random(seed))


def pauses(backoff: Backoff, count: int, cap: float = math.inf) -> list[float]:
    drawn = []
    for i in range(count):
        assert backoff.failed(backoff.round, i, cap)
        drawn.append(backoff.not_before - i)
    return drawn


@pytest.mark.parametrize("seed", range(20))
def test_each_pause_is_drawn_from_half_its_step_to_all_of_it_and_the_spread(seed):
    for n, pause in enumerate(pauses(made(seed), 30)):
        step = min(LEAST * 2**n, MOST)
        assert step / 2 <= pause < step + SPREAD


def test_every_pause_is_drawn_anew_so_that_many_processes_do_not_fall_into_step():
    drawn = [pauses(made(seed), 20) for seed in range(200)]

    for n, step in enumerate(zip(*drawn, strict=True)):
        least, most = min(LEAST * 2**n, MOST) / 2, min(LEAST * 2**n, MOST)
        assert min(step) < least + 0.1 * (most - least) + SPREAD / 2
        assert max(step) > 0.98 * most
        assert len(set(step)) == 200


def test_the_cap_bounds_the_step_and_not_the_count():
    backoff = made()
    assert all(pause < 5 + SPREAD for pause in pauses(backoff, 30, cap=5.0))

    backoff.failed(backoff.round, 100)

    assert backoff.not_before - 100 >= MOST / 2


def test_attempts_side_by_side_are_one_round():
    backoff = made()
    began = backoff.round

    assert [backoff.failed(began, 1) for _ in range(8)] == [True] + [False] * 7
    assert backoff.steps == 1


def test_a_success_starts_over_and_an_older_failure_means_nothing_then():
    backoff = made()
    pauses(backoff, 10)
    began = backoff.round

    backoff.succeeded()

    assert (backoff.steps, backoff.not_before) == (0, -math.inf)
    assert not backoff.failed(began, 50)
    assert backoff.steps == 0
    assert pauses(backoff, 1)[0] < LEAST + SPREAD


def test_a_pause_is_shortened_only_when_it_would_last_longer_than_the_cap():
    backoff = made()
    pauses(backoff, 20)
    due = backoff.not_before

    assert not backoff.shorten(due - 5, 5.0)
    assert backoff.not_before == due
    assert backoff.shorten(due - 10, 5.0)
    assert due - 10 + 2.5 <= backoff.not_before < due - 10 + 5 + SPREAD
    assert not made().shorten(0, 5.0)


def test_a_failure_that_asks_for_a_longer_pause_gets_it_and_nothing_shortens_it():
    backoff = made()
    backoff.failed(backoff.round, 100, 1.0, 5.0)
    assert backoff.not_before == 105
    assert not backoff.shorten(100, 1.0)
    assert backoff.not_before == 105
    backoff.failed(backoff.round, 105)
    assert backoff.not_before < 106  # the next one does not ask for it
    backoff.failed(backoff.round, 110, 1.0, math.inf)
    backoff.succeeded()
    assert backoff.not_before == -math.inf


def test_a_pause_is_shortened_no_further_than_the_failure_asked_for():
    backoff = made()
    pauses(backoff, 20)
    backoff.failed(backoff.round, 100, math.inf, 8.0)
    assert backoff.not_before > 100 + MOST / 2
    assert backoff.shorten(100, 5.0)
    assert backoff.not_before == 108


def test_without_failure_there_is_no_pause():
    assert made().not_before == -math.inf


@pytest.mark.parametrize("how", [{"least": math.inf, "most": math.inf}, {"spread": math.inf}])
def test_never_is_never(how):
    assert pauses(made(**how), 3) == [math.inf] * 3


@pytest.mark.parametrize("how", [{"least": math.inf, "most": math.inf}, {"spread": math.inf}])
def test_never_is_cut_down_to_the_cap(how):
    assert all(2.5 <= pause <= 5 + SPREAD for pause in pauses(made(**how), 30, 5.0))
    backoff = made(**how)
    backoff.failed(backoff.round, 100)
    assert backoff.shorten(100, 5.0)
    assert 102.5 <= backoff.not_before <= 105 + SPREAD
    assert not backoff.shorten(100, 5.0)


def test_a_longest_pause_of_never_doubles_without_end_and_without_overflow():
    backoff = made(most=math.inf)
    drawn = pauses(backoff, 3000)

    assert all(second > first / 2 for first, second in itertools.pairwise(drawn[:1000]))
    assert math.isfinite(drawn[20])


def test_a_first_pause_of_nothing_stays_nothing_but_for_the_spread():
    assert all(0 <= pause < SPREAD for pause in pauses(made(least=0.0), 50))
    assert pauses(made(least=0.0, spread=0.0), 50) == [0.0] * 50


def test_a_first_pause_longer_than_the_longest_gives_way():
    assert all(pause < 1 + SPREAD for pause in pauses(made(least=10.0, most=1.0), 5))


@given(
    least=st.floats(0, 100),
    most=st.floats(0.001, 1000),
    spread=st.floats(0, 10),
    count=st.integers(1, 40),
    cap=st.floats(0.001, 1000),
    seed=st.integers(),
)
def test_no_pause_is_out_of_bounds(least, most, spread, count, cap, seed):
    for n, pause in enumerate(pauses(Backoff(least, most, spread, Random(seed)), count, cap)):
        step = min(least * 2.0**n, most, cap)
        assert step / 2 - 1e-9 <= pause <= step + spread + 1e-9
