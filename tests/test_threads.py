"""Blocking work of connectors on threads of their own: the pool knows of it, names it, and waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading

import pytest

from qorb import Pool, TerminationError
from qorb.connectors import TcpConnector
from qorb.errors import ConnectError
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, assert_nothing_left
from qorb.threads import ThreadOwner, to_thread
from qorb.workers import Worker


class Gate:
    """Lets threads through only when it is open, and knows whose came."""

    def __init__(self):
        self.open = threading.Event()
        self.came = threading.Event()
        self.names = []

    def pass_through(self, result=None):
        self.names.append(threading.current_thread().name)
        self.came.set()
        assert self.open.wait(60)
        return result


class Blocking(FakeConnector):
    """A connector with one method that blocks."""

    def __init__(self, operation):
        super().__init__()
        self.gate = Gate()
        method = getattr(self, operation)

        async def blocking(*arguments):
            await to_thread(self.gate.pass_through, what="blocks")
            return await method(*arguments)

        setattr(self, operation, blocking)


@pytest.mark.parametrize("operation", ["connect", "on_acquire", "close"])
def test_a_thread_of_the_connector_is_in_the_ledger_bears_the_pools_name_and_is_waited_for(run_real, operation):
    async def main():
        connector = Blocking(operation)
        pool = Pool("main", FixedResolver(["b0:1"]), connector)
        await pool.start()
        claimer = asyncio.create_task(visit(pool, operation))
        await asyncio.to_thread(connector.gate.came.wait)
        assert pool.ledger().threads >= 1
        assert all(name.startswith("qorb main ") and name.endswith(" blocks") for name in connector.gate.names)
        with pytest.raises(AssertionError, match=r"a thread: 'qorb main .*blocks'"):
            assert_nothing_left(pool)
        with pytest.raises(TerminationError) as caught:
            await pool.terminate(grace=0, timeout=0.01)
        assert caught.value.ledger.threads == pool.ledger().threads >= 1
        connector.gate.open.set()
        await pool.terminate()
        assert pool.ledger().empty
        assert_nothing_left(pool)
        await asyncio.wait([claimer])
        claimer.exception()

    run_real(main)


async def visit(pool, operation):
    with contextlib.suppress(Exception):
        claim = await pool.claim()
        if operation == "close":
            claim.discard()
        claim.release()


def test_a_thread_that_a_connector_does_not_wait_for_is_waited_for_by_terminate(run_real):
    class Careless(FakeConnector):
        gate = Gate()
        forgotten = None

        async def connect(self, backend):
            if self.forgotten is None:
                self.forgotten = asyncio.create_task(to_thread(self.gate.pass_through))
            return await super().connect(backend)

    async def main():
        connector = Careless()
        pool = Pool("main", FixedResolver(["b0:1"]), connector)
        await pool.start()
        await pool.ready()
        with pytest.raises(TerminationError, match=r"thread 'qorb main.* works'"):
            await pool.terminate(grace=0, timeout=0.05)
        assert pool.ledger().tasks == ()
        assert pool.ledger().threads == 1
        connector.gate.open.set()
        await pool.terminate()
        assert pool.ledger().empty
        await connector.forgotten
        assert_nothing_left(pool)

    run_real(main)


def test_two_pools_do_not_count_each_others_threads_though_they_share_name_and_connector(run_real):
    async def main():
        connector = Blocking("connect")
        first = Pool("main", FixedResolver(["b0:1"]), connector)
        second = Pool("main", FixedResolver([]), connector)
        async with first, second:
            await asyncio.to_thread(connector.gate.came.wait)
            assert first.ledger().threads == 8
            assert second.ledger().threads == 0
            connector.gate.open.set()

    run_real(main)


def test_a_look_up_of_a_host_name_is_a_thread_of_its_pool_and_slot(run_real, monkeypatch):
    gate = Gate()

    def look_up(host, port, *_, flags=0, **__):
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror
        return gate.pass_through([])

    async def main():
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        pool = Pool("main", FixedResolver(["db.example:1"]), TcpConnector())
        await pool.start()
        await asyncio.to_thread(gate.came.wait)
        assert pool.ledger().threads >= 1
        assert gate.names[0].startswith("qorb main slot ")
        assert gate.names[0].endswith(" db.example:1 looks up db.example")
        gate.open.set()
        await pool.terminate()
        assert pool.ledger().empty

    run_real(main)


def test_to_thread_gives_what_the_function_returns_and_raises_what_it_raises(run_real):
    async def main():
        assert await to_thread(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await to_thread(divmod, 7, 0)
        with pytest.raises(KeyboardInterrupt):
            await to_thread(interrupt)

    def interrupt():
        raise KeyboardInterrupt

    run_real(main)


def test_a_cancelled_call_ends_when_its_function_has_returned(run_real):
    async def main():
        gate = Gate()
        call = asyncio.create_task(to_thread(gate.pass_through))
        await asyncio.to_thread(gate.came.wait)
        for _ in range(3):
            call.cancel()
            await asyncio.sleep(0)
        assert not call.done()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await call

    run_real(main)


def test_a_worker_makes_uses_and_ends_its_thing_on_one_thread(run_real):
    seen = []

    def note(what):
        seen.append((what, threading.current_thread()))
        return what

    async def main():
        worker = await Worker.start(lambda: note("thing"), lambda thing: note("end"), what="keeps a thing")
        assert worker.thread.name == "qorb keeps a thing"
        assert worker.thread.daemon
        assert await asyncio.gather(*(worker.run(lambda thing, n=n: note(n)) for n in range(3))) == [0, 1, 2]
        assert not worker.busy
        worker.stop()
        worker.stop()
        await worker.ended()
        assert worker.stopped
        assert seen == [(what, worker.thread) for what in ("thing", 0, 1, 2, "end")]
        assert not worker.thread.is_alive()

    run_real(main)


def test_what_the_end_of_a_workers_thing_raises_is_raised_where_it_is_waited_for(run_real):
    async def main():
        worker = await Worker.start(lambda: 0, lambda thing: 1 / thing)
        worker.stop()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await worker.ended()

    run_real(main)


def test_a_worker_whose_thing_cannot_be_made_leaves_no_thread(run_real):
    async def main():
        before = threading.active_count()
        with pytest.raises(ZeroDivisionError):
            await Worker.start(lambda: 1 / 0, print)
        assert threading.active_count() == before

    run_real(main)


def test_a_worker_that_is_forgotten_ends_its_thing_and_its_thread(run_real):
    async def main():
        ended = threading.Event()
        worker = await Worker.start(object, lambda thing: ended.set())
        thread = worker.thread
        del worker
        gc.collect()
        await asyncio.to_thread(thread.join)
        assert ended.is_set()

    run_real(main)


def test_calls_that_wait_when_a_worker_is_stopped_are_refused(run_real):
    async def main():
        gate = Gate()
        worker = await Worker.start(object, id)
        first = asyncio.create_task(worker.run(lambda thing: gate.pass_through("through")))
        await asyncio.to_thread(gate.came.wait)
        second = asyncio.create_task(worker.run(id))
        await asyncio.sleep(0)
        worker.abort()
        gate.open.set()
        assert await first == "through"
        with pytest.raises(ConnectError, match="the connection is closed"):
            await second
        await worker.ended()

    run_real(main)


def test_an_owner_leaves_the_thread_of_one_connection_and_keeps_the_others():
    owner, threads = ThreadOwner("qorb main", lambda: None), [threading.Thread() for _ in range(3)]
    first, second = Gate(), Gate()
    owner.started(threads[0])
    owner.serves(threads[1], first)
    owner.serves(threads[2], second)
    owner.leave(first)
    assert [owner.owns(thread) for thread in threads] == [True, False, True]
