"""Companions: what lives beside a pool, and ends within its termination."""

import asyncio
import gc
import logging
import weakref

import pytest

from qorb import Backend, Policy, Pool, PoolNotStartedError, PoolState, PoolTerminatedError, TerminationError
from qorb.companions import Companion
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnector, assert_nothing_left, run


class Friend(Companion):
    name = "friend"

    def __init__(self, farewell=0.0):
        self.farewell = farewell
        self.log = []
        self.changes = 0
        self.pool = lambda: None

    async def live(self):
        self.log.append("lives")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            pool = self.pool()
            self.log.append(pool.state if pool is not None else "told")
            await asyncio.sleep(self.farewell)
            self.log.append("gone")

    def backends_changed(self):
        self.changes += 1


def make_pool(*backends, **policy):
    resolver = ManualResolver(backends)
    connector = FakeConnector()
    return Pool("db", resolver, connector, Policy(spares_wanted=2, **policy)), resolver, connector


def test_it_lives_until_the_pool_has_ended_and_terminate_waits_for_it():
    async def main():
        friend = Friend(farewell=0.5)
        pool, _, connector = make_pool("a:1")
        async with pool:
            friend.pool = weakref.ref(pool)
            pool.accompany(friend)
            await pool.ready()
            assert "qorb db friend" in pool.ledger().tasks
            await pool.terminate()
            assert friend.log == ["lives", PoolState.TERMINATING, "gone"]
            assert not connector.connections
        assert_nothing_left(pool)

    run(main)


def test_it_sees_claims_come_back_before_it_ends():
    async def main():
        friend = Friend()
        pool, _, _ = make_pool("a:1")
        async with pool:
            pool.accompany(friend)
            claim = await pool.claim()
            ending = asyncio.ensure_future(pool.terminate(grace=10.0))
            await asyncio.sleep(3.0)
            assert friend.log == ["lives"]
            claim.release()
            await ending
            assert friend.log == ["lives", "told", "gone"]

    run(main)


def test_it_does_not_make_the_end_of_an_idle_pool_later():
    async def main():
        pool, _, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            pool.accompany(Friend())
            began = asyncio.get_running_loop().time()
            await pool.terminate()
            return asyncio.get_running_loop().time() - began

    async def without():
        pool, _, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            began = asyncio.get_running_loop().time()
            await pool.terminate()
            return asyncio.get_running_loop().time() - began

    assert run(main) == pytest.approx(run(without))


def test_it_is_told_when_backends_come_and_have_gone():
    async def main():
        friend = Friend()
        pool, resolver, _ = make_pool("a:1")
        async with pool:
            pool.accompany(friend)
            await pool.ready()
            seen = friend.changes
            resolver.set(["a:1", "b:1"])
            await asyncio.sleep(1.0)
            assert friend.changes > seen
            seen = friend.changes
            claims = [await pool.claim() for _ in range(2)]
            (gone,) = {claim.backend.name for claim in claims} - {"b:1"} or {"b:1"}
            resolver.set({"a:1", "b:1"} - {gone})
            await asyncio.sleep(1.0)
            seen = friend.changes
            assert gone in pool.stats().backends  # it is leaving
            for claim in claims:
                claim.release()
            await asyncio.sleep(1.0)
            assert gone not in pool.stats().backends
            assert friend.changes > seen
            seen = friend.changes
            (left,) = pool.stats().backends
            resolver.set([Backend(left, "other", 2)])
            await asyncio.sleep(1.0)
            assert friend.changes == seen

    run(main)


def test_it_can_be_told_to_stop_sooner():
    async def main():
        friend = Friend()
        pool, _, _ = make_pool("a:1")
        async with pool:
            stop = pool.accompany(friend)
            await asyncio.sleep(1.0)
            stop()
            stop()
            await asyncio.sleep(1.0)
            assert friend.log == ["lives", "told", "gone"]
            assert pool.state is PoolState.RUNNING
            pool.accompany(friend := Friend())()
            await asyncio.sleep(1.0)
            assert friend.log == ["lives", "told", "gone"]
            assert "qorb db friend" not in pool.ledger().tasks
        stop()

    run(main)


def test_what_it_raises_is_logged_and_harms_nothing(caplog):
    class Broken(Friend):
        async def live(self):
            raise ValueError("oh")

        def backends_changed(self):
            raise ValueError("ah")

    async def main():
        pool, resolver, _ = make_pool("a:1")
        async with pool:
            pool.accompany(Broken())
            resolver.set(["b:1"])
            await asyncio.sleep(1.0)
            async with pool.claim() as connection:
                assert connection.backend.name == "b:1"

    with caplog.at_level(logging.WARNING, logger="qorb"):
        run(main)
    text = caplog.text
    assert "qorb db friend failed: ValueError: oh" in text
    assert "backends_changed() failed: ValueError: ah" in text


def test_one_that_does_not_listen_is_named():
    class Deaf(Friend):
        async def live(self):
            while True:
                try:
                    await asyncio.sleep(2.5)
                except asyncio.CancelledError:
                    self.log.append("told")
                    if len(self.log) == 3:
                        raise

    async def main():
        pool, _, _ = make_pool("a:1")
        async with pool:
            pool.accompany(Deaf())
            await pool.ready()
            with pytest.raises(TerminationError, match="qorb db friend: live for"):
                await pool.terminate(timeout=1.5)

    run(main)


def test_it_may_terminate_the_pool():
    class Last(Friend):
        async def live(self):
            await self.pool().terminate()

    async def main():
        friend = Last()
        pool, _, _ = make_pool("a:1")
        async with pool:
            friend.pool = weakref.ref(pool)
            pool.accompany(friend)
            await asyncio.sleep(1.0)
            assert pool.state is PoolState.TERMINATED

    run(main)


def test_abort_ends_it():
    async def main():
        friend = Friend()
        pool, _, _ = make_pool("a:1")
        async with pool:
            pool.accompany(friend)
            await asyncio.sleep(1.0)
            pool.abort()
            await asyncio.sleep(0.01)
            assert friend.log == ["lives", "told", "gone"]

    run(main)


def test_a_pool_that_is_dropped_ends_it():
    async def main():
        friend = Friend()
        pool, _, _ = make_pool("a:1")
        await pool.start()
        pool.accompany(friend)
        await asyncio.sleep(1.0)
        held = [pool]
        del pool
        with pytest.warns(ResourceWarning, match="unterminated pool db"):
            held.clear()
        gc.collect()
        await asyncio.sleep(0.01)
        assert friend.log == ["lives", "told", "gone"]

    run(main)


def test_there_is_none_without_a_pool_that_runs():
    async def main():
        pool, _, _ = make_pool("a:1")
        with pytest.raises(PoolNotStartedError):
            pool.accompany(Friend())
        with pytest.raises(TypeError, match="companion must be a Companion, not a str"):
            pool.accompany("friend")
        async with pool:
            pass
        with pytest.raises(PoolTerminatedError):
            pool.accompany(Friend())

    run(main)
