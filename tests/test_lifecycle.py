"""Pools that are dropped, whose loop is closed, or that are aborted from where no loop runs."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from qorb import ClaimRevokedError, Policy, Pool, PoolState, PoolTerminatedError
from qorb.connectors import TcpConnector
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, assert_nothing_left, run
from qorb.testing._loop import VirtualLoop
from tests import phases
from tests.connectors.peers import Listener, open_sockets, receive_end
from tests.phases import PHASES, Stage, at_once

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# The others have claims out, and a claim keeps its pool alive.
DROPPABLE = {
    name: phase
    for name, phase in PHASES.items()
    if phase not in (phases.new, phases.acquiring, phases.claimed, phases.waiting, phases.handing_over, phases.leaving)
}

in_each_phase = pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES.keys())
in_each_droppable_phase = pytest.mark.parametrize("phase", DROPPABLE.values(), ids=DROPPABLE.keys())


def new_loop() -> VirtualLoop:
    """A loop in virtual time that the test runs, stops and closes by itself."""
    return VirtualLoop(seed=0, patience=1_000_000)


async def set_up(phase: Callable[[Stage], Awaitable[Any]]) -> Stage:
    stage = Stage()
    await phase(stage)
    return stage


async def send_claimers_away(stage: Stage) -> None:
    for claimer in stage.claimers:
        claimer.cancel()
    if stage.claimers:
        await asyncio.wait(stage.claimers)
    stage.claimers.clear()


def drop(stage: Stage) -> None:
    """Drop the pool, which must be alive no longer and warn once."""
    gone = weakref.ref(stage.pool)

    def let_go() -> None:
        del stage.pool
        gc.collect()

    with pytest.warns(ResourceWarning, match="unterminated pool main") as caught:
        let_go()
    assert len(caught) == 1
    del caught
    assert gone() is None


def tasks_of_pools(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks(loop) if task.get_name().startswith("qorb ")]


# Dropped without terminate().


@in_each_droppable_phase
def test_a_pool_that_is_dropped_warns_and_is_gone_within_two_turns_of_the_loop(phase):
    async def main() -> None:
        stage = await set_up(phase)
        await send_claimers_away(stage)
        queries = stage.resolver.calls
        drop(stage)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert tasks_of_pools(asyncio.get_running_loop()) == []
        assert list(stage.connector.unclosed) == []
        assert stage.connector.in_flight == []
        assert stage.resolver.watching == 0
        stage.connector.forbid()
        await asyncio.sleep(100_000)
        stage.connector.check()
        assert stage.resolver.calls == queries

    run(main)


def test_sockets_of_a_dropped_pool_close_within_two_turns_of_the_loop(run_real):
    async def main() -> None:
        with Listener() as listener:
            before = open_sockets()
            pool = Pool("dropped", FixedResolver([listener.backend]), TcpConnector(), Policy(spares_wanted=3))
            await pool.start()
            await pool.ready()
            assert len(open_sockets() - before) == 3
            with pytest.warns(ResourceWarning, match="unterminated pool dropped"):
                del pool
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert tasks_of_pools(asyncio.get_running_loop()) == []
            assert open_sockets() == before
            for _ in range(3):
                with await listener.accept() as peer:
                    await receive_end(peer)

    run_real(main)


def test_a_pool_that_another_thread_collects_ends_as_well(run_real):
    async def main() -> None:
        connector = FakeConnector()
        pool: Any = Pool("main", FixedResolver(["10.0.0.1:1"]), connector)
        await pool.start()
        await pool.ready()
        cycle: list[Any] = [pool]
        cycle.append(cycle)
        del pool, cycle
        with pytest.warns(ResourceWarning, match="unterminated pool main"):
            await asyncio.to_thread(gc.collect)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert list(connector.connections) == []

    run_real(main)


@pytest.mark.parametrize("closed", [False, True])
def test_a_pool_that_is_collected_together_with_everything_round_it_ends_without_a_complaint(closed):
    async def start() -> Any:
        forever = Policy(rebalance_interval=math.inf, health_interval=math.inf, long_claim_warning=math.inf)
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), connector, forever)
        await pool.start()
        await pool.ready()
        return pool

    def hide_in_a_cycle(pool: Any) -> None:
        cycle: list[Any] = [pool]
        cycle.append(cycle)

    connector = FakeConnector()
    loop = new_loop()
    hide_in_a_cycle(loop.run_until_complete(start()))
    if closed:
        loop.close()
    with pytest.warns(ResourceWarning, match="unterminated pool main") as caught:
        gc.collect()
    assert len(caught) == 1
    if not closed:
        loop.run_until_complete(asyncio.sleep(0))
        assert tasks_of_pools(loop) == []
        loop.close()
    assert list(connector.unclosed) == []


def test_a_claim_keeps_its_pool_alive():
    async def main() -> None:
        pool: Any = Pool("main", FixedResolver(["10.0.0.1:1"]), FakeConnector())
        await pool.start()
        claim = await pool.claim()
        alive = weakref.ref(pool)
        del pool
        gc.collect()
        assert not claim.connection.closed
        await alive().terminate(grace=0)

    run(main)


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("end", ["served", "cancelled", "timed out"])
def test_claims_that_have_waited_do_not_keep_their_pool_alive(timeout, end):
    async def use(pool: Pool[Any]) -> None:
        async with pool.claim(timeout=timeout):
            await asyncio.sleep(0.1)

    async def main() -> None:
        stage = Stage(Policy(max_slots=1, claim_timeout=60))
        await stage.start()
        stage.claims.append(await stage.pool.claim())
        users = [asyncio.create_task(use(stage.pool)) for _ in range(3)]
        await asyncio.sleep(61 if end == "timed out" else 1)
        if end == "cancelled":
            [user.cancel() for user in users]
        stage.claims.pop().release()
        await asyncio.wait(users)
        assert [user.cancelled() for user in users] == [end == "cancelled"] * 3
        assert [end == "cancelled" or bool(user.exception()) for user in users] == [end != "served"] * 3
        del users
        drop(stage)

    run(main)


def test_a_pool_that_was_never_started_is_dropped_without_a_word():
    pool = Pool("main", FixedResolver(["10.0.0.1:1"]), FakeConnector())
    del pool


@in_each_phase
def test_a_pool_that_was_terminated_is_dropped_without_a_word(phase):
    async def main() -> None:
        stage = await set_up(phase)
        await stage.pool.terminate(grace=0)
        await stage.clear()
        gone = weakref.ref(stage.pool)
        del stage.pool
        gc.collect()
        assert gone() is None

    run(main)


def test_a_pool_that_is_dropped_while_it_is_being_terminated_ends_without_a_word():
    async def main() -> None:
        stage = await set_up(phases.closing)
        ending = asyncio.create_task(stage.pool.terminate())
        await asyncio.sleep(0.001)
        ending.cancel()
        await asyncio.wait([ending])
        del ending, stage.pool
        gc.collect()
        await asyncio.sleep(0.05)
        assert tasks_of_pools(asyncio.get_running_loop()) == []
        assert list(stage.connector.unclosed) == []

    run(main)


# Dropped when the loop is closed.


@in_each_droppable_phase
def test_a_pool_that_is_dropped_when_its_loop_is_closed_warns_once_and_closes_its_connections(phase):
    loop = new_loop()
    stage = loop.run_until_complete(set_up(phase))
    loop.run_until_complete(send_claimers_away(stage))
    loop.close()
    drop(stage)
    gc.collect()
    assert list(stage.connector.unclosed) == []
    assert stage.connector.in_flight == []
    assert stage.resolver.watching == 0


def test_sockets_of_a_pool_that_is_dropped_when_its_loop_is_closed_are_closed():
    with Listener() as listener:
        before = open_sockets()
        loop = asyncio.new_event_loop()
        pool: Any = Pool("main", FixedResolver([listener.backend]), TcpConnector(), Policy(spares_wanted=3))
        loop.run_until_complete(pool.start())
        loop.run_until_complete(pool.ready())
        assert len(open_sockets() - before) > 3
        loop.close()
        with pytest.warns(ResourceWarning, match="unterminated pool main") as caught:
            del pool
        gc.collect()
        assert len(caught) == 1
        assert open_sockets() == before


@pytest.mark.parametrize(
    "phase", [phases.claimed, phases.waiting, phases.handing_over, phases.leaving, phases.closing, phases.shrinking]
)
def test_a_pool_that_is_dropped_in_the_midst_of_its_termination_when_its_loop_is_closed_warns_once(phase):
    async def begin_to_end(stage: Stage) -> None:
        await send_claimers_away(stage)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await stage.pool.terminate(grace=1000)

    loop = new_loop()
    stage = loop.run_until_complete(set_up(phase))
    loop.run_until_complete(begin_to_end(stage))
    assert stage.pool.state is PoolState.TERMINATING
    loop.close()
    stage.claims.clear()
    drop(stage)
    gc.collect()
    assert list(stage.connector.unclosed) == []


async def start_tasks(stage: Stage, *, held: str) -> list[asyncio.Task[None]]:
    """Start tasks that hold claims, one way or the other, and a task that waits for one."""

    async def hold() -> None:
        if held == "in a block":
            async with stage.pool.claim():
                await asyncio.get_running_loop().create_future()
        else:
            with await stage.pool.claim():
                await asyncio.get_running_loop().create_future()

    await stage.start()
    tasks = [asyncio.create_task(hold()) for _ in range(stage.pool.policy.max_slots + 1)]
    await asyncio.sleep(1)
    assert stage.pool.stats().waiting == 1
    for task in tasks:
        task._log_destroy_pending = False  # they are the test's, and nobody will end them
    return tasks


@pytest.mark.parametrize("held", ["in a block", "by hand"])
@pytest.mark.parametrize("first", ["the tasks", "all together"])
def test_tasks_with_claims_that_are_collected_when_the_loop_is_closed_leave_one_warning_and_no_traceback(held, first):
    loop = new_loop()
    stage = loop.run_until_complete(set_up(phases.new))
    tasks = loop.run_until_complete(start_tasks(stage, held=held))
    loop.close()
    if first == "the tasks":
        # Those with a claim are kept alive by nobody else, unlike the one that waits: it stands in the line.
        tasks.clear()
        gc.collect()
    del tasks, stage.resolver  # which keeps hold of what it publishes to
    drop(stage)
    assert list(stage.connector.unclosed) == []


@pytest.mark.parametrize("end", ["release", "discard", "forget"])
def test_a_detached_connection_is_aborted_although_the_loop_is_closed_by_then(end):
    loop = new_loop()
    stage = loop.run_until_complete(set_up(phases.claimed))
    loop.run_until_complete(stage.pool.terminate(grace=0, held="detach"))
    loop.close()
    stage.connector.forbid(allow={"abort"})
    assert len(stage.connector.connections) == len(stage.claims)
    while stage.claims:
        claim = stage.claims.pop()
        if end == "release":
            claim.release()
        elif end == "discard":
            claim.discard()
        else:
            with pytest.warns(ResourceWarning, match="unreleased claim on pool main"):
                del claim
    assert list(stage.connector.unclosed) == []
    stage.connector.check()


# KeyboardInterrupt and SystemExit in the connector: they leave the loop, and the pool is whole.


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("operation", ["connect", "validate", "on_acquire", "on_recycle", "close", "abort"])
def test_what_stops_the_loop_in_the_connector_does_not_keep_the_pool_from_ending(operation, error):
    class Raising(FakeConnector):
        def abort(self, connection: Any) -> None:
            super().abort(connection)
            if raising and operation == "abort":
                raising.clear()
                raise error

    raising = [True]

    async def live() -> None:
        if operation != "abort":
            stage.connector.fail(operation, error)
        await stage.pool.start()
        claim = await stage.pool.claim()
        await asyncio.sleep(0.1)
        claim.release()
        await asyncio.sleep(31)
        await stage.pool.terminate(grace=0 if operation == "abort" else 5)

    async def set_up_with_connector() -> Stage:
        return Stage(connector=Raising())

    loop = new_loop()
    stage = loop.run_until_complete(set_up_with_connector())
    living = loop.create_task(live())
    with pytest.raises(error):
        loop.run_forever()
    stage.connector.heal()
    living.cancel()
    loop.run_until_complete(asyncio.wait([living]))
    assert living.cancelled() or type(living.exception()) is error
    loop.run_until_complete(stage.pool.terminate())
    loop.run_until_complete(stage.assert_over())
    loop.close()


@pytest.mark.parametrize("closing", [0, 1, 2])
def test_when_the_stop_itself_is_interrupted_the_others_are_told_a_second_later(closing):
    class Raising(FakeConnector):
        def abort(self, connection: Any) -> None:
            super().abort(connection)
            if raising:
                raising.clear()
                raise KeyboardInterrupt

    raising: list[bool] = []

    async def one_closes_and_does_not_end() -> Stage:
        stage = Stage(Policy(max_slots=3, close_timeout=math.inf), Raising())
        await stage.start()
        await stage.claim_all()
        stage.connector.stall("close")
        stage.claims.pop(closing).discard()
        while stage.claims:
            stage.claims.pop().release()
        await asyncio.sleep(1)
        assert stage.in_flight("close") == 1
        return stage

    loop = new_loop()
    stage = loop.run_until_complete(one_closes_and_does_not_end())
    raising.append(True)
    ending = loop.create_task(stage.pool.terminate(grace=0))
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert isinstance(ending.exception(), KeyboardInterrupt)
    began = loop.time()
    loop.run_until_complete(stage.pool.terminate())
    assert loop.time() - began <= 1
    loop.run_until_complete(stage.assert_over())
    loop.close()


# Aborted from outside.


@in_each_phase
def test_abort_needs_no_running_loop(phase):
    loop = new_loop()
    stage = loop.run_until_complete(set_up(phase))
    stage.pool.abort()
    assert stage.pool.state is not PoolState.RUNNING
    assert list(stage.connector.connections) == []
    assert stage.pool.stats().waiting == 0
    for claim in stage.claims:
        with pytest.raises(ClaimRevokedError):
            _ = claim.connection
    loop.run_until_complete(stage.pool.terminate())
    loop.run_until_complete(stage.assert_over())
    loop.run_until_complete(stage.clear())
    assert sorted(stage.refused) == list(range(len(stage.claimers)))
    loop.close()


@in_each_phase
def test_abort_needs_no_open_loop(phase):
    loop = new_loop()
    stage = loop.run_until_complete(set_up(phase))
    loop.close()
    for claimer in stage.claimers:
        claimer._log_destroy_pending = False  # they are the test's, and nobody can end them any more
    stage.pool.abort()
    assert stage.pool.state is PoolState.TERMINATED
    assert stage.pool.ledger().empty
    assert list(stage.connector.unclosed) == []
    assert stage.resolver.watching == 0
    for claim in stage.claims:
        with pytest.raises(ClaimRevokedError):
            _ = claim.connection
        claim.release()
    with pytest.raises(PoolTerminatedError):
        at_once(stage.pool.claim())
    at_once(stage.pool.terminate())
    stage.pool.abort()
    assert stage.pool.ledger().empty


def test_abort_may_be_called_from_another_thread(run_real):
    async def main() -> None:
        connector = FakeConnector()
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), connector, Policy(max_slots=2))
        await pool.start()
        claims = [await pool.claim() for _ in range(2)]
        waiting = asyncio.ensure_future(pool.claim().__aenter__())
        await asyncio.sleep(0)
        await asyncio.to_thread(pool.abort)
        with pytest.raises(PoolTerminatedError):
            await waiting
        await pool.terminate()
        for claim in claims:
            with pytest.raises(ClaimRevokedError):
                _ = claim.connection
        assert list(connector.connections) == []
        assert_nothing_left(pool)

    run_real(main)


def test_abort_closes_sockets_although_the_loop_stands_still():
    with Listener() as listener:
        loop = asyncio.new_event_loop()
        before = open_sockets()
        pool = Pool("main", FixedResolver([listener.backend]), TcpConnector(), Policy(spares_wanted=3))
        loop.run_until_complete(pool.start())
        loop.run_until_complete(pool.ready())
        pool.abort()
        for _ in range(3):  # the peers learn it now
            with listener.sock.accept()[0] as peer:
                peer.settimeout(60)
                assert peer.recv(1) == b""
        loop.run_until_complete(pool.terminate())
        loop.run_until_complete(asyncio.sleep(0))
        assert open_sockets() == before
        loop.close()
