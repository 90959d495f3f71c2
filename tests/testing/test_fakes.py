"""FakeConnector: its verbs, and the account that it keeps."""

from __future__ import annotations

import asyncio
import math

import pytest

from qorb import Backend, ConnectError, Outcome
from qorb.testing import FakeConnection, FakeConnector, ForbiddenCallError, UnhandledError, block, run, settle

A = Backend.parse("a:1")
B = Backend.parse("b:2")
TAKES_TIME = ("connect", "validate", "on_acquire", "on_recycle", "close")


def now():
    return asyncio.get_running_loop().time()


async def perform(connector, operation, connection=None):
    """Call one operation, on a connection to A that is made for it if need be."""
    if operation == "connect":
        return await connector.connect(A)
    if connection is None:
        connection = next(iter(connector.connections), None) or await connector.connect(A)
    if operation == "on_recycle":
        return await connector.on_recycle(connection, Outcome.CLEAN)
    return await getattr(connector, operation)(connection)


@pytest.mark.parametrize("operation", TAKES_TIME)
def test_every_operation_takes_the_latency(operation):
    async def main():
        connector = FakeConnector(latency=0.5)
        connection = await connector.connect(A)
        start = now()
        await perform(connector, operation, connection)
        return now() - start

    assert run(main) == 0.5


def test_what_is_open_is_known():
    async def main():
        connector = FakeConnector()
        first, second = await connector.connect(A), await connector.connect(B)
        assert (first.id, second.id) == (1, 2)
        assert first.backend == A
        assert list(connector.connections) == [first, second]
        await connector.close(first)
        assert first.closed
        assert connector.is_closed(first)
        assert list(connector.connections) == [second]
        connector.abort(second)
        connector.abort(second)
        assert connector.is_closed(second)
        assert not connector.connections
        assert not connector.unclosed
        assert connector.peak == 2
        assert connector.peak_of_backend == {"a:1": 1, "b:2": 1}

    run(main)


def test_a_connect_that_is_cancelled_leaves_nothing_open():
    async def main():
        connector = FakeConnector()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.0005):
                await connector.connect(A)
        await asyncio.sleep(1)
        assert not connector.unclosed
        assert not connector.in_flight
        assert connector.calls[-1].raised is asyncio.CancelledError

    run(main)


def test_a_close_that_is_cancelled_leaves_the_connection_open():
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.0005):
                await connector.close(connection)
        assert list(connector.connections) == [connection]
        connector.abort(connection)

    run(main)


def test_calls_are_remembered_with_their_times():
    async def main():
        connector = FakeConnector(latency=0.25)
        connector.abort(await connector.connect(A))
        connector.refuse()
        with pytest.raises(ConnectionRefusedError):
            await connector.connect(B)
        return connector

    connector = run(main)
    calls = [(call.operation, call.backend, call.task, call.started, call.ended) for call in connector.calls]
    assert calls == [
        ("connect", A, "main", 1000.0, 1000.25),
        ("abort", A, "main", 1000.25, 1000.25),
        ("connect", B, "main", 1000.25, 1000.5),
    ]
    assert connector.calls[-1].raised is ConnectionRefusedError
    assert connector.count == {"connect": 2, "abort": 1}


def test_calls_in_flight_are_known_and_the_most_at_a_time_too():
    async def main():
        connector = FakeConnector()
        connector.stall("connect")
        tasks = [asyncio.create_task(connector.connect(backend)) for backend in (A, A, B)]
        await asyncio.sleep(1)
        assert [(call.operation, call.backend) for call in connector.in_flight] == [
            ("connect", A),
            ("connect", A),
            ("connect", B),
        ]
        connector.heal()
        await asyncio.wait(tasks)
        assert not connector.in_flight
        await connector.connect(A)
        assert connector.peak_in_flight("connect") == 3
        assert connector.peak_in_flight("connect", "a:1") == 2
        assert connector.peak_in_flight("close") == 0

    run(main)


def test_without_a_loop_a_call_has_no_time():
    async def main():
        connector = FakeConnector()
        await connector.connect(A)
        return connector

    connector = run(main)
    connector.abort(*connector.connections)
    assert math.isnan(connector.calls[-1].started)
    assert connector.calls[-1].task == ""


