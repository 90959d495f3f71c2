"""Who may call terminate() and abort(), from where, how often; and what else may end a pool."""

from __future__ import annotations

import asyncio
import contextlib
import math
import warnings
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from qorb import ClaimRevokedError, Outcome, Pool, PoolError, PoolState, PoolTerminatedError, TerminationError
from qorb import events as happenings
from qorb._resolving import Watch
from qorb._slot import Slot
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, assert_nothing_left, run, settle
from tests import phases
from tests.phases import ALMOST_AT_ONCE, PHASES, Stage, at_once, play
from tests.pools import OF_RESOLVERS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from qorb.events import Event

OPERATIONS = ("connect", "validate", "on_acquire", "on_recycle", "close")

in_each_phase = pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES.keys())


@contextlib.contextmanager
def unhandled_errors() -> Iterator[list[dict[str, Any]]]:
    """Collect what the running loop's exception handler is told, instead of failing."""
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    yield told
    loop.set_exception_handler(None)


def tasks_of_the_pool() -> list[asyncio.Task[Any]]:
    tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("qorb ")]
    return sorted(tasks, key=lambda task: task.get_name())


# Several callers.


@in_each_phase
def test_concurrent_callers_all_return_at_the_same_p(phase):
    async def scene(stage: Stage) -> None:
        callers = [asyncio.create_task(stage.pool.terminate(grace=1)) for _ in range(10)]
        await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
        assert all(caller.done() for caller in callers)
        await stage.assert_over()

    play(phase, scene)


@in_each_phase
def test_a_caller_who_comes_later_returns_at_the_same_p(phase):
    async def scene(stage: Stage) -> None:
        callers = []
        for delay in (0, 0.3, 0.3, 0.3):
            await asyncio.sleep(delay)
            callers.append(asyncio.create_task(stage.pool.terminate(grace=1)))
        await asyncio.gather(callers[0])
        assert stage.pool.state is PoolState.TERMINATED
        await asyncio.gather(*callers)
        await stage.assert_over()

    play(phase, scene)


@in_each_phase
def test_cancelling_a_caller_or_all_of_them_does_not_stop_the_termination(phase):
    async def scene(stage: Stage) -> None:
        callers = [asyncio.create_task(stage.pool.terminate(grace=1)) for _ in range(3)]
        await settle()
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        await asyncio.sleep(1.1)
        await stage.assert_over()

    play(phase, scene)


def test_a_caller_who_is_not_cancelled_goes_on_waiting():
    async def scene(stage: Stage) -> None:
        stays = asyncio.create_task(stage.pool.terminate(grace=1))
        goes = asyncio.create_task(stage.pool.terminate(grace=1))
        await settle()
        goes.cancel()
        await stays
        assert goes.cancelled()
        await stage.assert_over()

    play(phases.claimed, scene)


def test_a_later_call_joins_a_termination_whose_caller_was_cancelled():
    async def scene(stage: Stage) -> None:
        began = stage.now
        caller = asyncio.create_task(stage.pool.terminate(grace=3))
        await asyncio.sleep(1)
        caller.cancel()
        await asyncio.wait([caller])
        await stage.pool.terminate(grace=100)
        assert stage.now - began == pytest.approx(3)
        await stage.assert_over()

    play(phases.claimed, scene)


@pytest.mark.parametrize(("graces", "takes"), [((10, 3), 5), ((4, 100), 4), ((10, math.inf), 10), ((math.inf, 1), 3)])
def test_of_two_calls_the_earliest_end_wins(graces, takes):
    async def scene(stage: Stage) -> None:
        began = stage.now
        first = asyncio.create_task(stage.pool.terminate(grace=graces[0]))
        await asyncio.sleep(2)
        await stage.pool.terminate(grace=graces[1])
        assert stage.now - began == pytest.approx(takes)
        await first
        await stage.assert_over()

    play(phases.claimed, scene)


