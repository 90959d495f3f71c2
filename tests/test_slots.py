"""What becomes of each connection: connecting, backoff, checks, recycling, age."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import random
from typing import TYPE_CHECKING, Any

import pytest

from qorb import AllClaimsUsedError, Backend, ClaimTimeoutError, ConnectError, NoBackendsOnlineError, Outcome
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnection, FakeConnector, run, settle
from tests.pools import backends, hold, now, opened
from tests.visits import Bare, busy

if TYPE_CHECKING:
    from collections.abc import Callable

A = backends(1)
SLACK = 1e-6


def gaps(connector: FakeConnector, operation: str, backend: str | None = None) -> list[float]:
    """The pauses between the end of one call and the beginning of the next."""
    calls = [c for c in connector.calls if c.operation == operation and backend in (None, c.backend.name)]
    return [later.started - earlier.ended for earlier, later in itertools.pairwise(calls) if earlier.ended is not None]


class Quick(FakeConnector):
    """A FakeConnector whose clean connections need no recycling."""

    def needs_recycle(self, connection: FakeConnection, outcome: Outcome) -> bool:
        return outcome is not Outcome.CLEAN


# Backoff.


@pytest.mark.parametrize("seed", range(5))
def test_the_pause_before_each_attempt_is_drawn_within_its_bounds(seed):
    async def main():
        connector = FakeConnector()
        async with opened(backends(2), connector, seed=seed, spares_wanted=2, max_slots=4) as watched:
            connector.refuse("b1")
            connector.drop("b1")
            first = len([c for c in connector.calls if c.operation == "connect"])
            await hold(watched.pool, 0)
            await asyncio.sleep(300)
            calls = list(connector.calls)
            tries = [c for c in calls if c.operation == "connect" and c.backend.name == "b1"][1:]
            assert first
            return [later.started - earlier.ended for earlier, later in itertools.pairwise(tries)]

    pauses = run(main)
    assert len(pauses) >= 15
    for n, pause in enumerate(pauses):
        step = min(0.020 * 2**n, 30)
        assert step / 2 - SLACK <= pause <= step + 0.020 + SLACK


def test_while_a_backend_fails_one_attempt_at_a_time_probes_it_however_many_slots_wait():
    async def main():
        connector = FakeConnector(latency=0.1)
        connector.refuse()
        async with opened(A, connector, ready=False, spares_wanted=16) as watched:
            await asyncio.sleep(0.15)  # the first round: up to eight side by side
            assert connector.peak_in_flight("connect") <= 8
            before = len(connector.calls)
            await asyncio.sleep(50)
            later = list(connector.calls)[before:]
            assert all(b.started >= a.ended - SLACK for a, b in itertools.pairwise(later) if a.ended is not None)
            assert watched.slots() == 16

    run(main)


def test_nothing_online_caps_the_pause_at_five_seconds():
    async def main():
        connector = FakeConnector()
        connector.refuse()
        async with opened(backends(3), connector, ready=False, max_connection_backoff=1000):
            await asyncio.sleep(600)
            for name in ("b0", "b1", "b2"):
                pauses = gaps(connector, "connect", name)
                assert max(pauses) <= 5.020 + SLACK
                assert min(pauses[-20:]) >= 2.5 - SLACK

    run(main)


def test_the_cap_begins_in_the_midst_of_a_longer_pause():
    async def main():
        connector = FakeConnector()
        connector.refuse("b1")
        async with opened(
            backends(2), connector, spares_wanted=2, max_connection_backoff=10_000, ready=False
        ) as watched:
            await asyncio.sleep(3000)  # b1 waits for many minutes by now
            assert watched.attempts("b1")[-1] < now() - 100
            moment = now()
            connector.refuse()
            connector.drop()
            with pytest.raises(ClaimTimeoutError):
                await watched.pool.claim(timeout=6)
            assert any(moment < one <= moment + 5.1 for one in watched.attempts("b1"))

    run(main)


@pytest.mark.parametrize("when", ["before it fails", "while it waits"])
def test_the_cap_counts_no_backend_that_is_leaving_and_has_only_a_claim(when):
    async def main():
        resolver = ManualResolver(backends(2) if when == "while it waits" else A)
        connector = FakeConnector()
        connector.refuse("b1")
        policy = {"spares_wanted": 1, "min_connection_backoff": 500, "max_connection_backoff": 1000}
        async with opened(resolver, connector, **policy) as watched:
            claim = await watched.pool.claim()
            assert claim.backend.name == "b0"
            await asyncio.sleep(1)
            resolver.set(backends(2)[1:])
            await asyncio.sleep(1)
            connector.heal()
            async with watched.pool.claim(timeout=5.1) as connection:
                assert connection.backend.name == "b1"
            claim.release()

    run(main)


@pytest.mark.parametrize(("slots", "latency"), [(16, 0.1), (8, 0.5), (3, 0.01)])
def test_a_backend_that_returns_is_at_full_capacity_as_soon_as_promised(slots, latency):
    async def main():
        connector = FakeConnector(latency=latency)
        connector.refuse()
        async with opened(A, connector, ready=False, spares_wanted=slots, max_slots=slots) as watched:
            await asyncio.sleep(1000)
            connector.heal()
            await hold(watched.pool, 0)
            await asyncio.sleep(2 + math.ceil(slots / 8) * latency)
            assert watched.stats().unclaimed_slots == slots
            assert connector.peak_in_flight("connect") <= 8

    run(main)


def test_a_success_of_one_wakes_its_siblings_at_once_but_eight_at_a_time():
    async def main():
        connector = FakeConnector(latency=0.1)
        connector.refuse()
        async with opened(A, connector, ready=False, spares_wanted=16) as watched:
            await asyncio.sleep(1000)
            connector.heal()
            before = len(watched.attempts())
            await asyncio.sleep(6)
            first, *others = watched.attempts()[before:]
            waves = sorted({round(one - first, 3) for one in others})
            assert waves == [0.1, 0.2]
            assert [round(one - first, 3) for one in others].count(0.1) == 8

    run(main)


def test_many_backends_that_fail_together_do_not_try_in_step():
    async def main():
        connector = FakeConnector()
        connector.refuse()
        async with opened(backends(8), connector, ready=False, spares_wanted=8) as watched:
            await asyncio.sleep(100)
            return [watched.attempts(f"b{i}")[-1] for i in range(8)]

    assert len({round(moment, 2) for moment in run(main)}) >= 7


# Calls that fail or last.


@pytest.mark.parametrize("operation", ["validate", "on_recycle"])
def test_a_check_that_hangs_ends_at_its_limit_and_the_old_close_ends_before_the_new_connect_begins(operation):
    async def main():
        connector = FakeConnector()
        policy = {"spares_wanted": 1, "max_slots": 1, "health_interval": 10, "health_check_timeout": 3, "spread": 0}
        async with opened(A, connector, **policy) as watched:
            connector.slow(0.25, "close")
            connector.stall(operation)
            await hold(watched.pool, 0)
            moment = now()
            await asyncio.sleep(15)
            calls = [call for call in connector.calls if call.started >= moment - SLACK or call.operation == operation]
            check = next(call for call in calls if call.operation == operation)
            close = next(call for call in calls if call.operation == "close")
            connect = next(call for call in calls if call.operation == "connect")
            assert check.ended == pytest.approx(check.started + 3)
            assert close.started == pytest.approx(check.ended)
            assert close.ended <= connect.started <= close.ended + SLACK  # the first try comes at once
            assert watched.stats().failures == 1

    run(main)


def test_connect_is_bounded_in_total():
    async def main():
        connector = FakeConnector()
        connector.stall("connect")
        async with opened(A, connector, ready=False, spares_wanted=1, connect_timeout=7) as watched:
            await asyncio.sleep(30)
            first = next(call for call in connector.calls if call.operation == "connect")
            assert first.ended == first.started + 7
            assert "TimeoutError" in watched.stats().last_error

    run(main)


# Checks.


def test_an_idle_connection_is_checked_after_the_interval_and_its_random_part():
    async def main():
        connector = FakeConnector(latency=0)
        async with opened(A, connector, spares_wanted=3, health_interval=30, spread=5):
            moment = now()
            await asyncio.sleep(300)
            checks = [call for call in connector.calls if call.operation == "validate"]
            for connection in {call.connection for call in checks}:
                times = [moment] + [call.started for call in checks if call.connection is connection]
                assert len(times) >= 9
                assert all(30 - SLACK <= b - a <= 35 + SLACK for a, b in itertools.pairwise(times))
            assert len({round(call.started - moment, 3) for call in checks[:3]}) == 3

    run(main)


def test_checks_run_one_at_a_time_for_each_backend():
    async def main():
        connector = FakeConnector()
        connector.slow(1, "validate")
        async with opened(backends(2), connector, spares_wanted=8, health_interval=30, spread=0):
            await asyncio.sleep(200)
            assert connector.count["validate"] >= 8 * 4
            assert connector.peak_in_flight("validate", "b0") == 1
            assert connector.peak_in_flight("validate", "b1") == 1
            assert connector.peak_in_flight("validate") == 2

    run(main)


def test_once_a_check_has_failed_the_other_idle_ones_of_that_backend_are_checked_at_once_together():
    async def main():
        connector = FakeConnector(latency=0.5)
        async with opened(backends(2), connector, spares_wanted=8, health_interval=30, spread=0):
            connector.invalidate("b0")
            moment = now()
            await asyncio.sleep(31.6)
            checks = [c for c in connector.calls if c.operation == "validate" and c.backend.name == "b0"]
            assert [round(call.started - moment, 3) for call in checks] == [30.0, 30.5, 30.5, 30.5]
            assert connector.peak_in_flight("validate", "b1") == 1

    run(main)


def test_while_no_check_succeeds_each_connection_is_checked_once_an_interval_however_long_that_takes():
    rng = random.Random(1)

    class Failing(FakeConnector):
        async def validate(self, connection):
            self.checked.append(connection)
            await asyncio.sleep(rng.uniform(0, 0.02))  # differently long, and mostly longer than to connect
            raise OSError("not what is wanted")

    async def main():
        connector = Failing()
        connector.checked = []
        async with opened(A, connector, spares_wanted=8, health_interval=30, spread=0) as watched:
            for rounds in range(1, 4):
                await asyncio.sleep(30.5)
                assert len(connector.checked) == 8 * rounds
                assert watched.stats().unclaimed_slots == 8
        assert len(set(map(id, connector.checked))) == len(connector.checked)

    run(main)


def test_when_a_connection_that_had_passed_since_fails_the_others_are_checked_again_however_new_they_are():
    class FailingOnce(Quick):
        fails = False

        async def validate(self, connection):
            await super().validate(connection)
            if self.fails:
                self.fails = False
                raise OSError("not what is wanted")

    async def main():
        connector = FailingOnce()
        async with opened(A, connector, spares_wanted=4, health_interval=30, spread=0) as watched:
            connector.fails = True
            await asyncio.sleep(30.5)
            assert connector.count["validate"] == 4
            await asyncio.sleep(14.5)
            for claim in await watched.claims(1):
                claim.discard()
            connector.fails = True
            await asyncio.sleep(15.5)
            assert connector.count["validate"] == 8

    run(main)


def test_a_check_never_is_the_reason_that_a_claim_waits_while_another_connection_is_idle():
    async def main():
        connector = FakeConnector()
        connector.stall("validate")
        async with opened(A, connector, spares_wanted=4, max_slots=4, health_interval=1, spread=0) as watched:
            await asyncio.sleep(1.5)
            assert watched.stats().checking_slots == 1
            for _ in range(3):
                async with watched.pool.claim(timeout=0.01):
                    pass
                await asyncio.sleep(0.002)

    run(main)


def test_a_released_connection_whose_check_is_due_is_handed_to_who_waits_first():
    async def main():
        connector = Quick()
        async with opened(A, connector, spares_wanted=1, max_slots=1, health_interval=1, spread=0) as watched:
            first = await watched.pool.claim()
            await asyncio.sleep(2)
            assert connector.count["validate"] == 0
            waiter = asyncio.create_task(hold(watched.pool, 1))
            await settle()
            first.release()
            await asyncio.sleep(0.5)
            assert connector.count["validate"] == 0
            await waiter
            await settle()
            assert watched.stats().checking_slots == 1

    run(main)


def test_a_check_is_bounded_and_the_failure_counted_and_shown():
    async def main():
        connector = FakeConnector()
        connector.stall("validate")
        async with opened(A, connector, spares_wanted=1, max_slots=1, health_interval=1, spread=0) as watched:
            await asyncio.sleep(4.5)
            assert watched.stats().failures == 1
            assert watched.stats().last_error == "TimeoutError: not done within 3 s"

    run(main)


# Dead connections.


def test_a_dead_idle_connection_is_never_handed_out_but_replaced_when_a_claim_comes_by():
    async def main():
        connector = Quick()
        async with opened(A, connector, spares_wanted=3, max_slots=3, health_interval=math.inf) as watched:
            dead = set(connector.connections)
            connector.drop()
            await asyncio.sleep(1)
            async with watched.pool.claim(timeout=1) as connection:
                assert connection not in dead
            await asyncio.sleep(1)
            assert not dead & set(connector.connections)
            assert watched.stats().unclaimed_slots == 3

    run(main)


def test_a_connection_that_died_while_claimed_is_replaced_at_its_release():
    async def main():
        connector = Quick()
        async with opened(A, connector, spares_wanted=1, max_slots=1) as watched:
            async with watched.pool.claim() as connection:
                waiter = asyncio.create_task(hold(watched.pool, 0))
                await settle()
                connector.drop()
            assert watched.stats().connecting_slots == 1
            await waiter
            assert connection.closed
            assert connector.count["connect"] == 2

    run(main)


def test_a_dead_connection_is_replaced_when_its_check_comes():
    async def main():
        connector = FakeConnector()
        async with opened(A, connector, spares_wanted=1, health_interval=10, spread=0) as watched:
            connector.drop()
            await asyncio.sleep(10.1)
            assert connector.count["validate"] == 0
            assert connector.count["connect"] == 2
            assert watched.stats().unclaimed_slots == 1

    run(main)


class Fickle(Bare):
    """A connector to a server that closes every connection `life` seconds after it was opened, until it is heal()ed."""

    def __init__(self, life=0.0005):
        super().__init__()
        self.life = life

    def heal(self, backend=None):
        super().heal(backend)
        self.life = math.inf
        self.drop()

    async def connect(self, backend):
        connection = await super().connect(backend)
        if self.life < math.inf:
            asyncio.get_running_loop().call_later(self.life, setattr, connection, "closed", True)
        return connection


class Doomed(FakeConnector):
    """A connector whose connections are open when connect() returns, and closed when they are looked at again."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def is_closed(self, connection):
        closed = connection.id in self.seen
        self.seen.add(connection.id)
        return closed or super().is_closed(connection)