def test_the_fakes_work_on_a_real_loop(run_real):
    async def main():
        connector = FakeConnector(latency=0)
        connection = await connector.connect(A)
        assert await connection.request("hello") == "hello"
        await connector.close(connection)

    run_real(main)


def test_refuse_makes_connects_fail_until_healed():
    async def main():
        connector = FakeConnector()
        connector.refuse("a:1")
        with pytest.raises(ConnectionRefusedError, match="a:1"):
            await connector.connect(A)
        await connector.connect(B)
        connector.refuse()
        with pytest.raises(ConnectionRefusedError, match="b:2"):
            await connector.connect(B)
        connector.heal()
        await connector.connect(A)

    run(main)


def test_a_verb_takes_effect_on_calls_in_flight():
    async def main():
        connector = FakeConnector()
        task = asyncio.create_task(connector.connect(A))
        await asyncio.sleep(0)
        connector.refuse()
        with pytest.raises(ConnectionRefusedError):
            await task

    run(main)


@pytest.mark.parametrize("verb", ["refuse", "stall", "fail", "slow"])
def test_healing_a_backend_leaves_the_others_ill(verb):
    async def main():
        connector = FakeConnector()
        arguments = {"stall": ["connect"], "fail": ["connect", OSError], "slow": [100.0, "connect"], "refuse": []}[verb]
        getattr(connector, verb)(*arguments, "a:1")
        getattr(connector, verb)(*arguments, "b:2")
        connector.heal("a:1")
        async with asyncio.timeout(1):
            await connector.connect(A)
        with pytest.raises(OSError):  # noqa: PT011 - TimeoutError, ConnectionRefusedError, OSError
            async with asyncio.timeout(1):
                await connector.connect(B)

    run(main)


def test_healing_one_backend_ends_for_it_what_was_meant_for_all():
    async def main():
        connector = FakeConnector()
        connector.refuse()
        connector.heal("a:1")
        await connector.connect(A)
        with pytest.raises(ConnectionRefusedError):
            await connector.connect(B)
        connector.refuse()
        with pytest.raises(ConnectionRefusedError):
            await connector.connect(A)

    run(main)


@pytest.mark.parametrize("operation", TAKES_TIME)
@pytest.mark.parametrize("named", [True, False])
def test_stall_holds_an_operation_until_healed(operation, named):
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        connector.stall(operation if named else None)
        task = asyncio.create_task(perform(connector, operation, connection))
        await asyncio.sleep(3600)
        assert not task.done()
        connector.heal()
        await task
        assert now() == 1000.0 + 0.001 + 3600

    run(main)


def test_what_still_stalls_is_not_set_free_with_another_backend():
    async def main():
        connector = FakeConnector()
        connector.stall("connect")
        tasks = [asyncio.create_task(connector.connect(backend)) for backend in (A, B)]
        await asyncio.sleep(1)
        connector.heal("a:1")
        await asyncio.sleep(1)
        assert [task.done() for task in tasks] == [True, False]
        connector.heal()
        await tasks[1]

    run(main)


def test_a_stalled_operation_can_be_cancelled():
    async def main():
        connector = FakeConnector()
        connector.stall("connect")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await connector.connect(A)
        connector.heal()
        assert not connector.unclosed

    run(main)


@pytest.mark.parametrize("operation", ["validate", "on_recycle"])
def test_invalidate_makes_checks_fail(operation):
    async def main():
        connector = FakeConnector()
        connector.invalidate("b:2")
        await perform(connector, operation)
        connector.invalidate("a:1")
        with pytest.raises(ConnectError, match="a:1 is not good"):
            await perform(connector, operation)
        await perform(connector, "on_acquire")
        connector.heal()
        await perform(connector, operation)

    run(main)


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.CANCELLED, Outcome.LEAKED])
def test_a_dirty_connection_is_not_recycled(outcome):
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        assert connector.needs_recycle(connection, outcome)
        with pytest.raises(ConnectError, match=outcome.value):
            await connector.on_recycle(connection, outcome)

    run(main)


