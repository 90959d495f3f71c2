"""The two hot moves, written out in claim.py, do what the long way does."""

from __future__ import annotations

import asyncio
import random

import pytest

from qorb import Backend, Connector, Outcome, Policy, Pool
from qorb._desk import Desk
from qorb.resolvers import FixedResolver
from qorb.testing import assert_nothing_left, run, settle
from tests.pools import hold


class Plain(Connector[object]):
    """Overrides nothing: the short cuts are open."""

    async def connect(self, backend: Backend) -> object:
        await asyncio.sleep(0.001)
        return object()


class Asking(Plain):
    """Is asked of every connection; its answers come by chance, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.asked = 0

    def needs_recycle(self, connection: object, outcome: Outcome) -> bool:
        self.asked += 1
        return self.rng.random() < 0.2

    async def on_recycle(self, connection: object, outcome: Outcome) -> None:
        await asyncio.sleep(0.001)


def play(seed: int, connector: Connector[object], *, measured: bool = False) -> list[object]:
    """Let random clients claim and release, and write down the pool's books after every step of theirs."""

    async def main():
        rng = random.Random(seed)
        policy = Policy(spares_wanted=4, max_slots=6)
        pool = Pool("main", FixedResolver(["a:1", "b:1", "c:1"]), connector, policy, rng=random.Random(seed))
        if measured:
            pool.measure([0.001, 0.005, 0.01, 0.1])
        told: list[object] = []

        def books() -> list[object]:
            desk, sets = pool._desk, pool._engine.sets.values()
            of_sets = [
                (slots.backend.name, slots.load, slots.total_claims, [slot.state for slot in slots.slots])
                for slots in sets
            ]
            order = [[list(slots.slots).index(slot) for slot in slots.idle] for slots in sets]
            return [desk.claimed, desk.line.waiting, of_sets, order, pool.timings()]

        async def client() -> None:
            for _ in range(20):
                async with pool.claim():
                    told.append(books())
                    await asyncio.sleep(rng.choice([0.0, 0.001, 0.01]))
                told.append(books())
                await asyncio.sleep(rng.choice([0.0, 0.0, 0.02]))

        async with pool:
            await pool.ready()
            await asyncio.wait([asyncio.create_task(client()) for _ in range(9)])
            told.append([backend.total_claims for backend in pool.stats().backends.values()])
        assert_nothing_left(pool)
        return told

    return run(main)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("connector", [lambda _: Plain(), Asking])
@pytest.mark.parametrize("seed", range(10))
def test_the_short_cuts_leave_the_same_books_as_the_long_way(seed, connector, measured, monkeypatch):
    quick = play(seed, connector(seed), measured=measured)
    refresh = Desk.refresh

    def never_quick(desk: Desk[object]) -> None:
        refresh(desk)
        desk.quick = desk.swift = desk.plain = desk.brisk = False

    monkeypatch.setattr(Desk, "refresh", never_quick)
    assert play(seed, connector(seed), measured=measured) == quick


@pytest.mark.parametrize("connector", [lambda _: Plain(), Asking])
def test_what_is_done_is_the_same_whether_times_are_counted_or_not(connector):
    def but_for_the_times(told: list[object]) -> list[object]:
        return [books[:4] if len(books) == 5 else books for books in told]

    assert but_for_the_times(play(1, connector(1), measured=True)) == but_for_the_times(play(1, connector(1)))


def test_the_short_cuts_are_taken_while_times_are_counted(monkeypatch):
    claim, long_ways = Desk.claim, []

    def claim_the_long_way(desk: Desk[object], attempt: object) -> object:
        long_ways.append("claim")
        return claim(desk, attempt)

    async def main():
        pool = Pool("main", FixedResolver(["a:1"]), Plain(), Policy(spares_wanted=1, max_slots=1))
        pool.measure()
        async with pool:
            await pool.ready()
            await hold(pool, 0)  # the first claim on a connection looks whether it was of use
            monkeypatch.setattr(Desk, "claim", claim_the_long_way)
            monkeypatch.setattr(Desk, "release", lambda *_: long_ways.append("release"))
            async with pool.claim():
                tasks = [asyncio.create_task(hold(pool, 0.5)) for _ in range(3)]
                await settle()
            await asyncio.wait(tasks)
            return pool.timings()

    timings = run(main)
    assert long_ways == ["claim"], "only the first in line comes there by the long way"
    assert timings.wait.total == timings.use.total == 5
    assert timings.use.sum == pytest.approx(1.5)
    assert timings.wait.sum == pytest.approx(0 + 0.5 + 1.0)


def test_a_connector_is_asked_once_a_release_whether_a_connection_must_be_recycled():
    connector = Asking(1)
    told = play(1, connector)
    claims = told[-1]
    assert isinstance(claims, list)
    assert connector.asked == sum(claims)
