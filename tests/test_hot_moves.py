"""The two hot moves, written out in claim.py, do what the long way does."""

from __future__ import annotations

import asyncio
import random

import pytest

from qorb import Backend, Connector, Outcome, Policy, Pool
from qorb._desk import Desk
from qorb.resolvers import FixedResolver
from qorb.testing import assert_nothing_left, run


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


def play(seed: int, connector: Connector[object]) -> list[object]:
    """Let random clients claim and release, and write down the pool's books after every step of theirs."""

    async def main():
        rng = random.Random(seed)
        policy = Policy(spares_wanted=4, max_slots=6)
        pool = Pool("main", FixedResolver(["a:1", "b:1", "c:1"]), connector, policy, rng=random.Random(seed))
        told: list[object] = []

        def books() -> list[object]:
            desk, sets = pool._desk, pool._engine.sets.values()
            of_sets = [
                (slots.backend.name, slots.load, slots.total_claims, [slot.state for slot in slots.slots])
                for slots in sets
            ]
            order = [[list(slots.slots).index(slot) for slot in slots.idle] for slots in sets]
            return [desk.claimed, desk.line.waiting, of_sets, order]

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


@pytest.mark.parametrize("connector", [lambda _: Plain(), Asking])
@pytest.mark.parametrize("seed", range(10))
def test_the_short_cuts_leave_the_same_books_as_the_long_way(seed, connector, monkeypatch):
    quick = play(seed, connector(seed))
    refresh = Desk.refresh

    def never_quick(desk: Desk[object]) -> None:
        refresh(desk)
        desk.quick = desk.swift = desk.plain = desk.brisk = False

    monkeypatch.setattr(Desk, "refresh", never_quick)
    assert play(seed, connector(seed)) == quick


def test_a_connector_is_asked_once_a_release_whether_a_connection_must_be_recycled():
    connector = Asking(1)
    told = play(1, connector)
    claims = told[-1]
    assert isinstance(claims, list)
    assert connector.asked == sum(claims)
