"""BlockingConnector: every connection lives on a thread of its own, which the pool knows of and waits for."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import itertools
import logging
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest

from qorb import Connector, NoBackendsOnlineError, Outcome, Policy, Pool, PoolForkedError, TerminationError, workers
from qorb._demo.postgres import PostgresServer
from qorb.connectors.blocking import BlockingConnector
from qorb.errors import ConnectError
from qorb.events import ConnectFailed, HealthCheckFailed
from qorb.resolvers import FixedResolver
from qorb.testing import assert_nothing_left
from tests.connectors.cancelling import at_every_await
from tests.connectors.peers import eventually

psycopg = pytest.importorskip("psycopg")

LONG = 60.0
"""Seconds after which a thread that waits in a test gives up; nothing takes that long."""
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
ONE = Policy(spares_wanted=1, max_slots=1)


class Raw:
    """A driver's connection that blocks, and says so when it is used from the wrong thread or from two at once."""

    def __init__(self, driver, backend):
        self.driver = driver
        self.backend = backend
        self.thread = threading.current_thread()
        self.closed = False
        self.in_use = threading.Lock()
        self.rollbacks = 0

    def use(self, function=None):
        if threading.current_thread() is not self.thread or self.closed or not self.in_use.acquire(blocking=False):
            self.driver.abuses.append(threading.current_thread().name)
            return None
        try:
            return function() if function is not None else None
        finally:
            self.in_use.release()

    def wait(self, gate):
        return self.use(gate.wait)

    def rollback(self):
        self.use()
        self.rollbacks += 1

    def close(self):
        self.use()
        self.closed = True


class Driver:
    """Makes Raws, and knows them all."""

    def __init__(self):
        self.raws = []
        self.abuses = []

    def connect(self, backend):
        raw = Raw(self, backend)
        self.raws.append(raw)
        return raw

    def assert_all_closed(self):
        assert not self.abuses
        assert all(raw.closed for raw in self.raws)
        assert not any(raw.thread.is_alive() for raw in self.raws)


class Gate:
    """Holds up a thread until it is opened; the loop can wait until one has come."""

    def __init__(self):
        self._loop = asyncio.get_running_loop()
        self.came = asyncio.Event()
        self.open = threading.Event()

    def wait(self):
        self._loop.call_soon_threadsafe(self.came.set)
        assert self.open.wait(LONG)
        return "through"


def pool_of(connector, policy=ONE, *, backends=("b0:1",), observer=None):
    return Pool("main", FixedResolver(list(backends)), connector, policy, observer=observer)


def sqlite(path, **options):
    return BlockingConnector(lambda _: sqlite3.connect(path), **options)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what is waited for happens on threads
        await asyncio.sleep(0.001)


def has_failed(pool):
    return any(one.last_error for one in pool.stats().backends.values())


# Threads.


def test_a_connection_has_a_thread_that_is_named_counted_and_joined(run_real):
    async def main():
        driver = Driver()
        pool = pool_of(BlockingConnector(driver.connect), Policy(spares_wanted=3, max_slots=4))
        async with pool:
            await pool.ready()
            assert pool.ledger().threads == 3
            names = sorted(raw.thread.name for raw in driver.raws)
            assert all(name.startswith("qorb main slot ") and name.endswith(" b0:1 connection") for name in names)
            assert len(set(names)) == 3
            async with pool.claim() as connection:
                assert await connection.run(lambda raw: raw.thread is threading.current_thread())
                assert str(connection.backend) == "b0:1"
                assert repr(connection) == "<BlockingConnection to b0:1, idle>"
        assert pool.ledger().empty
        assert_nothing_left(pool)
        driver.assert_all_closed()
        assert connection.closed
        with pytest.raises(ConnectError, match="closed"):
            await connection.run(id)

    run_real(main)


