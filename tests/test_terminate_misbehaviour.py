"""terminate() with connectors, resolvers and observers that do not behave: it ends as soon as they let it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest

from qorb import Policy, Pool, PoolState, PoolTerminatedError, TerminationError
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, assert_nothing_left, block, run, settle
from tests import phases
from tests.phases import ALMOST_AT_ONCE, PHASES, SEEDS, Stage, play

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

REPEAT = 1.0
"""Seconds after which code that has not listened to its cancellation is cancelled again."""


class RudeError(BaseException):
    """What some libraries raise to get past `except Exception`."""


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


async def swallow_one_cancellation() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await hang()
    await hang()


async def swallow_five_cancellations() -> None:
    for _ in range(5):
        with contextlib.suppress(asyncio.CancelledError):
            await hang()
    await hang()


async def swallow_cancellations_for_60_s() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await hang()
    loop = asyncio.get_running_loop()
    end = loop.time() + 60
    while loop.time() < end:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(end - loop.time())


async def go_on_when_cancelled() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await hang()


async def clean_up_for_10_s() -> None:
    try:
        await hang()
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10)


async def raise_when_cancelled() -> None:
    try:
        await hang()
    except asyncio.CancelledError:
        raise ConnectionError("half-way") from None


async def raise_a_base_exception_when_cancelled() -> None:
    try:
        await hang()
    except asyncio.CancelledError:
        raise RudeError from None


async def time_out_when_cancelled() -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1000):
            await hang()


async def block_when_cancelled() -> None:
    try:
        await hang()
    finally:
        block(2)


async def spin() -> None:
    for _ in itertools.repeat(None):
        await asyncio.sleep(0.01)


async def wait_for_a_task_of_its_own() -> None:
    task = asyncio.create_task(hang())
    try:
        await task
    finally:
        task.cancel()


# Misbehaviour -> how long after it has been told to stop it may take.
MISBEHAVIOURS: dict[Callable[[], Awaitable[object]], float] = {
    hang: 0,
    swallow_one_cancellation: REPEAT,
    swallow_five_cancellations: 5 * REPEAT,
    swallow_cancellations_for_60_s: 60,
    go_on_when_cancelled: 0,
    clean_up_for_10_s: REPEAT,
    raise_when_cancelled: 0,
    raise_a_base_exception_when_cancelled: 0,
    time_out_when_cancelled: 0,
    # Each of the four connections may block for two seconds.
    block_when_cancelled: 8,
    spin: 0,
    wait_for_a_task_of_its_own: 0,
}
PHASES_OF_OPERATIONS = {
    "connect": phases.connecting,
    "validate": phases.checking,
    "on_acquire": phases.acquiring,
    "on_recycle": phases.recycling,
    "close": phases.closing,
}


@contextlib.contextmanager
def rude_errors_expected() -> Iterator[None]:
    """Let the running loop's exception handler be told of RudeError, and of nothing else."""
    loop = asyncio.get_running_loop()

    def handle(_loop: object, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), RudeError):
            others.append(context)

    others: list[dict[str, Any]] = []
    loop.set_exception_handler(handle)
    yield
    loop.set_exception_handler(None)
    assert others == []


def misbehaving(misbehaviour: Callable[[], Awaitable[object]], operation: str) -> Callable[[Stage], Awaitable[None]]:
    """The phase in which this operation is under way and misbehaves."""

    async def misbehaving_phase(stage: Stage) -> None:
        stage.disturb = lambda one: stage.connector.during(one, lambda _backend: misbehaviour())
        await PHASES_OF_OPERATIONS[operation](stage)

    return misbehaving_phase


@pytest.mark.parametrize("operation", PHASES_OF_OPERATIONS)
@pytest.mark.parametrize("misbehaviour", MISBEHAVIOURS, ids=lambda one: one.__name__)
def test_terminate_returns_as_soon_as_the_misbehaving_connector_has_ended(misbehaviour, operation):
    async def scene(stage: Stage, how: dict[str, Any]) -> None:
        with rude_errors_expected():
            began = stage.now
            await stage.pool.terminate(**how)
            assert stage.now - began <= MISBEHAVIOURS[misbehaviour] + ALMOST_AT_ONCE
            assert stage.refused == sorted(stage.refused)
            assert len(stage.refused) == len(stage.claimers)
            await stage.assert_over()

    for how in ({}, {"grace": 0}):
        play(misbehaving(misbehaviour, operation), scene, how, seeds=(0,))


