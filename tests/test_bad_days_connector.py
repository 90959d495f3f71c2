"""Connectors, resolvers and hooks on their bad days: rows C1 to C12 of the catalogue, each by its number."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qorb import (
    AllClaimsUsedError,
    ClaimTimeoutError,
    ConnectError,
    Connector,
    NoBackendsError,
    NoBackendsOnlineError,
    Outcome,
    Policy,
    Pool,
    Resolver,
    TerminationError,
    events,
)
from qorb.errors import describe
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnection, FakeConnector, assert_nothing_left, block, run, settle
from tests.pools import backends, hold, now, opened
from tests.test_claims import Bare, Quick
from tests.test_lifecycle import new_loop
from tests.words import without_slowness

ROOT = Path(__file__).parent.parent
A = backends(1)
TWO = backends(2)
ONE = {"spares_wanted": 1, "max_slots": 1}
PROBE = 5.0
"""Seconds between two attempts at the most while nothing is online."""
LATE = 0.005


class DriverError(Exception):
    """What the driver of some database raises."""


class RudeError(BaseException):
    """What some libraries raise to get past `except Exception`."""


ERRORS = [OSError, DriverError, ExceptionGroup, asyncio.CancelledError, TimeoutError, RecursionError]


def make(kind: type[BaseException]) -> BaseException:
    return ExceptionGroup("refused", [DriverError("refused")]) if kind is ExceptionGroup else kind("refused")


@contextlib.contextmanager
def reported() -> Iterator[list[str]]:
    """Collect the texts of the exceptions that the running loop's exception handler is told of."""
    loop = asyncio.get_running_loop()
    former = loop.get_exception_handler()
    told: list[str] = []
    loop.set_exception_handler(lambda _loop, context: told.append(describe(context["exception"])))
    yield told
    loop.set_exception_handler(former)