def test_connections_that_die_before_they_are_used_count_as_failures_and_are_not_replaced_without_a_pause():
    async def main():
        connector = Doomed()
        async with opened(A, connector, ready=False, spares_wanted=1, max_slots=1) as watched:
            with pytest.raises(NoBackendsOnlineError, match="found closed within") as caught:
                await watched.pool.claim(timeout=10)
            assert "before it was used" in str(caught.value.__cause__)
            # Pauses of 10 ms at least that double, then one try every 2.5 s at least.
            assert 5 < connector.count["connect"] <= 2 + math.log2(10 / 0.01) + 10 / 2.5
            assert watched.stats().failures >= connector.count["connect"] - 1
            assert "found closed within" in watched.stats().last_error

    run(main)


@pytest.mark.parametrize("claimers", [1, 20])
def test_a_server_that_accepts_and_closes_is_not_overrun_by_claims_that_fail(claimers):
    async def main():
        connector = Fickle()
        async with opened(A, connector, ready=False) as watched:
            visits = await busy(watched.pool, claimers, now() + 10, 0.001)
            assert not [visit for visit in visits if visit.connection is not None and not visit.broken]
            # All slots try once in each round of the backoff.
            assert connector.count["connect"] <= 16 * (2 + math.log2(10 / 0.01) + 10 / 2.5)
            connector.heal()
            healed = now()
            async with watched.pool.claim() as connection:
                await connection.request()
            assert now() <= healed + 5.1
            await busy(watched.pool, 1, now() + 2, 0.01)
            # It has proved itself: what dies from now on of old age is replaced at once, and no failure.
            failures = watched.stats().failures
            connector.drop()
            dropped = now()
            async with watched.pool.claim():
                assert now() <= dropped + 0.01
            assert watched.stats().failures == failures

    run(main)