def test_spares_connect_side_by_side_on_their_own_threads(run_real):
    async def main():
        together = threading.Barrier(4)
        driver = Driver()

        def connect(backend):
            together.wait(LONG)  # passes only if four threads are here at once
            return driver.connect(backend)

        async with pool_of(BlockingConnector(connect), Policy(spares_wanted=4, max_slots=4)) as pool:
            await pool.ready()
        driver.assert_all_closed()

    run_real(main)


def test_a_connect_that_outlasts_its_timeout_keeps_its_slot_and_its_one_thread(run_real):
    async def main():
        gate, driver, calls = Gate(), Driver(), []

        def connect(backend):
            calls.append(threading.current_thread())
            gate.wait()
            return driver.connect(backend)

        policy = Policy(spares_wanted=2, max_slots=2, connect_timeout=0.01, min_connection_backoff=0.0)
        async with pool_of(BlockingConnector(connect), policy) as pool:
            await until(lambda: len(calls) == 2)
            with pytest.raises(NoBackendsOnlineError):
                await pool.claim(timeout=0.2)
            assert len(calls) == 2
            assert pool.ledger().threads == 2
            with pytest.raises(TerminationError, match=r"qorb main slot \d+ b0:1: connect for ") as caught:
                await pool.terminate(timeout=0.01)
            assert caught.value.ledger.threads == 2
            gate.open.set()
        driver.assert_all_closed()
        assert pool.ledger().empty

    run_real(main)


def test_what_connect_raises_is_the_backends_last_error_and_ends_the_thread(run_real):
    async def main():
        def connect(backend):
            raise OSError("no route to anywhere")

        async with pool_of(BlockingConnector(connect)) as pool:
            await until(lambda: has_failed(pool))
            with pytest.raises(NoBackendsOnlineError, match="no route to anywhere"):
                await pool.claim(timeout=0)
            assert pool.ledger().threads <= 1

    run_real(main)


# Calls.


def test_what_a_call_returns_and_raises_reaches_the_caller_unchanged(run_real):
    async def main():
        error, thing = ValueError("mine"), object()

        def fail(raw, error):
            raise error

        async with pool_of(BlockingConnector(Driver().connect)) as pool, pool.claim() as connection:
            assert await connection.run(lambda raw, given, *, also: (given, also), thing, also=1) == (thing, 1)
            for one in (error, KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError()):
                with pytest.raises(type(one)) as caught:
                    await connection.run(fail, one)
                assert caught.value is one
            assert await connection.run(lambda raw: "goes on") == "goes on"

    run_real(main)


def test_a_call_sees_the_callers_context_in_a_copy(run_real):
    variable = contextvars.ContextVar("variable", default="nobody's")

    async def main():
        async with pool_of(BlockingConnector(Driver().connect)) as pool, pool.claim() as connection:
            token = variable.set("the caller's")
            assert await connection.run(lambda raw: (variable.get(), variable.set("the thread's"))[0]) == "the caller's"
            assert variable.get() == "the caller's"
            variable.reset(token)
            assert await connection.run(lambda raw: variable.get()) == "nobody's"

    run_real(main)


def test_an_idle_thread_keeps_nothing_of_the_last_call_alive(run_real):
    class Thing:
        pass

    async def main():
        async with pool_of(BlockingConnector(Driver().connect)) as pool, pool.claim() as connection:
            await connection.run(lambda raw, thing: thing, Thing())
            await connection.run(lambda raw: None)
            gc.collect()
            assert not [one for one in gc.get_objects() if isinstance(one, Thing)]

    run_real(main)


def test_a_cancelled_call_ends_at_once_and_its_connection_is_handed_out_when_the_thread_is_done(run_real):
    async def main():
        gate, driver = Gate(), Driver()
        async with pool_of(BlockingConnector(driver.connect)) as pool:

            async def visit():
                async with pool.claim() as connection:
                    await connection.run(Raw.wait, gate)

            first = asyncio.create_task(visit())
            await gate.came.wait()
            first.cancel()
            await asyncio.wait([first])
            assert first.cancelled()
            with pytest.raises(TimeoutError):
                await pool.claim(timeout=0.02)
            second = asyncio.create_task(run_in(pool, Raw.use))
            gate.open.set()
            await second
            assert len(driver.raws) == 1
            await eventually(lambda: driver.raws[0].rollbacks == 2)  # after each of the two, on the thread
        driver.assert_all_closed()

    run_real(main)