@pytest.mark.parametrize("operation", PHASES_OF_OPERATIONS)
@pytest.mark.parametrize("misbehaviour", MISBEHAVIOURS, ids=lambda one: one.__name__)
def test_abort_ends_as_soon_as_the_misbehaving_connector_has_ended(misbehaviour, operation):
    async def scene(stage: Stage) -> None:
        with rude_errors_expected():
            began = stage.now
            stage.pool.abort()
            assert list(stage.connector.connections) == []
            await stage.pool.terminate()
            assert stage.now - began <= MISBEHAVIOURS[misbehaviour] + ALMOST_AT_ONCE
            assert len(stage.refused) == len(stage.claimers)
            await stage.assert_over()

    play(misbehaving(misbehaviour, operation), scene, seeds=(0,))


@pytest.mark.parametrize("operation", PHASES_OF_OPERATIONS)
def test_a_misbehaving_connector_of_a_backend_that_vanished_is_waited_for_as_well(operation):
    async def phase(stage: Stage) -> None:
        await misbehaving(swallow_cancellations_for_60_s, operation)(stage)
        stage.resolver.set([])
        await asyncio.sleep(1)

    async def scene(stage: Stage) -> None:
        with pytest.raises(TerminationError):
            await stage.pool.terminate(timeout=1)
        assert stage.in_flight(operation)
        await stage.pool.terminate()
        await stage.assert_over()

    play(phase, scene, seeds=(0,))


@pytest.mark.parametrize("misbehaviour", MISBEHAVIOURS, ids=lambda one: one.__name__)
def test_terminate_returns_as_soon_as_the_misbehaving_resolver_has_ended(misbehaviour):
    async def phase(stage: Stage) -> None:
        stage.resolver.during = misbehaviour
        await stage.start()

    async def scene(stage: Stage) -> None:
        with rude_errors_expected():
            began = stage.now
            await stage.pool.terminate()
            assert stage.now - began <= MISBEHAVIOURS[misbehaviour] + ALMOST_AT_ONCE
            assert stage.resolver.calls == 1
            await stage.assert_over()

    play(phase, scene)


@pytest.mark.parametrize("grace", [0, 5])
def test_a_connector_that_does_not_listen_is_cancelled_again_every_second_and_not_more_often(grace):
    cancelled: list[list[float]] = []

    async def note_cancellations() -> None:
        loop = asyncio.get_running_loop()
        moments: list[float] = []
        cancelled.append(moments)
        while len(moments) < 5:
            try:
                await hang()
            except asyncio.CancelledError:
                moments.append(loop.time())

    async def scene(stage: Stage) -> None:
        began = stage.now
        await stage.pool.terminate(grace=grace)
        assert cancelled
        for moments in cancelled:
            assert moments == [pytest.approx(began + second) for second in range(5)]

    play(misbehaving(note_cancellations, "validate"), scene, seeds=(0,))


@pytest.mark.parametrize("misbehaviour", [raise_when_cancelled, time_out_when_cancelled, go_on_when_cancelled])
def test_an_on_acquire_that_does_not_end_in_its_cancellation_holds_nothing_up(misbehaviour):
    async def scene(stage: Stage) -> None:
        began = stage.now
        await stage.pool.terminate(grace=1000)
        assert stage.now - began <= 2.1 * stage.connector.latency  # the rest of on_acquire, and close()
        assert len(stage.refused) == len(stage.claimers)
        await stage.assert_over()

    play(misbehaving(misbehaviour, "on_acquire"), scene)


def test_a_connection_that_comes_up_although_its_connect_was_cancelled_is_closed():
    async def phase(stage: Stage) -> None:
        stage.connector.stall("connect")
        stage.connector.deafen(3, "connect")
        await stage.pool.start()
        await asyncio.sleep(1)

    async def scene(stage: Stage) -> None:
        await stage.pool.terminate()
        assert stage.connector.peak > 0
        await stage.assert_over()

    play(phase, scene)


def test_a_connection_is_not_aborted_while_a_check_that_does_not_listen_is_still_using_it():
    async def main() -> None:
        async def use_it_for_3_s(_backend: object) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await hang()
            for _ in range(30):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.1)
                assert stage.connector.count["abort"] == 0

        stage = Stage(Policy(max_slots=1))
        await stage.start()
        stage.connector.during("validate", use_it_for_3_s)
        await asyncio.sleep(30.5)
        assert stage.in_flight("validate")
        await stage.pool.terminate()
        assert stage.connector.count["abort"] == 1
        await stage.assert_over()

    for seed in SEEDS:
        run(main, seed=seed)