def test_a_server_that_was_restarted_is_at_full_capacity_as_fast_as_it_connects():
    async def main():
        connector = FakeConnector()
        async with opened(A, connector, spares_wanted=8, max_slots=8) as watched:
            await asyncio.sleep(1)
            assert connector.drop() == 8
            async with watched.pool.claim():
                await asyncio.sleep(0.02)
                assert len(connector.connections) == 8
            assert watched.stats().failures == 0

    run(main)


def test_a_server_that_closes_each_connection_after_its_claim_is_none_that_fails():
    async def main():
        connector = Quick()
        async with opened(A, connector, spares_wanted=1, max_slots=1) as watched:
            began = now()
            for _ in range(100):
                async with watched.pool.claim() as connection:
                    connection.closed = True
            assert now() <= began + 100 * 0.003
            assert watched.stats().failures == 0

    run(main)


@pytest.mark.parametrize("proof", ["a claim", "a check"])
def test_what_has_proved_itself_ends_the_backoff_for_connections_that_died_early(proof):
    async def main():
        connector = Fickle()
        async with opened(A, connector, ready=False, spares_wanted=1, max_slots=1, health_interval=7) as watched:
            await busy(watched.pool, 1, now() + 60, 0.001)
            connector.heal()
            await asyncio.sleep(5.1)
            if proof == "a claim":
                await hold(watched.pool, 0)
            else:
                await asyncio.sleep(7.5)
                assert connector.count["validate"]
            connector.life = 0.0005
            connector.drop()
            dropped = now()
            with contextlib.suppress(ConnectError):
                async with watched.pool.claim() as connection:
                    assert now() <= dropped + 0.05
                    await asyncio.sleep(0.001)
                    await connection.request()
            # One early death after the proof: the first pause, not the next of the last row.
            again = now()
            with contextlib.suppress(ConnectError):
                async with watched.pool.claim():
                    assert now() <= again + 0.05

    run(main)


