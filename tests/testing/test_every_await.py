"""at_every_await(): it reaches every suspension point with every timing, and catches what it is there to catch."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import sys

import pytest

from qorb import Policy, Pool, PoolTerminatedError
from qorb.resolvers import FixedResolver
from qorb.testing import (
    CancelSwallowedError,
    FakeConnector,
    Timing,
    UnhandledError,
    assert_nothing_left,
    at_every_await,
    run,
    settle,
)

START = 1000.0


def within_wait_for(operation):
    return asyncio.wait_for(operation, math.inf)


WAYS = pytest.mark.parametrize("by", ["cancel", "timeout", "anyio", within_wait_for])


def now():
    return asyncio.get_running_loop().time()


async def three_waits():
    await asyncio.sleep(1)
    await asyncio.sleep(0)
    await asyncio.get_running_loop().run_in_executor(None, int)
    return 5


@WAYS
def test_every_point_is_reached_with_every_timing(by):
    async def scene(attempt):
        ending = await attempt.cancel(three_waits())
        assert ending.result == (None if ending.cancelled else 5)
        # The others may find that there is no await left at which to end it.
        assert ending.cancelled == ending.in_time or by in ("anyio", within_wait_for)

    report = at_every_await(scene, by=by)
    assert report.points == 3
    assert [(one.step, one.timing) for one in report.tried] == [(k, timing) for k in (1, 2, 3) for timing in Timing]
    too_late = [(one.step, one.timing) for one in report.tried if not one.in_time]
    assert too_late == [(3, Timing.NEXT_TICK), (3, Timing.SECOND_TICK)]
    assert str(report) == "scene: 3 points, 10 interruptions in time, 2 too late"


@pytest.mark.parametrize(
    ("timing", "expected"),
    [
        (Timing.SUSPENDED, [(START, "cancelled")]),
        (Timing.SAME_TICK, [(START + 1, "result came"), (START + 1, "cancelled")]),
        (Timing.NEXT_TICK, [(START + 1, "result came"), (START + 1, "result"), (START + 1, "cancelled")]),
        (
            Timing.SECOND_TICK,
            [(START + 1, "result came"), (START + 1, "result"), (START + 1, "step"), (START + 1, "cancelled")],
        ),
    ],
)
def test_the_timings_are_what_they_are_called(timing, expected):
    seen = []

    async def operation():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_later(1, lambda: future.done() or (future.set_result(None), seen.append((now(), "result came"))))
        try:
            await future
            seen.append((now(), "result"))
            await asyncio.sleep(0)
            seen.append((now(), "step"))
            await asyncio.sleep(0)
            seen.append((now(), "end"))
        except asyncio.CancelledError:
            seen.append((now(), "cancelled"))
            raise

    async def scene(attempt):
        await attempt.cancel(operation())

    at_every_await(scene, only=(1, timing))
    assert seen == expected


def test_in_the_same_tick_the_future_is_done_and_the_task_cancelled_all_the_same():
    states = []

    async def operation():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(1, lambda: future.done() or future.set_result("lent"))
        try:
            await future
        finally:
            states.append(future.cancelled() or future.result())

    async def scene(attempt):
        assert (await attempt.cancel(operation())).cancelled == attempt.reached

    at_every_await(scene, timings=["suspended", "same tick"])
    assert states == [True, "lent", "lent"]


@pytest.mark.parametrize("seed", range(1, 20))
def test_no_seed_puts_the_wake_up_before_the_cancellation(seed):
    async def scene(attempt):
        others = [asyncio.create_task(asyncio.sleep(1)) for _ in range(3)]
        ending = await attempt.cancel(asyncio.sleep(1, "result"))
        assert ending.cancelled == attempt.reached
        await asyncio.wait(others)

    at_every_await(scene, timings=[Timing.SAME_TICK], seed=seed)


@WAYS
def test_a_swallowed_cancellation_is_caught(by):
    async def operation():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1)
        return 7

    async def scene(attempt):
        await attempt.cancel(operation())

    with pytest.raises(CancelSwallowedError, match="cancelled in time, but it returned 7"):
        at_every_await(scene, by=by)


def test_another_exception_in_place_of_the_cancellation_is_caught():
    async def operation():
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            raise OSError("gone") from None

    async def scene(attempt):
        await attempt.cancel(operation())

    with pytest.raises(CancelSwallowedError, match=r"it raised OSError\('gone'\)") as caught:
        at_every_await(scene)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_cancellation_that_a_child_swallows_is_caught():
    async def child():
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            return "child"

    async def operation():
        return await asyncio.create_task(child())

    async def scene(attempt):
        await attempt.cancel(operation())

    with pytest.raises(CancelSwallowedError, match="returned 'child'"):
        at_every_await(scene, only=(1, "suspended"))


def test_a_cancellation_that_comes_too_late_is_not_taken_for_a_swallowed_one():
    async def scene(attempt):
        ending = await attempt.cancel(asyncio.sleep(1, "result"))
        assert ending.result == "result"
        assert not ending.in_time

    report = at_every_await(scene, timings=[Timing.NEXT_TICK])
    assert [one.in_time for one in report.tried] == [False]


@WAYS
def test_a_time_limit_of_the_operation_s_own_is_not_taken_for_a_cancellation_that_it_swallows(by):
    async def operation():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.sleep(2)
        await asyncio.sleep(1)

    async def scene(attempt):
        await attempt.cancel(operation())

    assert at_every_await(scene, by=by).points == 2


def test_an_operation_may_be_allowed_to_finish_what_it_has_begun():
    async def operation():
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            return "finished"

    async def scene(attempt):
        ending = await attempt.cancel_leniently(operation())
        assert (ending.result == "finished") == ending.in_time

    assert at_every_await(scene).points == 1


class LossyLender:
    """Lends one thing, and loses it when the borrower is cancelled in the tick in which it gets it."""

    def __init__(self):
        self.things = ["thing"]
        self.waiters = []

    async def borrow(self):
        future = asyncio.get_running_loop().create_future()
        self.waiters.append(future)
        return await future

    def hand_out(self):
        while self.waiters and self.things:
            future = self.waiters.pop(0)
            if not future.done():
                future.set_result(self.things.pop())


async def borrowing(attempt):
    lender = LossyLender()
    asyncio.get_running_loop().call_later(1, lender.hand_out)
    ending = await attempt.cancel(lender.borrow())
    await asyncio.sleep(2)
    assert lender.things or ending.result, "the thing is lost"


@pytest.mark.parametrize("by", ["cancel", "timeout"])  # the others do not cancel what is about to be woken
def test_a_result_that_is_lost_in_the_same_tick_is_caught(by):
    with pytest.raises(AssertionError, match="the thing is lost") as caught:
        at_every_await(borrowing, by=by)
    assert "interrupted (same tick)" in caught.value.__notes__[-1]


def test_a_failure_says_where_and_how_to_replay_it():
    with pytest.raises(AssertionError) as caught:
        at_every_await(borrowing, seed=3)
    (note,) = caught.value.__notes__
    assert "interrupted (same tick):\n  task 'operation'\n" in note
    assert "in LossyLender.borrow: return await future" in note
    assert note.endswith("replay: at_every_await(borrowing, by='cancel', seed=3, only=(1, 'same tick'))")


def test_a_failure_before_the_step_says_so():
    async def scene(_attempt):
        raise OSError

    with pytest.raises(OSError) as caught:  # noqa: PT011 - what matters is the note
        at_every_await(scene, by=within_wait_for, tasks="a*")
    (note,) = caught.value.__notes__
    assert note == (
        "not interrupted yet\n"
        "replay: at_every_await(scene, by=within_wait_for, tasks='a*', seed=0, only=(1, 'suspended'))"
    )


def test_one_attempt_can_be_replayed():
    attempts = []

    async def scene(attempt):
        attempts.append((attempt.step, attempt.timing))
        await attempt.cancel(three_waits())

    report = at_every_await(scene, only=(2, "next tick"))
    assert attempts == [(2, Timing.NEXT_TICK)]
    assert [(one.step, one.timing, one.in_time) for one in report.tried] == [(2, Timing.NEXT_TICK, True)]
    with pytest.raises(AssertionError, match="has 0 suspension points where at least 4 were expected"):
        at_every_await(scene, only=(4, "next tick"))


def test_an_unknown_timing_is_refused():
    with pytest.raises(ValueError, match="sometime"):
        at_every_await(borrowing, timings=["sometime"])


def test_a_scene_that_never_waits_shows_nothing_and_is_told():
    async def operation():
        return 5

    async def scene(attempt):
        await attempt.cancel(operation())

    with pytest.raises(AssertionError, match="scene has 0 suspension points where at least 1 were expected"):
        at_every_await(scene)
    report = at_every_await(scene, at_least=0)
    assert (report.points, report.tried) == (0, ())


def test_a_scene_with_fewer_points_than_expected_is_told():
    async def scene(attempt):
        await attempt.cancel(three_waits())

    with pytest.raises(AssertionError, match="has 3 suspension points where at least 4"):
        at_every_await(scene, at_least=4)


def test_a_scene_that_is_no_function_of_its_seed_is_told():
    waits = iter([1, 1, 0, 0])

    async def operation():
        for _ in range(next(waits)):
            await asyncio.sleep(1)

    async def scene(attempt):
        await attempt.cancel(operation())

    with pytest.raises(AssertionError, match="scene is no function of its seed: step 1 came with timing 'same tick'"):
        at_every_await(scene)


def test_what_the_operation_raises_is_raised():
    async def operation():
        await asyncio.sleep(1)
        raise OSError("no route")

    async def scene(attempt):
        if attempt.reached:
            return
        with pytest.raises(OSError, match="no route"):
            await attempt.cancel(operation())

    at_every_await(scene, timings=["next tick"])  # the one that is always too late


def test_several_operations_are_counted_through():
    places = []

    async def scene(attempt):
        first = await attempt.cancel(asyncio.sleep(1))
        second = await attempt.cancel(three_waits())
        places.append((first.cancelled, second.cancelled))

    report = at_every_await(scene, timings=["suspended"])
    assert report.points == 4
    assert places == [(True, False), (False, True), (False, True), (False, True), (False, False)]


def test_anything_awaitable_can_be_interrupted():
    class Request:
        def __await__(self):
            result = yield from asyncio.sleep(1, "result").__await__()
            return result

    async def scene(attempt):
        ending = await attempt.cancel(Request())
        assert ending.cancelled == ending.in_time

    report = at_every_await(scene)
    assert report.points == 1
    assert "in test_anything_awaitable_can_be_interrupted.<locals>.Request.__await__: " in report.tried[0].place

    async def scene_with_a_future(attempt):
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(1, lambda: future.done() or future.set_result(5))
        ending = await attempt.cancel(future)
        assert ending.cancelled == ending.in_time

    assert at_every_await(scene_with_a_future).points == 1


def test_cancelling_the_attempt_cancels_the_operation():
    seen = []

    async def operation():
        try:
            await asyncio.sleep(100)
        finally:
            seen.append(now())

    async def scene(attempt):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await attempt.cancel(operation())
        await settle()

    at_every_await(scene, timings=["same tick"])
    assert seen == [START + 1, START + 1]


def test_something_else_can_be_done_in_the_meantime():
    moments = []

    async def scene(attempt):
        ending = await attempt.meanwhile(three_waits(), lambda: moments.append(now()))
        assert ending.result == 5
        assert not ending.cancelled

    report = at_every_await(scene, timings=["suspended", "same tick"])
    assert report.points == 3
    assert moments == [START, START + 1, *[START + 1] * 4]


def test_meanwhile_a_cancellation_from_elsewhere_is_an_ending():
    async def scene(attempt):
        task = asyncio.create_task(asyncio.sleep(1))
        ending = await attempt.meanwhile(task, task.cancel)
        assert ending.cancelled == attempt.reached

    assert at_every_await(scene, timings=["suspended"]).points == 1


def test_tasks_that_the_test_did_not_start_are_cancelled_too():
    ends = []

    async def worker():
        stage = "first"
        try:
            await asyncio.sleep(1)
            stage = "second"
            await asyncio.sleep(1)
            stage = "end"
        finally:
            ends.append(stage)

    async def scene(attempt):
        ends.clear()
        bystander = asyncio.create_task(asyncio.sleep(1), name="bystander")
        # As the pool starts its own: not by the loop, and therefore past any task factory.
        task = asyncio.Task(worker(), loop=asyncio.get_running_loop(), name="worker 1")
        await asyncio.wait([task, bystander])
        assert not bystander.cancelled()
        assert task.cancelled() == attempt.in_time
        seen.append((attempt.step, attempt.timing.value, *ends))

    seen = []
    report = at_every_await(scene, tasks="worker *")
    assert report.points == 3
    assert seen == [
        # Before its first step: it never runs.
        (1, "suspended"),
        (1, "same tick"),
        (1, "next tick", "first"),
        (1, "second tick", "first"),
        (2, "suspended", "first"),
        (2, "same tick", "first"),
        (2, "next tick", "second"),
        (2, "second tick", "second"),
        (3, "suspended", "second"),
        (3, "same tick", "second"),
        (3, "next tick", "end"),
        (3, "second tick", "end"),
        (4, "suspended", "end"),
    ]
    assert [(one.step, one.timing.value) for one in report.tried if not one.in_time] == [
        (3, "next tick"),
        (3, "second tick"),
    ]
    assert "task 'worker 1'" in report.tried[0].place
    assert "await asyncio.sleep(1)" in report.tried[-1].place


def test_an_attempt_that_cancels_tasks_interrupts_no_operation():
    async def scene(attempt):
        await attempt.cancel(three_waits())

    with pytest.raises(RuntimeError, match=r"cancels tasks named 'worker \*'; await the operation itself"):
        at_every_await(scene, tasks="worker *")


def test_without_anyio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anyio", None)
    monkeypatch.delitem(sys.modules, "qorb.testing._anyio", raising=False)
    with pytest.raises(ImportError, match='by="anyio" needs anyio; run: pip install anyio'):
        at_every_await(borrowing, by="anyio")


async def serve_two_clients(attempt):
    connector = FakeConnector()
    policy = Policy(spares_wanted=1, max_slots=1)
    pool = Pool("main", FixedResolver(["a:1"]), connector, policy, rng=random.Random(attempt.step))
    async with pool:

        async def client():
            async with pool.claim() as connection:
                await connection.request()

        other = asyncio.create_task(client())
        await asyncio.sleep(0)
        await attempt.cancel(client())
        await other
        async with asyncio.timeout(5):
            await client()
    assert_nothing_left(pool)


@WAYS
@pytest.mark.parametrize("seed", [0, 1])
def test_a_claim_of_the_pool_loses_nothing_at_any_point(by, seed):
    assert at_every_await(serve_two_clients, by=by, seed=seed, at_least=3).points < 20


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the pool says that somebody else has cancelled its tasks
def test_each_task_of_the_pool_can_be_cancelled_at_any_point():
    async def scene(attempt):
        policy = Policy(spares_wanted=1, max_slots=2)
        pool = Pool("main", FixedResolver(["a:1"]), FakeConnector(), policy, rng=random.Random(1))
        async with pool:
            try:
                async with pool.claim():
                    pass
                await asyncio.sleep(40)  # a health check
            except PoolTerminatedError:
                assert attempt.in_time
        assert_nothing_left(pool)

    report = at_every_await(scene, tasks="qorb main *")
    assert report.points > 5
    assert {one.place.split()[3].strip("'") for one in report.tried} >= {"slot", "resolver"}


def test_a_world_that_is_left_dirty_fails_the_attempt():
    async def scene(attempt):
        await attempt.cancel(three_waits())
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await settle()

    with pytest.raises(UnhandledError, match="division by zero") as caught:
        at_every_await(scene)
    assert "replay: " in caught.value.__notes__[-1]


def test_it_needs_virtual_time(run_real):
    from qorb.testing import Attempt  # noqa: PLC0415 - what at_every_await makes, made by hand

    async def main():
        with pytest.raises(RuntimeError, match=r"works in qorb\.testing\.run"):
            await Attempt(1, Timing.SUSPENDED).cancel(asyncio.get_running_loop().create_future())

    run_real(main)


def test_it_cannot_be_called_within_a_run():
    async def main():
        with pytest.raises(RuntimeError, match="while an event loop is running"):
            at_every_await(borrowing)

    run(main)
