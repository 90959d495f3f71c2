"""Terminations that are cancelled, and that cut in on what others do: at every await, with every timing."""

from __future__ import annotations

import asyncio
import contextlib
import math
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from qorb import ClaimRevokedError, ConnectError, Outcome, PoolError, PoolState, PoolTerminatedError
from qorb.testing import at_every_await, settle
from tests import phases
from tests.phases import PHASES, Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from qorb.testing import Attempt

WAYS: tuple[dict[str, Any], ...] = ({"grace": 1}, {"grace": 0}, {"grace": 1, "held": "detach"})


def wait_for(operation: Awaitable[Any]) -> Awaitable[Any]:
    return asyncio.wait_for(operation, math.inf)


async def let_go_and_assert_over(stage: Stage) -> None:
    for claim in stage.claims:
        claim.release()
    await stage.assert_over()
    await stage.clear()
    assert sorted(stage.refused + stage.served) == list(range(len(stage.claimers)))


@pytest.mark.parametrize("by", ["cancel", "timeout", "anyio", wait_for])
@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES.keys())
def test_terminate_that_is_cancelled_at_any_await_and_called_again_ends_the_pool(phase, by):
    for how in WAYS:

        async def scene(attempt: Attempt, how: dict[str, Any] = how) -> None:
            stage = Stage()
            await phase(stage)
            await attempt.cancel(stage.pool.terminate(**how))
            assert stage.pool.state is not PoolState.RUNNING
            assert stage.pool.stats().waiting == 0
            await stage.pool.terminate(**how)
            await let_go_and_assert_over(stage)

        at_every_await(scene, by=by, at_least=0 if phase is phases.new else 1)


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES.keys())
def test_terminate_that_is_cancelled_at_any_await_ends_the_pool_without_being_called_again(phase):
    async def scene(attempt: Attempt) -> None:
        stage = Stage()
        await phase(stage)
        await attempt.cancel(stage.pool.terminate(grace=1))
        await asyncio.sleep(1.1)
        await let_go_and_assert_over(stage)

    at_every_await(scene, at_least=0 if phase is phases.new else 1)


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES.keys())
def test_any_number_of_cancelled_terminations_in_a_row_end_the_pool(phase):
    async def scene(attempt: Attempt) -> None:
        stage = Stage()
        await phase(stage)
        for grace in (2, 1, 0):
            await attempt.cancel(stage.pool.terminate(grace=grace))
            await asyncio.sleep(0.01)
        await stage.pool.terminate()
        await let_go_and_assert_over(stage)

    at_every_await(scene, at_least=0 if phase is phases.new else 1)


def test_leaving_the_pool_s_block_that_is_cancelled_at_any_await_ends_the_pool():
    async def scene(attempt: Attempt) -> None:
        stage = Stage()

        async def body() -> None:
            async with stage.pool as pool:
                async with pool.claim() as connection:
                    await connection.request()
                stage.claims.append(await pool.claim())

        await attempt.cancel(body())
        await asyncio.sleep(5.1)
        await let_go_and_assert_over(stage)

    at_every_await(scene, at_least=5)