@pytest.mark.parametrize(("first", "second"), [("detach", "revoke"), ("revoke", "detach")])
def test_of_two_calls_the_first_held_stays(first, second):
    async def scene(stage: Stage) -> None:
        caller = asyncio.create_task(stage.pool.terminate(grace=10, held=first))
        await asyncio.sleep(2)
        await stage.pool.terminate(grace=0, held=second)
        await caller
        for claim in stage.claims:
            if first == "detach":
                assert not claim.connection.closed
            else:
                with pytest.raises(ClaimRevokedError):
                    _ = claim.connection

    play(phases.claimed, scene)


def test_each_caller_has_a_timeout_of_his_own():
    async def scene(stage: Stage) -> None:
        began = stage.now
        patient = asyncio.create_task(stage.pool.terminate(grace=5))
        with pytest.raises(TerminationError):
            await stage.pool.terminate(grace=5, timeout=2)
        assert stage.now - began == pytest.approx(2)
        await patient
        assert stage.now - began == pytest.approx(5)
        await stage.assert_over()

    play(phases.claimed, scene)


@pytest.mark.parametrize("wrong", [{"grace": -1}, {"grace": math.nan}, {"timeout": -1}, {"held": "kill"}])
def test_wrong_arguments_are_refused_and_nothing_ends(wrong):
    async def scene(stage: Stage) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            await stage.pool.terminate(**wrong)
        assert stage.pool.state is PoolState.RUNNING
        await stage.pool.terminate()

    play(phases.idle, scene)


# Callers who are cancelled again and again, and callers with a time limit.


@in_each_phase
def test_a_caller_in_a_cancelled_scope_of_anyio_loses_its_wait_but_nothing_else(phase):
    async def scene(stage: Stage) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stage.pool.terminate(grace=1)
        assert stage.pool.state in (PoolState.TERMINATING, PoolState.TERMINATED)
        assert stage.pool.stats().waiting == 0
        await asyncio.sleep(1.1)
        await stage.assert_over()

    play(phase, scene)


def test_leaving_the_pool_s_block_in_a_cancelled_scope_of_anyio_ends_the_pool():
    async def main() -> None:
        connector = FakeConnector()
        with anyio.move_on_after(5):
            async with Pool("main", FixedResolver(["10.0.0.1:1"]), connector) as pool, pool.claim():
                await asyncio.sleep(100)
        await asyncio.sleep(ALMOST_AT_ONCE)
        assert pool.state is PoolState.TERMINATED
        assert_nothing_left(pool)

    run(main)


async def within_timeout(operation: Awaitable[object], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await operation


@pytest.mark.parametrize("wrap", [asyncio.wait_for, within_timeout])
def test_a_time_limit_round_terminate_ends_the_wait_and_not_the_termination(wrap):
    async def scene(stage: Stage) -> None:
        began = stage.now
        with pytest.raises(TimeoutError):
            await wrap(stage.pool.terminate(grace=3), 1)
        assert stage.now - began == pytest.approx(1)
        await stage.pool.terminate(grace=3)
        assert stage.now - began == pytest.approx(3)
        await stage.assert_over()

    play(phases.claimed, scene)


# Callers who belong to the pool themselves.


def test_a_task_that_holds_a_claim_itself_may_call_terminate():
    async def main() -> None:
        connector = FakeConnector()
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), connector)
        await pool.start()
        async with pool.claim() as connection:
            began = asyncio.get_running_loop().time()
            await pool.terminate(grace=2)
            assert asyncio.get_running_loop().time() - began == pytest.approx(2)
            assert connection.closed
            assert_nothing_left(pool)
        claimless = Pool("second", FixedResolver(["10.0.0.1:1"]), connector)
        await claimless.start()
        with await claimless.claim() as connection:
            await claimless.terminate(grace=0, held="detach")
            assert not connection.closed
        assert connection.closed
        assert_nothing_left(claimless)

    run(main)


