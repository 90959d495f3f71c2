"""pool.explain(): the verdict, who holds, who waits, how the backends stand, and what keeps the plan from its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import qorb
from qorb import (
    AllClaimsUsedError,
    Backend,
    ClaimTimeoutError,
    ConnectError,
    Explanation,
    NoBackendsError,
    NoBackendsOnlineError,
    Policy,
    Pool,
    QueueFullError,
    events,
)
from qorb._tasks import where
from qorb.errors import Holder
from qorb.explanation import SlotPlan, Standing, Waiting
from qorb.resolvers import FixedResolver, ManualResolver
from qorb.testing import FakeConnector, block, run, settle
from tests.pools import Scripted, backends, hold, opened

ONE, THREE = backends(1), backends(3)
HERE = re.escape(__file__)
HANG = rf"hang for (1\.9|2\.0) s in Hanging\.hang \({HERE}:\d+\)"


async def never():
    await asyncio.get_running_loop().create_future()


async def load(pool):
    async with pool.claim():
        await never()


@contextlib.asynccontextmanager
async def tasks():
    """Start tasks by name, and end them."""
    started = []

    def start(coroutine, name=None):
        started.append(asyncio.create_task(coroutine, name=name))
        return started[-1]

    try:
        yield start
    finally:
        for task in started:
            task.cancel()
        if started:
            await asyncio.wait(started)


def verdict(explanation):
    assert str(explanation).startswith(f"pool {explanation.pool}: {explanation.verdict}")
    return explanation.verdict


def section(explanation, title):
    """Give the lines below a title."""
    lines = str(explanation).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(title))
    below = lines[first + 1 :]
    end = next((i for i, line in enumerate(below) if not line.startswith("  ")), len(below))
    return [line.removeprefix("  ") for line in below[:end]]


# Nothing is wrong.


def test_nothing_keeps_a_claim_waiting():
    async def main():
        async with opened(THREE, spares_wanted=16, max_slots=16) as watched:
            explained = watched.pool.explain()
        assert verdict(explained) == "16 of 16 idle: nothing keeps a claim waiting"
        assert not explained.holders
        assert not explained.advice
        assert not explained.plan.obstacles
        assert explained.waiting.count == 0
        assert str(explained).splitlines()[1:] == [
            "backends: 3",
            "  b0  online: 6 idle",
            "  b1  online: 5 idle",
            "  b2  online: 5 idle",
            "plan: 0 for claims + 16 spares wanted, 16 slots planned, 16 connected",
        ]

    run(main)


def test_a_backend_that_is_gone_is_mentioned_although_the_others_serve():
    async def main():
        connector = FakeConnector()
        connector.fail("connect", lambda: OSError("no route"), "b1")
        async with opened(THREE, connector, ready=False, spares_wanted=3, max_slots=9) as watched:
            await asyncio.sleep(30)
            failed = watched.attempts("b1")[-1]
            while watched.attempts("b1")[-1] == failed:  # noqa: ASYNC110 - until the next attempt
                await asyncio.sleep(0.01)
            explained = watched.pool.explain()
            seen = asyncio.get_running_loop().time()
            ended = seen + explained.backends[1].next_attempt
            await asyncio.sleep(40)
            later = next(moment for moment in watched.attempts("b1") if moment > seen)
        assert verdict(explained) == "3 of 3 idle: nothing keeps a claim waiting; 1 of 3 backends without a connection"
        assert [one.state for one in explained.backends] == ["online", "offline", "online"]
        assert later == pytest.approx(ended, abs=0.001)
        first = section(explained, "backends:")[0]
        assert re.fullmatch(r"b1  offline: 1 not connected; OSError: no route; next attempt in \d+(\.\d)? s", first), (
            first
        )

    run(main)


# All connections are in use.


def test_who_holds_most_of_them_for_long_is_in_the_first_line():
    async def main():
        async with opened(THREE, max_slots=16) as watched, tasks() as start:
            pool = watched.pool
            for number in range(12):
                start(load(pool), f"orders.load-{number}")
            await asyncio.sleep(6)
            for number in range(4):
                start(hold(pool, 100), f"http-{number}")
            await asyncio.sleep(0.5)
            explained = pool.explain()
            assert verdict(explained) == "all 16 connections are in use; 12 of them for over 5 s by `orders.load-*`"
            assert [holder.seconds > 6 for holder in explained.holders] == [True] * 12 + [False] * 4
            held = section(explained, "held: 16 of at most 16")
            assert len(held) == 6
            assert held[0] == "12 for 6.5 s by `orders.load-*`, on b0, b1, b2"
            assert re.fullmatch(rf"    now in never \({HERE}:\d+\)", held[1])
            assert re.fullmatch(rf"    claimed at {HERE}:\d+ in load", held[2])
            assert re.fullmatch(r"4 for 0.5 s by `http-\*`, on b\d(, b\d)*", held[3])
            assert "Hold claims for less time, or raise max_slots" in explained.advice
            assert explained.plan.obstacles == ("max_slots allows 16 of the 24 that are wanted",)

    run(main)


def test_tasks_that_nobody_named_go_by_the_function_that_they_run():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=2) as watched, tasks() as start:
            start(load(watched.pool))
            await asyncio.sleep(3)
            task = start(load(watched.pool))
            await asyncio.sleep(3)
            explained = watched.pool.explain()
            assert verdict(explained) == "all 2 connections are in use; all of them for over 2 s by `load`"
            assert explained.holders[1].task == task.get_name()
            assert section(explained, "held")[0] == "2 for 3.0 s to 6.0 s by `load`, on b0"

    run(main)


def test_a_holder_that_has_ended_is_told_although_its_coroutine_is_gone():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=1) as watched:
            claims = []

            async def hold_and_end():
                claims.append(await watched.pool.claim())

            # An eager task that ended at once has no coroutine: CPython 3.12 crashes when it is asked for it.
            eager = getattr(asyncio, "eager_task_factory", None)
            task = (
                asyncio.create_task(hold_and_end())
                if eager is None
                else eager(asyncio.get_running_loop(), hold_and_end())
            )
            await task
            (holder,) = watched.pool.explain().holders
            claims[0].release()
            return holder.ended, holder.coroutine

    assert run(main) == (True, None)


def test_the_only_holder_is_named():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=1) as watched, tasks() as start:
            start(load(watched.pool), "the one of 7")
            await asyncio.sleep(200)
            expected = "the only connection is in use; held for over 2 min by `the one of 7`"
            assert verdict(watched.pool.explain()) == expected

    run(main)


def test_a_load_that_is_too_much_is_told_from_claims_that_are_held_for_long():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=4) as watched, tasks() as start:

            async def work():
                while True:
                    await hold(watched.pool, 0.3)

            for number in range(40):
                start(work(), f"worker-{number}")
            await asyncio.sleep(10.1)
            assert re.fullmatch(
                r"all 4 connections are in use; none of them for longer than 0\.\d s: "
                "there are more claims than they can serve",
                verdict(watched.pool.explain()),
            )

    run(main)


def test_many_holders_are_cut_to_what_a_person_reads():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=60, max_slots_per_backend=60) as watched, tasks() as start:
            names = "abcdefghijklmnopqrst"
            for name in names * 3:
                start(load(watched.pool), name)
            await asyncio.sleep(4)
            explained = watched.pool.explain()
            assert verdict(explained) == "all 60 connections are in use; all of them for over 2 s, by tasks of 20 kinds"
            held = section(explained, "held: 60 of at most 60")
            assert len([line for line in held if not line.startswith("    ")]) == 9
            assert held[-1] == "and 36 more"
            assert len(explained.holders) == 60
            assert [holder.now is None for holder in explained.holders] == [False] * 50 + [True] * 10

    run(main)


def test_a_task_that_has_ended_and_a_claim_that_is_under_way_are_called_so():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=2) as watched, tasks() as start:
            kept = []

            async def forget():
                kept.append(await watched.pool.claim())

            forgetful = asyncio.create_task(forget(), name="forgetful")
            await forgetful
            other = await watched.pool.claim()
            waiter = start(hold(watched.pool, 1))
            await asyncio.sleep(0.1)
            watched.connector.needs_recycle = lambda connection, outcome: False
            other.release()
            explained = watched.pool.explain()  # the connection is on its way to the waiter
            await waiter
            del forgetful
            gc.collect()
            await asyncio.sleep(1)
            gone = watched.pool.explain()
            kept[0].release()
        ended, on_its_way = explained.holders
        assert (ended.task, ended.ended, ended.now, ended.handed_off) == ("forgetful", True, None, False)
        assert (on_its_way.task, on_its_way.ended, on_its_way.handed_off, on_its_way.seconds) == (
            None,
            False,
            True,
            0.0,
        )
        held = section(explained, "held")
        assert held[:2] == ["1 for 0.1 s by `forgetful`, on b0", "    which has ended"]
        assert held[3] == "1 for 0.0 s by a claim that is about to get it, on b0"
        assert any("use `async with pool.claim()`" in one for one in explained.advice)
        assert (gone.holders[0].task, gone.holders[0].ended) == (None, True)
        assert section(gone, "held")[0] == "1 for 2.1 s by a task that has ended, on b0"

    run(main)


def test_the_rest_is_said_to_be_on_its_way_when_not_all_are_claimed():
    async def main():
        connector = FakeConnector()
        async with opened(ONE, connector, spares_wanted=1, max_slots=4) as watched, tasks() as start:
            connector.stall("connect")
            start(load(watched.pool), "x")
            await asyncio.sleep(3)
            start(load(watched.pool), "y")
            await asyncio.sleep(0.5)
            explained = watched.pool.explain()
            said = "1 of at most 4 connections is in use; held for over 2 s by `x`; the others: 2 connecting"
            assert verdict(explained) == said
            assert section(explained, "plan: 2 for claims + 1 spares wanted, 3 slots planned, 1 connected") == [
                "- not connected: 2 to b0"
            ]
            connector.heal()

    run(main)


def test_holders_of_two_kinds_are_not_blamed_on_one_of_them():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=2) as watched, tasks() as start:
            start(load(watched.pool), "a")
            start(load(watched.pool), "b")
            await asyncio.sleep(3)
            said = "all 2 connections are in use; all of them for over 2 s, by tasks of 2 kinds"
            assert verdict(watched.pool.explain()) == said

    run(main)


# A connector that hangs.


class Hanging(FakeConnector):
    """A FakeConnector one of whose methods does not end, in a line of its own."""

    async def hang(self, *_):
        await asyncio.sleep(1e6)


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ("on_acquire", "all 4 connections are in use; most of them wait for the connector's on_acquire: 4"),
        (
            "on_recycle",
            rf"none of at most 4 connections is in use; 4 being checked or recycled \((b\d: {HANG}(; )?){{2}}\)",
        ),
        ("connect", r"none of 2 backends has a live connection; all of them: connecting for 2\.0 s"),
    ],
)
def test_a_call_of_the_connector_that_hangs_is_named_with_its_place(operation, said):
    async def main():
        connector = type("Connector", (Hanging,), {operation: Hanging.hang})()
        policy = {"max_slots": 4, "health_check_timeout": 60, "connect_timeout": 60}
        async with opened(backends(2), connector, ready=operation != "connect", **policy) as watched, tasks() as start:
            for number in range(8):
                start(hold(watched.pool, 0), f"http-{number}")
            await asyncio.sleep(2)
            explained = watched.pool.explain()
        assert re.fullmatch(said, verdict(explained))
        for one in explained.backends:
            assert re.fullmatch(HANG, one.under_way), one
        assert "its longest call: hang for" in section(explained, "backends")[0]
        assert [holder.preparing for holder in explained.holders] == [True] * 4 * (operation == "on_acquire")
        assert all(re.match(r"Hanging\.hang ", holder.now) for holder in explained.holders)
        assert not any("max_slots" in one for one in explained.advice)

    run(main)


# Tasks that wait for themselves.


async def nested(pool, seconds=30.0):
    async with pool.claim():
        await asyncio.sleep(0.5)
        async with pool.claim(timeout=seconds):
            pass


def test_tasks_that_hold_everything_and_ask_for_more_are_said_to_wait_for_themselves():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=2) as watched, tasks() as start:
            for number in range(2):
                start(nested(watched.pool), f"job-{number}")
            await asyncio.sleep(2)
            explained = watched.pool.explain()
            assert verdict(explained) == (
                "all 2 connections are in use; all tasks that hold them ask for another one meanwhile: "
                "they wait for themselves"
            )
            assert all(holder.asks for holder in explained.holders)
            held = section(explained, "held")
            assert held[:2] == ["2 for 2.0 s by `job-*`, on b0", "    and asks for another one meanwhile"]
            assert re.fullmatch(rf"    now in nested \({HERE}:\d+\)", held[2])  # and not in the midst of the pool
            assert any("Claim once" in one for one in explained.advice)

    run(main)


def test_one_task_that_waits_for_itself_is_named():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=1) as watched, tasks() as start:
            job = start(nested(watched.pool, 2), "job")
            await asyncio.sleep(1)
            explained = watched.pool.explain()
            await asyncio.wait([job])
            error = job.exception()
        assert verdict(explained) == (
            "the only connection is in use; the task that holds it, `job`, asks for another one meanwhile: "
            "it waits for itself"
        )
        itself = "This task itself already holds a connection of this pool: it may be waiting for itself"
        assert itself in str(error)
        assert verdict(error.explanation) == f"the only connection is in use; held for over 2 s by `job`. {itself}"

    run(main)


def test_some_that_ask_for_more_while_others_hold_are_counted():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=3) as watched, tasks() as start:
            start(nested(watched.pool), "job")
            start(load(watched.pool), "long")
            start(load(watched.pool), "long")
            await asyncio.sleep(7)
            assert verdict(watched.pool.explain()) == (
                "all 3 connections are in use; 2 of them for over 5 s by `long`; "
                "1 by a task that asks for another one meanwhile"
            )

    run(main)


def test_a_task_that_holds_several_is_said_to():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=3) as watched, tasks() as start:

            async def hoard():
                claims = await watched.claims(3)
                try:
                    await never()
                finally:
                    for claim in claims:
                        claim.release()

            start(hoard(), "hoarder")
            await asyncio.sleep(1.5)
            explained = watched.pool.explain()
            assert [holder.of_task for holder in explained.holders] == [3, 3, 3]
            assert section(explained, "held")[0] == "3 for 1.5 s by `hoarder`, which holds 3, on b0"

    run(main)


# Nothing is connected.


def test_all_backends_dead_each_for_its_own_reason():
    async def main():
        connector = FakeConnector()
        connector.fail("connect", lambda: OSError("no route"), "b0")
        connector.fail("connect", lambda: ConnectError("wrong password=hunter2"), "b1")
        connector.stall("connect", "b2")
        async with opened(THREE, connector, ready=False, connect_timeout=10) as watched, tasks() as start:
            await asyncio.sleep(21)
            start(hold(watched.pool, 1), "a")
            await asyncio.sleep(1)
            explained = watched.pool.explain()
        assert verdict(explained).startswith(
            "none of 3 backends has a live connection; each for a reason of its own, such as: "
        )
        rows = section(explained, "backends: 3")
        assert re.match(r"b0  offline: \d not connected; OSError: no route", rows[0]), rows
        assert re.match(r"b1  offline: \d not connected; ConnectError: wrong password=\*\*\*", rows[1]), rows
        assert re.match(r"b2  offline: .*TimeoutError: not done within 10 s", rows[2]), rows
        assert "hunter2" not in repr(explained) + str(explained)
        assert str(explained.waiting) == "1 of at most 10000, the first for 1.0 s; the next gives up in 29 s: 'a'"

    run(main)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (lambda name: OSError("no route"), "all of them: OSError: no route"),
        (lambda name: OSError(f"{name} is away"), r"all of them with something like: OSError: b\d is away"),
    ],
)
def test_a_reason_that_all_backends_share_is_in_the_first_line(reason, said):
    async def main():
        connector = FakeConnector()
        for backend in THREE:
            connector.fail("connect", functools.partial(reason, backend.name), backend.name)
        async with opened(THREE, connector, ready=False) as watched:
            await asyncio.sleep(1)
            explained = watched.pool.explain()
        assert re.fullmatch(f"none of 3 backends has a live connection; {said}", verdict(explained))

    run(main)


def test_many_backends_are_cut_to_those_in_trouble():
    async def main():
        connector = FakeConnector()
        connector.refuse("b33")
        async with opened(backends(40), connector, ready=False, max_slots=80) as watched:
            await asyncio.sleep(5)
            explained = watched.pool.explain()
        rows = section(explained, "backends: 40")
        assert rows[0].startswith("b33  offline: ")
        assert len(rows) == 11
        assert rows[-1] == "and 30 more: 30 online"
        assert len(explained.backends) == 40

    run(main)


def test_the_only_backend_says_itself_what_it_lacks():
    async def main():
        connector = FakeConnector()
        connector.stall("connect")
        async with opened(ONE, connector, ready=False) as watched:
            await asyncio.sleep(2)
            explained = watched.pool.explain()
        assert verdict(explained) == "the only backend has no live connection: connecting for 2.0 s"
        assert explained.backends[0].state == "untried"

    run(main)


def test_an_unknown_service_is_the_verdict():
    async def main():
        async with opened(ManualResolver(), ready=False) as watched:
            await settle()
            explained = watched.pool.explain()
            assert verdict(explained).startswith("the resolver ManualResolver knows no backend; ")
            assert not explained.backends
            with pytest.raises(NoBackendsError) as caught:
                await watched.pool.claim(timeout=0)
            assert caught.value.explanation == explained
        async with opened(Scripted(lambda _: never()), ready=False) as watched:
            await settle()
            assert verdict(watched.pool.explain()).startswith("the resolver Scripted knows no backend yet; it may need")
            await asyncio.sleep(2)
            place = rf"yet: watch for 2\.0 s in never \({HERE}:\d+\); it may need"
            assert re.search(place, verdict(watched.pool.explain()))

    run(main)


def test_slots_that_wait_for_their_turn_and_those_of_leaving_backends_keep_the_plan_from_its_end():
    async def main():
        connector = FakeConnector()
        async with opened(backends(2), connector, spares_wanted=1, max_slots=2) as watched, tasks() as start:
            start(load(watched.pool), "a")
            start(load(watched.pool), "b")
            await asyncio.sleep(1)
            connector.refuse()
            watched.resolver.set([backends(2)[0], *backends(4)[2:]])
            await asyncio.sleep(1)
            explained = watched.pool.explain()
            assert explained.plan.obstacles == (
                "slots of backends that are leaving count until they are closed: 1",
                "no slot is left to try b2, b3: those without a connection take turns",
            )
            assert [one.state for one in explained.backends] == ["online", "leaving", "untried", "untried"]
            assert explained.backends[1].wanted_slots == 0

    run(main)


def test_the_cap_for_each_backend_is_named_when_it_is_what_is_in_the_way():
    async def main():
        async with opened(backends(2), spares_wanted=2, max_slots=16, max_slots_per_backend=2) as watched:
            claims = await watched.claims(4)
            await asyncio.sleep(1.5)
            explained = watched.pool.explain()
            for claim in claims:
                claim.release()
        assert explained.plan.obstacles == ("max_slots_per_backend allows 2 for each of 2",)
        assert "Hold claims for less time, or raise max_slots_per_backend" in explained.advice

    run(main)


def test_idle_connections_that_wait_for_a_better_backend_are_said_to():
    async def main():
        connector = FakeConnector()
        connector.stall("connect", "best")
        known = [Backend("best", "10.0.0.1", 1), Backend("worse", "10.0.0.2", 1, priority=1)]
        async with opened(known, connector, ready=False) as watched, tasks() as start:
            start(hold(watched.pool, 1), "a")
            await asyncio.sleep(1)
            explained = watched.pool.explain()
            connector.heal()
        assert re.fullmatch(
            r"(\d) of \1 idle, but claims wait for the first attempt to connect to backends of a better priority; "
            "1 of 2 backends without a connection",
            verdict(explained),
        )
        assert explained.waiting.count == 1

    run(main)


# The waiting line.


def test_a_full_line_and_its_front_are_told():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=1, max_waiters=20) as watched, tasks() as start:
            start(load(watched.pool), "holder")
            for number in range(20):
                await asyncio.sleep(0.1)
                start(hold(watched.pool, 1), f"http-{number}")
            await asyncio.sleep(0.1)
            with pytest.raises(QueueFullError):
                await watched.pool.claim()
            explained = watched.pool.explain()
            said = "the only connection is in use; held for over 2 s by `holder`; the waiting line is full"
            assert verdict(explained) == said
            assert explained.waiting.tasks == tuple(f"http-{number}" for number in range(10))
            assert str(explained.waiting) == (
                "20 of at most 20, the first for 2.0 s; the next gives up in 28 s: 'http-0', 'http-1', 'http-2', ..."
            )

    run(main)


def test_whoever_waits_for_ever_does_so_without_a_time():
    async def main():
        policy = {"spares_wanted": 1, "max_slots": 1, "claim_timeout": float("inf")}
        async with opened(ONE, **policy) as watched, tasks() as start:
            start(load(watched.pool), "holder")
            await asyncio.sleep(0.1)
            start(hold(watched.pool, 1), "patient")
            start(hold(watched.pool, 1), "patient, too")
            await asyncio.sleep(1)
            waiting = watched.pool.explain().waiting
            assert str(waiting) == "2 of at most 10000: 'patient', 'patient, too'"
            assert waiting.longest is None
            assert waiting.next_timeout is None

    run(main)


# What was found out is in the errors, too, and names the remedy that fits.


async def refused(pool, kind, timeout=1):
    with pytest.raises(kind) as caught:
        await pool.claim(timeout=timeout)
    return str(caught.value)


def test_connections_of_tasks_that_have_ended_are_called_a_leak_in_the_first_line_and_in_the_error():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=2) as watched, tasks() as start:
            kept = []

            async def forget():
                kept.append(await watched.pool.claim())

            await start(forget(), "forgetful")
            start(load(watched.pool), "loader")
            await asyncio.sleep(20)
            said = "all 2 connections are in use; all of them for over 10 s, by tasks of 2 kinds"
            assert verdict(watched.pool.explain()) == f"{said}; 1 of them by a task that has ended"
            error = await refused(watched.pool, AllClaimsUsedError)
            assert "by task 'forgetful', which has ended" in error
            assert "by task 'loader', which has ended" not in error
            assert "Tasks have ended that claimed and did not release: use `async with pool.claim()`" in error
            kept[0].release()

    run(main)


def test_the_error_blames_an_on_acquire_that_hangs_and_not_those_who_wait_for_it():
    async def main():
        connector = FakeConnector()
        async with opened(ONE, connector, spares_wanted=1, max_slots=1) as watched, tasks() as start:
            connector.stall("on_acquire")
            start(load(watched.pool), "served")
            await asyncio.sleep(1)
            error = await refused(watched.pool, AllClaimsUsedError)
            assert "by task 'served', for whom the connector's on_acquire is under way" in error
            assert "max_slots" not in error

    run(main)


def test_what_on_acquire_failed_with_is_in_the_error():
    async def main():
        connector = FakeConnector()
        connector.fail("on_acquire", lambda: OSError("password=hunter2 is stale"))
        async with opened(ONE, connector, spares_wanted=1, max_slots=1) as watched:
            error = await refused(watched.pool, ClaimTimeoutError)
            assert re.search(r"given, at last with: (ConnectError: )?OSError: password=\*\*\* is stale$", error)

    run(main)


def test_an_on_recycle_that_hangs_is_named_in_the_error():
    async def main():
        connector = FakeConnector()
        async with opened(ONE, connector, spares_wanted=1, max_slots=1) as watched:
            async with watched.pool.claim():
                connector.stall("on_recycle")
            error = await refused(watched.pool, AllClaimsUsedError, 2)
            assert "the others: 1 being checked or recycled (b0: on_recycle for 2.0 s in " in error

    run(main)


def test_a_resolver_that_fails_is_mentioned_where_no_backend_is_online():
    async def main():
        async def once(publish):
            publish(ONE)
            await asyncio.sleep(1)
            raise OSError("no name server")

        def then(_publish):
            raise OSError("no name server")

        connector = FakeConnector()
        async with opened(Scripted(once, then), connector) as watched:
            await asyncio.sleep(5)
            assert "no name server" not in verdict(watched.pool.explain())  # all is well: it is of no concern to claims
            connector.refuse()
            for connection in connector.connections:
                connection.closed = True
            error = await refused(watched.pool, NoBackendsOnlineError)
            said = (
                "; and there may be others by now, for the resolver fails: "
                "Scripted: watch() failed: OSError: no name server"
            )
            assert error.endswith(said)
            assert verdict(watched.pool.explain()).endswith(said)

    run(main)


def test_reasons_that_have_nothing_in_common_are_not_said_to():
    async def main():
        connector = FakeConnector()
        connector.refuse("b0")
        connector.fail("connect", lambda: OSError("no route"), "b1")
        async with opened(backends(2), connector, ready=False) as watched:
            await asyncio.sleep(20)
            assert verdict(watched.pool.explain()) == (
                "none of 2 backends has a live connection; each for a reason of its own, such as: "
                "ConnectionRefusedError: b0 refuses connections"
            )

    run(main)


def test_the_cap_for_each_backend_is_named_when_only_one_of_them_is_online():
    async def main():
        connector = FakeConnector()
        connector.refuse("b1")
        policy = {"spares_wanted": 1, "max_slots": 16, "max_slots_per_backend": 2}
        async with opened(backends(2), connector, ready=False, **policy) as watched, tasks() as start:
            await asyncio.sleep(1)
            for _ in range(2):
                start(load(watched.pool))
            await asyncio.sleep(1)
            explained = watched.pool.explain()
            said = "max_slots_per_backend allows no more than 2 on b0, and no other is online"
            assert said in explained.plan.obstacles
            remedy = "hold claims for less time, or raise max_slots_per_backend"
            assert remedy in explained.advice[0]
            assert remedy in await refused(watched.pool, AllClaimsUsedError)
            connector.heal()
            await asyncio.sleep(60)
            explained = watched.pool.explain()
            assert said not in explained.plan.obstacles
            assert not explained.advice

    run(main)


@pytest.mark.parametrize("max_slots", [2, 3])
def test_fewer_slots_than_backends_are_too_few_even_while_claims_are_served(max_slots):
    async def main():
        async with opened(THREE, ready=False, spares_wanted=1, max_slots=max_slots) as watched:
            await asyncio.sleep(5)
            said = "Raise max_slots, so that there is one for each of the 3 backends"
            explained = watched.pool.explain()
            assert (said in explained.advice) is (max_slots < 3)
            kept = "no slot is left to try b2: those that are online keep the only one they have"
            assert explained.plan.obstacles == ((kept,) if max_slots < 3 else ())
            await asyncio.sleep(300)
            assert bool(watched.attempts("b2")) is (max_slots == 3)

    run(main)


def test_a_task_that_nobody_named_is_named_by_its_function_in_the_error():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=1) as watched, tasks() as start:
            start(load(watched.pool))
            await asyncio.sleep(1)
            assert re.search(r"by task '(Task-\d+|None)' \(load\), ", await refused(watched.pool, AllClaimsUsedError))

    run(main)


def test_a_pool_that_terminates_is_not_said_to_plan_or_to_connect():
    async def main():
        async with opened(backends(2), spares_wanted=2) as watched, tasks() as start:
            start(load(watched.pool))
            await asyncio.sleep(1)
            end = start(watched.pool.terminate())
            await asyncio.sleep(1)
            explained = watched.pool.explain()
            assert "plan:" not in str(explained)
            assert {str(one) for one in explained.backends} == {"online: 1 in use", "offline: no slot"}
            await end

    run(main)


# Every state of the pool.


def test_it_can_be_asked_in_every_state_of_the_pool():
    async def main():
        pool = Pool("main", FixedResolver(["a:1"]), FakeConnector())
        assert verdict(pool.explain()) == "not started yet; use `async with pool:` or `await pool.start()`"
        async with pool, tasks() as start:
            start(hold(pool, 3), "late")
            await asyncio.sleep(1)
            end = start(pool.terminate())
            await asyncio.sleep(1)
            explained = pool.explain()
            assert re.fullmatch(
                r"terminating, and serves no claim any more; left of it: 1 task, .*1 connection", verdict(explained)
            )
            assert section(explained, "held")[0] == "1 for 2.0 s by `late`, on a:1"
            await end
            assert verdict(pool.explain()) == "terminated: nothing of it is left; make a new one"
        unused = Pool("main", FixedResolver(["a:1"]), FakeConnector())
        await unused.terminate()
        assert verdict(unused.explain()) == "terminated: nothing of it is left; make a new one"

    run(main)


@pytest.mark.parametrize(("later", "whom"), [(THREE[1:2], "it"), (THREE[1:], "them")])
def test_an_observer_can_ask_while_all_backends_are_exchanged_for_others(later, whom):
    resolver = ManualResolver(ONE)
    seen = []
    pool = Pool("main", resolver, FakeConnector(), observer=lambda event: seen.append((event, pool.explain())))

    async def main():
        async with pool:
            await pool.ready()
            resolver.set(later)
            await pool.ready()

    run(main)
    gone = [explanation for event, explanation in seen if isinstance(event, events.SlotSetOffline)]
    assert verdict(gone[0]).endswith(f" live connection: only now has the resolver named {whom}")
    assert isinstance(seen[-1][0], events.PoolTerminateDone)


@pytest.mark.filterwarnings("ignore:unterminated pool")
def test_a_pool_whose_loop_is_closed_says_so():
    pool = Pool("main", FixedResolver(["a:1"]), FakeConnector())

    async def main():
        await pool.start()
        await pool.ready()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    assert verdict(pool.explain()) == "its event loop is closed, and serves no claim; end a pool before its loop"
    pool.abort()


# What errors carry.


@pytest.mark.parametrize("count", [1, 1000])
def test_claims_that_fail_together_share_one_explanation(count):
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=1) as watched, tasks() as start:
            start(load(watched.pool), "holder")
            await asyncio.sleep(1)
            crowd = [start(hold(watched.pool, 1)) for _ in range(count)]
            await asyncio.wait(crowd)
            errors = [task.exception() for task in crowd]
            assert {type(error) for error in errors} == {AllClaimsUsedError}
            assert len({id(error.explanation) for error in errors}) == 1
            assert errors[0].explanation.holders == errors[0].holders
            assert verdict(errors[0].explanation) == "the only connection is in use; held for over 30 s by `holder`"

    run(main)


def test_the_error_of_a_pool_without_connections_carries_how_each_backend_stands():
    async def main():
        connector = FakeConnector()
        connector.refuse()
        async with opened(THREE, connector, ready=False) as watched:
            with pytest.raises(NoBackendsOnlineError) as caught:
                await watched.pool.claim(timeout=1)
            explained = caught.value.explanation
            assert {one.backend: one.last_error for one in explained.backends} == caught.value.errors
            with pytest.raises(NoBackendsOnlineError) as caught:
                await watched.pool.ready(timeout=1)
            assert caught.value.explanation.backends != explained.backends

    run(main)


def test_an_error_that_no_pool_made_explains_nothing():
    assert ClaimTimeoutError("no").explanation is None


def test_claims_of_a_large_pool_that_fail_soon_after_each_other_share_one_explanation():
    async def main():
        async with opened(backends(300), max_slots=300, spares_wanted=0) as watched, tasks() as start:
            for _ in range(300):
                start(load(watched.pool))
            await asyncio.sleep(1)

            async def refused():
                with pytest.raises(AllClaimsUsedError) as caught:
                    await watched.pool.claim(timeout=0)
                return caught.value

            first = await refused()
            again = await refused()
            assert again.explanation is first.explanation
            assert again.holders is not first.holders
            await asyncio.sleep(0.2)
            assert (await refused()).explanation is not first.explanation

    run(main)


# A value.


def busy():
    """Explain a pool in which there is something of everything."""

    async def main():
        connector = FakeConnector()
        connector.refuse("b1")
        async with opened(backends(2), connector, ready=False, max_slots=3) as watched, tasks() as start:
            for name in ("a", "password=hunter2", "\x1b[31mred\nnext", "waiter\x07"):
                await asyncio.sleep(1)
                start(load(watched.pool), name)
            await asyncio.sleep(1)
            return watched.pool.explain()

    return run(main)


def test_it_can_be_copied_pickled_and_made_into_json():
    explained = busy()
    assert pickle.loads(pickle.dumps(explained)) == explained
    told = json.loads(json.dumps(explained.as_dict(), allow_nan=False))
    assert told["pool"] == "main"
    assert told["state"] == "running"
    assert told["verdict"] == explained.verdict
    assert [one["task"] for one in told["holders"]] == [one.task for one in explained.holders]
    assert told["backends"][1]["last_error"] == "ConnectionRefusedError: b1 refuses connections"
    assert told["plan"]["obstacles"]
    with pytest.raises(AttributeError):
        explained.verdict = "all is well"


def test_it_holds_no_password_and_writes_nothing_to_a_terminal_but_text():
    explained = busy()
    assert "hunter2" not in str(explained) + repr(explained) + json.dumps(explained.as_dict())
    assert all(line.isprintable() for line in str(explained).splitlines())
    assert r"\x1b[31mred\nnext" in str(explained)
    assert r"waiter\x07" in str(explained)


def test_what_a_resolver_says_of_its_failure_writes_nothing_to_a_terminal_either():
    explained = busy()
    said = dataclasses.replace(explained, verdict="\x1b[2Jno\nbackend\r", advice=("\x1b[31mred",))
    assert str(said).startswith(r"pool main: \x1b[2Jno\nbackend\r" + "\n")
    assert r"- \x1b[31mred" in str(said)


def test_claims_on_backends_that_are_leaving_may_be_more_than_the_limit():
    async def main():
        async with opened(backends(2), spares_wanted=1, max_slots=4, max_slots_per_backend=2) as watched:
            claims = await watched.claims(4)
            watched.resolver.set([])
            explained = watched.pool.explain()
            for claim in claims:
                claim.release()
        assert section(explained, "held: 4")[0].startswith("4 for 0.0 s by `main`")
        assert "held: 4\n" in str(explained)
        assert [one.state for one in explained.backends] == ["leaving", "leaving"]

    run(main)


@pytest.mark.parametrize(
    ("most", "held", "limit", "remedy"), [(3, 3, 4, "max_slots"), (2, 1, 3, "max_slots_per_backend")]
)
def test_claims_on_a_backend_that_is_leaving_count_among_those_that_there_can_be(most, held, limit, remedy):
    async def main():
        async with opened(ONE, spares_wanted=3, max_slots=4, max_slots_per_backend=most) as watched:
            claims = await watched.claims(held)
            watched.resolver.set(backends(2)[1:])
            claims += [await watched.pool.claim(timeout=1) for _ in range(limit - held)]
            explained = watched.pool.explain()
            with pytest.raises(
                AllClaimsUsedError, match=f"{limit} of at most {limit} connections are in use"
            ) as caught:
                await watched.pool.claim(timeout=1)
            assert f"raise {remedy}." in str(caught.value)
            assert caught.value.limit == explained.plan.limit == limit
            assert verdict(explained).startswith(f"all {limit} connections are in use")
            for claim in claims:
                claim.release()

    run(main)


def test_a_task_of_the_library_itself_stands_in_the_library():
    async def main():
        connector = FakeConnector()
        async with opened(ONE, spares_wanted=1, max_slots=1) as watched, tasks() as start:

            async def connect_with_it():
                async with watched.pool.claim():
                    await connector.validate(await connector.connect(ONE[0]))

            connector.stall("connect")
            start(connect_with_it())
            await asyncio.sleep(1)
            assert re.match(rf".*connect_with_it \({HERE}:", watched.pool.explain().holders[0].now)
            alone = start(connector.connect(ONE[0]))
            await asyncio.sleep(1)
            assert where(alone.get_coro(), str(Path(qorb.__file__).parent)).startswith("FakeConnector.")

    run(main)


@pytest.mark.parametrize("debug", [True, False])
def test_how_to_see_where_claims_were_made_is_said_where_it_is_not_seen(debug):
    async def main():
        asyncio.get_running_loop().set_debug(debug)
        async with opened(ONE, spares_wanted=1, max_slots=1) as watched, tasks() as start:
            start(load(watched.pool), "holder")
            await asyncio.sleep(1)
            explained = watched.pool.explain()
            assert any("PYTHONASYNCIODEBUG=1" in one for one in explained.advice) is not debug
            assert (explained.holders[0].site is None) is not debug

    run(main)


def test_looking_changes_nothing():
    def seen(look):
        async def main():
            connector = FakeConnector()
            connector.refuse("b1")
            async with opened(THREE, connector, ready=False, observed=True) as watched, tasks() as start:
                for number in range(20):
                    start(hold(watched.pool, 0.7), f"t{number}")
                    await asyncio.sleep(0.05)
                    if look:
                        str(watched.pool.explain())
                await asyncio.sleep(5)
                return [(moment, type(event)) for moment, event in watched.events]

        return run(main)

    assert seen(look=True) == seen(look=False)


def test_a_text_is_made_of_every_state_that_a_backend_can_be_in():
    standing = Standing("b0", "failing", 1, 2, 3, 4, 5, 12, "OSError: no", 2.0, 1.5, "OSError: " + "x" * 600)
    text = str(standing)
    assert text.startswith(
        "failing: 1 in use, 2 idle, 3 being checked or recycled, 4 not connected, 5 ending of 12 planned; "
    )
    assert text.endswith("…; next attempt in 1.5 s")
    assert len(text) < 350


# From another thread.


def test_a_thread_can_ask_what_blocks_the_loop(run_real):
    answers = []

    def watch(pool, blocked, free):
        blocked.wait(60)
        for _ in range(600):
            answers.append(pool.explain())
            if "does not get on" in answers[-1].verdict:
                break
            free.wait(0.1)
        free.set()

    async def blocker(pool, blocked, free):
        async with pool.claim():
            await asyncio.sleep(0.01)
            blocked.set()
            free.wait(120)

    async def main():
        blocked, free = threading.Event(), threading.Event()
        async with opened_for_real(max_slots=1, spares_wanted=1) as pool, tasks() as start:
            thread = threading.Thread(target=watch, args=(pool, blocked, free))
            thread.start()
            jobs = [start(blocker(pool, blocked, free), "blocker")]
            await asyncio.sleep(0)
            jobs.append(start(patient(pool)))
            await asyncio.wait(jobs)
            thread.join()

    run_real(main)
    assert re.search(
        rf"Its event loop does not get on: it has been late for [\d.]+ s, and is now in .*blocker \({HERE}:\d+\)",
        answers[-1].verdict,
    )
    assert re.search(rf"blocker \({HERE}:\d+\)", answers[-1].holders[0].now)


async def patient(pool):
    with contextlib.suppress(ClaimTimeoutError):
        async with pool.claim(timeout=0.05):
            pass


@contextlib.asynccontextmanager
async def opened_for_real(**policy):
    async with Pool("main", FixedResolver(["a:1", "b:1", "c:1"]), FakeConnector(), Policy(**policy)) as pool:
        await pool.ready()
        yield pool


def test_a_thread_can_ask_while_the_pool_is_at_work(run_real):
    explained: list[Explanation] = []

    def ask(pool):
        while len(explained) < 300 or sum(bool(one.holders) for one in explained) < 20:
            explained.append(pool.explain())
            assert str(explained[-1])

    async def work(pool, busy):
        while not busy.done():
            with contextlib.suppress(ClaimTimeoutError):
                async with pool.claim(timeout=0.01):
                    await asyncio.sleep(0.001)

    async def main():
        async with opened_for_real(max_slots=8) as pool, tasks() as start:
            busy = asyncio.get_running_loop().run_in_executor(None, ask, pool)
            workers = [start(work(pool, busy)) for _ in range(100)]
            await asyncio.wait(workers)
            await busy

    run_real(main)
    assert not [one.verdict for one in explained if "another thread" in one.verdict]


def test_a_stall_of_the_loop_is_seen_from_within_as_well():
    async def main():
        async with opened(ONE, spares_wanted=1, max_slots=1) as watched, tasks() as start:
            start(load(watched.pool), "holder")
            await asyncio.sleep(0.1)
            start(patient(watched.pool))
            await settle()
            block(7)
            assert verdict(watched.pool.explain()).endswith(
                ". Its event loop does not get on: it has been late for 7.0 s"
            )
            await asyncio.sleep(1)
            assert "does not get on" not in verdict(watched.pool.explain())

    run(main)


# The documentation.


def page():
    return (Path(__file__).parent.parent / "docs/observing.md").read_text(encoding="utf-8")


def test_the_observing_page_shows_what_its_program_prints(tmp_path):
    part = page().partition("## When claims fail")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
    (shown,) = re.findall(r"^```text\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
    (tmp_path / "app.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    # When an offline backend was tried last is a matter of chance.
    printed, shown = (re.sub(r"\d\.\d s ago", "some time ago", text) for text in (done.stdout, shown))
    assert printed.replace(f"{tmp_path}{os.sep}", "") == shown


def test_the_observing_page_has_every_field_of_an_explanation():
    table = page().partition("| `Explanation` | |\n")[2].partition("\n\n")[0]
    named = re.findall(r"`(\w+)`", table)
    kinds = (Explanation, Holder, Waiting, Standing, SlotPlan)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert set(named) - {"PoolState", "Holder", "Standing"} == fields
