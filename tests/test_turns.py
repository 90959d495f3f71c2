"""What happens, and what does not, between two turns of the loop and while nothing else does."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from typing import TYPE_CHECKING, Any

import pytest

from qorb import Policy, Pool
from qorb._slot_set import SlotSet
from qorb._tasks import TaskOwner, TimerOwner
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, assert_nothing_left, run
from qorb.testing._loop import VirtualLoop

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


def test_a_pause_that_ends_while_a_slot_asks_whether_it_may_connect_is_no_reason_to_forget_the_slot(monkeypatch):
    """In virtual time two looks at the clock see the same; on a real loop it goes on between them."""
    admit, read = SlotSet.admit, VirtualLoop.time

    def admit_while_time_passes(slots, slot):
        looks = itertools.count()
        with monkeypatch.context() as patch:
            patch.setattr(VirtualLoop, "time", lambda loop: read(loop) + 100.0 * next(looks))
            return admit(slots, slot)

    async def main():
        connector = FakeConnector()
        connector.refuse()
        policy = Policy(max_slots=1, rebalance_interval=math.inf)  # a second slot might wake the first
        async with Pool("main", FixedResolver(["a:1"]), connector, policy, rng=random.Random(1)) as pool:
            await asyncio.sleep(1.0)
            connector.heal()
            await asyncio.sleep(10.0)
            assert pool.stats().backends["a:1"].online

    monkeypatch.setattr(SlotSet, "admit", admit_while_time_passes)
    run(main)


def test_a_timer_that_the_loop_fires_before_its_moment_waits_on(monkeypatch):
    """uvloop rounds to milliseconds, down as well as up."""
    call_at = VirtualLoop.call_at

    def call_early(loop, when, callback, *arguments, context=None):
        early = when - 0.0004 if when - loop.time() > 0.001 else when
        return call_at(loop, early, callback, *arguments, context=context)

    async def main():
        loop = asyncio.get_running_loop()
        timers = TimerOwner(loop)
        moment = loop.time() + 1.0
        fired = loop.create_future()
        timers.at(moment, lambda: fired.set_result(loop.time()))
        assert await fired == moment
        assert not timers.alive
        timers.at(loop.time() + 1.0, loop.stop).cancel()
        await asyncio.sleep(2.0)

    monkeypatch.setattr(VirtualLoop, "call_at", call_early)
    run(main)