async def run_in(pool, function, *arguments):
    async with pool.claim() as connection:
        return await connection.run(function, *arguments)


async def run_and_fail(pool, function):
    async with pool.claim() as connection:
        await connection.run(function)
        raise ValueError("mine")


def test_a_call_that_outlasts_the_recycling_costs_the_connection_but_no_second_thread(run_real):
    async def main():
        gate, driver = Gate(), Driver()
        policy = Policy(spares_wanted=1, max_slots=1, health_check_timeout=0.01, close_timeout=0.01)
        async with pool_of(BlockingConnector(driver.connect), policy) as pool:
            call = asyncio.create_task(run_in(pool, Raw.wait, gate))
            await gate.came.wait()
            call.cancel()
            await asyncio.wait([call])
            await until(lambda: has_failed(pool))
            with pytest.raises(NoBackendsOnlineError):
                await pool.claim(timeout=0.2)
            assert len(driver.raws) == 1
            assert pool.ledger().threads == 1
            gate.open.set()
            await run_in(pool, Raw.use)
            assert len(driver.raws) == 2
        driver.assert_all_closed()

    run_real(main)


def test_a_call_that_had_not_begun_when_it_was_cancelled_is_never_made(run_real):
    async def main():
        gate, made = Gate(), []
        async with pool_of(BlockingConnector(Driver().connect)) as pool, pool.claim() as connection:
            first = asyncio.create_task(connection.run(Raw.wait, gate))
            await gate.came.wait()
            second = asyncio.create_task(connection.run(lambda raw: made.append("second")))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.wait([second])
            gate.open.set()
            assert await first == "through"
            await connection.run(lambda raw: made.append("third"))
        assert made == ["third"]

    run_real(main)


def test_a_call_that_is_forgotten_on_release_is_waited_for_before_the_next_claim(run_real):
    async def main():
        gate, driver = Gate(), Driver()
        async with pool_of(BlockingConnector(driver.connect, needs_recycle=lambda raw: False)) as pool:
            async with pool.claim() as connection:
                forgotten = asyncio.create_task(connection.run(Raw.wait, gate))
                await gate.came.wait()
            with pytest.raises(TimeoutError):
                await pool.claim(timeout=0.02)
            gate.open.set()
            assert await forgotten == "through"
            await run_in(pool, Raw.use)
        driver.assert_all_closed()

    run_real(main)


def test_a_connection_whose_call_has_not_begun_yet_is_to_be_recycled(run_real):
    async def main():
        driver = Driver()
        connector = BlockingConnector(driver.connect, needs_recycle=lambda raw: False)
        async with pool_of(connector) as pool, pool.claim() as connection:
            for _ in range(200):
                call = asyncio.create_task(connection.run(Raw.use))
                await asyncio.sleep(0)
                needed = connector.needs_recycle(connection, Outcome.CLEAN)
                assert needed or not connection.busy
                await call
                assert not connector.needs_recycle(connection, Outcome.CLEAN)

    run_real(main)


def test_no_two_claims_ever_use_a_connection_at_once_whoever_is_cancelled(run_real):
    async def main():
        driver, chance = Driver(), random.Random(5)
        done = 0

        async def visit(pool):
            nonlocal done
            async with pool.claim() as connection:
                for _ in range(chance.randrange(3)):
                    await connection.run(Raw.use, functools.partial(sum, range(2_000)))
            done += 1

        async with pool_of(BlockingConnector(driver.connect), Policy(spares_wanted=2, max_slots=3)) as pool:
            for _ in range(40):
                tasks = [asyncio.create_task(visit(pool)) for _ in range(10)]
                for task in tasks[:4]:
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    task.cancel()
                await asyncio.wait(tasks)
                assert pool.ledger().threads <= 3
            assert done >= 240
            assert len(driver.raws) == 3
        driver.assert_all_closed()

    run_real(main)


