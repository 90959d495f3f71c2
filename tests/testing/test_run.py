"""run(): what it returns and raises, and what it does with what is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys

import pytest

from qorb.testing import Deadlock, Livelock, UnhandledError, run, settle


async def nothing():
    pass


async def turn():
    await asyncio.sleep(0)


async def forever():
    await asyncio.get_running_loop().create_future()


async def fails():
    raise ValueError("broken")


def test_the_result_is_returned():
    async def main():
        return 5

    assert run(main) == 5


def test_anything_awaitable_will_do():
    assert run(lambda: asyncio.sleep(3, "result")) == "result"

    class Awaitable:
        def __await__(self):
            yield from asyncio.sleep(1).__await__()
            return "other"

    assert run(Awaitable) == "other"


def test_a_coroutine_instead_of_a_function_is_explained():
    with pytest.raises(TypeError, match=r"write run\(main\), not run\(main\(\)\)"):
        run(nothing())
    with pytest.raises(TypeError, match="not 5"):
        run(5)


def test_a_run_within_a_run_is_refused():
    async def main():
        with pytest.raises(RuntimeError, match="while an event loop is running"):
            run(nothing)

    run(main)


def test_the_exception_of_main_is_raised():
    with pytest.raises(ValueError, match="broken"):
        run(fails)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_ends_the_run_and_cleans_up(kind):
    seen = []

    async def other():
        try:
            await forever()
        finally:
            seen.append("cleaned up")

    async def main():
        task = asyncio.create_task(other())
        await asyncio.sleep(1)
        raise kind("enough")
        await task

    with pytest.raises(kind) as caught:
        run(main)
    assert seen == ["cleaned up"]
    assert not hasattr(caught.value, "__notes__")


def test_the_loop_is_in_debug_mode_and_closed_afterwards():
    async def main():
        loop = asyncio.get_running_loop()
        return loop, loop.get_debug()

    loop, debug = run(main)
    assert debug
    assert loop.is_closed()


def test_tasks_that_are_left_are_cancelled_in_the_order_of_their_creation():
    seen = []

    async def left(number):
        try:
            await forever()
        finally:
            await asyncio.sleep(10 - number)
            seen.append((number, asyncio.get_running_loop().time()))

    async def main():
        loop = asyncio.get_running_loop()
        tasks = [asyncio.Task(left(number), loop=loop) for number in range(3)]
        await asyncio.sleep(0)
        return tasks

    tasks = run(main)
    assert seen == [(2, 1008.0), (1, 1009.0), (0, 1010.0)]
    assert all(task.cancelled() for task in tasks)


def test_a_task_that_fails_while_it_is_cancelled_makes_the_run_fail():
    async def left():
        try:
            await forever()
        finally:
            raise ValueError("in cleanup")

    async def main():
        main.task = asyncio.create_task(left(), name="left")
        await asyncio.sleep(0)

    with pytest.raises(UnhandledError, match="'left' was cancelled at the end of run"):
        run(main)


def test_a_task_that_does_not_let_itself_be_cancelled_is_named():
    async def deaf():
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await forever()

    async def main():
        main.task = asyncio.create_task(deaf(), name="deaf")
        await asyncio.sleep(0)

    with pytest.raises(UnhandledError, match=r"(?s)do not end.*still pending.*task 'deaf'"):
        run(main)


def test_a_task_that_is_started_at_the_very_end_is_reported():
    async def left():
        try:
            await forever()
        finally:
            main.late = asyncio.create_task(forever(), name="late")

    async def main():
        main.task = asyncio.create_task(left())
        await asyncio.sleep(0)

    with pytest.raises(UnhandledError, match=r"(?s)still pending.*task 'late'"):
        run(main)
    main.late = None
    gc.collect()  # silent, as the fixture asyncio_log sees


def test_asynchronous_generators_are_closed():
    seen = []

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(1)
            seen.append("closed")

    async def main():
        main.kept = numbers()
        async for _ in main.kept:
            break

    run(main)
    assert seen == ["closed"]


def test_an_exception_that_nobody_retrieves_makes_the_run_fail():
    async def main():
        main.kept = asyncio.create_task(fails(), name="failing")  # no garbage, and reported all the same
        await asyncio.sleep(1)

    with pytest.raises(UnhandledError, match=r"(?s)never retrieved.*'failing'.*broken") as caught:
        run(main)
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.contexts[0]["task"] is main.kept


def test_a_callback_that_fails_makes_the_run_fail():
    async def main():
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await settle()

    with pytest.raises(UnhandledError, match="division by zero"):
        run(main)


def test_the_exception_of_main_stays_the_primary_one():
    async def main():
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await settle()
        await fails()

    with pytest.raises(ValueError, match="broken") as caught:
        run(main)
    assert "division by zero" in caught.value.__notes__[0]


def test_a_test_may_set_an_exception_handler_of_its_own():
    told = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: told.append(context["message"]))
        loop.call_exception_handler({"message": "expected"})

    run(main)
    assert told == ["expected"]


def test_what_is_reported_after_the_end_is_logged(asyncio_log):
    async def main():
        return asyncio.get_running_loop()

    run(main).call_exception_handler({"message": "too late"})
    assert asyncio_log.take("too late").levelno == logging.ERROR


def test_a_deadlock_names_each_task_and_the_line_where_it_waits():
    async def inner():
        await forever()

    class Awaitable:
        def __await__(self):
            return inner().__await__()

    async def outer():
        await Awaitable()

    async def main():
        main.task = asyncio.create_task(outer(), name="the stuck one")
        await main.task

    with pytest.raises(Deadlock) as caught:
        run(main)
    text = str(caught.value)
    assert "task 'main'" in text
    assert "await main.task" in text
    stuck = text[text.index("task 'the stuck one'") :]
    assert [name for name in ("outer", "inner", "forever") if f" in {name}" in stuck.replace("<locals>.", " in ")]
    assert "await asyncio.get_running_loop().create_future()" in stuck
    assert __file__ in stuck
    assert "for <Future pending" in stuck


def test_a_deadlock_after_hours_is_one_too():
    async def main():
        await asyncio.sleep(3600)
        await forever()

    with pytest.raises(Deadlock, match="at 4600"):
        run(main)


def test_main_may_clean_up_after_a_deadlock():
    seen = []

    async def main():
        try:
            await forever()
        finally:
            await asyncio.sleep(1)
            seen.append("cleaned up")

    with pytest.raises(Deadlock):
        run(main)
    assert seen == ["cleaned up"]


def test_going_round_in_circles_is_found_and_the_task_named():
    async def spin():
        while True:
            await turn()

    async def main():
        main.task = asyncio.create_task(spin(), name="spinning")
        await main.task

    with pytest.raises(Livelock, match=r"(?s)it is still 1000.000000; what runs:\n  task 'spinning'.*sleep"):
        run(main, patience=100)


def test_main_going_round_in_circles_is_found():
    async def main():
        while True:
            await turn()

    with pytest.raises(Livelock, match=r"(?s)it is still.*task 'main'"):
        run(main, patience=100)


def test_main_that_waits_in_vain_while_others_tick_is_found():
    async def tick():
        while True:
            await asyncio.wait([asyncio.create_task(turn())])
            await asyncio.sleep(30)

    async def main():
        main.task = asyncio.create_task(tick(), name="ticking")
        await forever()

    with pytest.raises(Livelock, match=r"(?s)main.. has not run, although it is .*all tasks:\n  task 'main'.*forever"):
        run(main, patience=100)


def test_a_long_time_in_which_main_gets_on_is_no_livelock():
    async def main():
        for _ in range(1000):
            await asyncio.sleep(1)
            await asyncio.sleep(0)

    run(main, patience=10)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks_are_awaited_cancelled_and_reported_as_others_are():
    seen = []

    async def left(name):
        seen.append(name)
        try:
            await forever()
        finally:
            seen.append(f"end of {name}")

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        tasks = [asyncio.create_task(left(name), name=name) for name in "ab"]
        assert seen == ["a", "b"]
        await settle()
        assert await asyncio.create_task(asyncio.sleep(1, "result")) == "result"
        await asyncio.wait(tasks)

    with pytest.raises(Deadlock, match=r"(?s)task 'main'.*task 'a'.*task 'b'"):
        run(main)
    assert sorted(seen[2:]) == ["end of a", "end of b"]
