"""What the simulation has found, each as a small test of its own. The plans that found them are in the corpus."""

from __future__ import annotations

import asyncio
import logging

import pytest
from qorb import Backend, Policy, Pool
from qorb.resolvers import FixedResolver, ManualResolver
from qorb.testing import FakeConnector, run, settle

ONE = ["10.0.0.1:5432"]


@pytest.mark.parametrize("limit", [0, 1e-9])
def test_a_long_claim_warning_of_nearly_nothing_does_not_keep_the_loop_busy(limit, caplog):
    async def main():
        policy = Policy(long_claim_warning=limit, health_interval=1e6, rebalance_interval=1e6)
        async with Pool("p", FixedResolver(ONE), FakeConnector(), policy) as pool, pool.claim():
            await asyncio.sleep(10)
        return pool

    with caplog.at_level(logging.WARNING, "qorb"):
        run(main)
    assert ["is claimed for" in record.message for record in caplog.records] == [True]


def test_checks_go_on_when_a_backend_returns_that_vanished_as_a_check_was_to_begin():
    async def main():
        connector = FakeConnector()
        resolver = ManualResolver(ONE)
        policy = Policy(spares_wanted=1, max_slots=1, health_interval=1, spread=0)
        async with Pool("p", resolver, connector, policy) as pool:
            await pool.ready()
            # The timer of the check is due in this very turn, and its slot's task has not run yet.
            asyncio.get_running_loop().call_at(1001.001, resolver.set, [])
            await asyncio.sleep(1.0005)
            assert not connector.count["validate"]
            await settle()
            resolver.set(ONE)
            await asyncio.sleep(10)
        return connector.count["validate"]

    assert run(main) >= 8


def test_a_better_backend_without_a_slot_does_not_keep_worse_ones_from_serving():
    async def main():
        backends = [Backend("good", "10.0.0.1", 1), Backend("worse", "10.0.0.2", 1, priority=1)]
        resolver = ManualResolver(backends[1:])
        async with Pool("p", resolver, FakeConnector(), Policy(spares_wanted=1, max_slots=1)) as pool:
            await pool.ready()
            resolver.set(backends)  # there is no slot left to try the better one with
            await settle()
            async with pool.claim(timeout=1) as connection:
                return connection.backend.name

    assert run(main) == "worse"