# Interrupting.


def test_an_endless_query_of_sqlite_is_interrupted_and_its_connection_used_again(run_real, tmp_path):
    async def main():
        opened = []

        def connect(backend):
            opened.append(sqlite3.connect(tmp_path / "db"))
            return opened[-1]

        connector = BlockingConnector(connect, interrupt=sqlite3.Connection.interrupt)
        async with pool_of(connector) as pool:
            await pool.ready()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await run_in(pool, lambda db: db.execute(ENDLESS).fetchone())
            assert await run_in(pool, lambda db: db.execute("SELECT 7").fetchone()) == (7,)
            assert len(opened) == 1
            await until(lambda: pool.ledger().threads == 1)

    run_real(main)


def test_an_interruption_is_repeated_until_the_call_is_over_and_never_hits_the_next(run_real, monkeypatch):
    monkeypatch.setattr(workers, "_REPEAT", 0.001)

    async def main():
        gate, driver, hits = Gate(), Driver(), []

        def interrupt(raw):
            hits.append((threading.current_thread().name, raw.in_use.locked()))
            if len(hits) == 3:
                gate.open.set()
            raise RuntimeError("it does not always work")

        async with pool_of(BlockingConnector(driver.connect, interrupt=interrupt)) as pool:
            async with pool.claim() as connection:
                call = asyncio.create_task(connection.run(Raw.wait, gate))
                await gate.came.wait()
                call.cancel()
                await connection.run(Raw.use)
                assert len(hits) >= 3
                before = len(hits)
                await connection.run(Raw.use)
                await until(lambda: pool.ledger().threads == 1)
                assert len(hits) == before
            assert call.cancelled()
        assert all(name.startswith("qorb main slot ") and name.endswith(" b0:1 interrupts") for name, _ in hits)
        driver.assert_all_closed()

    run_real(main)


def test_abort_interrupts_the_call_under_way_and_never_waits(run_real):
    async def main():
        gate, driver = Gate(), Driver()
        pool = pool_of(BlockingConnector(driver.connect, interrupt=lambda raw: gate.open.set()))
        await pool.start()
        call = asyncio.create_task(run_in(pool, Raw.wait, gate))
        await gate.came.wait()
        pool.abort()
        await pool.terminate()
        driver.assert_all_closed()
        assert await call == "through"

    run_real(main)


# Recycling and checks.


def test_what_a_claim_did_not_commit_is_rolled_back(run_real, tmp_path):
    async def main():
        async with pool_of(sqlite(tmp_path / "db", needs_recycle=lambda db: db.in_transaction)) as pool:
            await run_in(pool, lambda db: db.execute("CREATE TABLE t (x)"))
            for error in (None, ValueError, asyncio.CancelledError):
                try:
                    async with pool.claim() as connection:
                        await connection.run(sqlite3.Connection.execute, "INSERT INTO t VALUES (1)")
                        if error is not None:
                            raise error
                except (ValueError, asyncio.CancelledError):
                    pass
            assert await run_in(pool, lambda db: db.execute("SELECT count(*) FROM t").fetchone()) == (0,)

    run_real(main)


def test_recycle_gets_the_outcome_is_not_called_for_nothing_and_its_failure_closes_the_connection(run_real):
    async def main():
        driver, seen = Driver(), []

        def recycle(raw, outcome):
            seen.append((raw.use(), outcome)[1])
            if outcome is Outcome.ERROR:
                raise RuntimeError("no use")

        async with pool_of(BlockingConnector(driver.connect, recycle=recycle)) as pool:
            async with pool.claim():
                pass
            with pytest.raises(ValueError, match="mine"):
                async with pool.claim():
                    raise ValueError("mine")
            assert seen == []
            await run_in(pool, Raw.use)
            with pytest.raises(ValueError, match="mine"):
                await run_and_fail(pool, Raw.use)
            await run_in(pool, Raw.use)
        assert seen[:2] == [Outcome.CLEAN, Outcome.ERROR]
        assert len(driver.raws) == 2
        driver.assert_all_closed()

    run_real(main)