def test_slow_replaces_the_latency():
    async def main():
        connector = FakeConnector()
        connector.slow(10.0, "connect", "a:1")
        await connector.connect(A)
        assert now() == 1010.0
        await connector.connect(B)
        assert now() == 1010.0 + 0.001

    run(main)


class Odd(BaseException):
    pass


@pytest.mark.parametrize("operation", TAKES_TIME)
@pytest.mark.parametrize("error", [OSError, Odd])
def test_fail_raises_whatever_is_wanted(operation, error):
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        connector.fail(operation, error)
        with pytest.raises(error):
            await perform(connector, operation, connection)
        assert not connector.in_flight
        connector.heal()
        await perform(connector, operation, connection)

    run(main)


def test_during_calls_code_in_the_midst_of_an_operation():
    async def main():
        connector = FakeConnector()
        seen = []
        connector.during("connect", seen.append)
        await connector.connect(A)
        assert seen == [A]
        connector.during("connect", lambda backend: asyncio.sleep(10))
        await connector.connect(A)
        assert now() == pytest.approx(1010.002)
        connector.during("connect", lambda backend: block(5))
        await connector.connect(A)
        assert now() == pytest.approx(1015.003)

    run(main)


@pytest.mark.parametrize("operation", TAKES_TIME)
def test_deafen_goes_on_after_a_cancellation_and_ends_well(operation):
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        connector.stall(operation)
        connector.deafen(60, operation)
        task = asyncio.create_task(perform(connector, operation, connection))
        await asyncio.sleep(1)
        start = now()
        for _ in range(10):
            task.cancel()
            await asyncio.sleep(5)
            assert not task.done()
        await task
        assert now() == start + 60
        assert not task.cancelled()

    run(main)


def test_a_deaf_operation_that_nobody_cancels_is_as_fast_as_any():
    async def main():
        connector = FakeConnector()
        connector.deafen(60)
        await connector.connect(A)
        return now()

    assert run(main) == 1000.0 + 0.001


def test_connect_can_be_made_to_return_what_it_must_not():
    async def main():
        connector = FakeConnector()
        connector.return_none("a:1")
        assert await connector.connect(A) is None
        assert not connector.unclosed
        connector.return_same()
        first = await connector.connect(B)
        assert await connector.connect(B) is first
        connector.heal()
        assert await connector.connect(A) is not first

    run(main)


def test_drop_closes_from_the_servers_side():
    async def main():
        connector = FakeConnector()
        first, second = await connector.connect(A), await connector.connect(B)
        assert connector.drop("a:1") == 1
        assert connector.is_closed(first)
        assert list(connector.connections) == [second]
        assert list(connector.unclosed) == [first, second]  # the pool has still to see to it
        for operation in ("validate", "on_acquire", "on_recycle"):
            with pytest.raises(ConnectError, match="is closed"):
                await perform(connector, operation, first)
        await connector.close(first)
        assert connector.drop() == 1
        connector.abort(second)
        assert not connector.unclosed
        assert not (await connector.connect(A)).closed

    run(main)


@pytest.mark.parametrize("operation", ["validate", "on_acquire", "on_recycle"])
def test_a_connection_that_dies_under_an_operation_makes_it_fail(operation):
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        task = asyncio.create_task(perform(connector, operation, connection))
        await asyncio.sleep(0)
        connector.abort(connection)
        with pytest.raises(ConnectError, match="is closed"):
            await task

    run(main)


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="connect, validate, on_acquire, on_recycle, close, not 'ping'"):
        FakeConnector().stall("ping")


@pytest.mark.parametrize("operation", TAKES_TIME)
def test_after_forbid_any_call_fails_the_run_even_if_the_error_is_swallowed(operation):
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        connector.forbid()
        with pytest.raises(ForbiddenCallError, match=f"{operation} was called for a:1 after forbid"):
            await perform(connector, operation, connection)
        with pytest.raises(ForbiddenCallError):
            connector.check()

    with pytest.raises(UnhandledError, match="after forbid"):
        run(main)


