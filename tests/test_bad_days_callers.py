"""Callers on their bad days: rows U1 to U9 of the catalogue, each by its number."""

from __future__ import annotations

import asyncio
import logging
import math
import threading

import pytest

from qorb import AllClaimsUsedError, Claim, ClaimReleasedError, ClaimTimeoutError, Outcome, WrongLoopError
from qorb.testing import Attempt, FakeConnection, FakeConnector, at_every_await, run, settle
from tests.pools import backends, hold, now, opened
from tests.test_claims import Bare, Quick

A = backends(1)
ONE = {"spares_wanted": 1, "max_slots": 1}
LATE = 0.005

with_and_without_hooks = pytest.mark.parametrize("connector", [FakeConnector, Quick, Bare])


class Telling(FakeConnector):
    """Writes down how each claim ended, as on_recycle is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Outcome] = []

    async def on_recycle(self, connection: FakeConnection, outcome: Outcome) -> None:
        self.told.append(outcome)
        await super().on_recycle(connection, outcome)


@with_and_without_hooks
@pytest.mark.parametrize("held", [0, 1], ids=["at hand", "in line"])
def test_u1_a_claim_cancelled_at_any_point_loses_no_connection_and_swallows_no_cancellation(connector, held):
    async def scene(attempt: Attempt) -> None:
        async with opened(A, connector(), **ONE) as watched:
            former = await watched.claims(held)
            for claim in former:
                asyncio.get_running_loop().call_later(1, claim.release)
            await attempt.cancel(hold(watched.pool, 0.01))  # fails the test when the cancellation is swallowed
            await asyncio.sleep(2)
            assert watched.pool.stats().waiting == 0
            assert watched.stats().claimed_slots == 0
            await hold(watched.pool, 0)

    report = at_every_await(scene)
    assert sum(tried.in_time for tried in report.tried) >= 2


@with_and_without_hooks
@pytest.mark.parametrize("again", ["release", "discard"])
def test_u2_giving_back_a_second_time_does_nothing_even_when_somebody_else_has_the_connection(connector, again):
    async def main():
        holders = most = 0

        async def use() -> None:
            nonlocal holders, most
            async with watched.pool.claim() as connection:
                holders += 1
                most = max(most, holders)
                await asyncio.sleep(0.1)
                assert not connection.closed
                holders -= 1

        async with opened(A, connector(), **ONE) as watched:
            claim = await watched.pool.claim()
            users = [asyncio.create_task(use()) for _ in range(3)]
            await settle()
            for _ in range(3):
                claim.release()
            while not all(user.done() for user in users):
                await asyncio.sleep(0.01)
                getattr(claim, again)()
            await asyncio.gather(*users)
            assert most == 1
            assert watched.pool.stats().claims == 4
            assert len(watched.connector.connections) == 1

    run(main)


def test_u3_a_claim_that_is_dropped_comes_back_as_leaked_with_a_warning_that_names_where_it_was_made():
    async def main():
        connector = Telling()
        async with opened(A, connector, **ONE) as watched:
            claim: Claim[FakeConnection] | None = await watched.pool.claim()
            connection = claim.connection
            with pytest.warns(ResourceWarning, match=r"unreleased claim on pool main.*test_bad_days_callers\.py"):
                claim = None
            await hold(watched.pool, 0)
            assert connector.told[0] is Outcome.LEAKED
            assert connection.closed

    run(main)


def test_u4_a_claim_that_is_kept_too_long_is_logged_once_with_its_site_and_shows_in_the_stats(caplog):
    async def main():
        async with opened(A, long_claim_warning=60, spares_wanted=2, max_slots=2) as watched:
            claim = await watched.pool.claim()
            await asyncio.sleep(59.9)
            assert not caplog.records
            await asyncio.sleep(0.2)
            assert len(caplog.records) == 1
            await asyncio.sleep(10_000)
            assert watched.stats().claimed_slots == 1
            assert watched.pool.stats().claims == watched.stats().total_claims == 1
            claim.release()
            await settle()
            assert watched.stats().claimed_slots == 0

    with caplog.at_level(logging.WARNING, "qorb"):
        run(main)
    (record,) = caplog.records
    assert "claimed for 60." in record.message
    assert "test_bad_days_callers.py" in record.message


def test_u5_after_release_the_claim_gives_its_connection_no_more_but_what_was_taken_from_it_is_unchecked():
    async def main():
        async with opened(A, Quick(), **ONE) as watched:
            claim = await watched.pool.claim()
            raw = claim.connection
            claim.release()
            with pytest.raises(ClaimReleasedError):
                _ = claim.connection
            with pytest.raises(ClaimReleasedError), claim:
                pass
            assert claim.backend.name == "b0"
            assert await raw.request("the connection itself is nobody's guard") is not None

    run(main)


def test_u6_another_task_may_release():
    async def main():
        async def release(claim: Claim[FakeConnection]) -> None:
            claim.release()

        async with opened(A, **ONE) as watched:
            for _ in range(3):
                await asyncio.create_task(release(await watched.pool.claim()))
            await hold(watched.pool, 0)

    run(main)


def test_u6_another_thread_may_not_release_but_may_ask_the_loop_to_do_so():
    async def main():
        async with opened(A, Quick(), **ONE) as watched:
            loop = asyncio.get_running_loop()
            claim = await watched.pool.claim()
            caught: list[BaseException] = []

            def elsewhere() -> None:
                try:
                    claim.release()
                except WrongLoopError as error:
                    caught.append(error)
                loop.call_soon_threadsafe(claim.release)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert "call_soon_threadsafe" in str(caught[0])
            assert watched.stats().claimed_slots == 1
            await settle()
            assert watched.stats().claimed_slots == 0
            await hold(watched.pool, 0)

    run(main)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(ValueError("body"), Outcome.ERROR), (asyncio.CancelledError(), Outcome.CANCELLED), (None, Outcome.CLEAN)],
)
@pytest.mark.parametrize("by_hand", [False, True])
def test_u7_on_recycle_is_told_how_the_body_ended_and_its_exception_passes(error, outcome, by_hand):
    async def main():
        connector = Telling()

        async def body() -> None:
            if by_hand:
                with await watched.pool.claim():
                    if error is not None:
                        raise error
            else:
                async with watched.pool.claim():
                    if error is not None:
                        raise error

        async with opened(A, connector, **ONE) as watched:
            before = list(connector.connections)
            task = asyncio.create_task(body())
            await asyncio.wait([task])
            if isinstance(error, asyncio.CancelledError):
                assert task.cancelled()
            else:
                assert task.exception() is error
            await asyncio.sleep(1)
            assert connector.told == [outcome]
            assert before[0].closed is (outcome is not Outcome.CLEAN)

    run(main)


def test_u7_a_body_that_was_cancelled_with_a_question_under_way_leaves_its_answer_to_nobody():
    async def main():
        async def ask() -> None:
            async with watched.pool.claim() as connection:
                await connection.request("mine")

        async with opened(A, **ONE) as watched:
            task = asyncio.create_task(ask())
            await asyncio.sleep(1.5 * watched.connector.latency)
            task.cancel()
            async with watched.pool.claim() as connection:
                assert await connection.request("another's") == "another's"
            assert task.cancelled()

    run(main)


@pytest.mark.parametrize(("count", "words"), [(1, "holds a connection"), (3, "holds 3 connections")])
def test_u8_a_task_that_waits_for_the_connections_it_holds_itself_is_told_so_at_the_deadline(count, words):
    async def main():
        async with opened(A, spares_wanted=count, max_slots=count) as watched:
            own = await watched.claims(count)
            began = now()
            with pytest.raises(AllClaimsUsedError, match=words):
                await watched.pool.claim(timeout=2)
            assert 2 <= now() - began <= 2 + LATE
            for claim in own:
                claim.release()
            await hold(watched.pool, 0)

    run(main)


@pytest.mark.parametrize("timeout", [-1, -1e-9, -math.inf, math.nan])
def test_u9_a_timeout_below_zero_or_nan_is_a_value_error_and_nothing_is_claimed(timeout):
    async def main():
        async with opened(A, **ONE) as watched:
            with pytest.raises(ValueError, match="timeout"):
                watched.pool.claim(timeout=timeout)
            assert watched.pool.stats().claims == 0

    run(main)


@with_and_without_hooks
def test_u9_a_timeout_of_zero_takes_what_is_at_hand_or_fails_in_the_same_moment(connector):
    async def main():
        async with opened(A, connector(), **ONE) as watched, watched.pool.claim(timeout=0):
            began = now()
            with pytest.raises(AllClaimsUsedError):
                await watched.pool.claim(timeout=0)
            assert now() == began

    run(main)


@with_and_without_hooks
def test_u9_no_timeout_is_that_of_the_policy(connector):
    async def main():
        async with opened(A, connector(), claim_timeout=7, **ONE) as watched, watched.pool.claim():
            began = now()
            with pytest.raises(AllClaimsUsedError, match="within 7 s"):
                await watched.pool.claim(timeout=None)
            assert -1e-9 <= now() - began - 7 <= LATE

    run(main)


@with_and_without_hooks
@pytest.mark.parametrize("timeout", [1e6, 1e12, 1e308, math.inf])
def test_u9_a_timeout_however_long_is_waited_for_and_disturbs_nobody_else(connector, timeout):
    async def main():
        async with opened(A, connector(), **ONE) as watched:
            first = await watched.pool.claim()
            patient = asyncio.create_task(hold(watched.pool, 0))
            patient.cancel()
            patient = asyncio.create_task(watched.pool.claim(timeout=timeout).__aenter__())
            await settle()
            began = now()
            with pytest.raises(ClaimTimeoutError):
                await watched.pool.claim(timeout=1)
            assert now() - began <= 1 + LATE
            await asyncio.sleep(10_000)
            assert not patient.done()
            first.release()
            assert (await patient).closed is False

    run(main)