def test_a_connection_without_rollback_is_used_again_after_a_clean_end_only(run_real):
    class Bare:
        def close(self):
            pass

    async def main():
        async with pool_of(BlockingConnector(lambda backend: Bare())) as pool:
            first, second = await run_in(pool, id), await run_in(pool, id)
            assert first == second
            kept = []
            with pytest.raises(ValueError, match="mine"):
                await run_and_fail(pool, kept.append)
            assert await run_in(pool, id) != id(kept[0])

    run_real(main)


def test_a_check_validates_and_recycles_and_its_failure_replaces_the_connection(run_real):
    async def main():
        driver, bad = Driver(), threading.Event()

        def validate(raw):
            raw.use()
            if bad.is_set() and raw is driver.raws[0]:
                raise RuntimeError("not good any more")

        policy = Policy(spares_wanted=1, max_slots=1, health_interval=0.002)
        async with pool_of(BlockingConnector(driver.connect, validate=validate), policy) as pool:
            await until(lambda: driver.raws and driver.raws[0].rollbacks > 2)
            bad.set()
            await until(lambda: len(driver.raws) == 2)
            await run_in(pool, Raw.use)
            assert "not good any more" in pool.stats().backends["b0:1"].last_error
        driver.assert_all_closed()

    run_real(main)


@pytest.mark.parametrize("validate", [None, Raw.use])
def test_a_connection_that_its_driver_says_is_closed_is_not_handed_out_again(run_real, validate):
    async def main():
        driver = Driver()
        connector = BlockingConnector(driver.connect, validate=validate, is_closed=lambda raw: raw.closed)
        async with pool_of(connector) as pool:
            await run_in(pool, Raw.close)
            await run_in(pool, Raw.use)
            assert len(driver.raws) == 2
            driver.abuses.clear()  # rolling back, and closing, what is closed
        driver.assert_all_closed()

    run_real(main)


def test_functions_that_fail_at_saying_how_a_connection_is_cost_the_connection(run_real):
    async def main():
        driver = Driver()
        async with pool_of(BlockingConnector(driver.connect, is_closed=lambda raw: 1 / 0)) as pool:
            assert await run_in(pool, lambda raw: 1) == await run_in(pool, lambda raw: 1) == 1
            assert len(driver.raws) >= 2
        driver.assert_all_closed()

    run_real(main)


async def coroutine_function(*arguments):
    """Stand for a mistake."""


@pytest.mark.parametrize("what", ["connect", "validate", "recycle", "needs_recycle", "close", "is_closed", "interrupt"])
@pytest.mark.parametrize("value", [coroutine_function, "text"])
def test_what_is_no_plain_function_is_refused_by_name(what, value):
    given = {"connect": Driver().connect} | {what: value}
    with pytest.raises(TypeError, match=f"^{what} must be a"):
        BlockingConnector(**given)


def test_a_connection_without_close_needs_one_given(run_real):
    async def main():
        async with pool_of(BlockingConnector(lambda backend: object())) as pool:
            await until(lambda: has_failed(pool))
            with pytest.raises(NoBackendsOnlineError, match=r"has no close\(\); give BlockingConnector a close="):
                await pool.claim(timeout=0)
        async with pool_of(BlockingConnector(lambda backend: object(), close=id)) as pool:
            await run_in(pool, id)

    run_real(main)


# The end.