@pytest.mark.parametrize(
    "call",
    [
        lambda connector, connection: connector.is_closed(connection),
        lambda connector, connection: connector.needs_recycle(connection, Outcome.CLEAN),
    ],
)
def test_forbid_covers_the_questions_too(call):
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        connector.forbid()
        with pytest.raises(ForbiddenCallError):
            call(connector, connection)

    with pytest.raises(UnhandledError, match="after forbid"):
        run(main)


def test_an_abort_after_forbid_does_not_raise_but_fails_the_run():
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        connector.forbid()
        connector.abort(connection)
        assert connection.closed

    with pytest.raises(UnhandledError, match="abort was called on connection 1 after forbid"):
        run(main)


def test_forbid_can_allow_some_calls_and_be_lifted():
    async def main():
        connector = FakeConnector()
        first, second = await connector.connect(A), await connector.connect(A)
        connector.forbid(allow=["abort"])
        connector.abort(first)
        connector.heal()
        await connector.validate(second)
        connector.check()

    run(main)


def test_two_calls_on_one_connection_fail_the_run():
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        task = asyncio.create_task(connector.validate(connection), name="first")
        await asyncio.sleep(0)
        with pytest.raises(ForbiddenCallError, match="on_acquire on connection 1 while its validate was not over"):
            await connector.on_acquire(connection)
        await task

    with pytest.raises(UnhandledError):
        run(main)


def test_an_abort_may_come_at_any_time():
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        task = asyncio.create_task(connector.close(connection))
        await asyncio.sleep(0)
        connector.abort(connection)
        await task
        assert not connector.unclosed

    run(main)


def test_a_call_on_a_connection_that_was_closed_fails_the_run():
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        await connector.close(connection)
        with pytest.raises(ForbiddenCallError, match="validate on connection 1, which the pool has closed"):
            await connector.validate(connection)

    with pytest.raises(UnhandledError):
        run(main)


def test_a_conversation_echoes():
    async def main():
        connection = await FakeConnector(latency=2).connect(A)
        assert await connection.request("hello") == "hello"
        assert await connection.request() == "ping"
        assert now() == 1006.0

    run(main)


def test_an_answer_that_reaches_another_fails_the_run():
    async def main():
        connection = await FakeConnector().connect(A)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.0005):
                await connection.request("mine")
        with pytest.raises(ForbiddenCallError, match="the answer to 'mine' came to the one who had asked 'yours'"):
            await connection.request("yours")

    with pytest.raises(UnhandledError):
        run(main)


def test_two_owners_of_one_connection_fail_the_run():
    async def main():
        connection = await FakeConnector().connect(A)
        other = asyncio.create_task(connection.request("a"))
        await asyncio.sleep(0)
        with pytest.raises(ForbiddenCallError, match="request on connection 1 while its request was not over"):
            await connection.request("b")
        await other

    with pytest.raises(UnhandledError):
        run(main)


def test_a_conversation_ends_when_the_connection_does():
    async def main():
        connector = FakeConnector()
        connection = await connector.connect(A)
        task = asyncio.create_task(connection.request())
        await asyncio.sleep(0)
        connector.drop()
        with pytest.raises(ConnectError, match="is closed"):
            await task
        with pytest.raises(ConnectError, match="is closed"):
            await connection.request()

    run(main)


def test_a_connection_of_ones_own_making_has_nothing_to_say():
    async def main():
        with pytest.raises(ConnectError, match="not made by a FakeConnector"):
            await FakeConnection(1, A).request()

    run(main)


class Greeter(FakeConnection):
    async def greet(self):
        return await self.request("hello")


class GreetingConnector(FakeConnector):
    def new_connection(self, number, backend):
        return Greeter(number, backend)


def test_connections_can_be_made_to_do_more():
    async def main():
        connector = GreetingConnector()
        connection = await connector.connect(A)
        assert await connection.greet() == "hello"
        assert list(connector.connections) == [connection]
        await settle()

    run(main)


def test_a_connection_says_which_one_it_is():
    connection = FakeConnection(3, A)
    assert repr(connection) == "<FakeConnection 3 to a:1, open>"
    connection.closed = True
    assert repr(connection) == "<FakeConnection 3 to a:1, closed>"