# Claims that a termination cuts in on.


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("phase", [phases.idle, phases.claimed, phases.waiting, phases.connecting, phases.acquiring])
def test_a_claim_that_a_termination_cuts_in_on_is_valid_or_refused(phase, how):
    async def scene(attempt: Attempt) -> None:
        stage = Stage()
        ended: list[asyncio.Task[None]] = []

        async def claim() -> None:
            try:
                async with stage.pool.claim() as connection:
                    over = stage.pool.state is PoolState.TERMINATED
                    assert not connection.closed
                    await connection.request()
                    assert not over or how.get("held") == "detach"
            except (PoolTerminatedError, ConnectError):
                assert stage.pool.state is not PoolState.RUNNING

        def end() -> None:
            ended.append(asyncio.get_running_loop().create_task(stage.pool.terminate(**how)))

        async def come_back() -> None:
            await asyncio.sleep(0.5)
            stage.connector.heal()
            while stage.claims:
                stage.claims.pop().release()
            stage.let_go.set()

        await phase(stage)
        returning = asyncio.create_task(come_back())
        await attempt.meanwhile(claim(), end)
        await returning
        await stage.pool.terminate(**how)
        await asyncio.gather(*ended)
        await let_go_and_assert_over(stage)

    at_every_await(scene, at_least=1)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_a_claim_by_hand_that_a_termination_cuts_in_on_is_valid_or_refused(how):
    async def scene(attempt: Attempt) -> None:
        stage = Stage()

        async def claim() -> None:
            try:
                claim = await stage.pool.claim()
            except PoolTerminatedError:
                return
            stage.claims.append(claim)
            with contextlib.suppress(ClaimRevokedError, ConnectError):
                await claim.connection.request()

        await stage.pool.start()
        await attempt.meanwhile(claim(), lambda: asyncio.ensure_future(stage.pool.terminate(**how)))
        await stage.pool.terminate(**how)
        await let_go_and_assert_over(stage)

    at_every_await(scene, at_least=2)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_starting_and_getting_ready_may_be_cut_in_on_by_a_termination(how):
    async def scene(attempt: Attempt) -> None:
        stage = Stage()

        async def begin() -> None:
            with contextlib.suppress(PoolTerminatedError):
                await stage.pool.start()
                await stage.pool.ready()

        await attempt.meanwhile(begin(), lambda: asyncio.ensure_future(stage.pool.terminate(**how)))
        await stage.pool.terminate(**how)
        await let_go_and_assert_over(stage)

    at_every_await(scene, at_least=1)


@pytest.mark.parametrize("phase", [phases.waiting, phases.acquiring, phases.checking, phases.closing])
def test_a_termination_that_abort_cuts_in_on_ends_at_once(phase):
    async def scene(attempt: Attempt) -> None:
        stage = Stage()
        await phase(stage)
        began = stage.now
        await attempt.meanwhile(stage.pool.terminate(grace=1), stage.pool.abort)
        assert stage.now - began <= 1
        await let_go_and_assert_over(stage)

    at_every_await(scene, at_least=1)


# Tasks of the pool that somebody cancels behind its back, at each of their awaits.


async def story(stage: Stage) -> None:
    """Let slots connect, fail, be checked, recycled, closed, converted and removed, as long as the pool lives."""
    pool, connector = stage.pool, stage.connector
    with contextlib.suppress(PoolError):
        await pool.start()
        for outcome in (Outcome.CLEAN, Outcome.ERROR):
            stage.claims.append(await pool.claim(timeout=1))
            await asyncio.sleep(0.01)
            stage.claims.pop().release(outcome)
        await asyncio.sleep(30.5)
        stage.resolver.set([phases.Backend("b", "10.0.0.9", 1)])
        await asyncio.sleep(0.5)
        connector.refuse()
        stage.claims.append(await pool.claim(timeout=1))
        stage.claims.pop().discard()
        await asyncio.sleep(0.5)
        connector.heal()
        stage.claims.append(await pool.claim(timeout=30))
        await stage.queue(2)


@pytest.mark.parametrize(("tasks", "at_least"), [("qorb main slot *", 50), ("qorb main resolver", 2)])
def test_a_task_of_the_pool_that_is_cancelled_behind_its_back_at_any_await_ends_the_pool_with_one_warning(
    tasks, at_least
):
    async def scene(attempt: Attempt) -> None:
        stage = Stage()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await story(stage)
            await settle()
            ended = stage.pool.state is not PoolState.RUNNING
            await stage.pool.terminate(grace=0.1)
            await let_go_and_assert_over(stage)
        if ended:
            assert [warning.category for warning in caught] == [ResourceWarning]
        else:
            assert caught == []
        del attempt

    at_every_await(scene, tasks=tasks, timings=["suspended", "same tick"], at_least=at_least)