def test_a_call_that_never_returns_is_named_by_terminate_and_its_connection_closed_after_it(run_real):
    async def main():
        gate, driver = Gate(), Driver()
        pool = pool_of(BlockingConnector(driver.connect))
        await pool.start()
        call = asyncio.create_task(run_in(pool, Raw.wait, gate))
        await gate.came.wait()
        with pytest.raises(TerminationError, match=r"thread 'qorb main slot \d+ b0:1 connection'") as caught:
            await pool.terminate(grace=0, timeout=0.02)
        assert caught.value.ledger.threads == 1
        assert not driver.raws[0].closed
        gate.open.set()
        await pool.terminate()
        driver.assert_all_closed()
        assert_nothing_left(pool)
        assert await call == "through"

    run_real(main)


def test_a_connection_whose_claim_was_lost_is_not_used_again(run_real):
    async def main():
        driver = Driver()
        async with pool_of(BlockingConnector(driver.connect)) as pool:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                kept = (await pool.claim()).connection  # it goes on being used
                gc.collect()
            async with pool.claim() as connection:
                assert connection is not kept
            with pytest.raises(ConnectError, match="is closed"):
                await kept.run(Raw.use)
        driver.assert_all_closed()

    run_real(main)


def test_a_detached_connection_takes_its_thread_along(run_real):
    async def main():
        gate, driver = Gate(), Driver()
        pool = pool_of(BlockingConnector(driver.connect, interrupt=lambda raw: gate.open.set()))
        await pool.start()
        claim = await pool.claim()
        await pool.terminate(grace=0, held="detach")
        assert pool.ledger().empty
        assert await claim.connection.run(lambda raw: raw.use(lambda: 1)) == 1
        call = asyncio.create_task(claim.connection.run(Raw.wait, gate))
        await gate.came.wait()
        claim.release()
        assert pool.ledger().empty
        assert await call == "through"
        await until(lambda: not driver.raws[0].thread.is_alive())
        driver.assert_all_closed()

    run_real(main)


def test_a_pool_that_is_dropped_ends_its_threads(run_real):
    async def main():
        driver = Driver()
        pool = pool_of(BlockingConnector(driver.connect), Policy(spares_wanted=2, max_slots=2))
        await pool.start()
        await pool.ready()
        with pytest.warns(ResourceWarning, match="unterminated pool main"):  # noqa: PT031 - now, or when collected
            del pool
            gc.collect()
        await until(lambda: not any(raw.thread.is_alive() for raw in driver.raws))
        driver.assert_all_closed()

    run_real(main)


@pytest.mark.parametrize("kept", [True, False])
def test_threads_end_when_their_loop_is_closed_without_terminate(monkeypatch, kept):
    monkeypatch.setattr(workers, "_LOOK", 0.01 if kept else LONG)
    driver = Driver()
    pool = pool_of(BlockingConnector(driver.connect), Policy(spares_wanted=2, max_slots=2))

    async def main(pool):
        await pool.start()
        await pool.ready()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main(pool))
    loop.close()
    if kept:  # nobody tells them: they look for themselves
        for raw in driver.raws:
            raw.thread.join(LONG)
        driver.assert_all_closed()
    with pytest.warns(ResourceWarning, match="unterminated pool main") as caught:  # noqa: PT031 - as above
        del pool
        gc.collect()
    assert len(caught) == 1
    for raw in driver.raws:
        raw.thread.join(LONG)
    driver.assert_all_closed()


def test_a_connection_cannot_be_used_in_a_child_process_and_goes_on_in_the_parent(run_real):
    async def main():
        async with pool_of(BlockingConnector(Driver().connect)) as pool, pool.claim() as connection:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks among threads
                child = os.fork()
            if not child:
                status = 1
                try:
                    connection.run(id).send(None)
                except PoolForkedError:
                    status = 0
                finally:
                    os._exit(status)
            assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
            assert await connection.run(lambda raw: raw.use(lambda: 1)) == 1

    run_real(main)


