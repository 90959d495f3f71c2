"""How pools end on bad days: rows E1 to E13 of the catalogue, each by its number.

Each row is shown here in short; test_terminate*.py, test_lifecycle.py and test_processes.py go through it in depth.
"""

from __future__ import annotations

import asyncio
import math
import signal
from typing import Any

import pytest

from qorb import ClaimRevokedError, Policy, Pool, PoolState, PoolTerminatedError
from qorb.resolvers import FixedResolver
from qorb.testing import Attempt, FakeConnector, assert_nothing_left, at_every_await, run, settle
from tests import phases
from tests.phases import ALMOST_AT_ONCE, PHASES, Stage, play
from tests.pools import backends, now
from tests.test_claims import Quick
from tests.test_processes import run_program, server
from tests.test_terminate_at_every_await import let_go_and_assert_over

__all__ = ["server"]

in_each_phase = pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES.keys())


@in_each_phase
def test_e1_a_pool_that_is_terminated_in_any_phase_of_its_life_leaves_nothing(phase):
    async def scene(stage: Stage) -> None:
        await stage.pool.terminate(grace=0)
        await stage.assert_over()

    play(phase, scene)


@pytest.mark.parametrize("phase", [phases.idle, phases.closing, phases.waiting], ids=lambda phase: phase.__name__)
def test_e2_ten_callers_at_once_return_together_and_one_more_afterwards_just_returns(phase):
    async def scene(stage: Stage) -> None:
        returned: list[float] = []

        async def terminate() -> None:
            await stage.pool.terminate(grace=1)
            assert stage.pool.state is PoolState.TERMINATED
            returned.append(stage.now)

        await asyncio.gather(*(terminate() for _ in range(10)))
        await terminate()
        assert len(returned) == 11
        assert len(set(returned)) == 1
        await stage.assert_over()

    play(phase, scene)


@pytest.mark.parametrize("phase", [phases.connecting, phases.closing, phases.claimed], ids=lambda phase: phase.__name__)
def test_e3_a_termination_that_is_cancelled_at_any_point_is_completed_by_the_next_one(phase):
    async def scene(attempt: Attempt) -> None:
        stage = Stage()
        await phase(stage)
        await attempt.cancel(stage.pool.terminate(grace=0.1))
        await stage.pool.terminate(grace=0.1)
        await let_go_and_assert_over(stage)

    assert at_every_await(scene).points >= 1


@pytest.mark.parametrize("held", ["revoke", "detach"])
def test_e4_claims_that_are_held_get_the_grace_and_then_what_was_asked_for(held):
    async def scene(stage: Stage) -> None:
        began = stage.now
        connections = [claim.connection for claim in stage.claims]
        await stage.pool.terminate(grace=5, held=held)
        assert 5 <= stage.now - began <= 5 + ALMOST_AT_ONCE
        for claim, connection in zip(stage.claims, connections, strict=True):
            assert connection.closed is (held == "revoke")
            if held == "revoke":
                with pytest.raises(ClaimRevokedError):
                    _ = claim.connection
            else:
                assert claim.connection is connection
                claim.release()
                assert connection.closed
        await stage.assert_over()

    play(phases.claimed, scene)


def test_e4_without_a_word_claims_that_are_held_get_five_seconds():
    async def scene(stage: Stage) -> None:
        began = stage.now
        await stage.pool.terminate()
        assert 5 <= stage.now - began <= 5 + ALMOST_AT_ONCE

    play(phases.claimed, scene)


def test_e5_however_many_wait_they_are_refused_in_their_order_and_before_the_termination_is_over():
    async def main():
        stage = Stage()
        await phases.claimed(stage)
        await stage.queue(1_000)
        assert stage.pool.stats().waiting == 1_000
        began = stage.now
        ending = asyncio.create_task(stage.pool.terminate(grace=1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stage.pool.stats().waiting == 0  # all at once, in one go
        await ending
        assert stage.refused == list(range(1_000))
        assert stage.now - began <= 1 + ALMOST_AT_ONCE
        await stage.clear()

    run(main)


@pytest.mark.parametrize("connector", [FakeConnector, Quick])
@pytest.mark.parametrize("claim_first", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_e6_a_claim_that_races_with_the_end_is_valid_until_revoked_or_refused_and_none_is_served_later(
    connector, claim_first, seed
):
    async def main():
        over = False
        outcomes: list[str] = []

        async def claim() -> None:
            try:
                async with pool.claim() as connection:
                    assert not over
                    assert not connection.closed
                    outcomes.append("served")
                    await asyncio.sleep(1)
                    assert connection.closed is over
            except PoolTerminatedError:
                outcomes.append("refused")

        async def end() -> None:
            nonlocal over
            await pool.terminate(grace=0.5)
            over = True

        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), connector(), Policy(spares_wanted=2, max_slots=2))
        await pool.start()
        await pool.ready()
        kinds = [claim, claim, claim, end] if claim_first else [end, claim, claim, claim]
        await asyncio.gather(*(kind() for kind in kinds))
        assert len(outcomes) == 3
        assert_nothing_left(pool)
        with pytest.raises(PoolTerminatedError):
            await pool.claim(timeout=0)

    run(main, seed=seed)


@pytest.mark.parametrize("operation", ["connect", "validate", "on_acquire", "on_recycle", "close"])
def test_e7_terminate_called_by_the_connector_starts_the_end_and_does_not_wait_for_itself(operation):
    async def main():
        connector = FakeConnector()
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), connector, Policy(spares_wanted=1))
        returned: list[str] = []

        async def end(_backend: object) -> None:
            await pool.terminate()
            returned.append("and the connector goes on")

        connector.during(operation, end)
        await pool.start()
        try:
            claim = await pool.claim()
            claim.release() if operation == "on_recycle" else claim.discard() if operation == "close" else None
            await asyncio.sleep(31)
            claim.release()
        except PoolTerminatedError:
            assert operation in ("connect", "on_acquire")
        assert pool.state is not PoolState.RUNNING
        began = now()
        await pool.terminate()
        assert now() - began <= ALMOST_AT_ONCE
        assert returned == []
        assert_nothing_left(pool)

    run(main)


