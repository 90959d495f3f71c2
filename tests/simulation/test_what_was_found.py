"""What the simulation has found, each as a small test of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

import pytest

from qorb import Backend, ClaimTimeoutError, Outcome, Policy, Pool, PoolTerminatedError, Resolver
from qorb.resolvers import FixedResolver, ManualResolver
from qorb.testing import FakeConnector, assert_nothing_left, run, settle

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


class Odd(BaseException):
    """What libraries in the manner of gevent raise: nothing that `except Exception` catches."""


class Rude(FakeConnector):
    """A connector of which one synchronous method raises, after it has done its work."""

    def __init__(self):
        super().__init__()
        self.rude = None
        self.error = ValueError

    def _mind(self, method):
        if method == self.rude:
            raise self.error

    def is_closed(self, connection):
        self._mind("is_closed")
        return super().is_closed(connection)

    def needs_recycle(self, connection, outcome):
        self._mind("needs_recycle")
        return False

    def abort(self, connection):
        super().abort(connection)
        self._mind("abort")


async def claim_and_release(pool):
    with contextlib.suppress(ClaimTimeoutError):
        async with pool.claim(timeout=1):
            pass


@pytest.mark.parametrize("error", [ValueError, Odd, asyncio.CancelledError])
@pytest.mark.parametrize("method", ["is_closed", "needs_recycle", "abort"])
def test_whatever_a_synchronous_method_raises_is_a_failure_of_that_connection_only(method, error):
    async def main():
        connector = Rude()
        connector.error = error
        policy = Policy(spares_wanted=2, max_slots=2, close_timeout=1)
        async with Pool("p", FixedResolver(ONE), connector, policy) as pool:
            await pool.ready()
            connector.rude = method
            await claim_and_release(pool)
            connector.stall("close")
            (await pool.claim(timeout=1)).discard() if method != "is_closed" else None
            await asyncio.sleep(5)
            connector.heal()
            connector.rude = None
            await pool.ready(timeout=10)
            connector.rude = method
            await pool.terminate(grace=0)
        assert_nothing_left(pool)

    run(main)


@pytest.mark.parametrize("error", [ValueError, Odd, asyncio.CancelledError])
def test_whatever_an_observer_raises_harms_nothing(error):
    def observer(_):
        raise error

    async def main():
        async with (
            Pool("p", FixedResolver(ONE), FakeConnector(), observer=observer) as pool,
            pool.claim(timeout=5),
        ):
            pass
        assert_nothing_left(pool)

    run(main)


@pytest.mark.parametrize("error", [ValueError, Odd])
def test_whatever_a_published_iterable_raises_is_a_set_that_is_ignored(error):
    def breaks_off():
        yield Backend("b", "10.0.0.2", 1)
        raise error

    class Breaking(Resolver):
        async def watch(self, publish):
            publish([Backend("a", "10.0.0.1", 1)])
            publish(breaks_off())
            await asyncio.get_running_loop().create_future()

    async def main():
        async with Pool("p", Breaking(), FakeConnector()) as pool:
            await pool.ready(timeout=5)
            await asyncio.sleep(100)
            return list(pool.stats().backends)

    assert run(main) == ["a"]


@pytest.mark.parametrize("how", ["deadline", "cancel"])
def test_an_offline_backend_gets_its_turn_as_soon_as_a_claim_that_waits_gives_up(how):
    async def main():
        connector = FakeConnector()
        connector.refuse("b")
        backends = [Backend("a", "10.0.0.1", 1), Backend("b", "10.0.0.2", 1)]
        policy = Policy(max_slots=2, connect_timeout=1e6, max_connection_backoff=1e5, health_interval=1e6)
        async with Pool("p", FixedResolver(backends), connector, policy) as pool, pool.claim():
            connector.stall("connect", "a")
            waiting = asyncio.ensure_future(pool.claim(timeout=10 if how == "deadline" else 1e6))
            await asyncio.sleep(9)  # the slot of b has been given to a, for the claim that waits
            before = connector.count["connect"]
            if how == "cancel":
                waiting.cancel()
            await asyncio.wait([waiting])
            await asyncio.sleep(1)
            await asyncio.gather(waiting, return_exceptions=True)
            return connector.count["connect"] - before

    assert run(main) > 0


def test_a_connection_that_is_being_checked_as_its_backend_moves_is_replaced_too():
    async def main():
        connector = FakeConnector()
        connector.slow(0.5, "validate")
        resolver = ManualResolver([Backend("a", "10.0.0.1", 1)])
        policy = Policy(spares_wanted=1, max_slots=4, health_interval=1, spread=0)
        async with Pool("p", resolver, connector, policy) as pool:
            await pool.ready()
            await asyncio.sleep(1.2)
            resolver.set([Backend("a", "10.0.0.9", 1)])
            await asyncio.sleep(20)
            return [connection.backend.host for connection in connector.connections]

    assert run(main) == ["10.0.0.9"]


def test_connections_are_replaced_although_the_first_attempt_to_do_so_was_given_up():
    async def main():
        connector = FakeConnector()
        resolver = ManualResolver([Backend("a", "10.0.0.1", 1)])
        policy = Policy(spares_wanted=2, max_slots=4, rebalance_interval=5, health_interval=1e6)
        async with Pool("p", resolver, connector, policy) as pool:
            await pool.ready()
            connector.refuse("a")
            resolver.set([Backend("a", "10.0.0.9", 1)])
            await asyncio.sleep(7)  # the slot that is one too many at present has been given up
            connector.heal()
            await asyncio.sleep(60)
            return {connection.backend.host for connection in connector.connections}

    assert run(main) == {"10.0.0.9"}


def test_a_connection_that_is_claimed_when_its_check_is_due_is_checked_when_it_comes_back():
    class Clean(FakeConnector):
        def needs_recycle(self, connection, outcome):
            return False

    async def main():
        connector = Clean()
        connector.slow(0.5, "validate")
        policy = Policy(spares_wanted=2, max_slots=2, health_interval=10, spread=0)
        async with Pool("p", FixedResolver(ONE), connector, policy) as pool:
            await pool.ready()
            await asyncio.sleep(10.1)  # both are due, and one is being checked
            async with pool.claim() as connection:
                await asyncio.sleep(1)
            before = [call.connection for call in connector.calls].count(connection)
            await asyncio.sleep(2)
            return [call.connection for call in connector.calls].count(connection) - before

    assert run(main) == 1


def test_claims_whose_connections_were_refused_are_served_in_the_order_in_which_they_came():
    async def main():
        connector = FakeConnector()
        policy = Policy(spares_wanted=3, max_slots=3, health_interval=1e6, min_connection_backoff=1)
        served = []

        async def claim(name):
            async with pool.claim():
                served.append(name)

        async with Pool("p", FixedResolver(ONE), connector, policy) as pool:
            await pool.ready()
            connector.fail("on_acquire", lambda: OSError("not fit"))
            tasks = []
            for name in ("first", "second", "third"):
                connector.slow({"first": 0.2, "second": 0.1, "third": 0.3}[name], "on_acquire")
                tasks.append(asyncio.ensure_future(claim(name)))
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.4)
            connector.heal()
            await asyncio.wait(tasks)
        return served

    assert run(main) == ["first", "second", "third"]


def test_a_connection_that_was_replaced_by_a_new_one_is_missed_at_once():
    async def main():
        connector = FakeConnector()
        resolver = ManualResolver([Backend("a", "10.0.0.1", 1)])
        policy = Policy(spares_wanted=2, max_slots=5, health_interval=1e6)
        async with Pool("p", resolver, connector, policy) as pool:
            await pool.ready()
            connector.slow(0.1, "connect")
            connector.slow(30, "close")
            resolver.set([Backend("a", "10.0.0.9", 1)])
            async with pool.claim():  # now one more is wanted, and the successor counts as that until it relieves
                await asyncio.sleep(1)
                return pool.stats().backends["a"].unclaimed_slots

    assert run(main) == 2


def test_a_connection_whose_check_is_due_is_checked_although_someone_waited_who_was_cancelled():
    class Clean(FakeConnector):
        def needs_recycle(self, connection, outcome):
            return False

    async def main():
        connector = Clean()
        policy = Policy(spares_wanted=1, max_slots=1, health_interval=10, spread=0)
        async with Pool("p", FixedResolver(ONE), connector, policy) as pool:
            async with pool.claim():
                await asyncio.sleep(11)
                waiting = asyncio.ensure_future(pool.claim())
                await settle()
                waiting.cancel()
            await asyncio.wait([waiting])
            await asyncio.sleep(1)
            return connector.count["validate"]

    assert run(main) == 1


@pytest.mark.parametrize("operation", ["connect", "validate", "on_acquire"])
def test_a_claim_on_another_pool_within_a_connector_does_not_swallow_the_time_limit_of_that_connector(operation):
    async def main():
        slow, connector = FakeConnector(), FakeConnector()
        patient = Policy(spares_wanted=1, health_interval=1e6, health_check_timeout=0.8)
        policy = Policy(spares_wanted=1, max_slots=1, connect_timeout=2, health_check_timeout=2, health_interval=10)

        async def ask():
            async with inner.claim(timeout=1e6):
                pass

        async with Pool("inner", FixedResolver(ONE), slow, patient) as inner:
            await inner.ready()
            async with Pool("outer", FixedResolver(ONE), connector, policy) as pool:
                await pool.ready()
                slow.stall("on_acquire")
                connector.during(operation, lambda _: ask())
                (await pool.claim()).discard() if operation == "connect" else None
                if operation == "on_acquire":
                    with pytest.raises(ClaimTimeoutError):
                        await pool.claim(timeout=2)
                await asyncio.sleep(13)
                slow.heal()
        durations = [call.ended - call.started for call in connector.calls if call.operation == operation]
        return max(durations)

    assert run(main) == pytest.approx(2)


def test_a_claim_that_fails_as_the_last_thing_of_a_pool_is_told_before_the_end_is():
    async def main():
        connector, told = FakeConnector(), []
        policy = Policy(spares_wanted=1, max_slots=1, health_interval=1e6)
        async with Pool("p", FixedResolver(ONE), connector, policy, observer=told.append) as pool:
            await pool.ready()
            connector.slow(1, "on_acquire")
            connector.deafen(0.1, "on_acquire")
            claim = asyncio.ensure_future(pool.claim())
            await asyncio.sleep(0.5)
            await pool.terminate(grace=0)  # by now everything else has ended
            assert_nothing_left(pool)
            with pytest.raises(PoolTerminatedError):
                await claim
        return [type(event).__name__ for event in told[-2:]]

    assert run(main) == ["ClaimFailed", "PoolTerminateDone"]


def test_a_pause_that_began_later_and_ends_earlier_is_not_slept_beyond_its_end():
    class Uneven(FakeConnector):
        async def connect(self, backend):
            if self.count["connect"]:
                await asyncio.sleep(0.1)
            return await super().connect(backend)

    class LongThenShort(random.Random):
        drawn = 0

        def uniform(self, a, b):
            self.drawn += 1
            return b if self.drawn == 1 else a

    async def main():
        connector = Uneven(latency=0)
        connector.fail("on_acquire", lambda: OSError("not fit"))
        policy = Policy(
            spares_wanted=2,
            max_slots=2,
            min_connection_backoff=1,
            max_connection_backoff=1,
            spread=0,
            claim_timeout=0.9,
        )
        async with Pool("p", FixedResolver(["a:1"]), connector, policy, rng=LongThenShort(0)) as pool:
            with pytest.raises(ClaimTimeoutError):
                await pool.claim()
            return [round(call.started, 3) for call in connector.calls if call.operation == "on_acquire"]

    first, second, third, *_ = run(main)
    assert second - first == pytest.approx(0.1)  # until then the first pause would have lasted a second
    assert third - second == pytest.approx(0.5 + 0.1)  # what the second one drew, and connecting


def test_a_slot_that_loses_its_connection_goes_to_a_backend_that_has_none():
    async def main():
        connector = FakeConnector()
        connector.refuse("b")
        backends = [Backend("a", "10.0.0.1", 1), Backend("b", "10.0.0.2", 1)]
        policy = Policy(spares_wanted=0, max_slots=3, rebalance_interval=1e6, min_connection_backoff=1e3)
        async with Pool("p", FixedResolver(backends), connector, policy) as pool:
            claims = [await pool.claim() for _ in range(3)]
            before = pool.stats().backends["b"].connecting_slots
            for claim in claims[1:]:
                claim.release(Outcome.ERROR)  # the connections are closed
            await asyncio.sleep(1)
            after = pool.stats().backends["b"].connecting_slots
            claims[0].release()
            return before, after

    assert run(main) == (0, 1)


def test_a_pause_after_a_refused_connection_ends_in_time_although_that_is_still_being_closed():
    async def main():
        connector = FakeConnector()
        policy = Policy(spares_wanted=0, max_slots=6, rebalance_interval=1e6)
        async with Pool("p", FixedResolver(ONE), connector, policy) as pool, pool.claim():
            connector.fail("on_acquire", lambda: OSError("not fit"))
            connector.slow(1, "close")
            first = asyncio.ensure_future(pool.claim())
            await asyncio.sleep(0.005)
            connector.heal()
            await asyncio.sleep(0.1)
            connector.stall("on_acquire")  # so that none of them ends the backoff by working
            others = [asyncio.ensure_future(pool.claim()) for _ in range(4)]
            await asyncio.sleep(0.01)
            connected = len(connector.connections)
            for claim in (first, *others):
                claim.cancel()
            await asyncio.wait([first, *others])
            return connected

    assert run(main) == 6  # that which is in use, that which is being closed, and one for each of the four others