@pytest.mark.parametrize("operation", ["connect", "run", "on_recycle", "validate", "close"])
def test_cancelled_at_every_await_nothing_is_left_open_and_nobody_hangs(run_real, operation):
    async def main():
        driver = Driver()
        connector = BlockingConnector(driver.connect, validate=Raw.use, interrupt=lambda raw: None)
        backend = pool_of(connector)._resolver._backends[0]
        async for attempt in at_every_await():
            if operation == "connect":
                connection = await attempt.run(connector.connect(backend))
                if connection is None:
                    continue
            else:
                connection = await connector.connect(backend)
                calls = {
                    "run": lambda one: one.run(Raw.use),
                    "on_recycle": lambda one: connector.on_recycle(one, Outcome.CLEAN),
                    "validate": connector.validate,
                    "close": connector.close,
                }
                await attempt.run(calls[operation](connection))
            await connector.close(connection)
        driver.assert_all_closed()
        assert len(driver.raws) > 3

    run_real(main)


# The flake for which terminate() was written: a health check starts blocking work while the program ends.


class Checks:
    """Blocking health checks: the first one blocks until the gate is open."""

    def __init__(self):
        self.begun = threading.Event()
        self.gate = threading.Event()
        self._first = itertools.count().__next__

    def check(self, raw=None):
        if self._first() == 0:
            self.begun.set()
            assert self.gate.wait(LONG)


class Naive(Connector[object]):
    """Leaves the blocking work to the loop's executor, as one would."""

    def __init__(self, checks):
        self._checks = checks

    async def connect(self, backend):
        return object()

    async def validate(self, connection):
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._checks.check)
        except RuntimeError:
            self._checks.gate.set()
            raise


class Complaints(logging.Handler):
    """What asyncio and concurrent.futures have to say."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        if not str(record.msg).startswith("Executing %s took"):
            self.texts.append(logging.Formatter().format(record))

    def __enter__(self):
        for name in ("asyncio", "concurrent.futures"):
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *exc):
        for name in ("asyncio", "concurrent.futures"):
            logging.getLogger(name).removeHandler(self)


async def begin(pool, checks):
    await pool.start()
    await pool.ready()
    await until(checks.begun.is_set)


def checked_often(connector, reasons):
    """Make a pool whose connections are checked all the time; note why checks and connects failed."""

    def observe(event):
        if isinstance(event, HealthCheckFailed | ConnectFailed) and not event.reason.startswith("given up"):
            reasons.append(event.reason)

    policy = Policy(spares_wanted=2, max_slots=2, health_interval=0.0001, spread=0.0)
    return pool_of(connector, policy, backends=["b0:1", "b1:1"], observer=observe)


async def end_in_the_midst(pool, checks, how):
    """End as asyncio.run() does, before, after or without terminate()."""
    loop = asyncio.get_running_loop()
    if how == "late":
        await loop.shutdown_default_executor()
        checks.gate.set()
        await pool.terminate()
    elif how == "early":
        loop.call_soon(checks.gate.set)
        await pool.terminate(grace=0)
        await loop.shutdown_default_executor()
    else:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await loop.shutdown_default_executor()


def one_program(make, how):
    """Run a program that ends in the midst of a health check; give why checks failed, and what was complained of."""
    checks, reasons = Checks(), []
    loop = asyncio.new_event_loop()
    pool = checked_often(make(checks), reasons)
    with Complaints() as complaints, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loop.run_until_complete(begin(pool, checks))
        loop.run_until_complete(end_in_the_midst(pool, checks, how))
        loop.close()
        checks.gate.set()
        del pool
    for thread in [one for one in threading.enumerate() if one.name.startswith("qorb main")]:
        assert how == "never"
        thread.join(LONG)
    return reasons + complaints.texts + [str(one.message) for one in warned if how != "never"]


def test_a_health_check_that_begins_while_the_program_ends_fails_if_it_uses_the_loops_executor():
    assert any("Executor shutdown has been called" in text for text in one_program(Naive, "late"))


@pytest.mark.slow
def test_a_health_check_that_begins_while_the_program_ends_harms_nothing_a_thousand_times():
    def make(checks):
        return BlockingConnector(lambda backend: Raw(Driver(), backend), validate=checks.check)

    for number in range(1_000):
        how = ("late", "early", "never")[number % 3]
        assert one_program(make, how) == [], (number, how)


PROGRAM = """
    import asyncio, threading, time
    from qorb import Policy, Pool
    from qorb.connectors.blocking import BlockingConnector
    from qorb.resolvers import FixedResolver

    class Raw:
        def close(self):
            pass

    begun = threading.Event()

    def block(raw):
        begun.set()
        time.sleep(3600)

    async def main():
        pool = Pool("main", FixedResolver(["b0:1"]), BlockingConnector(lambda backend: Raw(), validate=block),
                    Policy(health_interval=0.001))
        await pool.start()
        while not begun.is_set():
            await asyncio.sleep(0.001)
        END

    asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["return", "raise SystemExit", "pool.abort()"])
