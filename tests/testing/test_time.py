"""Virtual time: exact, free of charge, and not to be confused with the real world."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import anyio
import pytest

from qorb.testing import Deadlock, block, run, settle

START = 1000.0


def now():
    return asyncio.get_running_loop().time()


def test_a_million_years_pass_in_no_more_turns_than_it_takes():
    async def main():
        await asyncio.sleep(3e13)
        return now()

    assert run(main, patience=5) == START + 3e13


def test_time_begins_at_the_same_moment_in_every_run():
    async def main():
        return now()

    assert [run(main), run(main, seed=7)] == [START, START]


@pytest.mark.parametrize("delay", [1e-9, 1e-7, 0.001, 0.1 + 0.2, 1 / 3, 12345.678901234567])
def test_the_clock_at_a_timer_is_exactly_what_it_was_set_to(delay):
    seen = []

    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(5):
            due = now() + delay
            loop.call_at(due, lambda due=due: seen.append((now(), due)))
            await asyncio.sleep(delay)

    run(main)
    assert len(seen) == 5
    assert all(at == due for at, due in seen)


def test_timers_that_are_a_hair_apart_fire_apart():
    seen = []

    async def main():
        loop = asyncio.get_running_loop()
        early = now() + 1.0
        late = math.nextafter(early, math.inf)
        loop.call_at(late, lambda: seen.append(now()))
        loop.call_at(early, lambda: seen.append(now()))
        await asyncio.sleep(2)
        return [early, late]

    assert run(main) == seen


def test_timers_due_at_the_same_time_fire_in_the_order_of_their_creation():
    seen = []

    async def main():
        loop = asyncio.get_running_loop()
        due = now() + 1.0
        for number in range(200):
            loop.call_at(due, seen.append, number)
        await asyncio.sleep(2)

    run(main)
    assert seen == list(range(200))


def test_a_cancelled_timer_does_not_fire_and_does_not_hold_time_up():
    async def main():
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, int)
        for timer in [loop.call_later(0.5, pytest.fail, "fired") for _ in range(500)]:
            timer.cancel()
        assert len(loop._scheduled) == 501
        await asyncio.sleep(0.1)
        assert len(loop._scheduled) == 1  # thrown out, not waited for
        await asyncio.sleep(1)
        return now()

    assert run(main) == START + 0.1 + 1


def test_a_timer_at_infinity_never_fires():
    async def main():
        asyncio.get_running_loop().call_later(math.inf, pytest.fail, "fired")
        await asyncio.sleep(1e9)
        await asyncio.sleep(math.inf)

    with pytest.raises(Deadlock):
        run(main)


def test_a_timer_at_nan_is_refused():
    async def main():
        asyncio.get_running_loop().call_later(math.nan, print)

    with pytest.raises(ValueError, match="NaN"):
        run(main)


def test_a_timer_needs_something_to_call():
    async def main():
        asyncio.get_running_loop().call_later(1, None)

    with pytest.raises(TypeError, match="callable"):
        run(main)


def test_asyncio_timeout_ends_exactly_at_its_deadline():
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await asyncio.get_running_loop().create_future()
        return now()

    assert run(main) == START + 2.5


def test_asyncio_wait_for_ends_exactly_at_its_deadline():
    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 0.25)
        return now()

    assert run(main) == START + 0.25


def test_anyio_scopes_and_task_groups_work():
    async def main():
        done = []
        with anyio.move_on_after(3) as scope:
            await anyio.sleep(5)
        assert scope.cancelled_caught
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 4)
            group.start_soon(anyio.sleep, 2)
            done.append(now())
        return [*done, now()]

    assert run(main) == [START + 3, START + 7]


def test_blocking_makes_everything_due_meanwhile_late_and_due_at_once():
    seen = []

    async def main():
        loop = asyncio.get_running_loop()
        for delay in (3, 1, 2):
            loop.call_later(delay, lambda delay=delay: seen.append((delay, now())))
        block(2.5)
        assert now() == START + 2.5
        assert seen == []
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen == [(1, START + 2.5), (2, START + 2.5)]
        await asyncio.sleep(1)

    run(main)
    assert seen[-1] == (3, START + 3)


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
def test_only_a_time_that_can_pass_can_be_blocked(seconds):
    async def main():
        block(seconds)

    with pytest.raises(ValueError, match="seconds"):
        run(main)


def test_settling_lets_everything_happen_that_can_happen_now():
    seen = []

    async def main():
        loop = asyncio.get_running_loop()

        async def hop(times):
            for number in range(times):
                await asyncio.sleep(0)
                seen.append(number)

        loop.call_later(0.001, pytest.fail, "time has passed")
        task = asyncio.create_task(hop(50))
        await settle()
        assert task.done()
        assert now() == START

    run(main)
    assert seen == list(range(50))


def test_settling_waits_for_timers_that_are_overdue():
    async def main():
        seen = []
        asyncio.get_running_loop().call_later(1, seen.append, "due")
        block(1)
        await settle()
        return seen

    assert run(main) == ["due"]


def test_those_who_settle_are_told_one_after_the_other():
    seen = []

    async def one(name):
        await settle()
        for _ in range(3):
            seen.append(name)
            await asyncio.sleep(0)

    async def main():
        await asyncio.wait([asyncio.create_task(one(name)) for name in "abc"])

    run(main)
    assert "".join(seen) == "aaabbbccc"


def test_settling_can_be_cancelled():
    async def main():
        task = asyncio.create_task(settle())
        await asyncio.sleep(0)
        task.cancel()
        await settle()
        return task.cancelled()

    assert run(main)


@pytest.mark.parametrize("tool", [settle, lambda: asyncio.sleep(0, block(1))])
def test_the_tools_for_virtual_time_say_so_on_a_real_loop(run_real, tool):
    async def main():
        with pytest.raises(RuntimeError, match=r"works in qorb\.testing\.run\(\) only"):
            await tool()

    run_real(main)


def test_the_network_is_out_of_reach():
    async def main():
        for reach in (
            lambda: asyncio.open_connection("127.0.0.1", 9),
            lambda: asyncio.start_server(print, "127.0.0.1", 0),
            lambda: asyncio.get_running_loop().getaddrinfo("localhost", 80),
            lambda: asyncio.create_subprocess_exec("true"),
        ):
            with pytest.raises(RuntimeError, match=r"does not exist in qorb\.testing\.run"):
                await reach()

    run(main)


def test_work_for_threads_is_done_on_the_loops_own_thread_in_no_time():
    async def main():
        thread = await asyncio.to_thread(threading.get_ident)
        return thread == threading.get_ident(), now()

    assert run(main) == (True, START)


def test_work_for_threads_may_fail_or_be_cancelled_before_it_begins():
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        loop.run_in_executor(None, pytest.fail, "called").cancel()
        await settle()

    run(main)


def test_another_thread_may_call_into_the_loop():
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        thread = threading.Thread(target=lambda: (time.sleep(0.02), loop.call_soon_threadsafe(future.set_result, 5)))
        thread.start()
        try:
            return await future
        finally:
            thread.join()

    assert run(main) == 5


def test_a_thread_that_never_calls_does_not_hide_a_deadlock(monkeypatch):
    monkeypatch.setattr("qorb.testing._loop.PATIENCE_WITH_THREADS", 0.01)
    over = threading.Event()

    async def main():
        threading.Thread(target=over.wait, daemon=True).start()
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run(main)
    over.set()