async def use(stage: Stage) -> None:
    """Let every operation of the connector run, as far as the pool lives so long."""
    with contextlib.suppress(PoolTerminatedError):
        await stage.pool.start()
        for outcome in (Outcome.CLEAN, Outcome.ERROR):
            claim = await stage.pool.claim()
            await asyncio.sleep(0.1)
            claim.release(outcome)
    await asyncio.sleep(100)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("how", [{}, {"grace": 0}, {"grace": 0, "timeout": 1}], ids=str)
def test_called_from_inside_a_connector_the_termination_starts_and_the_call_ends_in_cancelled_error(operation, how):
    ended: list[BaseException | None] = []

    async def scene(stage: Stage) -> None:
        async def end_pool(_backend: object) -> None:
            try:
                await stage.pool.terminate(**how)
            except BaseException as error:
                ended.append(error)
                raise
            ended.append(None)

        stage.connector.during(operation, end_pool)
        await use(stage)
        assert stage.pool.state is PoolState.TERMINATED
        assert ended
        assert {type(error) for error in ended} == {asyncio.CancelledError}
        await stage.assert_over()

    play(phases.new, scene)


def test_called_from_inside_close_it_waits_for_no_claim_that_is_out():
    ended: list[float] = []

    async def scene(stage: Stage) -> None:
        async def end_pool(_backend: object) -> None:
            try:
                await stage.pool.terminate(grace=1000)
            finally:
                ended.append(stage.now)

        stage.claims += [await stage.pool.claim(), await stage.pool.claim()]
        stage.connector.during("close", end_pool)
        stage.claims.pop().discard()
        await asyncio.sleep(1)
        assert ended
        assert ended[0] < stage.now - 0.9
        assert stage.pool.state is PoolState.TERMINATING
        stage.connector.heal()
        stage.claims.pop().release()
        await stage.pool.terminate()
        await stage.assert_over()

    play(phases.idle, scene)


def test_called_from_inside_on_acquire_the_claim_gets_pool_terminated_error():
    async def scene(stage: Stage) -> None:
        stage.connector.during("on_acquire", lambda _backend: stage.pool.terminate())
        with pytest.raises(PoolTerminatedError):
            await stage.pool.claim()
        assert asyncio.current_task().cancelling() == 0
        await stage.pool.terminate()
        await stage.assert_over()

    play(phases.idle, scene)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_called_from_a_task_that_a_connector_has_started_and_waits_for_it_comes_to_no_deadlock(operation):
    async def scene(stage: Stage) -> None:
        async def end_pool(_backend: object) -> None:
            await asyncio.create_task(stage.pool.terminate())

        stage.connector.during(operation, end_pool)
        await use(stage)
        await stage.assert_over()

    play(phases.new, scene)


@pytest.mark.parametrize("publish_first", [True, False])
def test_called_from_inside_a_resolver_the_termination_starts_and_watch_ends_in_cancelled_error(publish_first):
    ended: list[type[BaseException]] = []

    async def scene(stage: Stage) -> None:
        async def end_pool() -> None:
            await asyncio.sleep(0.5 if publish_first else 0)
            try:
                await stage.pool.terminate()
            except BaseException as error:
                ended.append(type(error))
                raise

        stage.resolver.during = end_pool
        await stage.pool.start()
        await stage.queue(2)
        await asyncio.sleep(1)
        stage.let_go.set()
        await asyncio.sleep(0.1)
        assert stage.resolver.calls == 1
        await stage.assert_over()

    play(phases.new, scene)
    assert set(ended) == {asyncio.CancelledError}


def test_a_resolver_that_publishes_after_the_end_has_begun_is_not_heard():
    async def scene(stage: Stage) -> None:
        async def publish_on_the_way_out() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                stage.resolver.set([phases.A])

        stage.resolver.during = publish_on_the_way_out
        await stage.start()
        await stage.pool.terminate()
        assert not [event for event in stage.events[-50:] if isinstance(event, happenings.ResolverUpdated)][1:]
        await stage.assert_over()

    play(phases.new, scene)