def test_a_program_that_ends_without_terminate_is_not_held_up_by_a_thread_that_blocks(end):
    program = textwrap.dedent(PROGRAM).replace("END", end)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=LONG)
    assert (done.returncode, done.stderr) == (0, "")


# PostgreSQL, through psycopg's blocking half.


@pytest.fixture(scope="module")
def server():
    with PostgresServer() as server:
        yield server


def postgres(**options):
    def connect(backend):
        return psycopg.connect(host=backend.host, port=backend.port, user="postgres", connect_timeout=10)

    return BlockingConnector(
        connect,
        validate=lambda raw: raw.execute("SELECT 1"),
        is_closed=lambda raw: raw.closed,
        needs_recycle=lambda raw: raw.info.transaction_status != psycopg.pq.TransactionStatus.IDLE,
        interrupt=psycopg.Connection.cancel,
        **options,
    )


def test_psycopg_transactions_are_rolled_back_and_its_queries_cancelled(run_real, server):
    async def main():
        async with pool_of(postgres(), backends=[server.address]) as pool:
            first = await run_in(pool, lambda raw: raw.info.backend_pid)
            await run_in(pool, lambda raw: raw.execute("CREATE TABLE gone (x int)"))
            found = await run_in(pool, lambda raw: raw.execute("SELECT to_regclass('gone')").fetchone())
            assert found == (None,)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await run_in(pool, lambda raw: raw.execute("SELECT pg_sleep(3600)"))
            assert await run_in(pool, lambda raw: raw.info.backend_pid) == first
            with pytest.raises(psycopg.errors.DivisionByZero):
                await run_in(pool, lambda raw: raw.execute("SELECT 1 / 0"))
            assert await run_in(pool, lambda raw: raw.execute("SELECT 1").fetchone()) == (1,)

    run_real(main)


def test_psycopg_connections_are_replaced_when_the_server_restarts(run_real):
    async def main():
        with PostgresServer() as server:
            policy = Policy(spares_wanted=2, max_slots=2, health_interval=0.05)
            async with pool_of(postgres(), policy, backends=[server.address]) as pool:
                await pool.ready()
                before = await run_in(pool, lambda raw: raw.info.backend_pid)
                await asyncio.to_thread(server.restart)
                while True:
                    try:
                        after = await run_in(pool, lambda raw: (raw.execute("SELECT 1"), raw.info.backend_pid)[1])
                    except psycopg.OperationalError:
                        continue
                    break
                assert after != before
            assert pool.ledger().empty

    run_real(main)


def test_a_query_under_way_is_cancelled_when_the_pool_ends(run_real, server):
    async def main():
        asked = asyncio.Event()
        pool = pool_of(postgres(), backends=[server.address])
        await pool.start()

        def sleep(raw, loop):
            loop.call_soon_threadsafe(asked.set)
            raw.execute("SELECT pg_sleep(3600)")

        call = asyncio.create_task(run_in(pool, sleep, asyncio.get_running_loop()))
        await asked.wait()
        await pool.terminate(grace=0)
        assert pool.ledger().empty
        with pytest.raises(psycopg.errors.QueryCanceled):
            await call

    run_real(main)
