"""What happens, and what does not, between two turns of the loop and while nothing else does."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from typing import TYPE_CHECKING, Any

import pytest

from qorb import Policy, Pool
from qorb._tasks import TaskOwner, TimerOwner
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, assert_nothing_left, run

if TYPE_CHECKING:
    from collections.abc import Coroutine


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


def test_a_signal_handler_that_raises_while_a_task_is_being_started_leaves_no_coroutine_behind():
    """Whatever is called between the making of a coroutine and that of its task may raise; warnings are errors here."""

    class Named:
        made: list[Coroutine[Any, Any, None]]

        def __init__(self) -> None:
            self.made = []

        @property
        def name(self) -> str:
            raise SystemExit(143)

        def live(self) -> Coroutine[Any, Any, None]:
            self.made.append(asyncio.sleep(0))
            return self.made[-1]

    async def main():
        owner = TaskOwner(TimerOwner(asyncio.get_running_loop()))
        life = Named()
        with pytest.raises(SystemExit):
            owner.start(life)
        assert (life.made, owner.tasks) == ([], {})

    run(main)