# Observers.


async def live(stage: Stage) -> None:
    """Live a life in which every event comes, and end it."""
    pool, connector = stage.pool, stage.connector
    with contextlib.suppress(PoolError):
        await pool.start()
        await pool.ready()
        await stage.claim_all()
        await stage.queue(2)
        with contextlib.suppress(TimeoutError):
            await pool.claim(timeout=0)
        while stage.claims:
            stage.claims.pop().release(Outcome.CLEAN if len(stage.claims) % 2 else Outcome.ERROR)
        await asyncio.sleep(0.5)
        stage.let_go.set()
        connector.fail("on_acquire", lambda: ConnectionError("not today"), "a")
        for _ in range(4):
            with contextlib.suppress(TimeoutError):
                (await pool.claim(timeout=1)).release()
        connector.heal()
        await asyncio.sleep(0.5)
        connector.drop("b")
        with await pool.claim():
            await asyncio.sleep(31)
        connector.refuse()
        connector.invalidate()
        await asyncio.sleep(31)
        connector.heal()
        stage.resolver.set([phases.B])
        await asyncio.sleep(60)
    await pool.terminate()


def test_that_life_has_every_event():
    async def main() -> None:
        stage = Stage()
        await live(stage)
        await stage.assert_over()
        all_kinds = {
            kind
            for name, kind in vars(happenings).items()
            if isinstance(kind, type) and issubclass(kind, happenings.Event) and name[0] != "_" and name != "Event"
        }
        # The resolver of that life asks nobody.
        assert {type(event) for event in stage.events} == all_kinds - OF_RESOLVERS

    run(main)


def test_an_observer_hears_of_the_end_when_it_has_begun_and_when_it_is_over():
    async def scene(stage: Stage) -> None:
        states: list[tuple[type[Event], PoolState]] = []
        stage.react = lambda event: states.append((type(event), stage.pool.state))
        await stage.pool.terminate(grace=0)
        ends = [pair for pair in states if "PoolTerminate" in pair[0].__name__]
        assert ends == [
            (happenings.PoolTerminateStart, PoolState.TERMINATING),
            (happenings.PoolTerminateDone, PoolState.TERMINATED),
        ]
        assert states[-1] == ends[-1]

    for phase in PHASES.values():
        if phase is not phases.new:
            play(phase, scene, seeds=(0,))


def react_once(stage: Stage, number: int, action: Callable[[], object]) -> None:
    """Do something at the event of this number."""

    def react(_event: Event) -> None:
        if len(stage.events) == number:
            action()

    stage.react = react


def numbers_of_events() -> list[int]:
    """The first event of each kind, each change of state being one, and the last."""

    async def main() -> list[int]:
        stage = Stage()
        await live(stage)
        kinds = [(type(event), getattr(event, "old", None), getattr(event, "new", None)) for event in stage.events]
        first = {kind: number for number, kind in reversed(list(enumerate(kinds, 1)))}
        last = {kind: number for number, kind in enumerate(kinds, 1)}
        return sorted({*first.values(), *last.values()})

    return run(main)


def test_an_observer_may_start_a_task_that_terminates_the_pool_at_any_event():
    for number in numbers_of_events():

        async def scene(stage: Stage, number: int) -> None:
            enders: list[asyncio.Task[None]] = []
            loop = asyncio.get_running_loop()
            react_once(stage, number, lambda: enders.append(loop.create_task(stage.pool.terminate())))
            await live(stage)
            assert len(enders) == 1
            await enders[0]
            await stage.clear()
            await stage.assert_over()

        play(phases.new, scene, number, seeds=(0,))


def test_an_observer_may_abort_the_pool_at_any_event():
    for number in numbers_of_events():

        async def scene(stage: Stage, number: int) -> None:
            react_once(stage, number, stage.pool.abort)
            await live(stage)
            assert len(stage.events) >= number
            await stage.clear()
            await stage.assert_over()

        play(phases.new, scene, number, seeds=(0,))


