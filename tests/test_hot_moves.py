"""The two hot moves, written out in claim.py, do what the long way does."""

from __future__ import annotations

import asyncio
import random

import pytest

from qorb import Backend, Connector, Policy, Pool
from qorb._desk import Desk
from qorb.resolvers import FixedResolver
from qorb.testing import assert_nothing_left, run


class Plain(Connector[object]):
    """Overrides nothing: the short cuts are open."""

    async def connect(self, backend: Backend) -> object:
        await asyncio.sleep(0.001)
        return object()


def play(seed: int) -> list[object]:
    """Let random clients claim and release, and write down the pool's books after every step of theirs."""

    async def main():
        rng = random.Random(seed)
        policy = Policy(spares_wanted=4, max_slots=6)
        pool = Pool("main", FixedResolver(["a:1", "b:1", "c:1"]), Plain(), policy, rng=random.Random(seed))
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


@pytest.mark.parametrize("seed", range(10))
def test_the_short_cuts_leave_the_same_books_as_the_long_way(seed, monkeypatch):
    quick = play(seed)
    refresh = Desk.refresh

    def never_quick(desk: Desk[object]) -> None:
        refresh(desk)
        desk.quick = desk.swift = desk.plain = desk.brisk = False

    monkeypatch.setattr(Desk, "refresh", never_quick)
    assert play(seed) == quick
