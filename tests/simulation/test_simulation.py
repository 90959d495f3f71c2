"""Five hundred seeded worlds: the laws hold at every step, and in the end there is progress, and nothing is left."""

from __future__ import annotations

import pytest

from tests.simulation.plan import draw
from tests.simulation.play import Failure, play

CHUNK = 50


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 500, CHUNK))
def test_the_laws_hold_in_every_world(start):
    failures = []
    for seed in range(start, start + CHUNK):
        try:
            play(draw(seed))
        except Failure as failure:
            failures.append(f"python -m tests.simulation --seed {seed}\n{failure}")
    assert not failures, "\n\n".join(failures)