# abort().


@in_each_phase
def test_abort_closes_every_connection_fails_every_waiter_and_ends_everything_at_once(phase):
    async def scene(stage: Stage) -> None:
        stage.pool.abort()
        assert stage.pool.state is not PoolState.RUNNING
        assert list(stage.connector.connections) == []
        assert stage.pool.stats().waiting == 0
        with pytest.raises(PoolTerminatedError):
            at_once(stage.pool.claim())
        for claim in stage.claims:
            with pytest.raises(ClaimRevokedError):
                _ = claim.connection
        began = stage.now
        await settle()
        assert stage.now == began
        assert stage.refused == [number for number in range(len(stage.claimers)) if number in stage.refused]
        assert len(stage.refused) == len(stage.claimers)
        await stage.assert_over()

    play(phase, scene, seeds=(0,))


@in_each_phase
def test_abort_may_come_in_the_midst_of_a_termination_and_more_than_once(phase):
    async def scene(stage: Stage) -> None:
        ending = asyncio.create_task(stage.pool.terminate(grace=100))
        await asyncio.sleep(0.001)
        began = stage.now
        stage.pool.abort()
        stage.pool.abort()
        await ending
        stage.pool.abort()
        assert stage.now == began
        await stage.assert_over()

    play(phase, scene)


def test_abort_does_not_wait_for_a_connector_that_does_not_listen_but_terminate_after_it_does():
    async def phase(stage: Stage) -> None:
        stage.connector.stall("connect")
        stage.connector.deafen(10, "connect")
        await stage.pool.start()
        await asyncio.sleep(1)

    async def scene(stage: Stage) -> None:
        began = stage.now
        stage.pool.abort()
        await settle()
        assert stage.pool.state is PoolState.TERMINATING
        await stage.pool.terminate()
        assert stage.now - began >= 10
        await stage.assert_over()

    play(phase, scene)


# async with.


class BodyError(Exception):
    pass


async def fail_in(pool: Pool[Any], error: BodyError, before: Callable[[], object] = lambda: None) -> None:
    async with pool:
        await pool.ready()
        before()
        raise error


def test_a_pool_s_block_ends_in_terminate():
    async def main() -> None:
        async with Pool("main", FixedResolver(["10.0.0.1:1"]), FakeConnector()) as pool:
            await pool.ready()
            assert pool.state is PoolState.RUNNING
        assert pool.state is PoolState.TERMINATED
        assert_nothing_left(pool)

    run(main)


def test_when_the_body_raises_that_exception_stays_the_primary_one():
    async def main() -> None:
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), FakeConnector())
        error = BodyError()
        with pytest.raises(BodyError) as caught:
            await fail_in(pool, error)
        assert caught.value is error
        assert error.__context__ is None
        assert_nothing_left(pool)

    run(main)


def test_when_the_body_is_cancelled_the_pool_is_terminated_and_the_cancellation_passes():
    async def main() -> None:
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), FakeConnector())

        async def body() -> None:
            async with pool, pool.claim():
                await asyncio.get_running_loop().create_future()

        task = asyncio.create_task(body())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert_nothing_left(pool)

    run(main)


def test_when_the_body_raises_and_the_pool_cannot_be_terminated_the_body_s_exception_says_so_in_a_note():
    async def main() -> None:
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), FakeConnector())
        with pytest.raises(BodyError) as caught:
            await fail_in(pool, BodyError(), lambda: setattr(pool._engine.home, "forked", True))
        assert "pool main could not be terminated" in "".join(caught.value.__notes__)
        pool._engine.home.forked = False
        await pool.terminate()

    run(main)


# A pool that was not started, or has ended.


def test_terminating_a_new_pool_ends_it_at_once_for_good():
    async def main() -> None:
        connector = FakeConnector()
        connector.forbid()
        pool = Pool("main", phases.BookedResolver(), connector)
        at_once(pool.terminate())
        assert pool.state is PoolState.TERMINATED
        with pytest.raises(PoolTerminatedError):
            at_once(pool.start())
        with pytest.raises(PoolTerminatedError):
            at_once(pool.claim())
        at_once(pool.terminate())
        assert_nothing_left(pool)

    run(main)


