"""A seed is enough to see a run again: the same things happen at the same times, whatever else is different."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.plan import draw
from tests.simulation.play import play

ROOT = Path(__file__).parents[2]
SEEDS = (1, 8, 10)


def digests(**environment: str) -> str:
    """Play the first seeds in a process of their own."""
    command = [sys.executable, "-m", "tests.simulation", "--digests", "--seeds", "8"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_seed_gives_the_same_trace_whatever_the_hashes_of_strings_and_the_debug_mode_of_the_interpreter():
    first = digests(PYTHONHASHSEED="1", PYTHONASYNCIODEBUG="1")
    assert len(first.splitlines()) == 8
    assert first == digests(PYTHONHASHSEED="2", PYTHONASYNCIODEBUG="0")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_gives_the_same_trace_with_and_without_the_debug_mode_of_the_loop(seed):
    plan = draw(seed)
    with_debug, without = (play(dataclasses.replace(plan, debug=debug)).trace for debug in (True, False))
    assert with_debug == without
    assert with_debug.count("\n") > 20


def test_another_order_of_the_tasks_gives_another_trace():
    plan = draw(SEEDS[0])
    traces = {play(dataclasses.replace(plan, order=order)).trace for order in range(5)}
    assert len(traces) > 1