class Watching(Resolver):
    """A resolver that publishes one backend and then does as it is told."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.error: BaseException | None = None

    async def watch(self, publish: Any) -> None:
        self.calls.append(now())
        if self.error is not None:
            raise self.error
        publish(A)
        await asyncio.get_running_loop().create_future()


def assert_backing_off(moments: list[float], cap: float) -> None:
    """The pauses grow: the n-th is no shorter than half of 20 ms doubled n times, or half of the cap."""
    assert len(moments) > 5
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    for step, pause in enumerate(pauses):
        assert pause >= min(0.020 * 2**step, cap) / 2 - 1e-9, f"pause {step}: {pause}"


# C1: what user code raises is an ordinary failure.


@pytest.mark.parametrize("kind", ERRORS)
def test_c1_a_connect_that_raises_whatever_it_is_backs_off_and_its_last_error_is_kept(kind):
    async def main():
        connector = FakeConnector()
        connector.fail("connect", lambda: make(kind))
        async with opened(A, connector, ready=False, **ONE) as watched:
            with pytest.raises(NoBackendsOnlineError) as caught:
                await watched.pool.claim(timeout=60)
            assert_backing_off(watched.attempts(), PROBE)
            last = watched.stats().last_error
            assert last is not None
            assert last in str(caught.value)
            assert isinstance(caught.value.__cause__, ConnectError)
            if kind is not asyncio.CancelledError:  # which nobody had asked for, and is told as that
                assert kind.__name__ in last
                assert "refused" in last
            connector.heal()
            before = now()
            await hold(watched.pool, 0)
            assert now() - before <= PROBE + 3 * connector.latency + 0.020

    run(main)


@pytest.mark.parametrize("kind", ERRORS)
def test_c1_a_watch_that_raises_whatever_it_is_backs_off_and_its_last_error_is_kept(kind):
    async def main():
        resolver = Watching()
        resolver.error = make(kind)
        async with opened(resolver, ready=False, **ONE) as watched:
            with pytest.raises(NoBackendsError) as caught:
                await watched.pool.claim(timeout=60)
            assert_backing_off(resolver.calls, math.inf)
            if kind is not asyncio.CancelledError:
                assert "refused" in str(caught.value)
            resolver.error = None
            await watched.pool.ready()

    run(main)


# C2: BaseException is no way past the pool.


def test_c2_a_base_exception_in_connect_counts_like_any_other_and_each_is_reported_once():
    async def main():
        connector = FakeConnector()
        connector.fail("connect", lambda: RudeError("rude"))
        with reported() as told:
            async with opened(A, connector, ready=False, **ONE) as watched:
                with pytest.raises(NoBackendsOnlineError, match="RudeError: rude"):
                    await watched.pool.claim(timeout=60)
                assert_backing_off(watched.attempts(), PROBE)
                assert watched.stats().failures == len(watched.attempts())
                connector.heal()
                await watched.pool.ready()
                assert told == ["RudeError: rude"] * (len(watched.attempts()) - 1)

    run(main)


def test_c2_a_base_exception_in_watch_counts_like_any_other_and_each_is_reported_once():
    async def main():
        resolver = Watching()
        with reported() as told:
            async with opened(resolver, ready=False, **ONE) as watched:
                resolver.error = RudeError("rude")
                with pytest.raises(NoBackendsError, match="RudeError: rude"):
                    await watched.pool.claim(timeout=60)
                assert_backing_off(resolver.calls, math.inf)
                resolver.error = None
                failed = len(resolver.calls)
                await watched.pool.ready()
                assert told == ["RudeError: rude"] * failed

    run(main)


def test_c2_a_base_exception_in_on_acquire_counts_like_any_other_and_each_is_reported_once():
    async def main():
        connector = Quick()
        async with opened(A, connector, **ONE) as watched:
            connector.fail("on_acquire", lambda: RudeError("rude"))
            with reported() as told:
                with pytest.raises(ClaimTimeoutError) as caught:
                    await watched.pool.claim(timeout=10)
                assert "RudeError: rude" in str(caught.value.__cause__)
                assert told == ["RudeError: rude"] * connector.count["on_acquire"]
                assert watched.stats().failures == connector.count["on_acquire"]
            connector.heal()
            await hold(watched.pool, 0)

    run(main)


# C3: what is meant to stop the program stops it, and the pool is whole.


class Stopping(FakeConnector):
    """Raises once what stops the program, in the operation that is named."""

    def __init__(self, operation: str, error: type[BaseException]) -> None:
        super().__init__()
        self.raised = 0
        if operation != "watch":
            self.fail(operation, lambda: self._note(error()))

    def _note(self, error: BaseException) -> BaseException:  # type: ignore[override]
        self.raised += 1
        self.heal()
        return error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("operation", ["connect", "watch", "on_acquire"])
def test_c3_what_stops_the_program_leaves_the_loop_and_the_pool_settled_so_that_it_can_go_on(operation, error):
    async def begin() -> None:
        await pool.start()
        await pool.ready()
        (await pool.claim()).release()
        await asyncio.sleep(1)

    async def go_on_and_end() -> None:
        resolver.error = None
        await pool.ready()
        claims = [await pool.claim() for _ in range(3)]
        with pytest.raises(AllClaimsUsedError):
            await pool.claim(timeout=0)
        stats = pool.stats().backends["b0"]
        assert (stats.claimed_slots, stats.connecting_slots + stats.unclaimed_slots + stats.checking_slots) == (3, 0)
        assert len(connector.connections) == pool.ledger().connections == 3
        assert len([name for name in pool.ledger().tasks if " slot " in name]) == 3
        for claim in claims:
            claim.release()
        await pool.terminate()
        assert_nothing_left(pool)

    loop = new_loop()
    resolver, connector = Watching(), Stopping(operation, error)
    resolver.error = error() if operation == "watch" else None
    pool = Pool("main", resolver, connector, Policy(spares_wanted=2, max_slots=3))
    beginning = loop.create_task(begin())
    with pytest.raises(error):
        loop.run_forever()
    assert connector.raised == (operation != "watch")
    # Settled at once: whoever counts now counts what is there.
    ledger = pool.ledger()
    assert ledger.connections == len(connector.connections)
    stats = pool.stats().backends.values()
    assert sum(one.claimed_slots for one in stats) == 0
    beginning.cancel()
    loop.run_until_complete(asyncio.wait([beginning]))
    assert beginning.cancelled() or type(beginning.exception()) is error
    loop.run_until_complete(go_on_and_end())
    loop.close()


def settled_after_a_stop(pool: Pool[FakeConnection], error: type[BaseException], form: str) -> None:
    """Claim and give back until that is stopped, and see that no connection is lost by it."""

    async def begin() -> None:
        await pool.start()
        await pool.ready()
        if form == "async with":
            async with pool.claim():
                pass
        else:
            (await pool.claim()).release()
        await asyncio.sleep(1)

    async def go_on_and_end() -> None:
        claims = [await pool.claim(timeout=5) for _ in range(2)]
        for claim in claims:
            claim.release()
        await pool.terminate()
        assert_nothing_left(pool)

    loop = new_loop()
    beginning = loop.create_task(begin())
    with pytest.raises(error):
        loop.run_forever()
    beginning.cancel()
    loop.run_until_complete(asyncio.wait([beginning]))
    assert beginning.cancelled() or type(beginning.exception()) is error
    loop.run_until_complete(go_on_and_end())
    loop.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("form", ["async with", "by hand"])
@pytest.mark.parametrize("question", ["is_closed", "needs_recycle"])
def test_c3_what_stops_the_program_when_a_connection_comes_back_does_not_lose_that(question, form, error):
    class Asked(FakeConnector):
        def is_closed(self, connection: FakeConnection) -> bool:
            return self._answer("is_closed")

        def needs_recycle(self, connection: FakeConnection, outcome: Outcome) -> bool:
            return self._answer("needs_recycle")

        def _answer(self, asked: str) -> bool:
            claimed = any(one.claimed_slots for one in pool.stats().backends.values())
            if asked == question and claimed and stops:
                raise stops.pop()
            return False

    stops = [error()]
    pool = Pool("main", Watching(), Asked(), Policy(spares_wanted=2, max_slots=2))
    settled_after_a_stop(pool, error, form)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("form", ["async with", "by hand"])
@pytest.mark.parametrize(
    "kind",
    [
        events.ConnectDone,
        events.ClaimStart,
        events.SlotSetClaimStart,
        events.SlotStateChange,
        events.HandleClaimed,
        events.ClaimDone,
        events.HandleReturned,
        events.RecycleStart,
        events.RecycleDone,
    ],
)
def test_c3_what_stops_the_program_in_an_observer_does_not_lose_the_connection_that_he_is_told_of(kind, form, error):
    def observe(event: events.Event) -> None:
        if type(event) is kind and stops:
            raise stops.pop()

    stops = [error()]
    pool = Pool("main", Watching(), FakeConnector(), Policy(spares_wanted=2, max_slots=2), observer=observe)
    settled_after_a_stop(pool, error, form)


STOPPED = """
import asyncio, sys
from qorb import Policy, Pool, Resolver
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector

def stop():
    return {error}

class Stopping(Resolver):
    async def watch(self, publish):
        raise stop()

async def main():
    connector = FakeConnector()
    resolver = FixedResolver(["10.0.0.1:1"])
    if {operation!r} == "watch":
        resolver = Stopping()
    else:
        connector.fail({operation!r}, stop)
    pool = Pool("main", resolver, connector, Policy(spares_wanted=2))
    try:
        async with pool:
            async with pool.claim():
                print("served")
    finally:
        print(pool.state.value, pool.ledger().empty, len(connector.connections))

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("error", "code", "said"), [("KeyboardInterrupt()", 130, ["interrupted"]), ("SystemExit(7)", 7, [])]
)
@pytest.mark.parametrize("operation", ["connect", "watch", "on_acquire"])
def test_c3_a_process_that_is_stopped_from_user_code_ends_with_its_code_and_a_clean_stderr(
    operation, error, code, said
):
    program = textwrap.dedent(STOPPED).format(operation=operation, error=error)
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "always", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout.split("\n")[:-1], without_slowness(ended.stderr)) == (
        code,
        ["terminated True 0", *said],
        "",
    )


# C4: a connect that does not listen.


def test_c4_terminate_names_a_connect_that_does_not_listen_when_its_time_is_over_and_a_second_call_sees_it_end():
    async def main():
        connector = FakeConnector()
        connector.stall("connect")
        connector.deafen(60, "connect")
        async with opened(A, connector, ready=False, connect_timeout=100, **ONE) as watched:
            await asyncio.sleep(1)
            began = now()
            with pytest.raises(
                TerminationError, match=r"slot \d+ b0: connect for 6\.0 s in _go_on_regardless"
            ) as caught:
                await watched.pool.terminate(timeout=5)
            assert 5 <= now() - began <= 5.05
            assert [" slot " in name for name in caught.value.ledger.tasks] == [True]
            await watched.pool.terminate()
            assert now() - began <= 60 + LATE
            assert connector.peak == 1  # it came up in the end, and was closed

    run(main)


