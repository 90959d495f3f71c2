"""What took how long, counted by bucket."""

from __future__ import annotations

import math

import pytest

from qorb._core.buckets import Buckets


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [(0.0, [1, 0, 0]), (0.5, [1, 0, 0]), (1.0, [1, 0, 0]), (1.1, [0, 1, 0]), (2.0, [0, 1, 0]), (math.inf, [0, 0, 1])],
)
def test_a_bound_belongs_to_its_bucket(seconds, counts):
    buckets = Buckets((1.0, 2.0))
    buckets.add(seconds)
    assert buckets.counts == counts
    assert buckets.sum == seconds


def test_they_add_up():
    buckets = Buckets((1.0,))
    for seconds in (0.25, 0.5, 4.0):
        buckets.add(seconds)
    assert buckets.counts == [2, 1]
    assert buckets.sum == 4.75
