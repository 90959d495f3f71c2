"""What terminate() promises. P is the moment when `await pool.terminate()` returns without an exception."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from qorb import (
    Backend,
    ClaimReleasedError,
    ClaimRevokedError,
    Connector,
    Outcome,
    Policy,
    Pool,
    PoolState,
    PoolTerminatedError,
    TerminationError,
)
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, assert_nothing_left, run, settle
from tests import phases
from tests.phases import ALMOST_AT_ONCE, PHASES, SEEDS, Stage, at_once, logged, play

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qorb.testing import FakeConnection

WAYS: tuple[dict[str, Any], ...] = ({}, {"grace": 0}, {"grace": 0, "held": "detach"})

in_each_phase = pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES.keys())


def play_in_each_way(phase: Callable[[Stage], Awaitable[Any]], scene: Callable[..., Awaitable[Any]]) -> None:
    """Play the scene with the arguments of terminate() for each way to end a pool."""
    for how in WAYS:
        play(phase, scene, how)


class Plain(Connector[list[str]]):
    """A connector that overrides nothing but what it must: claims and releases take their shortest way."""

    def __init__(self) -> None:
        self.opened: list[list[str]] = []

    async def connect(self, backend: Backend) -> list[str]:
        await asyncio.sleep(0.001)
        self.opened.append(["open"])
        return self.opened[-1]

    def abort(self, connection: list[str]) -> None:
        connection.append("closed")


# The six guarantees.


@in_each_phase
def test_at_p_no_task_of_the_pool_is_unfinished(phase):
    async def scene(stage: Stage, how: dict[str, Any]) -> None:
        started = [task for task in asyncio.all_tasks() if task.get_name().startswith("qorb main")]
        assert (phase is phases.new) is (not started)

        await stage.pool.terminate(**how)

        assert all(task.done() for task in started)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("qorb")]
        assert stage.pool.ledger().tasks == ()
        assert stage.resolver.watching == 0

    play_in_each_way(phase, scene)


@in_each_phase
def test_at_p_no_timer_and_no_thread_of_the_pool_is_left(phase):
    async def scene(stage: Stage, how: dict[str, Any]) -> None:
        threads = threading.active_count()

        await stage.pool.terminate(**how)

        loop: Any = asyncio.get_running_loop()
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []
        assert stage.pool.ledger().timers == 0
        assert threading.active_count() == threads

    play_in_each_way(phase, scene)


@in_each_phase
def test_at_p_every_connection_is_closed_except_those_detached_on_purpose(phase):
    async def scene(stage: Stage, how: dict[str, Any]) -> None:
        out = [claim.connection for claim in stage.claims]

        await stage.pool.terminate(**how)

        detached = out if how.get("held") == "detach" else []
        assert sorted(map(id, stage.connector.unclosed)) == sorted(map(id, detached))
        assert stage.pool.ledger().connections == 0
        for claim in stage.claims:
            claim.release()
        assert list(stage.connector.unclosed) == []

    play_in_each_way(phase, scene)


@in_each_phase
def test_after_p_no_method_of_connector_resolver_or_observer_is_running_or_is_ever_called_again(phase):
    async def scene(stage: Stage, how: dict[str, Any]) -> None:
        await stage.pool.terminate(**how)

        assert stage.connector.in_flight == []
        for claim in stage.claims:  # abort() of a connection that was detached on purpose is the one exception
            claim.release()
        await stage.assert_over()

    play_in_each_way(phase, scene)


@in_each_phase
def test_every_waiting_claim_gets_its_error_before_p(phase):
    async def scene(stage: Stage, how: dict[str, Any]) -> None:
        await stage.pool.terminate(**how)

        assert sorted(stage.refused + stage.served) == list(range(len(stage.claimers)))
        assert stage.pool.ledger().waiters == 0
        assert stage.pool.stats().waiting == 0

    play_in_each_way(phase, scene)


@in_each_phase
def test_after_p_every_call_raises_at_once_and_terminate_just_returns(phase):
    async def scene(stage: Stage, how: dict[str, Any]) -> None:
        pool = stage.pool
        await pool.terminate(**how)

        with pytest.raises(PoolTerminatedError, match="pool main is terminated"):
            at_once(pool.claim())
        with pytest.raises(PoolTerminatedError, match="pool main is terminated"):
            at_once(pool.claim().__aenter__())
        with pytest.raises(PoolTerminatedError, match="pool main is terminated"):
            at_once(pool.claim(timeout=0))
        with pytest.raises(PoolTerminatedError, match="pool main is terminated"):
            at_once(pool.ready())
        with pytest.raises(PoolTerminatedError, match="pool main is terminated"):
            at_once(pool.start())
        with pytest.raises(PoolTerminatedError, match="pool main is terminated"):
            at_once(pool.__aenter__())
        at_once(pool.terminate())
        at_once(pool.terminate(grace=100, held="detach", timeout=1))
        pool.abort()
        assert pool.stats().backends == MappingProxyType({})
        assert pool.state is PoolState.TERMINATED

    play_in_each_way(phase, scene)


# How it goes.


@in_each_phase
def test_before_anything_is_awaited_the_state_changes_and_claims_are_refused(phase):
    async def scene(stage: Stage, how: dict[str, Any]) -> None:
        waiting = stage.pool.stats().waiting
        ending = stage.pool.terminate(**how)

        with contextlib.suppress(StopIteration):
            ending.send(None)

        assert stage.pool.state in (PoolState.TERMINATING, PoolState.TERMINATED)
        with pytest.raises(PoolTerminatedError):
            at_once(stage.pool.claim())
        assert stage.pool.stats().waiting == 0
        assert stage.refused == []
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(stage.refused) >= waiting
        ending.close()
        await stage.pool.terminate(grace=0)

    play_in_each_way(phase, scene)


@in_each_phase
def test_from_the_very_first_moment_no_connect_check_recycle_or_query_starts(phase):
    async def scene(stage: Stage, how: dict[str, Any]) -> None:
        queries = stage.resolver.calls
        stage.connector.forbid(allow={"close", "abort", "is_closed", "needs_recycle"})

        await stage.pool.terminate(**how)

        stage.connector.check()
        assert stage.resolver.calls == queries

    play_in_each_way(phase, scene)


def test_with_grace_the_claims_in_use_are_waited_for_and_not_a_moment_longer():
    async def scene(stage: Stage) -> None:
        began = stage.now
        ending = asyncio.create_task(stage.pool.terminate(grace=5))
        for claim in stage.claims:
            await asyncio.sleep(1)
            assert not ending.done()
            assert not claim.connection.closed
            claim.release()
        await ending
        assert stage.now - began == pytest.approx(len(stage.claims) + stage.connector.latency)
        await stage.assert_over()

    play(phases.claimed, scene)


@pytest.mark.parametrize("end", ["release", "discard", "fail", "forget"])
def test_a_claim_is_back_however_it_ends(end):
    async def scene(stage: Stage) -> None:
        stage.claims.append(await stage.pool.claim())
        began = stage.now
        ending = asyncio.create_task(stage.pool.terminate(grace=60))
        await asyncio.sleep(1)
        if end == "release":
            stage.claims.pop().release()
        elif end == "discard":
            stage.claims.pop().discard()
        elif end == "fail":
            stage.claims.pop().release(Outcome.ERROR)
        else:
            with pytest.warns(ResourceWarning, match="unreleased claim on pool main"):
                stage.claims.clear()
        await ending
        assert stage.now - began <= 1 + ALMOST_AT_ONCE
        assert stage.connector.count["on_recycle"] == 0
        await stage.assert_over()

    play(phases.idle, scene)


def test_idle_connections_are_closed_while_claims_are_waited_for():
    async def scene(stage: Stage) -> None:
        claim = await stage.pool.claim()
        await asyncio.sleep(1)  # the spares that replace it
        ending = asyncio.create_task(stage.pool.terminate(grace=60))
        await asyncio.sleep(stage.connector.latency)
        await settle()
        assert list(stage.connector.connections) == [claim.connection]
        claim.release()
        await ending

    play(phases.idle, scene)


def test_when_grace_is_over_everything_is_stopped():
    async def scene(stage: Stage) -> None:
        began = stage.now
        await stage.pool.terminate(grace=7)
        assert stage.now - began == pytest.approx(7)
        await stage.assert_over()

    play(phases.claimed, scene)


def test_endless_grace_waits_for_the_last_claim():
    async def scene(stage: Stage) -> None:
        ending = asyncio.create_task(stage.pool.terminate(grace=math.inf))
        await asyncio.sleep(1000)
        assert not ending.done()
        for claim in stage.claims:
            assert not claim.connection.closed
            claim.release()
        await ending
        await stage.assert_over()

    play(phases.claimed, scene, seeds=(0,))


@pytest.mark.parametrize(
    ("grace", "takes", "graceful"),
    [(5, 0.020, True), (5, 0.030, False), (0.010, 0.005, True), (0.010, 0.020, False), (0, 0.001, False)],
)
def test_without_claims_out_a_graceful_close_gets_25_ms_or_the_grace_if_that_is_less(grace, takes, graceful):
    async def scene(stage: Stage) -> None:
        stage.connector.slow(takes, "close")
        began = stage.now
        await stage.pool.terminate(grace=grace)
        assert stage.now - began == pytest.approx(takes if graceful else min(grace, 0.025))
        assert bool(stage.connector.count["abort"]) is not graceful
        await stage.assert_over()

    play(phases.idle, scene)


def test_without_grace_nothing_is_closed_gracefully():
    async def scene(stage: Stage) -> None:
        await stage.pool.terminate(grace=0)
        assert stage.connector.count["close"] == 0
        assert stage.connector.count["abort"]

    play(phases.idle, scene)


def test_with_claims_out_a_graceful_close_gets_the_grace():
    async def scene(stage: Stage) -> None:
        stage.claims.append(await stage.pool.claim())
        await asyncio.sleep(1)
        stage.connector.slow(3, "close")
        began = stage.now
        await stage.pool.terminate(grace=4)
        assert stage.now - began == pytest.approx(4)
        assert [call.operation for call in stage.connector.calls].count("abort") == 1  # the claimed one's

    play(phases.idle, scene)


def test_after_the_last_claim_has_come_back_a_close_gets_no_more_than_25_ms():
    async def scene(stage: Stage) -> None:
        claim = await stage.pool.claim()
        stage.connector.stall("close")
        ending = asyncio.create_task(stage.pool.terminate(grace=60))
        await asyncio.sleep(1)
        returned = stage.now
        claim.release()
        await ending
        assert stage.now - returned == pytest.approx(0.025)
        await stage.assert_over()

    play(phases.idle, scene)


@pytest.mark.parametrize("phase", [phase for phase in PHASES.values() if phase is not phases.leaving])
def test_nothing_is_waited_out(phase):
    async def scene(stage: Stage) -> None:
        for claim in stage.claims:
            claim.release()
        began = stage.now
        await stage.pool.terminate(grace=1000)
        assert stage.now - began <= ALMOST_AT_ONCE

    play(phase, scene)


def test_a_close_that_is_under_way_is_waited_for_and_not_begun_again():
    async def scene(stage: Stage) -> None:
        stage.connector.heal()  # the close that hangs goes on now
        await stage.pool.terminate()
        closed = [call.connection for call in stage.connector.calls if call.operation == "close"]
        assert len(closed) == len(set(map(id, closed)))
        assert stage.connector.count["abort"] == 0

    play(phases.closing, scene)


# Claims that are still out: revoke.


def test_revoke_aborts_the_connections_of_claims_that_are_out():
    async def scene(stage: Stage) -> None:
        out = [claim.connection for claim in stage.claims]
        await stage.pool.terminate(grace=0, held="revoke")
        assert all(connection.closed for connection in out)
        aborted = [call.connection for call in stage.connector.calls if call.operation == "abort"]
        assert sorted(map(id, aborted)) == sorted(map(id, out))

    play(phases.claimed, scene)


def test_the_connection_of_a_revoked_claim_raises_claim_revoked_error_from_then_on():
    async def scene(stage: Stage) -> None:
        claim = stage.claims[0]
        ending = asyncio.create_task(stage.pool.terminate(grace=1))
        await asyncio.sleep(0.999)
        assert not claim.connection.closed
        await ending
        with pytest.raises(ClaimRevokedError, match=claim.backend.name):
            _ = claim.connection
        claim.release()
        with pytest.raises(ClaimReleasedError):
            _ = claim.connection

    play(phases.claimed, scene)


def test_releasing_or_discarding_a_revoked_claim_calls_nothing():
    async def scene(stage: Stage) -> None:
        await stage.pool.terminate(grace=0)
        stage.connector.forbid()
        first, second, *others = stage.claims
        first.release()
        second.discard()
        for claim in others:
            claim.release(Outcome.ERROR)
            claim.release()
        stage.connector.check()
        assert_nothing_left(stage.pool)

    play(phases.claimed, scene)


def test_a_block_whose_claim_was_revoked_ends_as_it_would_have_ended():
    async def main() -> None:
        connector = FakeConnector()
        async with Pool("main", FixedResolver(["10.0.0.1:1"]), connector) as pool:
            with pytest.raises(ZeroDivisionError):
                await fail_in_a_block(pool, connector)
            with pytest.raises(PoolTerminatedError):
                await pool.claim()
        assert_nothing_left(pool)

    async def fail_in_a_block(pool: Pool[FakeConnection], connector: FakeConnector) -> None:
        async with pool.claim():
            await pool.terminate(grace=0)
            connector.forbid()
            raise ZeroDivisionError

    run(main)


# Claims that are still out: detach.


def test_a_detached_connection_stays_usable_and_is_aborted_on_release_synchronously_without_a_task():
    async def scene(stage: Stage) -> None:
        await stage.pool.terminate(grace=0, held="detach")
        await asyncio.sleep(100_000)
        stage.connector.forbid(allow={"abort"})
        for claim in stage.claims:
            assert await claim.connection.request("still there") == "still there"
        tasks = asyncio.all_tasks()
        for claim in stage.claims:
            connection = claim.connection
            claim.release()
            assert connection.closed
            with pytest.raises(ClaimReleasedError):
                _ = claim.connection
        assert asyncio.all_tasks() == tasks
        await stage.assert_over()
        assert stage.connector.count["abort"] == len(stage.claims)

    play(phases.claimed, scene)


@pytest.mark.parametrize("end", ["discard", "fail", "leave a block", "forget"])
def test_a_detached_connection_is_aborted_however_its_claim_ends(end):
    async def scene(stage: Stage) -> None:
        claim = stage.claims.pop()
        await stage.pool.terminate(grace=0, held="detach")
        stage.connector.forbid(allow={"abort"})
        connection = claim.connection
        if end == "discard":
            claim.discard()
        elif end == "fail":
            claim.release(Outcome.CANCELLED)
        elif end == "leave a block":
            with claim:
                pass
        else:
            with pytest.warns(ResourceWarning, match="unreleased claim on pool main"):
                del claim
            await settle()
        assert connection.closed
        stage.connector.check()
        while stage.claims:
            stage.claims.pop().release()

    play(phases.claimed, scene)


def test_detach_leaves_a_claim_that_came_back_in_time_to_the_graceful_end():
    async def scene(stage: Stage) -> None:
        ending = asyncio.create_task(stage.pool.terminate(grace=5, held="detach"))
        await asyncio.sleep(1)
        stage.claims.pop().release()
        await ending
        assert stage.connector.count["close"] == 1
        assert stage.connector.count["abort"] == 0
        for claim in stage.claims:
            claim.release()
        assert stage.connector.count["abort"] == len(stage.claims)

    play(phases.claimed, scene)


def test_detach_takes_nothing_from_who_claims_in_a_block_and_overrides_nothing():
    async def main() -> None:
        connector = Plain()
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), connector)
        await pool.start()
        await pool.ready()
        async with pool.claim() as connection:
            await pool.terminate(grace=0, held="detach")
            assert connection == ["open"]
            assert_nothing_left(pool)
        assert connection == ["open", "closed"]
        assert [one for one in connector.opened if one != ["open", "closed"]] == []

    run(main)


@pytest.mark.parametrize("held", ["revoke", "detach"])
def test_a_connection_that_was_handed_over_at_the_very_moment_is_valid_or_refused(held):
    async def main() -> None:
        connector = Plain()
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), connector, Policy(max_slots=1))
        await pool.start()
        first = await pool.claim()
        second = asyncio.create_task(pool.claim().__aenter__() if held == "revoke" else claim_in_block(pool))
        await settle()
        first.release()
        await pool.terminate(grace=0, held=held)
        if held == "revoke":
            with pytest.raises(PoolTerminatedError):
                await second
        else:
            assert await second == ["open"]
        assert connector.opened == [["open", "closed"]]
        assert_nothing_left(pool)

    async def claim_in_block(pool: Pool[list[str]]) -> list[str]:
        async with pool.claim() as connection:
            return list(connection)

    for seed in SEEDS:
        run(main, seed=seed)


# Waiting claims.


def test_ten_thousand_waiting_claims_get_pool_terminated_error_in_order_before_p():
    async def scene(stage: Stage) -> None:
        asyncio.get_running_loop().set_debug(False)  # which would note the place of each
        await stage.queue(10_000)
        stage.connector.forbid(allow={"close", "abort"})
        await stage.pool.terminate(grace=0)
        assert stage.refused == list(range(10_000))

    play(phases.claimed, scene, seeds=(0,))


def test_a_claim_that_waits_without_a_limit_is_refused_as_well():
    async def scene(stage: Stage) -> None:
        claim = asyncio.create_task(stage.pool.claim(timeout=math.inf).__aenter__())
        await settle()
        await stage.pool.terminate(grace=0)
        assert isinstance(claim.exception(), PoolTerminatedError)

    play(phases.claimed, scene)


def test_who_waits_in_ready_gets_pool_terminated_error_before_p():
    async def scene(stage: Stage) -> None:
        ready = asyncio.create_task(stage.pool.ready())
        await settle()
        await stage.pool.terminate()
        assert isinstance(ready.exception(), PoolTerminatedError)

    play(phases.connecting, scene)
    play(phases.resolving, scene)


def test_a_claim_whose_deadline_falls_on_the_termination_ends_with_one_of_the_two_errors():
    async def scene(stage: Stage) -> None:
        claim = asyncio.create_task(stage.pool.claim(timeout=1).__aenter__())
        await asyncio.sleep(1)
        await stage.pool.terminate(grace=0)
        assert isinstance(claim.exception(), PoolTerminatedError | TimeoutError)
        await stage.assert_over()

    play(phases.claimed, scene)


def test_claims_that_go_on_asking_never_get_anything_after_p():
    """Whether claims and terminate() fall together or not, a claim is valid or refused, and never hangs."""

    async def main() -> None:
        stage = Stage()
        await stage.start()

        async def ask() -> None:
            with contextlib.suppress(PoolTerminatedError):
                while True:
                    async with stage.pool.claim() as connection:
                        assert stage.pool.state is not PoolState.TERMINATED
                        assert not connection.closed
                        await asyncio.sleep(0.001)

        askers = [asyncio.create_task(ask()) for _ in range(10)]
        await asyncio.sleep(0.05)
        await stage.pool.terminate()
        stage.connector.forbid()
        await asyncio.gather(*askers)
        await stage.assert_over()

    for seed in range(10):
        run(main, seed=seed)


# Time.


def crowd(dead: int, hanging: int) -> list[Backend]:
    kinds = [("dead", dead), ("connect", hanging), ("check", hanging), ("close", hanging)]
    return [Backend(f"{kind}{number}", "10.0.0.1", 1) for kind, count in kinds for number in range(count)]


def test_500_dead_backends_and_100_connects_100_checks_and_100_closes_that_hang_take_at_most_50_ms():
    async def main() -> None:
        connector = FakeConnector()
        backends = crowd(500, 100)
        for backend in backends:
            if backend.name.startswith("dead"):
                connector.refuse(backend.name)
            elif backend.name.startswith("connect"):
                connector.stall("connect", backend.name)
        policy = Policy(
            spares_wanted=800,
            max_slots=800,
            max_slots_per_backend=1,
            health_interval=2,
            close_timeout=math.inf,
            min_connection_backoff=1,
        )
        resolver = phases.BookedResolver(backends)
        pool = Pool("main", resolver, connector, policy, rng=random.Random(1))
        await pool.start()
        await asyncio.sleep(1)
        for backend in backends:
            if backend.name.startswith("check"):
                connector.stall("validate", backend.name)
            elif backend.name.startswith("close"):
                connector.stall("close", backend.name)
        await asyncio.sleep(1.5)
        resolver.set([backend for backend in backends if not backend.name.startswith("close")])
        await asyncio.sleep(0.1)
        flying = [call.operation for call in connector.in_flight if not call.backend.name.startswith("dead")]
        assert [flying.count(operation) for operation in ("connect", "validate", "close")] == [100, 100, 100]
        assert len(pool.ledger().tasks) == 801

        began = asyncio.get_running_loop().time()
        await pool.terminate()

        assert asyncio.get_running_loop().time() - began <= ALMOST_AT_ONCE
        assert_nothing_left(pool)

    run(main)


# timeout.


def almost_a_minute_deaf(stage: Stage) -> None:
    def disturb(operation: str) -> None:
        stage.connector.stall(operation)
        stage.connector.deafen(58, operation)

    stage.disturb = disturb


async def deaf_connecting(stage: Stage) -> None:
    almost_a_minute_deaf(stage)
    await phases.connecting(stage)


async def deaf_acquiring(stage: Stage) -> None:
    almost_a_minute_deaf(stage)
    await phases.acquiring(stage)


def test_when_timeout_runs_out_termination_error_names_task_backend_how_long_and_where():
    async def scene(stage: Stage) -> None:
        began = stage.now
        with pytest.raises(TerminationError) as caught:
            await stage.pool.terminate(timeout=3)
        assert began + 3 <= stage.now <= began + 3 + ALMOST_AT_ONCE
        error = caught.value
        assert "pool main has not ended within 3 s" in str(error)
        for call in stage.connector.in_flight:
            assert call.task.startswith("qorb main slot ")
            assert f"{call.task}: connect for 3.5 s in _go_on_regardless (" in str(error)
        assert {call.backend.name for call in stage.connector.in_flight} == {"a", "b"}
        assert sorted(error.ledger.tasks) == sorted(call.task for call in stage.connector.in_flight)
        assert not error.ledger.empty
        stage.connector.heal()

    play(deaf_connecting, scene)


def test_termination_error_names_an_on_acquire_that_does_not_end():
    async def scene(stage: Stage) -> None:
        with pytest.raises(TerminationError) as caught:
            await stage.pool.terminate(timeout=3, grace=0)
        assert "on_acquire" in str(caught.value)
        assert "task 'claimer 0'" in str(caught.value)
        assert "3.1 s" in str(caught.value)
        assert "in _go_on_regardless (" in str(caught.value)
        assert any("on_acquire" in name for name in caught.value.ledger.tasks)

    play(deaf_acquiring, scene)


def test_termination_error_names_the_claims_that_are_out():
    async def scene(stage: Stage) -> None:
        stage.claims.append(await stage.pool.claim())
        await asyncio.sleep(2)
        with pytest.raises(TerminationError) as caught:
            await stage.pool.terminate(grace=100, timeout=3)
        text = str(caught.value)
        assert f"{stage.claims[0].backend.name}: " in text
        assert "5.0 s by task 'main'" in text
        stage.claims.pop().release()
        await stage.pool.terminate()
        await stage.assert_over()

    play(phases.idle, scene)


def test_termination_error_names_a_resolver_that_does_not_end():
    async def scene(stage: Stage) -> None:
        with pytest.raises(TerminationError) as caught:
            await stage.pool.terminate(timeout=3)
        assert "qorb main resolver: watch for 4.0 s in " in str(caught.value)
        assert caught.value.ledger.tasks == ("qorb main resolver",)

    async def phase(stage: Stage) -> None:
        async def not_listen() -> None:
            end = stage.now + 60
            while stage.now < end:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(end - stage.now)

        stage.resolver.during = not_listen
        await stage.start()
        await asyncio.sleep(1 - stage.connector.latency)

    play(phase, scene)


def test_a_second_terminate_goes_on_waiting_and_nothing_is_forgotten():
    async def scene(stage: Stage) -> None:
        for _ in range(3):
            with pytest.raises(TerminationError):
                await stage.pool.terminate(timeout=3)
            assert stage.pool.ledger().tasks
            assert stage.pool.state is PoolState.TERMINATING
        await stage.pool.terminate()
        await stage.assert_over()

    play(deaf_connecting, scene)
    play(deaf_acquiring, scene)


def test_a_timeout_that_is_long_enough_changes_nothing():
    async def scene(stage: Stage) -> None:
        await stage.pool.terminate(timeout=1000)
        await stage.assert_over()

    play(phases.waiting, scene)


def test_terminate_with_a_timeout_of_0_begins_and_says_what_is_left():
    async def scene(stage: Stage) -> None:
        with pytest.raises(TerminationError):
            await stage.pool.terminate(grace=1, timeout=0)
        assert stage.pool.state is PoolState.TERMINATING
        await stage.pool.terminate()
        await stage.assert_over()

    play(phases.claimed, scene)


def test_without_timeout_a_warning_every_five_seconds_says_what_is_left(caplog):
    async def scene(stage: Stage) -> None:
        caplog.clear()
        stage.connector.heal()
        stage.disturb("connect")
        await stage.pool.terminate(grace=0)
        warned = logged(caplog, "has not ended after")
        assert len(warned) == 11
        for number, text in enumerate(warned, 1):
            assert f"pool main has not ended after {5 * number:.1f} s: " in text
            for name in ("a", "b"):
                assert f" {name}: connect for {5 * number + 0.5:.1f} s in _go_on_regardless (" in text

    play(deaf_connecting, scene)


def test_while_claims_are_waited_for_a_warning_every_five_seconds_says_who_has_them(caplog):
    async def scene(stage: Stage) -> None:
        caplog.clear()
        await stage.pool.terminate(grace=18)
        warned = logged(caplog, "has not ended after")
        assert [f"{5 * number:.1f} s" in text for number, text in enumerate(warned, 1)] == [True] * 3
        assert all("by task 'main'" in text for text in warned)

    play(phases.claimed, scene)


def test_a_termination_of_less_than_five_seconds_or_just_the_default_grace_logs_no_warning(caplog):
    async def scene(stage: Stage) -> None:
        await stage.pool.terminate()

    play(phases.claimed, scene, seeds=tuple(range(10)))
    assert logged(caplog, "has not ended") == []


def test_a_second_stop_does_not_double_the_warnings(caplog):
    async def scene(stage: Stage) -> None:
        caplog.clear()
        ending = asyncio.create_task(stage.pool.terminate(grace=1))
        await asyncio.sleep(2)
        stage.pool.abort()
        stage.pool.abort()
        await ending
        assert 10 <= len(logged(caplog, "has not ended after")) <= 12

    play(deaf_connecting, scene)