def test_c4_connects_that_do_not_listen_to_their_time_limit_never_lift_the_cap():
    async def main():
        connector = FakeConnector()
        connector.slow(100, "connect", "b1")
        connector.deafen(60, "connect", "b1")
        most = 0

        async def look() -> None:
            nonlocal most
            for _ in range(1000):
                await asyncio.sleep(0.25)
                connecting = sum(call.operation == "connect" for call in connector.in_flight)
                most = max(most, connecting + len(connector.unclosed))

        async with opened(TWO, connector, ready=False, spares_wanted=4, max_slots=4, connect_timeout=1) as watched:
            looking = asyncio.create_task(look())
            users = [asyncio.create_task(hold(watched.pool, 0.5)) for _ in range(300)]
            await asyncio.gather(*users, return_exceptions=True)
            assert [user.exception() for user in users[:100]] == [None] * 100  # the living backend serves meanwhile
            await looking
        assert 4 - 1 <= most <= 4

    run(main)


# C5: a connect that does not give what it should.


def test_c5_a_connect_that_returns_none_fails_and_the_pool_goes_on_when_it_is_mended():
    async def main():
        connector = FakeConnector()
        connector.return_none()
        async with opened(A, connector, ready=False, **ONE) as watched:
            with pytest.raises(NoBackendsOnlineError, match="returned None") as caught:
                await watched.pool.claim(timeout=20)
            assert isinstance(caught.value.__cause__, ConnectError)
            assert_backing_off(watched.attempts(), PROBE)
            assert watched.pool.ledger().connections == 0
            connector.heal()
            await hold(watched.pool, 0)

    run(main)


@pytest.mark.parametrize("max_slots", [3, 6])
def test_c5_a_connection_that_is_returned_twice_is_never_in_two_slots(max_slots):
    async def main():
        connector = FakeConnector()
        in_use: set[int] = set()

        async def use() -> None:
            async with watched.pool.claim(timeout=10) as connection:
                assert connection.id not in in_use
                in_use.add(connection.id)
                await asyncio.sleep(0.5)
                in_use.remove(connection.id)

        async with opened(A, connector, ready=False, spares_wanted=max_slots, max_slots=max_slots) as watched:
            connector.return_same()
            await asyncio.gather(*(use() for _ in range(10)))
            assert watched.pool.ledger().connections == len(connector.connections) == 1
            assert "in use already" in watched.stats().last_error
            assert watched.stats().failures <= 40
            connector.heal()
            await watched.pool.ready()
            claims = await watched.claims(max_slots)
            assert len({claim.connection.id for claim in claims}) == max_slots
            for claim in claims:
                claim.release()

    run(main)


class Mistaken(Connector[Any]):
    """Returns from connect what it is told to; everything else expects a FakeConnection."""

    def __init__(self, *wrong: Any) -> None:
        self.right = FakeConnector()
        self.wrong = list(wrong)
        self.connects: list[float] = []

    async def connect(self, backend: Any) -> Any:
        self.connects.append(now())
        connection = await self.right.connect(backend)
        if not self.wrong:
            return connection
        self.right.abort(connection)
        return self.wrong[0]

    async def validate(self, connection: Any) -> None:
        await self.right.validate(connection)

    def is_closed(self, connection: Any) -> bool:
        return bool(connection.closed)

    def abort(self, connection: Any) -> None:
        self.right.abort(connection)