@pytest.mark.parametrize("method", ["is_closed", "needs_recycle"])
def test_a_question_that_raises_is_answered_by_the_worst(method, caplog):
    async def main():
        connector = FakeConnector()

        def raises(*_: object) -> bool:
            raise ValueError("no idea")

        setattr(connector, method, raises)
        ready = method != "is_closed"  # otherwise no new connection seems open
        async with opened(A, connector, ready=ready, spares_wanted=1, max_slots=1) as watched:
            if method == "is_closed":
                with pytest.raises(ClaimTimeoutError):
                    await watched.pool.claim(timeout=0.1)
            else:
                await hold(watched.pool, 0)
                await settle()
                assert connector.count["on_recycle"] == 1

    with caplog.at_level(logging.WARNING, "qorb"):
        run(main)
    assert f"{method}() failed: ValueError: no idea" in caplog.text


# Age.


def test_a_connection_is_replaced_at_its_age_less_a_tenth_at_most_and_not_all_at_once():
    async def main():
        connector = FakeConnector(latency=0)
        async with opened(A, connector, spares_wanted=10, max_slots=10, max_lifetime=100, health_interval=math.inf):
            moment = now()
            await asyncio.sleep(101)
            ends = [c.started - moment for c in connector.calls if c.operation == "close"]
            assert len(ends) == 10
            assert all(90 - SLACK <= end <= 100 + SLACK for end in ends)
            assert max(ends) - min(ends) > 3
            assert connector.count["connect"] == 20

    run(main)