@pytest.mark.parametrize("error", [ConnectionError, RudeError, asyncio.CancelledError])
def test_an_abort_that_raises_harms_nothing(error):
    class Raising(FakeConnector):
        def abort(self, connection: Any) -> None:
            super().abort(connection)
            raise error("in abort")

    for phase in PHASES.values():
        for how in ({}, {"grace": 0}, {"grace": 0, "held": "detach"}):

            async def main(phase: Any = phase, how: Any = how) -> None:
                stage = Stage(connector=Raising())
                await phase(stage)
                with rude_errors_expected():
                    await stage.pool.terminate(**how)
                    for claim in stage.claims:
                        claim.release()
                    await stage.assert_over()
                    await stage.clear()

            run(main)


@pytest.mark.parametrize("error", [ConnectionError, RudeError, asyncio.CancelledError])
@pytest.mark.parametrize("method", ["is_closed", "needs_recycle"])
def test_a_question_that_raises_harms_nothing(error, method):
    class Raising(FakeConnector):
        def is_closed(self, connection: Any) -> bool:
            return self._answer("is_closed", super().is_closed(connection))

        def needs_recycle(self, connection: Any, outcome: Any) -> bool:
            return self._answer("needs_recycle", super().needs_recycle(connection, outcome))

        def _answer(self, asked: str, answer: bool) -> bool:
            if asked == method and raising:
                raise error("asked")
            return answer

    raising: list[bool] = []

    async def main() -> None:
        stage = Stage(connector=Raising())
        with rude_errors_expected():
            await phases.claimed(stage)
            raising.append(True)
            ending = asyncio.create_task(stage.pool.terminate())
            await asyncio.sleep(1)
            while stage.claims:
                stage.claims.pop().release()
            began = stage.now
            await ending
            assert stage.now - began <= ALMOST_AT_ONCE
            raising.clear()
            await stage.assert_over()

    run(main)


@pytest.mark.parametrize("error", [ConnectionError, RudeError, asyncio.CancelledError])
def test_an_observer_that_raises_harms_nothing(error):
    async def scene(stage: Stage) -> None:
        def react(_event: object) -> None:
            raise error("observed")

        with rude_errors_expected():
            stage.react = react
            await stage.pool.terminate()
            await stage.assert_over()

    for phase in PHASES.values():
        play(phase, scene, seeds=(0,))


@pytest.mark.parametrize("operation", PHASES_OF_OPERATIONS)
def test_a_base_exception_from_the_connector_is_reported_and_the_end_goes_on(operation):
    async def scene(stage: Stage) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        await stage.pool.terminate()
        assert told
        assert {type(context["exception"]) for context in told} == {RudeError}
        await stage.assert_over()

    play(misbehaving(raise_a_base_exception_when_cancelled, operation), scene)


# Blocking work on threads that the connector owns.


class ThreadedConnector(FakeConnector):
    """For a driver without async: validate blocks on a thread of the connector's own, which cannot be interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.using: set[int] = set()

    async def validate(self, connection: Any) -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def work() -> None:
            self.using.add(connection.id)
            self.gate.wait()
            self.using.discard(connection.id)
            loop.call_soon_threadsafe(done.set_result, None)

        thread = threading.Thread(target=work, name="qorb main worker")
        thread.start()
        cancelled = False
        while not done.done():
            try:
                await asyncio.shield(done)
            except asyncio.CancelledError:
                cancelled = True
        thread.join()
        if cancelled:
            raise asyncio.CancelledError

    def abort(self, connection: Any) -> None:
        assert connection.id not in self.using, "the thread is still using it"
        super().abort(connection)

    async def close(self, connection: Any) -> None:
        assert connection.id not in self.using, "the thread is still using it"
        await super().close(connection)


def test_a_thread_that_is_still_using_a_connection_is_waited_for_before_that_connection_is_closed():
    async def main() -> None:
        connector = ThreadedConnector()
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), connector, Policy(spares_wanted=1))
        await pool.start()
        await pool.ready()
        connector.gate.clear()
        await asyncio.sleep(31)
        assert connector.using
        ending = asyncio.create_task(pool.terminate(grace=0))
        await settle()
        assert not ending.done()
        assert pool.state is PoolState.TERMINATING
        assert len(connector.connections) == 1
        connector.gate.set()
        await ending
        assert_nothing_left(pool)

    for seed in SEEDS:
        run(main, seed=seed)


def test_a_claim_waiting_behind_a_connector_that_does_not_listen_is_refused_at_once():
    async def scene(stage: Stage) -> None:
        claim = asyncio.create_task(stage.pool.claim().__aenter__())
        await settle()
        began = stage.now
        ending = asyncio.create_task(stage.pool.terminate())
        with pytest.raises(PoolTerminatedError):
            await claim
        assert stage.now == began
        await ending

    play(misbehaving(swallow_cancellations_for_60_s, "connect"), scene)
