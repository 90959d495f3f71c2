"""When frames come and what is in them, in virtual time."""

import asyncio
import json

import pytest

from qorb import Policy, Pool, PoolNotStartedError
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnector, assert_nothing_left, run
from qorb.top._feed import Feed, converse


class Client:
    """Takes frames in, each after so many seconds, and notes when they came."""

    def __init__(self, pool, seconds, delay=0.0):
        self.feed = Feed(pool, seconds, self.left)
        self.delay = delay
        self.frames = []
        self.lefts = 0
        self.says = asyncio.get_running_loop().create_future()

    def left(self, feed):
        self.lefts += 1

    async def send(self, frame):
        await asyncio.sleep(self.delay)
        self.frames.append((asyncio.get_running_loop().time(), json.loads(frame)))

    async def receive(self):
        size, self.says = await self.says, asyncio.get_running_loop().create_future()
        return size

    def start(self):
        self.began = asyncio.get_running_loop().time()
        self.task = asyncio.ensure_future(converse(self.feed, self.send, self.receive, patience=5.0))
        return self

    @property
    def times(self):
        return [pytest.approx(round(time - self.began, 6)) for time, _ in self.frames]


async def claim(pool, times):
    for _ in range(times):
        async with pool.claim():
            pass


def make_pool(*backends, name="db"):
    resolver = ManualResolver(backends)
    return Pool(name, resolver, FakeConnector(), Policy(max_slots=4, spares_wanted=2)), resolver


def test_one_at_once_and_one_per_interval_with_the_claims_between():
    async def main():
        pool, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            await claim(pool, 3)
            client = Client(pool, 2).start()
            await asyncio.sleep(1.0)
            await claim(pool, 5)
            await asyncio.sleep(2.0)
            await claim(pool, 2)
            await asyncio.sleep(2.5)
            assert client.times == [0, 2, 4]
            assert [frame["claims"] for _, frame in client.frames] == [0, 5, 2]
            assert client.frames[-1][1]["sets"]["a:1"]["total_claims"] == 10
        await client.task

    run(main)


def test_each_socket_counts_its_own_claims():
    async def main():
        pool, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            slow, quick = Client(pool, 3).start(), Client(pool, 1).start()
            for _ in range(3):
                await asyncio.sleep(0.5)
                await claim(pool, 1)
                await asyncio.sleep(0.5)
            await asyncio.sleep(0.1)
            assert [frame["claims"] for _, frame in slow.frames] == [0, 3]
            assert [frame["claims"] for _, frame in quick.frames] == [0, 1, 1, 1]
        await slow.task
        await quick.task

    run(main)


def test_a_frame_comes_when_the_set_of_backends_changes_and_the_interval_goes_on():
    async def main():
        pool, resolver = make_pool("a:1")
        async with pool:
            await pool.ready()
            client = Client(pool, 10).start()
            await asyncio.sleep(3.0)
            resolver.set(["a:1", "b:1"])
            await asyncio.sleep(9.0)
            assert client.times == [0, 3, 10]
            assert [sorted(frame["sets"]) for _, frame in client.frames] == [["a:1"], ["a:1", "b:1"], ["a:1", "b:1"]]
            resolver.set(["b:1"])
            await asyncio.sleep(1.0)
            assert list(client.frames[-1][1]["sets"]) == ["b:1"]
            assert client.times[:4] == [0, 3, 10, 12]
        await client.task

    run(main)


def test_an_interval_of_0_is_four_times_a_second():
    async def main():
        pool, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            client = Client(pool, 0).start()
            await asyncio.sleep(1.1)
            assert client.times == [0, 0.25, 0.5, 0.75, 1.0]
        await client.task

    run(main)


def test_the_end_of_the_pool_is_the_end_of_the_feed():
    async def main():
        pool, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            client = Client(pool, 255).start()
            await asyncio.sleep(1.0)
            assert "qorb db statistics socket" in pool.ledger().tasks
        assert_nothing_left(pool)
        await asyncio.sleep(0)
        await client.task
        assert (client.feed.code, client.feed.reason, client.feed.client_gone) == (1001, "pool db has ended", False)
        assert client.lefts == 1

    run(main)


def test_a_client_that_goes_ends_it_and_leaves_nothing_with_the_pool():
    async def main():
        pool, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            client = Client(pool, 1).start()
            await asyncio.sleep(1.5)
            client.says.set_result(None)
            await client.task
            assert client.feed.client_gone
            await asyncio.sleep(0.01)
            assert "qorb db statistics socket" not in pool.ledger().tasks
            assert len(client.frames) == 2

    run(main)


def test_a_client_that_is_too_slow_is_given_up():
    async def main():
        pool, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            client = Client(pool, 1, delay=6.0).start()
            await client.task
            assert client.feed.client_gone
            assert asyncio.get_running_loop().time() - client.began == pytest.approx(5.0)

    run(main)


def test_a_slow_client_gets_fewer_frames_and_none_that_is_old():
    async def main():
        pool, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            client = Client(pool, 1, delay=3.0).start()
            for _ in range(10):
                await claim(pool, 1)
                await asyncio.sleep(1.0)
            assert len(client.frames) == 3
            assert sum(frame["claims"] for _, frame in client.frames) <= 7
        await client.task

    run(main)


def test_what_a_client_says_is_taken_in_and_too_much_ends_it():
    async def main():
        pool, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            client = Client(pool, 1).start()
            await asyncio.sleep(0.1)
            client.says.set_result(1024)
            await asyncio.sleep(0.1)
            assert not client.task.done()
            client.says.set_result(1025)
            await client.task
            assert client.feed.code == 1009
            assert not client.feed.client_gone

    run(main)


def test_cancelling_it_leaves_nothing():
    async def main():
        pool, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            client = Client(pool, 1).start()
            await asyncio.sleep(1.5)
            client.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await client.task
            await asyncio.sleep(0.01)
            assert "qorb db statistics socket" not in pool.ledger().tasks
            assert client.lefts == 1

    run(main)


def test_an_error_in_what_receives_is_raised():
    async def main():
        pool, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            client = Client(pool, 1).start()
            await asyncio.sleep(0.5)
            client.says.set_exception(ValueError("oh"))
            await asyncio.sleep(3.0)
            with pytest.raises(ValueError, match="oh"):
                await client.task

    run(main)


def test_there_is_no_feed_of_a_pool_that_does_not_run():
    async def main():
        pool, _ = make_pool("a:1")
        with pytest.raises(PoolNotStartedError):
            Feed(pool, 1, lambda _: None)

    run(main)


def test_a_frame_holds_what_the_original_sends_and_what_else_may_stand_beside():
    async def main():
        pool, _ = make_pool("a:1")
        async with pool:
            await pool.ready()
            client = Client(pool, 1).start()
            await asyncio.sleep(0.5)
            (_, frame) = client.frames[0]
            assert list(frame) == ["claims", "sets", "pool", "state", "waiting", "timings"]
            assert list(frame["sets"]["a:1"]) == [
                *("online", "connecting_slots", "unclaimed_slots", "checking_slots", "claimed_slots", "total_claims"),
                *("failures", "last_error"),
            ]
        await client.task

    run(main)
