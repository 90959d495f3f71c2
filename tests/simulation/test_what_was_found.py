"""What the simulation has found, each as a small test of its own. The plans that found them are in the corpus."""

from __future__ import annotations

import asyncio
import logging

import pytest
from qorb import Policy, Pool
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, run

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
