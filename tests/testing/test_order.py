"""The order in which things happen is a function of the seed and of nothing else."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import textwrap

from qorb.testing import run

SEEDS = range(1, 30)


def order_of_tasks(seed):
    seen = []

    async def one(name):
        await asyncio.sleep(1)
        seen.append(name)

    async def main():
        await asyncio.wait([asyncio.create_task(one(name)) for name in "abcdef"])

    run(main, seed=seed)
    return "".join(seen)


def test_seed_0_is_first_come_first_served():
    assert order_of_tasks(0) == "abcdef"


def test_other_seeds_shuffle_the_tasks_that_are_ready_together():
    orders = {order_of_tasks(seed) for seed in SEEDS}
    assert len(orders) > 20
    assert all(sorted(order) == list("abcdef") for order in orders)


def test_tasks_that_one_future_wakes_are_shuffled_too():
    def order(seed):
        seen = []

        async def main():
            future = asyncio.get_running_loop().create_future()

            async def one(name):
                await future
                seen.append(name)

            tasks = []
            for name in "abcdef":
                tasks.append(asyncio.create_task(one(name)))
                await asyncio.sleep(1)
            future.add_done_callback(lambda _: seen.append("|"))
            future.set_result(None)
            await asyncio.wait(tasks)

        run(main, seed=seed)
        return "".join(seen)

    assert order(0) == "abcdef|"
    orders = {order(seed) for seed in SEEDS}
    assert len(orders) > 20
    # Before a callback as well as behind it.
    assert len([one for one in orders if one.endswith("|")]) > 5
    assert len([one for one in orders if one.startswith("|")]) > 5


def test_the_same_seed_gives_the_same_order():
    assert [order_of_tasks(seed) for seed in SEEDS] == [order_of_tasks(seed) for seed in SEEDS]


def test_callbacks_keep_their_order():
    def order(seed):
        seen = []

        async def main():
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            for number in range(20):
                future.add_done_callback(lambda _, number=number: seen.append(number))
                loop.call_soon(seen.append, number + 100)
            future.set_result(None)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        run(main, seed=seed)
        return seen

    assert all(order(seed) == [*range(100, 120), *range(20)] for seed in SEEDS)


def test_a_callback_that_was_added_before_a_task_waited_runs_before_the_task():
    seen = []

    async def main():
        loop = asyncio.get_running_loop()

        async def wait(future):
            future.add_done_callback(lambda _: seen.append("callback"))
            await future
            seen.append("task")

        for _ in range(20):
            future = loop.create_future()
            others = [asyncio.create_task(asyncio.sleep(1)) for _ in range(5)]
            task = asyncio.create_task(wait(future))
            loop.call_later(1, future.set_result, None)
            await asyncio.wait([task, *others])

    for seed in SEEDS:
        seen.clear()
        run(main, seed=seed)
        assert seen == ["callback", "task"] * 20


def test_a_task_may_be_put_back_behind_a_callback():
    def order(seed):
        seen = []

        async def main():
            loop = asyncio.get_running_loop()

            async def one():
                await asyncio.sleep(0)
                seen.append("task")

            task = asyncio.create_task(one())
            loop.call_soon(loop.call_soon, seen.append, "callback")
            await task
            await asyncio.sleep(0)

        run(main, seed=seed)
        return tuple(seen)

    assert order(0) == ("task", "callback")
    assert {order(seed) for seed in SEEDS} == {("task", "callback"), ("callback", "task")}


def test_other_seeds_shuffle_timers_that_are_due_together_but_no_others():
    def order(seed):
        seen = []

        async def main():
            loop = asyncio.get_running_loop()
            for number in range(6):
                loop.call_at(loop.time() + 1 + number // 3, seen.append, number)
            await asyncio.sleep(5)

        run(main, seed=seed)
        return seen

    orders = {tuple(order(seed)) for seed in SEEDS}
    assert len(orders) > 10
    assert all(set(seen[:3]) == {0, 1, 2} for seen in orders)


def test_a_shuffled_turn_loses_nothing_when_it_is_broken_off():
    seen = []

    async def one(number):
        await asyncio.sleep(1)
        if number == 3:
            raise KeyboardInterrupt
        seen.append(number)

    async def main():
        main.tasks = [asyncio.create_task(one(number)) for number in range(6)]
        await asyncio.wait(main.tasks)

    for seed in range(5):
        seen.clear()
        try:
            run(main, seed=seed)
        except KeyboardInterrupt:
            assert all(task.done() for task in main.tasks)
            done = [number for number, task in enumerate(main.tasks) if not task.cancelled() and number != 3]
            assert sorted(seen) == done
        else:
            raise AssertionError("KeyboardInterrupt was lost")
        assert isinstance(main.tasks[3].exception(), KeyboardInterrupt)


PROGRAM = textwrap.dedent(
    """
    import asyncio, random, sys
    from qorb import Policy, Pool
    from qorb.resolvers import FixedResolver
    from qorb.testing import FakeConnector, run

    seen = []

    async def client(pool, number):
        loop = asyncio.get_running_loop()
        async with pool.claim() as connection:
            seen.append((number, connection.id, connection.backend.name, round(loop.time(), 9)))
            await connection.request(str(number))

    async def main():
        backends = {"a:1", "b:2", "c:3"}
        pool = Pool("p", FixedResolver(sorted(backends)), FakeConnector(), Policy(max_slots=3), rng=random.Random(1))
        async with pool:
            clients = [asyncio.create_task(client(pool, number)) for number in range(12)]
            await asyncio.wait(clients)

    run(main, seed=int(sys.argv[1]))
    print(seen)
    """
)


def order_in_a_process(seed, hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    program = [sys.executable, "-c", PROGRAM, str(seed)]
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout


def test_neither_the_hash_seed_nor_the_process_matters():
    first = order_in_a_process(5, "1")
    assert "(11, " in first
    assert first == order_in_a_process(5, "2") == order_in_a_process(5, "random")
    assert first != order_in_a_process(0, "1")


def test_chance_outside_of_the_run_is_left_alone():
    state = random.getstate()
    order_of_tasks(3)
    assert random.getstate() == state
