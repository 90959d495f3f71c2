"""What took how long, counted by bucket."""

from __future__ import annotations

import math
import random
from bisect import bisect_left

import pytest

from qorb._core import buckets as module
from qorb._core.buckets import FULL, Buckets


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [(0.0, (1, 0, 0)), (0.5, (1, 0, 0)), (1.0, (1, 0, 0)), (1.1, (0, 1, 0)), (2.0, (0, 1, 0)), (math.inf, (0, 0, 1))],
)
def test_a_bound_belongs_to_its_bucket(seconds, counts):
    buckets = Buckets((1.0, 2.0))
    buckets.add(seconds)
    for _ in range(2):
        assert buckets.read() == (counts, seconds)
        buckets.sort()


def test_they_add_up():
    buckets = Buckets((1.0,))
    for seconds in (0.25, 0.5, 4.0):
        buckets.add(seconds)
    assert buckets.read() == ((2, 1), 4.75)


def test_they_are_counted_as_one_by_one_however_many_there_are():
    rng, bounds = random.Random(1), (0.1, 0.5, 0.9)
    buckets, expected, total = Buckets(bounds), [0] * 4, 0.0
    for _ in range(3 * FULL + 5):
        seconds = rng.choice([rng.random(), *bounds])
        buckets.add(seconds)
        expected[bisect_left(bounds, seconds)] += 1
        before, (counts, total) = total, buckets.read()
        assert counts == tuple(expected)
        assert total >= before
        assert len(buckets.fresh) < FULL
    assert len(buckets.fresh) == 5


@pytest.mark.parametrize("already", [FULL - 1, 3])
def test_one_that_is_added_while_they_are_sorted_counts_once(monkeypatch, already):
    """At whatever call: once there are enough of them, the one that is added in between has all of them sorted."""
    for late in range(4):
        buckets = Buckets((1.0, 2.0))
        buckets.fresh += [2.0] * already
        calls = 0

        def fsum(values, buckets=buckets, late=late):
            nonlocal calls
            calls += 1
            if calls == 1:
                for _ in range(late):
                    buckets.add(0.5)
            return math.fsum(values)

        monkeypatch.setattr(module, "fsum", fsum)
        buckets.sort()
        assert calls >= 1
        assert buckets.read() == ((late, already, 0), late * 0.5 + already * 2.0)


def test_a_thread_that_looks_as_they_are_sorted_in_counts_none_twice():
    looks = []

    class Looked(Buckets):
        __slots__ = ()

        @property
        def _counted(self):
            if self.fresh and not looks:  # another thread sorts them in between the two looks
                looks.append(1)
                before = Buckets._counted.__get__(self)
                self.sort()
                return before
            return Buckets._counted.__get__(self)

        @_counted.setter
        def _counted(self, counted):
            Buckets._counted.__set__(self, counted)

    buckets = Looked((1.0,))
    buckets.add(0.5)
    assert buckets.read() == ((1, 0), 0.5)
    assert looks
