"""What took how long: Pool.measure() and Pool.timings()."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import sys
import threading
from itertools import accumulate, pairwise

import pytest

from qorb import ClaimTimeoutError, Connector, Outcome, Policy, Pool, WrongLoopError
from qorb._core.buckets import FULL
from qorb._engine import Engine
from qorb.resolvers import FixedResolver
from qorb.stats import Histogram, Timings
from qorb.testing import FakeConnector, run, settle
from tests.pools import backends, hold, opened

BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0)


class ShortWay(FakeConnector):
    """Asks for nothing that would lead a claim the long way."""

    on_acquire = Connector.on_acquire
    on_recycle = Connector.on_recycle
    validate = Connector.validate


def buckets_of(*seconds: float) -> tuple[int, ...]:
    counts = [0] * (len(BOUNDS) + 1)
    for one in seconds:
        counts[next((place for place, bound in enumerate(BOUNDS) if one <= bound), -1)] += 1
    return tuple(counts)


def check(histogram: Histogram, *seconds: float) -> None:
    assert histogram == Histogram(BOUNDS, buckets_of(*seconds), len(seconds), pytest.approx(sum(seconds)))


def measured(main, connector: FakeConnector | None = None, observed: bool = False, **policy) -> Timings:
    async def with_pool():
        settings = {"spares_wanted": 1, "max_slots": 1, "spread": 0} | policy
        async with opened(backends(1), connector, observed=observed, **settings) as watched:
            watched.pool.measure(BOUNDS)
            await main(watched)
        return watched.pool.timings()

    return run(with_pool)


async def three_claims(watched) -> None:
    """The first finds an idle connection; the second waits 0.5 s and the third 2.5 s."""
    await watched.pool.ready()
    tasks = [asyncio.create_task(hold(watched.pool, seconds)) for seconds in (0.5, 2.0, 0.05)]
    await asyncio.wait(tasks)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("kind", [FakeConnector, ShortWay])
def test_waits_and_uses_are_counted_on_the_short_and_on_the_long_way(observed, kind):
    timings = measured(three_claims, kind(latency=0), observed)
    check(timings.wait, 0, 0.5, 2.5)
    check(timings.use, 0.5, 2.0, 0.05)


def test_a_connect_that_gave_a_connection_is_counted():
    async def main(watched):
        await watched.pool.ready()
        watched.connector.refuse()
        watched.connector.drop()
        with contextlib.suppress(ClaimTimeoutError):
            await watched.pool.claim(timeout=3)
        watched.connector.heal()
        await hold(watched.pool, 0)

    check(measured(main, FakeConnector(latency=0.02)).connect, 0.02)


def test_preparing_belongs_to_the_wait_and_not_to_the_use():
    class Slow(FakeConnector):
        async def on_acquire(self, connection):
            await asyncio.sleep(0.5)

    async def main(watched):
        await watched.pool.ready()
        await hold(watched.pool, 2)

    timings = measured(main, Slow())
    check(timings.wait, 0.5)
    check(timings.use, 2.0)


def test_a_claim_that_failed_has_no_times_and_a_timeout_is_counted():
    async def main(watched):
        await watched.pool.ready()
        async with watched.pool.claim():
            for timeout in (0, 0.5):
                with pytest.raises(ClaimTimeoutError):
                    await watched.pool.claim(timeout=timeout)
            task = asyncio.create_task(hold(watched.pool, 0))
            await settle()
            task.cancel()
            await asyncio.wait([task])
        assert watched.pool.stats().timeouts == 2

    timings = measured(main, ShortWay())
    check(timings.wait, 0)
    check(timings.use, 0.5)


def test_every_way_to_give_back_counts_once():
    async def main(watched):
        pool = watched.pool
        await pool.ready()
        claim = await pool.claim()
        await asyncio.sleep(0.5)
        claim.release()
        claim.release()
        claim = await pool.claim()
        await asyncio.sleep(0.5)
        claim.discard()
        claim.discard()
        claim = await pool.claim()
        claim.release(Outcome.ERROR)
        with contextlib.suppress(OSError):
            async with pool.claim():
                raise OSError
        request = pool.claim()
        async with request:
            await asyncio.sleep(0.5)
        await request.__aexit__(None, None, None)
        claim = await pool.claim()
        with pytest.warns(ResourceWarning):
            del claim
        gc.collect()
        await settle()

    timings = measured(main, FakeConnector(latency=0))
    assert timings.wait.total == timings.use.total == 6
    assert timings.use.sum == pytest.approx(1.5)


def test_a_release_in_another_thread_that_is_refused_is_not_counted():
    async def main(watched):
        claim = await watched.pool.claim()
        errors: list[BaseException] = []

        def release() -> None:
            try:
                claim.release()
            except WrongLoopError as error:
                errors.append(error)

        thread = threading.Thread(target=release)
        thread.start()
        thread.join()
        assert errors
        assert watched.pool.timings().use.total == 0
        claim.release()

    assert measured(main).use.total == 1


@pytest.mark.parametrize("held", ["revoke", "detach"])
def test_a_claim_that_the_end_took_counts_when_its_holder_lets_go(held):
    async def main(watched):
        claim = await watched.pool.claim()
        await watched.pool.terminate(grace=0, held=held)
        await asyncio.sleep(2)
        claim.release()

    timings = measured(main)
    assert timings.use.total == timings.wait.total == 1
    assert timings.use.counts == buckets_of(2.0)


def test_a_snapshot_never_changes_and_is_there_before_the_start_and_after_the_end():
    async def main():
        pool = Pool("p", FixedResolver(backends(1)), FakeConnector())
        assert pool.timings() is None
        pool.measure(BOUNDS)
        nothing = pool.timings()
        check(nothing.wait)
        async with pool:
            await hold(pool, 0.5)
            before = pool.timings()
            await hold(pool, 0.5)
            assert before.use.total == 1
        check(nothing.wait)
        check(pool.timings().use, 0.5, 0.5)
        assert pool.timings().wait.total == 2

    run(main)


def test_without_measure_there_are_no_times():
    async def main():
        async with Pool("p", FixedResolver(backends(1)), FakeConnector()) as pool:
            await hold(pool, 0.5)
            assert pool.timings() is None

    run(main)


def test_it_begins_when_it_is_asked_for_and_anew_with_other_bounds():
    async def main():
        async with Pool("p", FixedResolver(backends(2)), ShortWay()) as pool:
            await pool.ready()
            await hold(pool, 0.5)
            claim = await pool.claim()
            pool.measure(BOUNDS)
            check(pool.timings().wait)
            await hold(pool, 0.5)
            claim.release()
            check(pool.timings().wait, 0)
            check(pool.timings().use, 0.5, 0.5)
            pool.measure(list(BOUNDS))
            check(pool.timings().wait, 0)
            pool.measure([1, 2])
            assert pool.timings().use == Histogram((1.0, 2.0), (0, 0, 0), 0, 0.0)

    run(main)


def test_the_bounds_are_those_of_a_claim_unless_others_are_given():
    pool = Pool("p", FixedResolver(backends(1)), FakeConnector())
    pool.measure()
    bounds = pool.timings().wait.bounds
    assert bounds == tuple(sorted(bounds))
    assert bounds[0] <= 0.001
    assert bounds[-1] >= Policy().claim_timeout


@pytest.mark.parametrize(
    ("bounds", "error"),
    [
        ([], ValueError),
        ([0], ValueError),
        ([1, 1], ValueError),
        ([2, 1], ValueError),
        ([math.inf], ValueError),
        ([math.nan], ValueError),
        ([-1, 1], ValueError),
        (range(1, 1000), ValueError),
        ("123", TypeError),
        ([True], TypeError),
        (["1"], TypeError),
    ],
)
def test_bounds_that_are_none_are_refused(bounds, error):
    pool = Pool("p", FixedResolver(backends(1)), FakeConnector())
    with pytest.raises(error, match="bounds must be"):
        pool.measure(bounds)
    assert pool.timings() is None


def test_the_times_agree_with_the_numbers_under_load():
    async def main():
        connector = FakeConnector()
        policy = Policy(max_slots=4, spread=0, claim_timeout=0.3)
        async with Pool("p", FixedResolver(backends(3)), connector, policy) as pool:
            pool.measure()

            async def client() -> None:
                for _ in range(30):
                    with contextlib.suppress(ClaimTimeoutError):
                        await hold(pool, 0.1)

            await asyncio.wait([asyncio.create_task(client()) for _ in range(16)])
            stats, timings = pool.stats(), pool.timings()
            assert stats.timeouts > 0
            assert stats.claims + stats.timeouts == 16 * 30
            assert timings.wait.total == timings.use.total == stats.claims
            assert list(accumulate(timings.wait.counts))[-1] == stats.claims
            assert timings.wait.sum <= 0.31 * stats.claims

    run(main)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("kind", [FakeConnector, ShortWay])
def test_no_bucket_counts_backwards_for_another_thread_that_looks_as_a_wait_is_counted(kind, observed):
    """Python lets another thread run when a function has been called."""
    looks: list[Timings] = []

    async def main(watched):
        timing = watched.pool._engine.desk.timing

        class Looked(list):
            def append(self, seconds: float) -> None:
                super().append(seconds)
                looks.append(watched.pool.timings())

        timing.waits = timing.wait.fresh = Looked()
        await three_claims(watched)
        looks.append(watched.pool.timings())

    measured(main, kind(latency=0), observed)
    counted = [tuple(accumulate(look.wait.counts)) for look in looks]
    assert len(counted) > 2  # one for each that has waited, and the last
    assert counted[-1] == (1, 1, 1, 2, 3, 3)
    for before, after in pairwise(counted):
        assert all(one <= other for one, other in zip(before, after, strict=True)), (before, after)


@pytest.mark.parametrize("kind", [FakeConnector, ShortWay])
@pytest.mark.parametrize("seconds", [0, 0.5])
def test_times_that_are_sorted_in_meanwhile_all_count(kind, seconds):
    """The second of two tasks waits for the first, or finds the connection that it gave back."""
    rounds = FULL

    async def main(watched):
        pool, timing = watched.pool, watched.pool._engine.desk.timing

        async def client() -> None:
            for _ in range(rounds):
                await hold(pool, seconds)
                assert len(timing.waits) < FULL
                assert len(timing.uses) < FULL

        await pool.ready()
        await asyncio.gather(client(), client())

    timings = measured(main, kind(latency=0))
    assert timings.wait.total == timings.use.total == 2 * rounds
    assert timings.use.counts == buckets_of(*[seconds] * 2 * rounds)
    assert timings.use.sum == pytest.approx(2 * rounds * seconds)


def test_claims_do_not_count_backwards_for_another_thread_that_looks_as_a_backend_goes():
    async def main():
        async with opened(backends(2), max_slots=2) as watched:
            pool, engine = watched.pool, watched.pool._engine
            pool.measure()
            await pool.ready()
            await asyncio.gather(*(hold(pool, 0.1) for _ in range(4)))

            class Looked(dict):
                def values(self):
                    if "b1" in self:
                        engine.departed_claims += self.pop("b1").total_claims
                    return super().values()

            known = engine.sets
            for look in (lambda: pool.stats().claims, lambda: pool.timings().wait.total):
                departed, engine.sets = engine.departed_claims, Looked(known)
                assert look() == 4
                engine.departed_claims, engine.sets = departed, known

    run(main)


def test_claims_count_once_for_another_thread_that_looks_as_the_pool_ends():
    looks: list[int] = []

    async def main():
        async with opened(backends(2), max_slots=2) as watched:
            await asyncio.gather(*(hold(watched.pool, 0.1) for _ in range(4)))

            def look(frame, event, argument):
                del event, argument
                looks.append(watched.pool.stats().claims)
                return look if frame.f_code is Engine.ended.__code__ else None

            before = sys.gettrace()
            sys.settrace(lambda frame, *_: look if frame.f_code is Engine.ended.__code__ else None)
            try:
                await watched.pool.terminate()
            finally:
                sys.settrace(before)

    run(main)
    assert len(looks) > 4
    assert set(looks) == {4}


def test_numbers_may_be_taken_from_another_thread_while_the_pool_works():
    async def main():
        connector = FakeConnector()
        connector.refuse("b1")
        failed: list[BaseException] = []
        done = threading.Event()
        async with Pool("p", FixedResolver(backends(3)), connector, Policy(max_slots=4)) as pool:
            pool.measure()

            def look() -> None:
                try:
                    before = pool.timings().wait.total
                    while not done.is_set():
                        assert before <= (before := pool.timings().wait.total)
                        assert set(pool.stats().backends) == {"b0", "b1", "b2"}
                except BaseException as error:  # noqa: BLE001 - it is looked at in the other thread
                    failed.append(error)

            await asyncio.sleep(1)
            thread = threading.Thread(target=look)
            interval = sys.getswitchinterval()
            sys.setswitchinterval(1e-5)  # instead of 5 ms: the two meet at many more points
            thread.start()
            try:
                for _ in range(1000):
                    await hold(pool, 0)
            finally:
                sys.setswitchinterval(interval)
                done.set()
                thread.join()
        assert failed == []

    run(main)
