"""An offline backend gets its turn although nothing else happens."""

from __future__ import annotations

import asyncio
import itertools
import math
import random

from qorb import Policy, Pool
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, assert_nothing_left, run


def test_in_a_full_pool_at_rest_an_offline_backend_is_tried_again_and_again_and_comes_back():
    """No claim, no release, no rebalancing: nothing but the time at which its turn comes gives the occasion."""

    async def main():
        connector = FakeConnector()
        connector.refuse("b:1")
        policy = Policy(spares_wanted=16, max_slots=16, rebalance_interval=math.inf)
        resolver = FixedResolver(["a:1", "b:1"])
        async with Pool("main", resolver, connector, policy, rng=random.Random(1)) as pool:
            await asyncio.sleep(300.0)
            tried = [
                call.started for call in connector.calls if (call.operation, call.backend.name) == ("connect", "b:1")
            ]
            gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
            assert len(tried) > 10
            assert max(gaps) <= policy.max_connection_backoff + 1.0
            connector.heal()
            await asyncio.sleep(60.0)
            assert pool.stats().backends["b:1"].online
        assert_nothing_left(pool)

    run(main)