def test_e7_terminate_called_by_the_resolver_starts_the_end_and_does_not_wait_for_itself():
    async def main():
        stage = Stage()
        stage.resolver.during = stage.pool.terminate
        await stage.pool.start()
        await asyncio.sleep(1)
        assert stage.pool.state is PoolState.TERMINATED
        await stage.assert_over()

    run(main)


def test_e7_abort_and_terminate_in_an_observer_start_the_end_and_wait_for_nothing():
    async def main():
        stage = Stage()
        ending: list[asyncio.Task[Any]] = []

        def react(event: object) -> None:
            if type(event).__name__ == "ConnectDone" and not ending:
                ending.append(asyncio.create_task(stage.pool.terminate()))

        stage.react = react
        await stage.pool.start()
        await asyncio.sleep(1)
        assert ending[0].done()
        await stage.assert_over()

    run(main)


def test_e8_five_hundred_dead_backends_are_gone_at_once():
    async def main():
        connector = FakeConnector()
        for name in range(0, 500, 2):
            connector.refuse(f"b{name}")
            connector.stall("connect", f"b{name + 1}")
        policy = Policy(spares_wanted=500, max_slots=500, connect_timeout=math.inf)
        pool = Pool("main", FixedResolver(backends(500)), connector, policy)
        await pool.start()
        await asyncio.sleep(1)
        assert len(pool.ledger().tasks) == 501
        began = now()
        await pool.terminate()
        assert now() - began <= 0.050
        assert_nothing_left(pool)

    run(main)


@pytest.mark.parametrize("program", ["dropped"])
def test_e9_a_pool_that_is_dropped_warns_and_the_server_sees_its_connections_close(server, program):
    ended = run_program(server, program)
    assert (ended.code, ended.out) == (0, ["done"])
    assert len(ended.warnings) == 1, ended.err
    assert "unterminated pool main" in ended.warnings[0]


def test_e9_a_pool_that_is_dropped_has_no_task_after_two_turns_of_the_loop():
    async def main():
        connector = FakeConnector()
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), connector)
        await pool.start()
        await pool.ready()
        await settle()
        with pytest.warns(ResourceWarning, match="unterminated pool main"):
            del pool
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("qorb ")] == []
        assert list(connector.unclosed) == []

    run(main)


@pytest.mark.parametrize("program", ["dropped_when_the_loop_is_closed", "kept_when_the_loop_is_closed"])
def test_e10_a_loop_that_is_closed_under_a_pool_brings_one_warning_and_no_traceback(server, program):
    ended = run_program(server, program)
    assert (ended.code, ended.out) == (0, ["done"])
    assert len(ended.warnings) == 1, ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("program", "signals", "code", "said"),
    [
        ("interrupted", [signal.SIGINT], 130, ["ready", "done"]),
        ("interrupted_twice", [signal.SIGINT, signal.SIGINT], 130, ["ready", "terminating", "done"]),
        ("killed_with_a_handler_of_the_loop", [signal.SIGTERM], 143, ["ready", "done"]),
        ("killed", [signal.SIGTERM], -signal.SIGTERM, ["ready"]),
    ],
    ids=["SIGINT", "SIGINT twice", "SIGTERM with a handler", "SIGTERM"],
)
def test_e11_signals_end_the_process_with_its_code_and_a_clean_stderr_and_the_server_sees_it(
    server, program, signals, code, said
):
    ended = run_program(server, program, *signals)
    assert (ended.code, ended.out, ended.err) == (code, said, "")


def test_e12_after_fork_the_child_is_refused_and_the_parent_goes_on(server):
    ended = run_program(server, "child_exits", warn=False)
    assert (ended.code, ended.out, ended.err) == (0, ["child 0", "done"], "")
    assert server.accepted == 4


def test_e13_an_interpreter_that_exits_while_a_daemon_thread_runs_the_loop_does_not_hang(server):
    ended = run_program(server, "loop_in_a_daemon_thread")
    assert (ended.code, ended.out) == (0, ["done"])
    assert "Traceback" not in ended.err