def test_aborting_a_new_pool_ends_it_at_once_for_good():
    pool = Pool("main", phases.BookedResolver(), FakeConnector())
    pool.abort()
    assert pool.state is PoolState.TERMINATED
    with pytest.raises(PoolTerminatedError):
        at_once(pool.start())


@in_each_phase
def test_a_pool_that_has_ended_cannot_be_started_again(phase):
    async def scene(stage: Stage) -> None:
        ending = asyncio.create_task(stage.pool.terminate(grace=1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(PoolTerminatedError):
            await stage.pool.start()
        await ending
        with pytest.raises(PoolTerminatedError):
            await stage.pool.start()
        await stage.assert_over()

    play(phase, scene, seeds=(0,))


def test_after_the_end_every_call_raises_pool_terminated_error_from_another_loop_as_well():
    connector = FakeConnector()

    async def main() -> Pool[Any]:
        async with Pool("main", FixedResolver(["10.0.0.1:1"]), connector) as pool:
            await pool.ready()
        return pool

    pool = run(main)

    async def later() -> None:
        for call in (pool.claim, pool.ready, pool.start):
            with pytest.raises(PoolTerminatedError):
                at_once(call())
        at_once(pool.terminate())

    run(later)


# Tasks of the pool that are cancelled from outside.


@in_each_phase
def test_a_task_that_is_cancelled_from_outside_ends_the_pool_with_at_most_one_warning(phase):
    async def scene(stage: Stage, number: int) -> None:
        tasks = tasks_of_the_pool()
        if number >= len(tasks):
            await stage.pool.terminate(grace=0)
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tasks[number].cancel()
            await settle()
        assert stage.pool.state is not PoolState.RUNNING
        assert [type(warning.message) for warning in caught] == [ResourceWarning]
        assert "pool main" in str(caught[0].message)
        assert sorted(stage.refused) == list(range(len(stage.claimers)))
        await stage.assert_over()

    for number in range(5):
        play(phase, scene, number, seeds=(0, 1))


@in_each_phase
def test_all_tasks_cancelled_behind_the_pool_s_back_end_at_once_start_nothing_and_fail_the_waiting_claims(phase):
    async def scene(stage: Stage) -> None:
        tasks = tasks_of_the_pool()
        stage.connector.forbid(allow={"abort", "on_acquire"})
        began, queries = stage.now, stage.resolver.calls
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for task in reversed(tasks):
                task.cancel()
            await settle()
        assert len(caught) == (1 if tasks else 0)
        assert stage.now == began
        assert all(task.cancelled() for task in tasks)
        assert stage.resolver.calls == queries
        assert list(stage.connector.connections) == []
        assert sorted(stage.refused) == list(range(len(stage.claimers)))
        if tasks:
            await stage.assert_over()

    play(phase, scene)


@in_each_phase
def test_a_cancelled_task_ends_the_pool_where_warnings_are_errors_too(phase):
    async def scene(stage: Stage) -> None:
        tasks = tasks_of_the_pool()
        with warnings.catch_warnings(), unhandled_errors() as told:
            warnings.simplefilter("error")
            for task in tasks:
                task.cancel()
            await settle()
        assert len(told) == (1 if tasks else 0)
        await stage.pool.terminate()
        await stage.assert_over()

    play(phase, scene, seeds=(0,))


@in_each_phase
def test_a_task_that_is_cancelled_from_outside_while_the_pool_ends_changes_nothing(phase):
    async def scene(stage: Stage) -> None:
        ending = asyncio.create_task(stage.pool.terminate(grace=1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in tasks_of_the_pool():
            task.cancel()
        await ending
        await stage.assert_over()

    play(phase, scene)


# Tasks of the pool that die of a bug of their own.


class BugError(Exception):
    pass


def die_once(monkeypatch: pytest.MonkeyPatch, kind: type, method: str) -> list[object]:
    """Let the next call of this method of the pool's own fail; return the objects that it was called on."""
    died: list[object] = []
    original = getattr(kind, method)

    async def die(self: object) -> None:
        if not died:
            died.append(self)
            raise BugError
        await original(self)

    monkeypatch.setattr(kind, method, die)
    return died


def test_a_slot_that_dies_of_a_bug_is_reported_counted_and_replaced_and_capacity_is_back(monkeypatch):
    async def scene(stage: Stage) -> None:
        before = len(stage.connector.connections)
        died = die_once(monkeypatch, Slot, "_check")
        with unhandled_errors() as told:
            await asyncio.sleep(30.5)
        assert len(died) == 1
        assert [type(context["exception"]) for context in told] == [BugError]
        assert told[0]["message"] == f"qorb: a task of pool main died ({died[0].backend.name}) and is replaced"
        assert stage.pool._engine.bugs == 1
        assert stage.connector.count["abort"] == 1
        await asyncio.sleep(1.1)
        assert len(stage.connector.connections) >= before
        assert died[0].name not in stage.pool.ledger().tasks
        assert stage.pool.state is PoolState.RUNNING
        await stage.claim_all()
        await stage.pool.terminate(grace=0)
        await stage.assert_over()
        monkeypatch.undo()

    play(phases.idle, scene)


def test_a_bug_that_kills_every_slot_does_not_make_a_storm(monkeypatch):
    async def scene(stage: Stage) -> None:
        async def die(_self: object) -> None:
            raise BugError

        monkeypatch.setattr(Slot, "_connect", die)
        with unhandled_errors() as told:
            await stage.pool.start()
            await asyncio.sleep(60)
            monkeypatch.undo()
            await asyncio.sleep(1.1)
        assert 30 <= len(told) <= 61 * stage.pool.policy.max_slots
        await stage.pool.ready(timeout=0.5)
        await stage.pool.terminate()
        await stage.assert_over()

    play(phases.new, scene, seeds=(0,))


def test_a_resolver_s_task_that_dies_of_a_bug_is_reported_counted_and_started_again(monkeypatch):
    async def scene(stage: Stage) -> None:
        died = die_once(monkeypatch, Watch, "live")
        with unhandled_errors() as told:
            await stage.pool.start()
            await settle()
        assert len(died) == 1
        assert [context["message"] for context in told] == ["qorb: a task of pool main died (resolver) and is replaced"]
        assert stage.pool._engine.bugs == 1
        await asyncio.sleep(1.1)
        await stage.pool.ready(timeout=0.5)
        await stage.pool.terminate()
        await stage.assert_over()
        monkeypatch.undo()

    play(phases.new, scene)


def test_a_waiting_claim_gets_its_error_before_p_even_when_the_pool_has_no_task_to_wait_for(monkeypatch):
    async def scene(stage: Stage) -> None:
        die_once(monkeypatch, Watch, "live")
        with unhandled_errors():
            await stage.pool.start()
            await stage.queue(3)
        assert stage.pool.ledger().tasks == ()
        await stage.pool.terminate()
        assert sorted(stage.refused) == [0, 1, 2]
        await stage.assert_over()
        monkeypatch.undo()

    play(phases.new, scene)


@pytest.mark.parametrize("method", ["_close", "_connect", "_pause"])
def test_a_task_that_dies_of_a_bug_while_the_pool_ends_leaves_nothing(monkeypatch, method):
    async def scene(stage: Stage) -> None:
        async def die(_self: object) -> None:
            raise BugError

        with unhandled_errors():
            monkeypatch.setattr(Slot, method, die)
            await stage.pool.terminate()
            monkeypatch.undo()
        await stage.assert_over()

    for phase in PHASES.values():
        play(phase, scene, seeds=(0,))