def test_age_does_not_touch_a_claim_but_its_release_does():
    async def main():
        connector = Quick()
        async with opened(A, connector, spares_wanted=1, max_slots=1, max_lifetime=10) as watched:
            async with watched.pool.claim() as connection:
                await asyncio.sleep(100)
                assert not connection.closed
            await asyncio.sleep(1)
            assert connection.closed
            assert watched.stats().unclaimed_slots == 1

    run(main)


def test_a_recycled_connection_that_is_too_old_is_replaced():
    async def main():
        connector = FakeConnector()
        async with opened(A, connector, spares_wanted=1, max_slots=1, max_lifetime=10) as watched:
            async with watched.pool.claim() as connection:
                await asyncio.sleep(100)
            await asyncio.sleep(1)
            assert connection.closed

    run(main)


# on_acquire.


def test_the_on_acquire_backoff_grows_one_step_for_each_round_of_fresh_connections():
    async def main():
        connector = FakeConnector(latency=0)
        connector.fail("on_acquire", lambda: OSError("not fit"))
        async with opened(A, connector, spares_wanted=4, max_slots=4, ready=False) as watched:
            with pytest.raises(ClaimTimeoutError):
                await watched.pool.claim(timeout=60)
            return sorted({round(call.started, 6) for call in connector.calls if call.operation == "on_acquire"})

    rounds = run(main)
    for n, (earlier, later) in enumerate(itertools.pairwise(rounds)):
        step = min(0.020 * 2**n, 5)  # nothing is online meanwhile
        assert step / 2 - SLACK <= later - earlier <= step + 0.020 + SLACK


