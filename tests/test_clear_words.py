"""What errors and warnings say: what is so now, since when, where, and what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest

from qorb import (
    ClaimReleasedError,
    ClaimRevokedError,
    NoBackendsOnlineError,
    PoolError,
    Resolver,
    TerminationError,
)
from qorb._tasks import where
from qorb.explanation import duration
from qorb.testing import FakeConnector, run
from tests.pools import backends, hold, now, opened
from tests.visits import Bare

ONE = backends(1)
DAY = 86_400


async def refusal(pool, seconds=1.0):
    """Claim until the time is over; give the text of the error, without what stands in front of the reasons."""
    with pytest.raises(NoBackendsOnlineError) as caught:
        await pool.claim(timeout=seconds)
    return str(caught.value).partition("connection (")[2].removesuffix(")")


# Why nothing is connected.


def test_a_backend_whose_first_attempt_is_under_way_is_said_to_be_connecting_and_for_how_long():
    async def main():
        connector = FakeConnector()
        connector.stall("connect")
        async with opened(ONE, connector, ready=False) as watched:
            assert await refusal(watched.pool, 2) == "b0: connecting for 2.0 s"

    run(main)


def test_a_backend_that_has_been_connected_is_not_said_to_connect_for_the_first_time():
    async def main():
        connector = FakeConnector()
        async with opened(ONE, connector, spares_wanted=1, max_slots=1) as watched:
            claim = await watched.pool.claim()
            connector.stall("connect")
            claim.discard()
            assert await refusal(watched.pool) == "b0: connecting for 1.0 s"

    run(main)


def test_a_backend_that_has_got_no_slot_is_said_to_be_untried():
    async def main():
        connector = FakeConnector()
        connector.stall("connect")
        async with opened(backends(2), connector, ready=False, max_slots=1) as watched:
            assert await refusal(watched.pool) in (
                "b0: connecting for 1.0 s; b1: not tried yet",
                "b0: not tried yet; b1: connecting for 1.0 s",
            )

    run(main)


def test_a_backend_that_waits_for_the_end_of_its_last_connection_is_said_to_wait():
    async def main():
        connector = FakeConnector()
        async with opened(ONE, connector, spares_wanted=1, max_slots=1, close_timeout=100) as watched:
            claim = await watched.pool.claim()
            connector.stall("close")
            claim.discard()
            assert await refusal(watched.pool) == "b0: closing its last connection for 1.0 s"
            connector.heal()

    run(main)


def test_a_backend_whose_connections_were_closed_says_so_as_long_as_it_matters():
    async def main():
        connector = Bare()
        async with opened(ONE, connector, spares_wanted=1, max_slots=1) as watched:
            await asyncio.sleep(1)
            connector.drop()
            connector.stall("connect")
            assert await refusal(watched.pool, 3) == "b0: connecting for 3.0 s (3.0 s ago: its connections were closed)"

    run(main)


def test_an_error_that_is_not_from_just_now_is_dated():
    async def main():
        connector = FakeConnector()
        failed = asyncio.Event()

        def refused():
            failed.set()
            return ConnectionRefusedError("no")

        connector.fail("connect", refused)
        async with opened(ONE, connector, ready=False) as watched:
            await asyncio.sleep(60)
            failed.clear()
            await failed.wait()
            await asyncio.sleep(0.5)
            assert await refusal(watched.pool, 0) == "b0: ConnectionRefusedError: no"
            await asyncio.sleep(1.5)
            assert await refusal(watched.pool, 0) == "b0: ConnectionRefusedError: no (2.0 s ago)"

    run(main)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.97, "10 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (2 * 3600, "2 h"),
        (2 * DAY - 1, "47 h"),
        (2 * DAY, "2 days"),
        (400 * DAY, "400 days"),
    ],
)
def test_a_time_is_said_in_the_unit_that_suits_it(seconds, said):
    assert duration(seconds) == said


def test_a_refusal_of_yesterday_is_not_given_as_the_reason_of_today():
    async def main():
        connector = FakeConnector()
        connector.refuse()
        async with opened(ONE, connector, ready=False, spares_wanted=1, max_slots=1) as watched:
            await asyncio.sleep(1)
            connector.heal()
            await asyncio.sleep(3 * DAY)
            claim = await watched.pool.claim()
            connector.stall("connect")
            claim.discard()
            expected = "b0: connecting for 1.0 s (3 days ago: ConnectionRefusedError: b0 refuses connections)"
            assert await refusal(watched.pool) == expected

    run(main)


# What is still under way, and where.


class Deaf(FakeConnector):
    """A connector that is asleep in the standard library, and goes on sleeping when it is cancelled."""

    async def nap(self):
        until = now() + 10
        while now() < until:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(until - now())


NAP = rf"Deaf\.nap \({re.escape(__file__)}:\d+\)"


async def unended(pool):
    with pytest.raises(TerminationError) as caught:
        await pool.terminate(grace=0, timeout=1)
    await pool.terminate()
    return str(caught.value)


def napping(operation):
    """Make a class with one method that takes a nap."""

    async def method(self, *arguments):
        await self.nap()
        if operation == "close":
            self.abort(*arguments)

    method.__name__ = operation
    return type("Napping", (Deaf,), {operation: method})


@pytest.mark.parametrize("operation", ["connect", "validate", "on_acquire", "on_recycle", "close"])
def test_what_does_not_end_is_named_with_the_connectors_method_and_its_own_line(operation):
    async def main():
        policy = {"spares_wanted": 1, "max_slots": 1, "health_interval": 1.0}
        async with opened(ONE, napping(operation)(), ready=False, **policy) as watched:
            claimer = None
            if operation == "validate":
                await asyncio.sleep(1.1)
            elif operation == "close":
                (await watched.pool.claim()).discard()
            elif operation != "connect":
                claimer = asyncio.create_task(hold(watched.pool, 0))
            await asyncio.sleep(0.05)
            text = await unended(watched.pool)
            if claimer is not None:
                await asyncio.wait([claimer])
                claimer.exception()
        assert re.search(rf": {operation} for \d\.\d s (by task '[^']*' )?in {NAP}", text), text

    run(main)


def test_a_resolver_that_does_not_end_is_named_with_its_own_line():
    class Deafened(Resolver, Deaf):
        async def watch(self, publish):
            await self.nap()

    async def main():
        async with opened(Deafened(), ready=False) as watched:
            await asyncio.sleep(0.5)
            text = await unended(watched.pool)
        assert re.search(rf"qorb main resolver: watch for 1\.5 s in {NAP}", text), text

    run(main)


def test_a_long_claim_is_logged_with_the_line_of_the_application_and_not_that_of_sleep(caplog):
    async def main():
        async with opened(ONE, long_claim_warning=5) as watched, watched.pool.claim():
            await asyncio.sleep(7)

    run(main)
    assert re.search(rf"now in .*main \({re.escape(__file__)}:\d+\)", caplog.text)
    assert "tasks.py" not in caplog.records[-1].message


def test_what_is_all_in_the_standard_library_is_named_by_its_innermost_line():
    async def main():
        sleep = asyncio.sleep(1)
        task = asyncio.create_task(sleep)
        await asyncio.sleep(0.5)
        assert re.fullmatch(r"sleep \(.*tasks\.py:\d+\)", where(sleep))
        await task

    run(main)


# What errors say in words, and to programs; and what to do about it.


async def raised_by(awaitable):
    try:
        await awaitable
    except PoolError as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_empty_set_of_backends_is_said_to_be_empty_and_where_to_look():
    async def main():
        async with opened([], ready=False) as watched:
            await asyncio.sleep(1)
            error = await raised_by(watched.pool.claim(timeout=1))
            assert "ManualResolver knows no backend; the last set that it published is empty: look at" in str(error)
            assert (error.pool, error.last_error) == ("main", None)

    run(main)


def test_no_backends_carries_the_resolvers_last_error():
    class Broken(Resolver):
        async def watch(self, publish):
            raise OSError("no servers")

    async def main():
        async with opened(Broken(), ready=False) as watched:
            error = await raised_by(watched.pool.claim(timeout=1))
            assert error.last_error == "Broken: watch() failed: OSError: no servers"

    run(main)


def test_none_online_carries_the_last_error_of_each_backend():
    async def main():
        connector = FakeConnector()
        connector.refuse("b0")
        connector.stall("connect", "b1")
        async with opened(backends(2), connector, ready=False) as watched:
            error = await raised_by(watched.pool.claim(timeout=1))
            assert error.pool == "main"
            assert error.errors == {"b0": "ConnectionRefusedError: b0 refuses connections", "b1": None}

    run(main)


@pytest.mark.parametrize("cap", ["max_slots", "max_slots_per_backend"])
def test_all_used_carries_who_holds_what_and_says_what_to_do(cap):
    async def main():
        async with opened(ONE, spares_wanted=1, **{cap: 2}) as watched:
            first = await watched.pool.claim()
            await asyncio.sleep(2)
            second = asyncio.create_task(hold(watched.pool, 10), name="another")
            waiting = asyncio.create_task(hold(watched.pool, 0))
            await asyncio.sleep(1)
            error = await raised_by(watched.pool.claim(timeout=1))
            assert f". Hold claims for less time, or raise {cap}. This task itself already holds" in str(error)
            assert (error.pool, error.limit, error.waiting) == ("main", 2, 1)
            held = [(one.backend, one.task, round(one.seconds, 1)) for one in error.holders]
            assert held == [("b0", "main", 4.0), ("b0", "another", 2.0)]
            assert "test_clear_words.py" in error.holders[0].site
            first.release()
            await asyncio.wait([second, waiting])

    run(main)


def test_all_used_gives_no_advice_where_other_connections_are_only_not_ready():
    async def main():
        connector = FakeConnector()
        async with opened(ONE, connector, spares_wanted=1, max_slots=2) as watched:
            connector.stall("connect")
            async with watched.pool.claim():
                error = await raised_by(watched.pool.claim(timeout=1))
            assert "Hold claims for less time" not in str(error)
            connector.heal()

    run(main)


def test_a_full_line_carries_its_numbers():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=1, max_waiters=1) as watched:
            async with watched.pool.claim():
                waiting = asyncio.create_task(hold(watched.pool, 0))
                await asyncio.sleep(0.1)
                error = await raised_by(watched.pool.claim())
            assert (error.pool, error.waiting, error.limit) == ("main", 1, 1)
            await waiting

    run(main)


def test_what_comes_after_the_end_names_the_pool_and_what_to_do():
    async def main():
        async with opened(ONE, spares_wanted=2) as watched:
            claim, released = await watched.claims(2)
            released.release()
            ending = asyncio.create_task(watched.pool.terminate(grace=1))
            await asyncio.sleep(0.5)
            error = await raised_by(watched.pool.claim())
            assert str(error) == "pool main is terminating"
            await ending
            error = await raised_by(watched.pool.claim())
            assert (str(error), error.pool) == ("pool main is terminated; make a new one", "main")
            with pytest.raises(ClaimRevokedError) as caught:
                _ = claim.connection
            assert "pool main has taken the connection to b0 back, because it was ended; give" in str(caught.value)
            assert (caught.value.pool, caught.value.backend) == ("main", "b0")
            with pytest.raises(ClaimReleasedError, match="the claim on pool main was released") as caught:
                _ = released.connection
            assert (caught.value.pool, caught.value.backend) == ("main", "b0")

    run(main)


def test_a_termination_that_ran_out_of_time_says_how_to_go_on():
    async def main():
        async with opened(ONE) as watched:
            async with watched.pool.claim():
                error = await raised_by(watched.pool.terminate(timeout=1))
            assert str(error).endswith(". Call terminate() again to go on waiting")
            assert (error.pool, error.ledger.connections) == ("main", 1)

    run(main)
