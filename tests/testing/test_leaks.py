"""assert_nothing_left(): by the pool's account, and by what can be seen without it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading

import pytest

from qorb import Connector, Ledger, Policy, Pool
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, UnhandledError, assert_nothing_left, run

EMPTY = Ledger((), 0, 0, 0, 0)


class Forgetful(Pool):
    """A pool whose ledger says that nothing is left."""

    def ledger(self):
        return EMPTY


def small_pool(connector, kind=Pool, name="main"):
    return kind(name, FixedResolver(["a:1"]), connector, Policy(spares_wanted=1, max_slots=1))


def left(pool):
    with pytest.raises(AssertionError) as caught:
        assert_nothing_left(pool)
    return str(caught.value)


def test_a_pool_that_was_terminated_has_left_nothing():
    async def main():
        pool = small_pool(FakeConnector())
        async with pool, pool.claim():
            pass
        assert_nothing_left(pool)
        return pool

    assert_nothing_left(run(main))


def test_a_pool_that_was_never_started_has_nothing():
    assert_nothing_left(small_pool(FakeConnector()))


def test_what_is_left_is_named_by_the_ledger():
    async def main():
        async with small_pool(FakeConnector()) as pool:
            await pool.ready()
            text = left(pool)
        assert text.startswith("pool 'main' has left behind:\n- by its ledger: 2 tasks, ")
        assert re.search(r"    task 'qorb main slot \d+ a:1'", text)

    run(main)


def test_what_is_left_is_seen_without_the_ledger():
    async def main():
        async with small_pool(FakeConnector(), Forgetful) as pool:
            await pool.ready()
            text = left(pool)
        assert "by its ledger" not in text
        assert re.search(r"- a task:\n  task 'qorb main slot \d+ a:1'\n    \S+ in Slot.live: await ", text)
        assert "- a task:\n  task 'qorb main resolver'" in text
        assert "- a timer, due at 10" in text
        assert "- a connection that it has not closed: <FakeConnection 1 to a:1, open>" in text
        assert_nothing_left(pool)

    run(main)


def test_a_timer_that_the_pool_has_lost_sight_of_is_seen():
    async def main():
        async with small_pool(FakeConnector(), Forgetful) as pool:
            await pool.ready()
            timers = asyncio.get_running_loop()._scheduled
            owner = next(timer._callback.__self__._owner for timer in timers if not timer.cancelled())
            lost = owner.after(8000.0, pytest.fail)
            del owner.alive[lost]
        assert "- a timer, due at 9000." in left(pool)

    run(main)


def test_a_call_in_flight_is_seen_without_the_ledger():
    async def main():
        connector = FakeConnector()
        connector.stall("connect")
        async with small_pool(connector, Forgetful) as pool:
            await asyncio.sleep(1)
            text = left(pool)
        assert re.search(r"- a call in flight since 1000.000000: connect by 'qorb main slot \d+ a:1'", text)

    run(main)


def test_a_connection_that_only_the_server_has_closed_is_left():
    async def main():
        connector = FakeConnector()
        async with small_pool(connector, Forgetful) as pool:
            await pool.ready()
            connector.drop()
            text = left(pool)
        assert "- a connection that it has not closed: <FakeConnection 1 to a:1, closed>" in text

    run(main)


class Reserve(Connector):
    """A connector of a user's that has another inside."""

    def __init__(self, inner):
        self.inner = inner

    async def connect(self, backend):
        return await self.inner.connect(backend)


def test_a_connector_within_a_connector_is_found():
    async def main():
        pool = small_pool(Reserve(FakeConnector()), Forgetful)
        async with pool:
            await pool.ready()
        return left(pool)  # Reserve has no close()

    assert "a connection that it has not closed" in run(main)


def test_a_call_that_must_not_be_is_told_even_though_the_pool_has_swallowed_the_error():
    async def main():
        connector = FakeConnector()
        async with small_pool(connector) as pool:
            connector.forbid()
            await asyncio.sleep(1)
            connector.heal()
        assert "- a call that it must not make: connect was called for a:1 after forbid()" in left(pool)

    with pytest.raises(UnhandledError, match="after forbid"):
        run(main)


def test_another_pool_does_not_matter():
    async def main():
        connector = FakeConnector()
        async with small_pool(connector, name="other") as other:
            async with small_pool(connector, name="main") as pool:
                await pool.ready()
                await other.ready()
            assert_nothing_left(pool)
            assert "connection" in left(other)

    run(main)


def test_a_thread_with_the_pools_name_is_seen():
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="qorb main worker", daemon=True)
    thread.start()
    try:
        assert left(small_pool(FakeConnector())).endswith("- a thread: 'qorb main worker'")
        assert_nothing_left(small_pool(FakeConnector(), name="mai"))
    finally:
        over.set()
        thread.join()


def test_it_works_on_a_real_loop(run_real):
    async def main():
        pool = small_pool(FakeConnector(latency=0), Forgetful)
        async with pool:
            await pool.ready()
            assert "- a task:" in left(pool)
        assert_nothing_left(pool)

    run_real(main)


def test_after_the_run_it_looks_at_the_loop_of_the_run():
    async def main():
        main.task = asyncio.create_task(deaf(), name="qorb main slot 1 a:1")
        await asyncio.sleep(0)

    async def deaf():
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()

    pool = small_pool(FakeConnector())
    with pytest.raises(UnhandledError, match="still pending"):
        run(main)
    assert "- a task:\n  task 'qorb main slot 1 a:1'" in left(pool)
    main.task = None