def test_only_an_on_acquire_that_works_resets_its_backoff():
    async def main():
        connector = FakeConnector(latency=0)
        connector.fail("on_acquire", lambda: OSError("not fit"))
        async with opened(A, connector, spares_wanted=1, max_slots=1, ready=False) as watched:
            with pytest.raises(ClaimTimeoutError):
                await watched.pool.claim(timeout=20)
            slow = gaps(connector, "on_acquire")[-1]
            connector.heal()
            await hold(watched.pool, 0)
            connector.fail("on_acquire", lambda: OSError("not fit"))
            before = connector.count["on_acquire"]
            with pytest.raises(ClaimTimeoutError):
                await watched.pool.claim(timeout=1)
            calls = [call.started for call in connector.calls if call.operation == "on_acquire"][before:]
            return slow, calls[1] - calls[0]

    slow, quick = run(main)
    assert slow > 1
    assert quick <= 0.040 + SLACK


# How a claim ended.


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(None, Outcome.CLEAN), (ValueError, Outcome.ERROR), (asyncio.CancelledError, Outcome.CANCELLED)],
)
def test_on_recycle_is_told_how_the_claim_ended_and_a_dirty_connection_is_closed(error, outcome):
    async def main():
        told: list[Outcome] = []

        class Telling(FakeConnector):
            async def on_recycle(self, connection: FakeConnection, outcome: Outcome) -> None:
                told.append(outcome)
                await super().on_recycle(connection, outcome)

        async with opened(A, Telling(), spares_wanted=1, max_slots=1) as watched:
            try:
                async with watched.pool.claim() as connection:
                    if error is not None:
                        raise error
            except (ValueError, asyncio.CancelledError):
                pass
            await asyncio.sleep(1)
            assert told == [outcome]
            assert connection.closed is (outcome is not Outcome.CLEAN)
            assert watched.stats().unclaimed_slots == 1
            assert watched.stats().failures == (outcome is not Outcome.CLEAN)  # as whenever recycling fails

    run(main)


def test_a_discarded_connection_is_closed_and_replaced_without_being_recycled():
    async def main():
        connector = FakeConnector()
        async with opened(A, connector, spares_wanted=1, max_slots=1) as watched:
            claim = await watched.pool.claim()
            connection = claim.connection
            claim.discard()
            assert watched.stats().connecting_slots == 1
            claim.discard()
            claim.release()
            await asyncio.sleep(1)
            assert connection.closed
            assert connector.count["on_recycle"] == 0
            assert watched.stats().unclaimed_slots == 1

    run(main)


