"""How many steps it takes to serve a claim: no more with ten thousand backends than with ten, or hardly so.

A step is a line of the pool that is executed. They are counted, not timed: the count is the same on every machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from pathlib import Path
from random import Random

import pytest

import qorb
from qorb import Connector, Policy, Pool
from qorb._core.line import Line, Place
from qorb._core.ranking import Ranked, Ranking
from qorb.resolvers import FixedResolver
from qorb.testing import run

SOURCE = str(Path(qorb.__file__).parent)
OTHERS = str(Path(SOURCE, "testing"))
ROUNDS = 200
"""So often each thing is done; steps are those of one time, on the average: some costs are put off and paid at once."""


class Steps:
    """Counts the lines of the pool that are executed within a `with` block."""

    def __init__(self):
        self.count = 0

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *exc):
        sys.settrace(self._before)

    def _enter(self, frame, event, argument):
        file = frame.f_code.co_filename
        return self._step if file.startswith(SOURCE) and not file.startswith(OTHERS) else None

    def _step(self, frame, event, argument):
        self.count += event == "line"
        return self._step


def few_more(counts):
    """Whether the last of the counts, of the greatest pool, is that of the first, or nearly so."""
    return counts[-1] <= counts[0] * 1.1 + 2


# The pool.


class Plain(Connector[object]):
    async def connect(self, backend):
        await asyncio.sleep(0.001)
        return object()


class Preparing(Plain):
    """Its claims take the long way."""

    async def on_acquire(self, connection):
        pass


async def claim_and_release(pool):
    async with pool.claim():
        pass


async def claim_and_release_by_hand(pool):
    (await pool.claim()).release()


async def cancel_one_who_waits(pool):
    waiting = asyncio.ensure_future(pool.claim())
    await asyncio.sleep(0)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting


async def steps(what, pool):
    for _ in range(ROUNDS):
        await what(pool)
    await asyncio.sleep(1)
    with Steps() as counted:
        for _ in range(ROUNDS):
            await what(pool)
            await asyncio.sleep(0)  # for what it has left to the next turn of the loop
    return counted.count / ROUNDS


def steps_in_a_pool(count, connector):
    async def main():
        everything = {"spares_wanted": count, "max_slots": count, "max_slots_per_backend": 1}
        policy = Policy(health_interval=math.inf, rebalance_interval=math.inf, claim_timeout=math.inf, **everything)
        pool = Pool("main", FixedResolver([f"b{i}:1" for i in range(count)]), connector, policy, rng=Random(1))
        async with pool:
            await pool.ready()
            for claim in [
                await pool.claim() for _ in range(count)
            ]:  # the first release of a connection takes more steps
                claim.release()
            counts = [await steps(what, pool) for what in (claim_and_release, claim_and_release_by_hand)]
            claims = [await pool.claim() for _ in range(count)]
            counts.append(await steps(cancel_one_who_waits, pool))
            for claim in claims:
                claim.release()
        return counts

    return run(main)


@pytest.mark.parametrize("connector", [Plain(), Preparing()], ids=["short", "long"])
def test_a_claim_and_giving_one_up_take_the_same_steps_however_many_backends_there_are(connector):
    for counts in zip(*(steps_in_a_pool(count, connector) for count in (10, 1000)), strict=True):
        assert counts[0] >= 5
        assert few_more(counts), counts


# Its parts, with more of everything than a pool in a test can have.


class Backend(Ranked):
    idle = 1

    @property
    def has_idle(self):
        return self.idle > 0


class Score(float):
    """A float that counts how often it is compared."""

    compared = 0

    def __lt__(self, other):
        Score.compared += 1
        return float(self) < float(other)

    def __le__(self, other):
        Score.compared += 1
        return float(self) <= float(other)

    def __eq__(self, other):
        return float(self) == float(other)

    __hash__ = float.__hash__


class Weight(float):
    """A weight whose quotients, the scores, count how often they are compared."""

    def __rtruediv__(self, load):
        return Score(load / float(self))


def choose_and_return(ranking, backends, rng):
    """Let claims come and go at random, with half the backends in use; give steps and comparisons of one of them."""
    out = []
    with Steps() as steps:
        Score.compared = 0
        for _ in range(ROUNDS):
            for _ in range(2):
                chosen = ranking.choose()
                chosen.idle -= 1
                chosen.load += 1
                chosen.total_claims += 1
                out.append(chosen)
            for _ in range(2):
                back = out.pop(rng.randrange(len(out)))
                back.idle += 1
                back.load -= 1
                ranking.improve(back)
    return steps.count / ROUNDS / 2, Score.compared / ROUNDS / 2


@pytest.mark.parametrize(
    ("weights", "numbers"), [(1, (10, 1000, 10_000)), (2, (10, 1000, 10_000)), (1000, (10, 100, 1000))]
)
def test_choosing_a_backend_takes_steps_as_the_logarithm_of_their_number(weights, numbers):
    counts = []
    for count in numbers:
        ranking = Ranking(Random(1))
        backends = [Backend() for _ in range(count)]
        for number, backend in enumerate(backends):
            backend.idle = 0
            ranking.add(backend, 0, 1 + number % weights)
        for backend in backends:
            backend.lane.weight = Weight(backend.lane.weight)
            backend.idle = 10
            ranking.improve(backend)
        choose_and_return(ranking, backends, Random(2))
        counts.append(choose_and_return(ranking, backends, Random(3)))
    steps, comparisons = zip(*counts, strict=True)
    assert few_more(steps), steps
    assert any(comparisons) == (weights > 1)
    # A heap takes at most two comparisons for each of its levels, when the first is taken out and another is put in.
    assert all(found <= 4 * math.log2(4 * count) for count, found in zip(numbers, comparisons, strict=True)), (
        comparisons
    )


def test_leaving_the_line_takes_the_same_steps_wherever_one_stands_and_however_many_wait():
    counts = []
    for count in (10, 1000, 10_000):
        line = Line()
        rng = Random(1)
        places = []
        for number in range(count):
            place = Place()
            place.common, place.deadline = bool(number % 3), number + 1e6 * (number % 3)
            line.join(place)
            places.append(place)
        with Steps() as steps:
            for _ in range(count):
                leaver = places.pop(rng.randrange(len(places)))
                line.leave(leaver)
                line.next_deadline()
                line.join(leaver)
                places.append(leaver)
        counts.append(steps.count / count)
    assert few_more(counts), counts
