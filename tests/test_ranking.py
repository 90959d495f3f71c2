"""Which backend serves a claim, seen through the pool."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest

from qorb import Connector
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnector, run, settle
from tests.pools import backends, hold, opened


async def load(watched, clients: int, claims: int, seconds: float) -> Counter[str]:
    served: list[str] = []

    async def client() -> None:
        for _ in range(claims // clients):
            await hold(watched.pool, seconds, served)

    await asyncio.wait([asyncio.create_task(client()) for _ in range(clients)])
    return Counter(served)


class Bare(FakeConnector):
    """A connector without on_acquire and recycling: claims and releases take their short ways."""

    on_acquire = Connector.on_acquire
    on_recycle = Connector.on_recycle
    validate = Connector.validate
    needs_recycle = Connector.needs_recycle


@pytest.mark.parametrize(
    ("connector", "count", "clients", "seconds"),
    [
        (FakeConnector, 3, 4, 0.01),
        (FakeConnector, 2, 40, 0.0),
        (Bare, 2, 1, 0.01),
        (Bare, 3, 4, 0.0),
        (Bare, 3, 40, 0.01),
        (Bare, 5, 16, 0.01),
    ],
)
def test_equal_healthy_backends_get_equal_shares(connector, count, clients, seconds):
    async def main():
        # So many spares that the choice is the ranking's: with few, shares would be those of the connections there are.
        async with opened(backends(count), connector(), spares_wanted=4 * count, max_slots=4 * count) as watched:
            return await load(watched, clients, 4000, seconds)

    shares = run(main)
    total = sum(shares.values())
    assert all(abs(share - total / count) <= 0.05 * total / count for share in shares.values()), shares
    assert len(shares) == count


@pytest.mark.parametrize("seed", range(3))
def test_claims_of_uneven_length_are_spread_evenly_too(seed):
    async def main():
        rng = random.Random(seed)
        served: list[str] = []

        async def client() -> None:
            for _ in range(250):
                await hold(watched.pool, rng.expovariate(100), served)

        async with opened(backends(3), Bare(), spares_wanted=4, max_slots=12) as watched:
            await asyncio.wait([asyncio.create_task(client()) for _ in range(8)])
        return Counter(served)

    shares = run(main)
    assert all(abs(share - 2000 / 3) <= 0.1 * 2000 / 3 for share in shares.values()), shares


def test_a_weight_of_three_gets_three_times_the_claims_of_one():
    async def main():
        a, b = backends(2)
        async with opened([replace(a, weight=3), b], Bare(), spares_wanted=16, max_slots=16) as watched:
            return await load(watched, 4, 2000, 0.01)

    shares = run(main)
    assert shares["b0"] / shares["b1"] == pytest.approx(3, rel=0.1)


def test_a_weight_of_nothing_gets_a_tenth():
    async def main():
        a, b = backends(2)
        async with opened([replace(a, weight=0), b], Bare(), spares_wanted=16, max_slots=16) as watched:
            return await load(watched, 1, 1100, 0.01)

    shares = run(main)
    assert shares["b0"] == pytest.approx(100, abs=10)


def test_a_backend_that_fails_fast_attracts_nothing():
    async def main():
        connector = FakeConnector()
        async with opened(backends(3), connector, spares_wanted=6, max_slots=12) as watched:
            connector.fail("on_acquire", lambda: OSError("unfit"), "b1")
            shares = await load(watched, 4, 1000, 0.01)
            tried = sum(call.operation == "on_acquire" and call.backend.name == "b1" for call in connector.calls)
            return shares, tried

    shares, tried = run(main)
    assert shares["b1"] == 0
    assert sum(shares.values()) == 1000
    assert tried <= 50


def test_a_dead_primary_does_not_block_failover():
    async def main():
        connector = FakeConnector()
        connector.refuse("b0")
        a, b = backends(2)
        async with opened([a, replace(b, priority=1)], connector, ready=False) as watched:
            served: list[str] = []
            await hold(watched.pool, 0, served)
            return served

    assert run(main) == ["b1"]


def test_a_worse_backend_waits_for_the_first_attempt_of_a_better_one():
    async def main():
        connector = FakeConnector()
        connector.slow(2, "connect", "b0")
        a, b = backends(2)
        async with opened([a, replace(b, priority=1)], connector, ready=False) as watched:
            served: list[str] = []
            await hold(watched.pool, 0, served)
            return served

    assert run(main) == ["b0"]


def test_a_worse_backend_serves_what_a_better_one_has_no_idle_connection_for():
    async def main():
        a, b = backends(2)
        policy = {"spares_wanted": 4, "max_slots": 4, "max_slots_per_backend": 2}
        async with opened([a, replace(b, priority=1)], **policy) as watched:
            claims = await watched.claims(4)
            names = [claim.backend.name for claim in claims]
            for claim in claims:
                claim.release()
            return names

    assert run(main) == ["b0", "b0", "b1", "b1"]


def test_the_connection_released_last_goes_first():
    async def main():
        async with opened(backends(1), spares_wanted=3, max_slots=3) as watched:
            claims = await watched.claims(3)
            connections = [claim.connection for claim in claims]
            for claim in claims:
                claim.release()
                await asyncio.sleep(0.1)
            again = await watched.claims(3)
            assert [claim.connection for claim in again] == connections[::-1]
            for claim in again:
                claim.release()

    run(main)


def test_a_change_of_priority_takes_effect_at_the_next_claim_and_reconnects_nothing():
    async def main():
        a, b = backends(2)
        resolver = ManualResolver([a, replace(b, priority=1)])
        async with opened(resolver, spares_wanted=4, max_slots=4) as watched:
            served: list[str] = []
            await hold(watched.pool, 0, served)
            resolver.set([replace(a, priority=1), b])
            await settle()
            await asyncio.sleep(0.1)
            await hold(watched.pool, 0, served)
            assert served == ["b0", "b1"]
            assert watched.connector.count["connect"] == 4
            assert watched.connector.count["close"] == 0

    run(main)


def test_a_change_of_weight_takes_effect_at_the_next_claim_and_is_not_overdone():
    async def main():
        a, b = backends(2)
        resolver = ManualResolver([a, b])
        async with opened(resolver, Bare(), spares_wanted=4, max_slots=4) as watched:
            await load(watched, 1, 2000, 0.01)
            resolver.set([a, replace(b, weight=3)])
            await settle()
            return await load(watched, 1, 400, 0.01)

    assert run(main)["b1"] == pytest.approx(300, abs=3)
