"""Claims: the line, the deadline, what the errors say, and misuse."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import traceback

import pytest

from qorb import (
    AllClaimsUsedError,
    Claim,
    ClaimReleasedError,
    ClaimTimeoutError,
    ConnectError,
    Connector,
    NoBackendsError,
    NoBackendsOnlineError,
    Outcome,
    Pool,
    PoolNotStartedError,
    PoolTerminatedError,
    QueueFullError,
    WrongLoopError,
)
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnection, FakeConnector, block, run, settle
from tests.pools import backends, hold, now, opened

A = backends(1)
ONE = {"spares_wanted": 1, "max_slots": 1}
LATE = 0.005


class Quick(FakeConnector):
    """A FakeConnector whose clean connections need no recycling."""

    def needs_recycle(self, connection: FakeConnection, outcome: Outcome) -> bool:
        return outcome is not Outcome.CLEAN


class Bare(Quick):
    """A connector without on_acquire."""

    on_acquire = Connector.on_acquire


# The line.


@pytest.mark.parametrize("connector", [FakeConnector, Quick])
@pytest.mark.parametrize("seed", range(4))
def test_first_come_first_served_whatever_the_timeouts(connector, seed):
    async def main():
        order: list[int] = []

        async def wait(number: int) -> None:
            timeout = None if number % 3 else 50 + number
            async with pool.claim(timeout=timeout):
                order.append(number)
                await asyncio.sleep(0.01)

        async with opened(A, connector(), **ONE) as watched:
            pool = watched.pool
            first = await pool.claim()
            waiters = []
            for i in range(50):
                waiters.append(asyncio.create_task(wait(i)))
                await settle()
            first.release()
            await asyncio.wait(waiters)
        assert order == list(range(50))

    run(main, seed=seed)


@pytest.mark.parametrize("connector", [FakeConnector, Quick])
def test_a_newcomer_in_the_turn_of_a_release_does_not_overtake(connector):
    async def main():
        order: list[str] = []

        async def wait(name: str) -> None:
            async with watched.pool.claim():
                order.append(name)
                await asyncio.sleep(0)

        async with opened(A, connector(), **ONE) as watched:
            for _ in range(100):
                first = await watched.pool.claim()
                early = asyncio.create_task(wait("early"))
                await settle()
                first.release()
                late = asyncio.create_task(wait("late"))
                await asyncio.wait([early, late])
        assert order == ["early", "late"] * 100

    run(main)


def test_who_was_given_something_unfit_goes_on_from_the_front():
    async def main():
        connector = Quick()
        order: list[str] = []

        async def wait(name: str) -> None:
            async with watched.pool.claim():
                order.append(name)

        async with opened(A, connector, **ONE) as watched:
            first = await watched.pool.claim()
            tasks = []
            for name in ("a", "b", "c"):
                tasks.append(asyncio.create_task(wait(name)))
                await settle()
            connector.fail("on_acquire", lambda: OSError("unfit"))
            first.release()
            await asyncio.sleep(0.0015)
            connector.heal()
            await asyncio.wait(tasks)
            assert watched.stats().failures >= 1
        assert order == ["a", "b", "c"]

    run(main)


def test_a_request_that_is_never_awaited_does_nothing():
    async def main():
        async with opened(A, **ONE) as watched:
            before = watched.pool.stats()
            requests = [watched.pool.claim() for _ in range(10)]
            await settle()
            assert watched.pool.stats() == before
            async with watched.pool.claim(timeout=1):
                pass
            del requests

    run(main)


def test_a_request_is_good_for_one_claim():
    async def main():
        async with opened(A, spares_wanted=2) as watched:
            request = watched.pool.claim()
            (await request).release()
            with pytest.raises(RuntimeError, match="has been used"):
                await request

    run(main)


@pytest.mark.parametrize("connector", [Quick, Bare])
def test_those_who_were_cancelled_and_do_not_know_it_yet_are_passed_over(connector):
    async def main():
        async with opened(A, connector(), **ONE) as watched:
            first = await watched.pool.claim()
            waiters = [asyncio.create_task(hold(watched.pool, 0)) for _ in range(3)]
            await settle()
            for waiter in waiters[:2]:
                waiter.cancel()
            first.release()  # in the same turn: they stand in line still
            await waiters[2]
            assert [waiter.cancelled() for waiter in waiters] == [True, True, False]

    run(main)


@pytest.mark.parametrize("turn", range(6))
def test_who_is_cancelled_in_the_turn_of_the_deadline_keeps_nobody_else_from_it(turn):
    async def main():
        async with opened(A, claim_timeout=2, **ONE) as watched:
            first = await watched.pool.claim()

            async def cancel_the_first() -> None:
                await asyncio.sleep(2)
                for _ in range(turn):
                    await asyncio.sleep(0)
                waiters[0].cancel()

            cancelling = asyncio.create_task(cancel_the_first())
            await settle()
            waiters = [asyncio.create_task(hold(watched.pool, 0)) for _ in range(3)]
            await asyncio.wait(waiters, timeout=10)
            for waiter in waiters[1:]:
                assert isinstance(waiter.exception(), AllClaimsUsedError)
            await cancelling
            first.release()

    run(main)


def test_those_who_were_cancelled_leave_the_line_at_once():
    async def main():
        async with opened(A, Quick(), **ONE) as watched:
            first = await watched.pool.claim()
            tasks = [asyncio.create_task(hold(watched.pool, 0)) for _ in range(6)]
            await settle()
            assert watched.pool.stats().waiting == 6
            for task in tasks[:5]:
                task.cancel()
            await settle()
            assert watched.pool.stats().waiting == 1
            first.release()
            await tasks[5]
            assert watched.connector.count["on_recycle"] == 0

    run(main)


# The deadline.


@pytest.mark.parametrize("timeout", [0.001, 0.5, 3, 30, 1000])
def test_a_claim_ends_at_its_deadline_never_early_and_hardly_late(timeout):
    async def main():
        async with opened(A, **ONE) as watched, watched.pool.claim():
            moment = now()
            with pytest.raises(AllClaimsUsedError, match=f"within {timeout:g} s"):
                await watched.pool.claim(timeout=timeout)
            assert -1e-9 <= now() - moment - timeout <= LATE

    run(main)


def test_many_claims_with_many_timeouts_each_end_at_their_own():
    async def main():
        async def wait(timeout: float) -> float:
            moment = now()
            with pytest.raises(AllClaimsUsedError):
                await watched.pool.claim(timeout=timeout)
            return now() - moment - timeout

        async with opened(A, **ONE) as watched, watched.pool.claim():
            tasks = [asyncio.create_task(wait(1 + i % 7 * 0.3)) for i in range(1000)]
            late = [await task for task in tasks]
            assert min(late) >= -1e-9
            assert max(late) <= 0.015
            assert watched.pool.stats().waiting == 0

    run(main)


def test_the_deadline_is_for_waiting_and_on_acquire_and_retries_together():
    async def main():
        connector = FakeConnector()
        async with opened(backends(3), connector, spares_wanted=6) as watched:
            connector.slow(2, "on_acquire")
            connector.fail("on_acquire", lambda: OSError("unfit"))
            moment = now()
            with pytest.raises(ClaimTimeoutError) as caught:
                await watched.pool.claim(timeout=5)
            assert 5 <= now() - moment <= 5 + LATE
            assert isinstance(caught.value.__cause__, TimeoutError | OSError)
            assert "on_acquire refused" in str(caught.value)

    run(main)


def test_nothing_at_hand_and_no_time_is_an_error_at_once():
    async def main():
        async with opened(A, **ONE) as watched, watched.pool.claim():
            moment = now()
            with pytest.raises(AllClaimsUsedError):
                await watched.pool.claim(timeout=0)
            assert now() == moment

    run(main)


def test_with_no_time_on_acquire_is_bounded_all_the_same():
    async def main():
        connector = FakeConnector()
        async with opened(A, connector, health_check_timeout=3, **ONE) as watched:
            async with watched.pool.claim(timeout=0):
                pass
            await asyncio.sleep(1)
            connector.stall("on_acquire")
            moment = now()
            with pytest.raises(ClaimTimeoutError) as caught:
                await watched.pool.claim(timeout=0)
            assert now() - moment == 3
            assert isinstance(caught.value.__cause__, TimeoutError)

    run(main)


def test_with_no_time_nobody_who_waits_is_overtaken():
    async def main():
        async with opened(A, Quick(), **ONE) as watched:
            first = await watched.pool.claim()
            waiter = asyncio.create_task(hold(watched.pool, 1))
            await settle()
            first.release()
            with pytest.raises(AllClaimsUsedError):
                await watched.pool.claim(timeout=0)
            await waiter

    run(main)


@pytest.mark.parametrize("timeout", [-1, -0.0001, math.nan, -math.inf, "1"])
def test_a_timeout_that_is_none_is_a_value_error(timeout):
    async def main():
        async with opened(A, **ONE) as watched:
            with pytest.raises(ValueError, match="timeout"):
                watched.pool.claim(timeout=timeout)
            with pytest.raises(ValueError, match="timeout"):
                await watched.pool.ready(timeout=timeout)

    run(main)


def test_a_timeout_of_never_waits_for_ever():
    async def main():
        async with opened(A, **ONE) as watched:
            first = await watched.pool.claim()
            waiter = asyncio.create_task(hold(watched.pool, 0))
            waiting = asyncio.create_task(watched.pool.claim(timeout=math.inf).__aenter__())
            await asyncio.sleep(1e5)
            with pytest.raises(AllClaimsUsedError):
                await waiter
            first.release()
            assert (await waiting).closed is False

    run(main)


@pytest.mark.parametrize("connector", [Quick, Bare])
def test_what_can_be_granted_after_a_stall_is_granted_before_anything_times_out(connector):
    async def main():
        async with opened(A, connector(), **ONE) as watched:
            first = await watched.pool.claim()
            asyncio.get_running_loop().call_later(10, first.release)
            waiter = asyncio.create_task(watched.pool.claim(timeout=9.5).__aenter__())
            await asyncio.sleep(5)
            block(120)  # both timers are due now, the deadline first
            assert (await waiter).closed is False
            assert watched.stats().failures == 0

    run(main)


@pytest.mark.parametrize("connector", [Quick, Bare])
def test_who_is_eight_turns_late_to_give_back_after_a_stall_is_waited_for(connector):
    async def main():
        async with opened(A, connector(), **ONE) as watched:
            first = await watched.pool.claim()

            async def give_back() -> None:
                await asyncio.sleep(10)
                for _ in range(8):
                    await asyncio.sleep(0)
                first.release()

            giving_back = asyncio.create_task(give_back())
            waiter = asyncio.create_task(watched.pool.claim(timeout=9.5).__aenter__())
            await asyncio.sleep(5)
            block(120)
            assert (await waiter).closed is False
            await giving_back

    run(main)


def test_what_a_task_gives_back_that_wakes_at_the_deadline_still_counts():
    async def main():
        async with opened(A, Bare(), **ONE) as watched:
            holder = asyncio.create_task(hold(watched.pool, 2))
            await settle()
            deadline = now() + 2
            with await watched.pool.claim(timeout=2):
                assert now() == deadline
            await holder

    run(main)


def test_a_connection_that_comes_in_the_turn_of_the_deadline_is_not_blamed_for_it():
    async def main():
        connector = Quick()
        async with opened(A, connector, **ONE) as watched:
            first = await watched.pool.claim()
            asyncio.get_running_loop().call_later(2, first.release)
            with pytest.raises(ClaimTimeoutError):
                await watched.pool.claim(timeout=2)
            assert watched.stats().failures == 0
            assert connector.count["connect"] == 1
            await hold(watched.pool, 0)

    run(main)


# What the errors say.


def test_no_backend_is_said():
    async def main():
        async with opened([], ready=False) as watched:
            with pytest.raises(NoBackendsError, match="knows no backend") as caught:
                await watched.pool.claim(timeout=1)
            assert isinstance(caught.value, TimeoutError)

    run(main)


CANARY = "s3cr3t-canary"
SECRETS = (
    f"cannot reach postgres://user:{CANARY}@db/x",
    f"password={CANARY} refused",
    f"PASSWORD = '{CANARY}'",
    f"{{'password': '{CANARY}'}}",
    f"redis://:{CANARY}@host:1",
    f"postgres://user:{CANARY}@{CANARY}@db/x",
    f'passwd="two words {CANARY}"',
)


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize("chained", [False, True])
def test_no_secret_shows_anywhere(text, chained, caplog):
    async def main():
        def error() -> Exception:
            made = OSError(text)
            if chained:
                outer = OSError("outer")
                outer.__cause__ = made
                return outer
            return made

        connector = FakeConnector()
        connector.fail(None, error)
        async with opened(A, connector, ready=False, observed=True) as watched:
            with pytest.raises(NoBackendsOnlineError) as caught:
                await watched.pool.claim(timeout=1)
            shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=False).format())
            told = repr([watched.pool.stats(), watched.pool, watched.pool.ledger(), watched.events])
            assert CANARY not in shown + repr(caught.value.__cause__) + told

    with caplog.at_level(logging.DEBUG):
        run(main)
    assert CANARY not in caplog.text


def test_nothing_online_names_the_last_error_of_ten_backends_and_is_chained_from_the_newest():
    async def main():
        connector = FakeConnector()
        for i in range(12):
            connector.fail("connect", lambda i=i: OSError(f"reason {i}"), f"b{i}")
        connector.slow(0.9, "connect", "b7")
        policy = {"min_connection_backoff": 5, "max_connection_backoff": 5}
        async with opened(backends(12), connector, ready=False, spares_wanted=12, **policy) as watched:
            with pytest.raises(NoBackendsOnlineError) as caught:
                await watched.pool.claim(timeout=1)
        text, cause = str(caught.value), caught.value.__cause__
        assert text.count("OSError: reason") == 10
        assert "and 2 more" in text
        assert isinstance(cause, ConnectError)
        assert cause.backend == "b7"
        assert isinstance(cause.__cause__, OSError)
        assert str(cause.__cause__) == "reason 7"

    run(main)


def test_an_error_of_a_connector_that_names_its_backend_is_chained_as_it_is():
    refused = OSError("no")

    async def main():
        class Failing(FakeConnector):
            async def connect(self, backend):
                raise ConnectError("it said no", backend.name) from refused

        async with opened(A, Failing(), ready=False, **ONE) as watched:
            with pytest.raises(NoBackendsOnlineError) as caught:
                await watched.pool.claim(timeout=1)
        assert "b0: ConnectError: it said no" in str(caught.value)
        assert str(caught.value.__cause__) == "it said no"
        assert caught.value.__cause__.__cause__ is refused

    run(main)


def test_a_long_text_is_cut():
    async def main():
        connector = FakeConnector()
        connector.fail("connect", lambda: OSError("x" * 100_000))
        async with opened(A, connector, ready=False) as watched:
            with pytest.raises(NoBackendsOnlineError) as caught:
                await watched.pool.claim(timeout=1)
            assert len(str(caught.value)) < 2000

    run(main)


def test_all_in_use_names_the_longest_three_and_who_waits():
    async def main():
        async with opened(A, spares_wanted=4, max_slots=4) as watched:
            tasks = []
            for i in range(4):
                tasks.append(asyncio.create_task(hold(watched.pool, 100), name=f"holder {i}"))
                await asyncio.sleep(1)
            waiters = [asyncio.create_task(hold(watched.pool, 0), name=f"waiter {i}") for i in range(2)]
            await settle()
            with pytest.raises(AllClaimsUsedError) as caught:
                await watched.pool.claim(timeout=5)
            for task in (*waiters, *tasks):
                task.cancel()
            await asyncio.wait([*waiters, *tasks])
        text = str(caught.value)
        assert "4 of at most 4" in text
        assert [f"'holder {i}'" in text for i in range(4)] == [True, True, True, False]
        assert "9.0 s by task 'holder 0'" in text
        assert "'waiter 0'" in text

    run(main)


@pytest.mark.parametrize(("count", "words"), [(1, "holds a connection"), (2, "holds 2 connections")])
def test_a_task_that_waits_for_itself_is_told_so(count, words):
    async def main():
        async with opened(A, spares_wanted=count, max_slots=count) as watched:
            claims = await watched.claims(count)
            with pytest.raises(AllClaimsUsedError, match=words):
                await watched.pool.claim(timeout=1)
            claims[0].release()
            await asyncio.sleep(1)
            (await watched.pool.claim(timeout=1)).release()
            for claim in claims:
                claim.release()

    run(main)


def test_others_are_not_told_so():
    async def main():
        async with opened(A, **ONE) as watched:
            holder = asyncio.create_task(hold(watched.pool, 10))
            await settle()
            with pytest.raises(AllClaimsUsedError) as caught:
                await watched.pool.claim(timeout=1)
            assert "itself" not in str(caught.value)
            await holder

    run(main)


def test_more_than_max_waiters_are_refused_at_once():
    async def main():
        async with opened(A, max_waiters=3, **ONE) as watched:
            first = await watched.pool.claim()
            waiters = [asyncio.create_task(hold(watched.pool, 0)) for _ in range(3)]
            await settle()
            moment = now()
            with pytest.raises(QueueFullError, match="waiting: 3, max_waiters: 3"):
                await watched.pool.claim()
            assert now() == moment
            waiters[1].cancel()
            await settle()
            fourth = asyncio.create_task(hold(watched.pool, 0))
            await settle()
            first.release()
            await fourth
            assert not isinstance(QueueFullError("x"), TimeoutError)

    run(main)


# Release.


def test_a_second_release_does_nothing():
    async def main():
        async with opened(A, Quick(), **ONE) as watched:
            claim = await watched.pool.claim()
            claim.release()
            other = await watched.pool.claim()
            claim.release()
            claim.discard()
            claim.release(Outcome.ERROR)
            assert watched.stats().claimed_slots == 1
            assert other.connection.closed is False
            other.release()

    run(main)


def test_the_connection_cannot_be_had_after_release():
    async def main():
        async with opened(A, **ONE) as watched:
            claim = await watched.pool.claim()
            assert claim.backend == A[0]
            claim.release()
            with pytest.raises(ClaimReleasedError):
                _ = claim.connection
            assert claim.backend == A[0]

    run(main)


def test_what_is_no_outcome_is_refused_and_the_claim_stays():
    async def main():
        async with opened(A, **ONE) as watched:
            claim = await watched.pool.claim()
            with pytest.raises(TypeError, match="Outcome"):
                claim.release("clean")  # type: ignore[arg-type]
            assert claim.connection.closed is False
            claim.release()

    run(main)


def test_a_claim_may_be_released_by_another_task():
    async def main():
        async with opened(A, Quick(), **ONE) as watched:
            claim = await watched.pool.claim()
            asyncio.get_running_loop().call_soon(claim.release)
            async with watched.pool.claim(timeout=1):
                pass

    run(main)


@pytest.mark.parametrize("how", ["release", "discard"])
def test_a_release_from_another_thread_is_refused_and_gives_nothing_back(how):
    async def main():
        async with opened(A, **ONE) as watched:
            claim = await watched.pool.claim()
            caught: list[BaseException] = []

            def elsewhere() -> None:
                try:
                    getattr(claim, how)()
                except WrongLoopError as error:
                    caught.append(error)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert "call_soon_threadsafe" in str(caught[0])
            assert claim.connection.closed is False
            claim.release()

    run(main)


def test_a_claim_that_is_dropped_comes_back_dirty_with_a_warning_that_names_where_it_was_made():
    async def main():
        told: list[Outcome] = []

        class Telling(FakeConnector):
            async def on_recycle(self, connection: FakeConnection, outcome: Outcome) -> None:
                told.append(outcome)
                await super().on_recycle(connection, outcome)

        async with opened(A, Telling(), **ONE) as watched:
            claim: Claim[FakeConnection] | None = await watched.pool.claim()
            connection = claim.connection
            with pytest.warns(ResourceWarning, match=r"unreleased claim on pool main.*test_claims\.py"):
                claim = None
            async with watched.pool.claim(timeout=1) as other:
                assert other is not connection
            assert told[0] is Outcome.LEAKED
            assert connection.closed

    run(main)


def test_with_gives_the_connection_and_the_outcome():
    async def main():
        async with opened(A, **ONE) as watched:
            claim = await watched.pool.claim()
            with claim as connection:
                assert connection is claim.connection
            with pytest.raises(ValueError, match="body"), await watched.pool.claim() as connection:
                raise ValueError("body")
            await asyncio.sleep(1)
            assert connection.closed

    run(main)


def test_no_answer_meant_for_one_claim_reaches_another():
    async def main():
        connector = FakeConnector()
        cut = 0

        async def use(number: int) -> None:
            async with watched.pool.claim() as connection:
                await connection.request(f"request {number}")

        async with opened(backends(2), connector, spares_wanted=4, max_slots=4) as watched:
            for number in range(300):
                task = asyncio.create_task(use(number))
                await asyncio.sleep(0.0003 * (number % 7))
                cut += task.cancel()
                await asyncio.wait([task])
                await use(1000 + number)
        assert cut > 50

    run(main)  # connector.exchange() fails the test when an answer goes astray


# Where and when.


def test_a_pool_that_was_not_started_says_so():
    async def main():
        pool = Pool("p", FixedResolver(A), FakeConnector())
        with pytest.raises(PoolNotStartedError, match="async with"):
            await pool.claim()
        with pytest.raises(PoolNotStartedError):
            async with pool.claim():
                pass
        with pytest.raises(PoolNotStartedError):
            await pool.ready()

    run(main)


def test_a_pool_that_has_ended_says_so():
    async def main():
        async with opened(A, **ONE) as watched:
            request = watched.pool.claim()
        for late in (request, watched.pool.claim()):
            with pytest.raises(PoolTerminatedError):
                await late

    run(main)


def test_a_pool_belongs_to_one_loop():
    async def main():
        async with opened(A, **ONE) as watched:
            caught: list[str] = []

            def elsewhere() -> None:
                async def use() -> None:
                    for call in (watched.pool.claim, watched.pool.ready, watched.pool.start, watched.pool.terminate):
                        try:
                            await call()
                        except WrongLoopError as error:
                            caught.append(f"{error.pool}: {error}")

                asyncio.run(use())

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert len(caught) == 4
            assert all(text.startswith("main: ") and "another event loop or thread" in text for text in caught)
            async with watched.pool.claim(timeout=1):
                pass

    run(main)


def test_stats_and_ledger_may_be_read_from_another_thread():
    async def main():
        async with opened(A, **ONE) as watched:
            seen: list[object] = []
            thread = threading.Thread(target=lambda: seen.extend([watched.pool.stats(), watched.pool.ledger()]))
            thread.start()
            thread.join()
            assert seen == [watched.pool.stats(), watched.pool.ledger()]

    run(main)


def test_ready_waits_for_claimed_and_spares_up_to_the_caps():
    async def main():
        connector = FakeConnector(latency=1)
        async with opened(backends(2), connector, ready=False, spares_wanted=4, max_slots=16) as watched:
            await watched.pool.ready()
            assert len(connector.connections) == 4
            async with watched.pool.claim():
                await watched.pool.ready()
                assert len(connector.connections) == 5
        async with opened(A, FakeConnector(), spares_wanted=9, max_slots=5, max_slots_per_backend=3) as watched:
            assert len(watched.connector.connections) == 3
        async with opened(backends(2), FakeConnector(), spares_wanted=9, max_slots=5) as watched:
            assert len(watched.connector.connections) == 5

    run(main)


def test_ready_leaves_no_timer_and_no_waiter_behind():
    async def main():
        connector = FakeConnector()
        async with opened(A, connector, spares_wanted=4, max_slots=4) as watched:
            before = watched.pool.ledger()
            for cancelled in (False, True):
                for held in await watched.claims(4):
                    held.discard()
                waiting = asyncio.create_task(watched.pool.ready(timeout=1000))
                await settle()
                assert watched.pool.ledger().waiters == 1
                if cancelled:
                    waiting.cancel()
                await asyncio.wait([waiting])
                assert waiting.cancelled() is cancelled
                await asyncio.sleep(1)
                assert watched.pool.ledger().waiters == 0
                assert watched.pool.ledger().timers == before.timers

    run(main)


def test_ready_fails_as_claims_do():
    async def main():
        connector = FakeConnector()
        connector.refuse()
        async with opened(A, connector, ready=False, claim_timeout=2) as watched:
            moment = now()
            with pytest.raises(NoBackendsOnlineError):
                await watched.pool.ready()
            assert 2 <= now() - moment <= 2 + LATE

    run(main)


def test_claims_are_counted_when_they_reach_their_caller():
    async def main():
        connector = FakeConnector()
        async with opened(backends(2), connector, spares_wanted=4, max_slots=4) as watched:
            for _ in range(10):
                await hold(watched.pool, 0.01)
            connector.stall("on_acquire")
            task = asyncio.create_task(hold(watched.pool, 0))
            await asyncio.sleep(1)
            task.cancel()
            await settle()
            assert watched.pool.stats().claims == 10
            assert sum(each.total_claims for each in watched.pool.stats().backends.values()) == 10

    run(main)


# Cancellation. Every await of a claim is cancelled in test_claim_at_every_await.py.


@pytest.mark.parametrize("then", ["returns", "raises"])
def test_a_cancellation_that_on_acquire_swallows_reaches_the_claimer_all_the_same(then):
    class Deaf(Quick):
        async def on_acquire(self, connection):
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                if then == "raises":
                    raise OSError("cut off") from None

    async def main():
        async with opened(A, Deaf(), **ONE) as watched:
            task = asyncio.create_task(hold(watched.pool, 0))
            await asyncio.sleep(0.5)
            assert task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await asyncio.sleep(2)
            stats = watched.stats()
            assert (stats.claimed_slots, stats.unclaimed_slots, stats.total_claims) == (0, 1, 0)
            await hold(watched.pool, 0)

    run(main)


def test_an_on_acquire_that_takes_a_cancellation_back_keeps_the_claim():
    class Bounded(Quick):
        async def on_acquire(self, connection):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await asyncio.sleep(1)

    async def main():
        async with opened(A, Bounded(), **ONE) as watched:
            await hold(watched.pool, 0)
            assert watched.stats().total_claims == 1

    run(main)


def test_a_cancellation_that_the_claimer_has_not_heard_of_yet_comes_before_on_acquire_and_is_no_failure():
    async def main():
        async def cancelled() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()  # while it runs: it hears of it at its next wait
            await hold(watched.pool, 0)

        async with opened(A, Quick(), **ONE) as watched:
            await asyncio.wait([task := asyncio.create_task(cancelled())])
            assert task.cancelled()
            assert watched.connector.count["on_acquire"] == 0
            await asyncio.sleep(1)
            stats = watched.stats()
            assert (stats.claimed_slots, stats.unclaimed_slots, stats.total_claims, stats.failures) == (0, 1, 0, 0)

    run(main)


def test_a_task_that_has_heard_of_its_cancellation_may_claim_while_it_cleans_up():
    async def main():
        async def cleans_up() -> str:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                async with watched.pool.claim() as connection:
                    await asyncio.sleep(0.1)
                    return connection.backend.name
            return ""

        async with opened(A, Quick(), **ONE) as watched:
            task = asyncio.create_task(cleans_up())
            await settle()
            task.cancel()
            assert await task == "b0"

    run(main)


def test_a_termination_in_the_turn_in_which_a_claimer_hears_what_there_is_lets_no_on_acquire_begin():
    async def main():
        async def cleans_up() -> None:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                asyncio.get_running_loop().call_soon(watched.pool.abort)
                await watched.pool.claim()

        async with opened(A, Quick(), **ONE) as watched:
            task = asyncio.create_task(cleans_up())
            await settle()
            task.cancel()
            with pytest.raises(PoolTerminatedError):
                await task
            assert watched.connector.count["on_acquire"] == 0

    run(main)