class Unlike:
    """Equals everything, has no hash, is false, and cannot be shown."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        raise DriverError("cannot be shown")


@pytest.mark.parametrize(
    "wrong", [7, "a string", Unlike, Unlike(), object()], ids=["int", "str", "type", "odd", "object"]
)
def test_c5_a_connection_of_a_wrong_type_is_an_ordinary_failure_with_backoff(wrong, caplog):
    async def main():
        connector = Mistaken(wrong)
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), connector, Policy(spares_wanted=0, max_slots=3))
        async with pool:
            with pytest.raises(NoBackendsOnlineError) as caught:
                await pool.claim(timeout=20)
            assert "closed" in str(caught.value)
            assert_backing_off(connector.connects, PROBE)
            connector.wrong.clear()
            await pool.ready()
            claims = [await pool.claim() for _ in range(3)]
            assert len({id(claim.connection) for claim in claims}) == 3
            for claim in claims:
                claim.release()
        assert_nothing_left(pool)
        connector.right.check()

    run(main)
    assert "AttributeError" in caplog.text


def test_c5_a_connect_that_returns_what_is_closed_already_fails_with_backoff():
    class Closed(FakeConnector):
        closed = True

        def new_connection(self, number: int, backend: Any) -> FakeConnection:
            return FakeConnection(number, backend, closed=self.closed)

    async def main():
        connector = Closed()
        async with opened(A, connector, ready=False, **ONE) as watched:
            with pytest.raises(NoBackendsOnlineError, match="closed already"):
                await watched.pool.claim(timeout=20)
            assert_backing_off(watched.attempts(), PROBE)
            assert len(connector.unclosed) == watched.pool.ledger().connections == 0
            connector.closed = False
            await hold(watched.pool, 0)

    run(main)


# C6 to C8: calls on a connection that hang, raise, or come too late.


def test_c6_a_close_that_hangs_is_followed_by_abort_and_holds_no_recycling_up():
    async def main():
        connector = FakeConnector()
        async with opened(A, connector, spares_wanted=2, max_slots=2) as watched:
            connector.stall("close")
            bad = await watched.pool.claim()
            connection = bad.connection
            began = now()
            bad.discard()
            for _ in range(100):
                await hold(watched.pool, 0.01)
            await settle()
            assert connector.count["on_recycle"] == 100
            await asyncio.sleep(began + 5 - LATE - now())
            assert not connection.closed
            await asyncio.sleep(2 * LATE)
            assert connection.closed
            assert connector.count["abort"] == 1
            await asyncio.sleep(1)
            assert watched.stats().unclaimed_slots == 2
            connector.heal()

    run(main)


def test_c6_a_close_that_raises_is_followed_by_abort_at_once():
    async def main():
        connector = FakeConnector()
        async with opened(A, connector, **ONE) as watched:
            connector.fail("close", lambda: DriverError("goodbye failed"))
            bad = await watched.pool.claim()
            connection = bad.connection
            bad.discard()
            await asyncio.sleep(connector.latency + LATE)
            assert connection.closed
            assert connector.count["abort"] == 1
            await hold(watched.pool, 0)
            assert watched.stats().failures == 0  # it says nothing about the backend
            connector.heal()

    run(main)


def wrong_answers(connector: FakeConnector, operation: str, how: str) -> float:
    """Let the operation go wrong at b0; return after how many seconds it has."""
    if how == "hangs":
        connector.stall(operation, "b0")
        return 3
    if how == "raises":
        connector.fail(operation, lambda: DriverError("no"), "b0")
        return connector.latency
    connector.slow(4, operation, "b0")
    connector.deafen(2, operation, "b0")
    return 5


@pytest.mark.parametrize("how", ["hangs", "raises", "answers late"])
def test_c7_a_check_that_goes_wrong_drops_the_connection_and_holds_up_nobody(how):
    async def main():
        connector = FakeConnector()
        async with opened(TWO, connector, spares_wanted=4, max_slots=4, spread=0) as watched:
            doomed = [one for one in connector.connections if one.backend.name == "b0"]
            assert len(doomed) == 2
            delay = wrong_answers(connector, "validate", how)
            connector.stall("connect", "b0")  # else they come back
            first_check = 1000 + 30
            await asyncio.sleep(first_check - now() + 2 * delay + 0.1)
            assert [one.closed for one in doomed] == [True, True]
            assert (watched.stats().online, watched.stats("b1").online) == (False, True)
            assert watched.stats().failures == 2
            checked = [call.started for call in connector.calls if call.operation == "validate"]
            assert len([moment for moment in checked if moment < first_check + 0.1]) >= 3  # the others' go on meanwhile
            served: list[str] = []
            await asyncio.gather(*(hold(watched.pool, 0.01, served) for _ in range(4)))
            assert set(served) == {"b1"}
            connector.heal()
            await watched.pool.ready()

    run(main)


@pytest.mark.parametrize("how", ["hangs", "raises", "answers late"])
def test_c8_a_recycling_that_goes_wrong_drops_the_connection_and_who_waits_gets_another(how):
    async def main():
        connector = FakeConnector()
        async with opened(TWO, connector, spares_wanted=2, max_slots=2) as watched:
            claims = await watched.claims(2)
            bad, good = sorted(claims, key=lambda claim: claim.backend.name)
            delay = wrong_answers(connector, "on_recycle", how)
            connection = bad.connection
            served: list[str] = []
            waiting = asyncio.create_task(hold(watched.pool, 0.01, served))
            await settle()
            began = now()
            bad.release()
            await asyncio.sleep(0)
            good.release()
            await waiting
            assert now() - began <= 0.01 + 2 * connector.latency + LATE
            assert served == ["b1"]
            await asyncio.sleep(began + delay + connector.latency + LATE - now())
            assert connection.closed
            assert watched.stats().failures == 1
            connector.heal()
            await watched.pool.ready()

    run(main)


@pytest.mark.parametrize("how", ["hangs", "raises", "answers late"])
def test_c9_when_on_acquire_always_fails_the_claim_ends_at_its_own_deadline_and_retries_keep_to_the_backoff(how):
    async def main():
        connector = FakeConnector()
        async with opened(A, connector, spares_wanted=2, max_slots=2) as watched:
            wrong_answers(connector, "on_acquire", how)
            began = now()
            with pytest.raises(ClaimTimeoutError) as caught:
                await watched.pool.claim(timeout=20)
            late = 2 if how == "answers late" else 0  # that long it does not listen
            assert -1e-9 <= now() - began - 20 <= late + LATE
            assert caught.value.__cause__ is not None
            assert "on_acquire refused" in str(caught.value)
            # Two connections a round; from the second round on the pauses grow.
            fresh = watched.attempts()[2::2]
            if how == "raises":
                assert_backing_off(fresh, PROBE)
            assert connector.count["on_acquire"] <= 2 * 14
            connector.heal()
            await hold(watched.pool, 0)

    run(main)


# C10: the loop stands still.


@pytest.mark.parametrize("into", [0.1, 1.0, 1.5, 1.999, 2.0])
def test_c10_a_claim_whose_turn_and_deadline_come_while_connect_blocks_the_loop_is_granted(into):
    async def main():
        connector = Bare()
        connector.during("connect", lambda _backend: block(2), "b1")
        connector.refuse("b1")
        async with opened(A, connector, spares_wanted=1, max_slots=2, max_slots_per_backend=1) as watched:
            first = await watched.pool.claim()
            waiting = asyncio.create_task(watched.pool.claim(timeout=into).__aenter__())
            await settle()
            asyncio.get_running_loop().call_later(2, first.release)  # due in the same turn, the deadline before it
            began = now()
            watched.resolver.set(TWO)
            assert (await waiting).backend.name == "b0"
            assert now() == pytest.approx(began + 2)
            assert watched.attempts("b1") == [began]

    run(main)


@pytest.mark.parametrize("into", [0.1, 1.0, 1.5, 1.999, 2.0])
def test_c10_a_claim_that_waits_for_the_very_connect_that_blocks_beyond_its_deadline_is_granted(into):
    class Blocks(Connector[object]):
        async def connect(self, backend: Any) -> object:
            await asyncio.sleep(1)
            block(2)
            return object()

    async def main():
        pool = Pool("main", FixedResolver(["10.0.0.1:1"]), Blocks(), Policy(**ONE))
        async with pool:
            async with pool.claim(timeout=1 + into):
                assert now() == 1000 + 1 + 2
            assert pool.stats().claims == 1

    run(main)


# C11: the connector uses the pool that it works for.


@pytest.mark.parametrize("operation", ["connect", "validate", "on_recycle", "close"])
def test_c11_a_connector_that_claims_from_its_own_pool_gets_a_connection_when_there_is_one(operation):
    async def main():
        connector = FakeConnector()
        inner: list[int] = []

        async def claim(_backend: Any) -> None:
            connector.heal()  # once
            async with watched.pool.claim(timeout=1) as connection:
                inner.append(connection.id)

        async with opened(A, connector, spares_wanted=2, max_slots=4, spread=0) as watched:
            connector.during(operation, claim)
            if operation in ("connect", "close"):
                (await watched.pool.claim()).discard()
            elif operation == "on_recycle":
                (await watched.pool.claim()).release()
            await asyncio.sleep(40)
            assert len(inner) == 1
            assert watched.stats().failures == 0
            await watched.pool.ready()

    run(main)


@pytest.mark.parametrize("timeout", [None, 1, math.inf])
def test_c11_a_connector_that_needs_a_connection_to_make_the_first_one_fails_in_time_and_says_so(timeout):
    async def main():
        connector = FakeConnector()

        async def claim(_backend: Any) -> None:
            async with watched.pool.claim(timeout=timeout):
                pass

        connector.during("connect", claim)
        async with opened(A, connector, ready=False, **ONE) as watched:
            began = now()
            with pytest.raises(NoBackendsOnlineError):
                await watched.pool.claim(timeout=35)
            assert now() - began <= 35 + LATE
            assert ("TimeoutError" if timeout != 1 else "NoBackendsOnlineError") in watched.stats().last_error
            assert max(call.ended - call.started for call in connector.calls if call.ended is not None) <= 10 + LATE
            connector.heal()
            await hold(watched.pool, 0)

    run(main)


def test_c11_an_on_acquire_that_claims_the_only_connection_a_second_time_is_told_that_it_holds_it():
    async def main():
        connector = Quick()
        told: list[str] = []

        async def claim(_backend: Any) -> None:
            try:
                async with watched.pool.claim(timeout=1):
                    pass
            except AllClaimsUsedError as error:
                told.append(str(error))
                raise

        async with opened(A, connector, **ONE) as watched:
            connector.during("on_acquire", claim)
            began = now()
            with pytest.raises(ClaimTimeoutError):
                await watched.pool.claim(timeout=10)
            assert now() - began <= 10 + LATE
            assert told
            assert all("already holds a connection" in text for text in told)
            connector.heal()
            await hold(watched.pool, 0)

    run(main)


def test_c11_a_resolver_that_claims_before_it_has_published_fails_in_time_and_is_started_again():
    class Claiming(Resolver):
        def __init__(self) -> None:
            self.told: list[str] = []

        async def watch(self, publish: Any) -> None:
            if not self.told:
                try:
                    await watched.pool.claim(timeout=1)
                except NoBackendsError as error:
                    self.told.append(str(error))
                    raise
            publish(A)
            await asyncio.get_running_loop().create_future()

    watched: Any = None

    async def main():
        nonlocal watched
        resolver = Claiming()
        async with opened(resolver, ready=False, **ONE) as watched:
            await watched.pool.ready()
            assert len(resolver.told) == 1
            await hold(watched.pool, 0)

    run(main)


# C12: tasks of the connector's own.


class Forgetful(FakeConnector):
    """Starts a task for each connection, and forgets it."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[asyncio.Task[None]] = []

    async def connect(self, backend: Any) -> FakeConnection:
        connection = await super().connect(backend)
        self.started.append(asyncio.create_task(keep_alive()))
        return connection