def test_an_idle_pool_over_a_long_time_does_nothing_but_check():
    async def main():
        connector = FakeConnector()
        async with opened(backends(3), connector, spares_wanted=6):
            await asyncio.sleep(1000)
            assert connector.count["connect"] == 6
            assert connector.count["close"] == connector.count["abort"] == 0

    run(main)


# Logs of long claims.


def test_a_long_claim_is_logged_once_with_its_task_and_again_only_for_another_claim(caplog):
    async def main():
        async with opened(A, spares_wanted=1, max_slots=1, long_claim_warning=60) as watched:
            for _ in range(2):
                await asyncio.create_task(hold(watched.pool, 59.9), name="short")
            await asyncio.create_task(hold(watched.pool, 500), name="hog")
            await asyncio.create_task(hold(watched.pool, 61), name="another")

    with caplog.at_level(logging.WARNING, "qorb"):
        run(main)
    assert len(caplog.records) == 2
    assert "'hog'" in caplog.records[0].message
    assert "'another'" in caplog.records[1].message
    assert "claimed at " in caplog.records[0].message  # where it was claimed: the loop is in debug mode


class Acting(logging.Handler):
    """A handler of the log that does something when there is a long claim, and raises when it is told to."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(logging.WARNING)
        self.act = act
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "is claimed for" in record.getMessage():
            self.seen.append(record.getMessage())
            self.act()


@pytest.fixture
def acting():
    handlers: list[Acting] = []

    def attach(act: Callable[[], object]) -> Acting:
        handlers.append(Acting(act))
        logging.getLogger("qorb").addHandler(handlers[-1])
        return handlers[-1]

    yield attach
    for handler in handlers:
        logging.getLogger("qorb").removeHandler(handler)


@pytest.mark.parametrize("count", [1, 3])
def test_a_log_handler_that_changes_the_backends_ends_no_looking_for_long_claims(acting, count):
    async def main():
        resolver = ManualResolver(backends(2))
        async with opened(resolver, spares_wanted=4, max_slots=4, long_claim_warning=60) as watched:
            handler = acting(lambda: resolver.set(backends(count)))
            for _ in range(2):
                await asyncio.gather(hold(watched.pool, 100), hold(watched.pool, 100))
            assert len(handler.seen) == 4

    run(main)


def test_a_log_handler_that_raises_ends_no_looking_for_long_claims(acting):
    def refuse() -> None:
        raise RuntimeError("no space left for the log")

    async def main():
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
        async with opened(A, spares_wanted=1, max_slots=1, long_claim_warning=60) as watched:
            handler = acting(refuse)
            for _ in range(2):
                await hold(watched.pool, 100)
            assert len(handler.seen) == len(errors) == 2

    run(main)


def test_whoever_uses_the_whole_pool_is_named():
    async def main():
        async with opened(A, spares_wanted=2, max_slots=2) as watched:
            hogs = [asyncio.create_task(hold(watched.pool, 100), name=f"hog {i}") for i in range(2)]
            await asyncio.sleep(10)
            with pytest.raises(AllClaimsUsedError, match="2 of at most 2") as caught:
                await watched.pool.claim(timeout=5)
            assert "15.0 s by task 'hog 0'" in str(caught.value)
            assert "'hog 1'" in str(caught.value)
            await asyncio.gather(*hogs)

    run(main)


def test_an_address_that_changes_ends_an_attempt_to_reach_the_old_one():
    async def main():
        connector = FakeConnector()
        connector.stall("connect")
        resolver = ManualResolver(A)
        async with opened(resolver, connector, ready=False, spares_wanted=1, max_slots=1) as watched:
            await asyncio.sleep(1)
            connector.heal()
            connector.stall("connect", "b0")
            resolver.set([Backend("b0", "10.9.9.9", 5432)])
            await asyncio.sleep(0.1)
            calls: list[Any] = [call for call in connector.calls if call.operation == "connect"]
            assert calls[-1].backend.host == "10.9.9.9"
            connector.heal()
            async with watched.pool.claim() as connection:
                assert connection.backend.host == "10.9.9.9"

    run(main)
