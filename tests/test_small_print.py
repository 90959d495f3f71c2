"""The small print of the specification: what matters rarely and to few, each as a small test of its own."""

from __future__ import annotations

import asyncio

import pytest

from qorb.testing import FakeConnector, run
from tests.pools import backends, opened

ONE = backends(1)


class InStep(FakeConnector):
    """A connector of which a clean release costs no recycling."""

    def needs_recycle(self, connection, outcome):
        return False


# Shrinking.


@pytest.mark.parametrize("checked", [False, True])
def test_shrinking_takes_a_used_connection_that_is_idle_for_longer_than_a_new_one(checked):
    async def main():
        policy = {
            "spares_wanted": 1,
            "max_slots": 4,
            "rebalance_interval": 60,
            "health_interval": 20 if checked else 1e6,
        }
        async with opened(ONE, InStep(), **policy) as watched:
            claims = await watched.claims(2)
            await asyncio.sleep(1)
            claims[0].release()
            await asyncio.sleep(1)
            claims[1].discard()  # its slot connects anew: that connection is idle for less long than all others
            await asyncio.sleep(1)
            assert watched.stats().unclaimed_slots == 3
            newest = max(watched.connector.connections, key=lambda one: one.id)
            await asyncio.sleep(62)
            return [one is newest for one in watched.connector.connections]

    assert run(main) == [True]


@pytest.mark.parametrize("checked", [False, True])
def test_shrinking_takes_a_connection_that_was_never_used_when_it_is_idle_for_longest(checked):
    async def main():
        policy = {
            "spares_wanted": 1,
            "max_slots": 4,
            "rebalance_interval": 60,
            "health_interval": 20 if checked else 1e6,
        }
        async with opened(ONE, InStep(), **policy) as watched:
            claims = await watched.claims(2)
            await asyncio.sleep(1)
            last = claims[1].connection
            for claim in claims:
                await asyncio.sleep(1)
                claim.release()
            assert watched.stats().unclaimed_slots == 3
            await asyncio.sleep(62)
            return [one is last for one in watched.connector.connections]

    assert run(main) == [True]