async def keep_alive() -> None:
    await asyncio.get_running_loop().create_future()


def test_c12_tasks_that_a_connector_has_started_and_forgotten_hold_nothing_up_and_are_named():
    async def main():
        connector = Forgetful()
        async with Pool("main", FixedResolver(["10.0.0.1:1"]), connector, Policy(spares_wanted=2)) as pool:
            await pool.ready()
            began = now()
        assert now() - began <= 0.05
        assert pool.ledger().empty  # they are not the pool's
        assert [task.done() for task in connector.started] == [False, False]
        with pytest.raises(AssertionError, match=r"(?s)connector or resolver.*keep_alive.*keep_alive") as caught:
            assert_nothing_left(pool)
        assert "by its ledger" not in str(caught.value)
        for task in connector.started:
            task.cancel()
        assert_nothing_left(pool)  # they have been told to end; that they do so is not the pool's affair

    run(main)


def test_c12_tasks_that_a_resolver_has_started_and_forgotten_are_named():
    class Starting(Watching):
        async def watch(self, publish: Any) -> None:
            self.started = asyncio.create_task(keep_alive())
            await super().watch(publish)

    async def main():
        resolver = Starting()
        async with Pool("main", resolver, FakeConnector()) as pool:
            await pool.ready()
        with pytest.raises(AssertionError, match="keep_alive"):
            assert_nothing_left(pool)
        resolver.started.cancel()

    run(main)


def test_c12_tasks_of_another_pool_s_connector_and_of_the_application_are_not_named():
    async def main():
        connector = Forgetful()
        bystander = asyncio.create_task(keep_alive())
        async with Pool("other", FixedResolver(["10.0.0.1:1"]), connector) as other:
            await other.ready()
            async with Pool("main", FixedResolver(["10.0.0.2:1"]), FakeConnector()) as pool, pool.claim():
                mine = asyncio.create_task(keep_alive())
            assert_nothing_left(pool)
        for task in (bystander, mine, *connector.started):
            task.cancel()

    run(main)
