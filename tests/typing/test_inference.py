"""The types that users see: inferred where they are not written, wrong use refused.

A refusal is shown by a comment that ignores it: both checkers complain about such a comment where nothing is refused.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, assert_type

from qorb import (
    Backend,
    BackendStats,
    Claim,
    ClaimRequest,
    Connector,
    Event,
    Ledger,
    Monitor,
    Observer,
    Outcome,
    Policy,
    Pool,
    PoolState,
    PoolStats,
    Resolver,
    TerminationError,
)
from qorb.connectors import TcpConnector, TcpStream
from qorb.resolvers import FixedResolver, ManualResolver
from qorb.testing import FakeConnection, FakeConnector, assert_nothing_left, run

if TYPE_CHECKING:
    import asyncio


class Session:
    """What the connector below connects to."""

    open = True


class SessionConnector(Connector[Session]):
    async def connect(self, backend: Backend) -> Session:
        assert_type(backend.server_name, str | None)
        assert_type(backend.address, tuple[str, int])
        return Session()

    async def validate(self, connection: Session) -> None:
        assert connection.open

    async def on_recycle(self, connection: Session, outcome: Outcome) -> None:
        await super().on_recycle(connection, outcome)

    def abort(self, connection: Session) -> None:
        connection.open = False

    def is_closed(self, connection: Session) -> bool:
        return not connection.open

    def needs_recycle(self, connection: Session, outcome: Outcome) -> bool:
        return outcome is not Outcome.CLEAN


class NamesResolver(Resolver):
    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        publish([Backend.parse("127.0.0.1:1")])
        publish(Backend(f"b{n}", "127.0.0.1", n) for n in (1, 2))


def make_pool(observer: Observer | None = None) -> Pool[Session]:
    resolver = FixedResolver(["127.0.0.1:1", ("127.0.0.1", 2), Backend("c", "127.0.0.1", 3)])
    pool = Pool("p", resolver, SessionConnector(), Policy(max_slots=3), observer=observer, rng=random.Random(1))
    assert_type(pool, Pool[Session])
    return pool


def test_a_claim_has_the_type_of_the_connector_s_connections() -> None:
    async def main() -> None:
        async with make_pool() as pool:
            assert_type(pool, Pool[Session])
            request = pool.claim(timeout=1.0)
            assert_type(request, ClaimRequest[Session])
            async with request as session:
                assert_type(session, Session)
                assert session.open
            async with pool.claim() as session:
                assert_type(session, Session)
            claim = await pool.claim()
            assert_type(claim, Claim[Session])
            assert_type(claim.connection, Session)
            assert_type(claim.backend, Backend)
            claim.release()
            with await pool.claim() as session:
                assert_type(session, Session)
            claim = await pool.claim(timeout=None)
            claim.release(Outcome.ERROR)
            claim = await pool.claim()
            claim.discard()

    run(main)


def test_a_claim_can_be_left_to_an_exit_stack() -> None:
    async def main() -> None:
        async with make_pool() as pool, AsyncExitStack() as stack:
            session = await stack.enter_async_context(pool.claim())
            assert_type(session, Session)
            other = stack.enter_context(await pool.claim())
            assert_type(other, Session)
            assert other is not session

    run(main)


def test_a_pool_tells_its_state_in_values() -> None:
    async def main() -> None:
        pool = make_pool()
        await pool.start()
        await pool.ready(timeout=5.0)
        assert_type(pool.name, str)
        assert_type(pool.policy, Policy)
        assert_type(pool.state, PoolState)
        stats = pool.stats()
        assert_type(stats, PoolStats)
        assert_type(stats.backends, Mapping[str, BackendStats])
        assert_type([one.last_error for one in stats.backends.values()], list[str | None])
        assert_type(pool.ledger(), Ledger)
        assert_type(pool.ledger().empty, bool)
        await pool.terminate(grace=1.0, held="detach", timeout=10.0)
        pool.abort()
        assert_nothing_left(pool)

    run(main)


def test_an_observer_is_a_function_or_a_method() -> None:
    class Counter:
        seen = 0

        def count(self, event: Event) -> None:
            assert_type(event.pool, str)
            self.seen += 1

    async def main() -> int:
        seen: list[Event] = []
        counter = Counter()
        for observer in (seen.append, counter.count):
            async with make_pool(observer) as pool, pool.claim():
                pass
        assert seen
        return counter.seen

    assert_type(run(main, seed=1), int)
    assert run(main, seed=1) > 0


def test_resolvers_publish_backends() -> None:
    async def main() -> None:
        resolver = ManualResolver()
        resolver.set(["127.0.0.1:1", ("127.0.0.1", 2), Backend("c", "127.0.0.1", 3)])
        async with resolver.monitor() as monitor:
            assert_type(monitor, Monitor)
            assert_type(monitor.backends, Mapping[str, Backend])
            resolver.set([])
            if monitor.backends:
                assert_type(await monitor.changed(), Mapping[str, Backend])
            assert not monitor.backends
        published: list[Iterable[Backend]] = []
        await NamesResolver().watch(published.append)
        assert len(published) == 2

    run(main)


def test_the_fakes_are_typed() -> None:
    async def main() -> None:
        connector = FakeConnector(latency=0.1)
        async with Pool("p", FixedResolver(["127.0.0.1:1"]), connector) as pool:
            assert_type(pool, Pool[FakeConnection])
            async with pool.claim() as connection:
                assert_type(connection.id, int)
                assert_type(connection.backend, Backend)
                assert_type(connection.closed, bool)
            connector.stall("close")
            connector.refuse("127.0.0.1:1")
            connector.invalidate()
            connector.heal()

    run(main)


async def tcp_is_a_pair_of_streams(pool: Pool[TcpStream]) -> None:
    other = Pool("p", NamesResolver(), TcpConnector(ssl=None, keepalive=None, user_timeout=10.0))
    assert_type(other, Pool[TcpStream])
    async with pool.claim() as stream:
        assert_type(stream, TcpStream)
        if TYPE_CHECKING:
            assert_type(stream.reader, asyncio.StreamReader)
            assert_type(stream.writer, asyncio.StreamWriter)


def errors_carry_facts(error: TerminationError) -> None:
    assert_type(error.ledger, Ledger)


def a_pool_of_something_special_is_a_pool_of_anything(pool: Pool[Session]) -> Pool[Any]:
    return pool


async def what_is_refused(pool: Pool[Session], claim: Claim[Session], connector: SessionConnector) -> None:
    Pool("p", ["127.0.0.1:1"], connector)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Pool("p", NamesResolver(), Session())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Policy(3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Policy(max_slots="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Policy().max_slots = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    pool.claim(1.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    claim.release("clean")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await pool.terminate(held="keep")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with pool.claim() as session:
        session.reader = None  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    with pool.claim():  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    claim.connection = session  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    Connector()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
    Resolver()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
