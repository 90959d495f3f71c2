"""A claim that is interrupted, at any suspension point and with any timing, loses nothing and hides nothing.

Each scene sets the stage, makes one claim by `attempt.cancel`, and then demands: no slot is lost, the line is in order,
whoever waited behind is served, and nothing is left when the pool ends. The scenes run over a connector that overrides
what there is to override and over a plain one, so that the short cuts and the long way are both tried.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from qorb import AllClaimsUsedError, Backend, ClaimTimeoutError, Connector, Outcome, Policy, Pool
from qorb.resolvers import ManualResolver
from qorb.testing import (
    CancelSwallowedError,
    FakeConnection,
    FakeConnector,
    assert_nothing_left,
    at_every_await,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

A = Backend("a", "10.0.0.1", 1)
B = Backend("b", "10.0.0.2", 1)
POLICY = Policy(spares_wanted=1, max_slots=2, claim_timeout=5.0)


class Simple(Connector[FakeConnection]):
    """Connects by a FakeConnector and overrides nothing else that costs a claim or a release its short cut."""

    def __init__(self) -> None:
        self.fake = FakeConnector()

    async def connect(self, backend: Backend) -> FakeConnection:
        return await self.fake.connect(backend)

    async def on_recycle(self, connection: FakeConnection, outcome: Outcome) -> None:
        await super().on_recycle(connection, outcome)

    def needs_recycle(self, connection: FakeConnection, outcome: Outcome) -> bool:
        return outcome is not Outcome.CLEAN

    def abort(self, connection: FakeConnection) -> None:
        self.fake.abort(connection)


class World:
    """A pool, and what a scene needs of it."""

    def __init__(self, connector: Connector[FakeConnection], policy: Policy = POLICY) -> None:
        self.fake = connector if isinstance(connector, FakeConnector) else connector.fake  # type: ignore[attr-defined]
        self.resolver = ManualResolver([A])
        self.pool: Pool[FakeConnection] = Pool("main", self.resolver, connector, policy, rng=random.Random(1))

    async def use(self, timeout: float | None = None) -> str:
        """Claim, hold for a moment, release. The operation that is interrupted."""
        async with self.pool.claim(timeout=timeout) as connection:
            assert not connection.closed
            await asyncio.sleep(0.001)
        return "served"

    async def take(self, timeout: float | None = None) -> str:
        """Claim by hand, and release at once."""
        claim = await self.pool.claim(timeout=timeout)
        claim.release()
        return "served"

    async def everything_is_as_before(self) -> None:
        """Every slot can be claimed at the same time, nobody waits, and the tally is right; then the pool ends."""
        await settle()
        assert self.pool.stats().waiting == 0
        self.fake.heal()
        claims = [await self.pool.claim(timeout=60.0) for _ in range(self.pool.policy.max_slots)]
        with pytest.raises(AllClaimsUsedError):
            await self.pool.claim(timeout=0)
        for claim in claims:
            claim.release()
        await asyncio.sleep(10.0)
        stats = self.pool.stats().backends
        assert sum(one.claimed_slots + one.checking_slots for one in stats.values()) == 0
        assert sum(one.unclaimed_slots for one in stats.values()) == len(self.fake.connections)
        assert len(self.fake.connections) <= self.pool.policy.max_slots
        await self.pool.terminate(grace=0)
        assert_nothing_left(self.pool)


async def idle(world: World, claim: Callable[[], Awaitable[Any]]) -> None:
    """A connection is at hand."""
    await world.pool.ready()
    await claim()


async def waiting(world: World, claim: Callable[[], Awaitable[Any]]) -> None:
    """Every connection is in use, and somebody waits behind."""
    held = [await world.pool.claim() for _ in range(2)]

    async def behind() -> None:
        await settle()
        assert await world.use() == "served"

    task = asyncio.create_task(behind(), name="behind")
    asyncio.get_running_loop().call_later(1.0, held[0].release)
    await claim()
    held[1].release()
    await task


async def hand_over(world: World, claim: Callable[[], Awaitable[Any]]) -> None:
    """The connection is handed off at the very moment at which everything else happens, too."""
    held = [await world.pool.claim() for _ in range(2)]
    loop = asyncio.get_running_loop()
    loop.call_soon(held[0].release)
    others = [asyncio.create_task(world.use(), name=f"other {n}") for n in range(3)]
    await claim()
    held[1].release()
    assert await asyncio.gather(*others) == ["served"] * 3


async def cold(world: World, claim: Callable[[], Awaitable[Any]]) -> None:
    """Nothing is connected yet."""
    await claim()


async def backing_off(world: World, claim: Callable[[], Awaitable[Any]]) -> None:
    """The backend refuses, and comes back while the claim waits."""
    world.fake.refuse()
    asyncio.get_running_loop().call_later(1.0, world.fake.heal)
    await claim()


async def failing_on_acquire(world: World, claim: Callable[[], Awaitable[Any]]) -> None:
    """on_acquire refuses every connection for a while."""
    await world.pool.ready()
    world.fake.fail("on_acquire", lambda: OSError("not fit"))
    asyncio.get_running_loop().call_later(0.5, world.fake.heal)
    await claim()


async def slow_on_acquire(world: World, claim: Callable[[], Awaitable[Any]]) -> None:
    """on_acquire hangs until it is given up."""
    await world.pool.ready()
    world.fake.stall("on_acquire")
    asyncio.get_running_loop().call_later(3.5, world.fake.heal)
    await claim()


async def backend_removed(world: World, claim: Callable[[], Awaitable[Any]]) -> None:
    """The backend vanishes while the claim waits, and another comes."""
    held = [await world.pool.claim() for _ in range(2)]
    loop = asyncio.get_running_loop()
    loop.call_soon(world.resolver.set, [B])
    loop.call_later(0.5, held[0].release)
    loop.call_later(0.6, held[1].release)
    await claim()
    for one in held:
        one.release()


async def timeout_in_the_same_tick(world: World, claim: Callable[[], Awaitable[Any]]) -> None:
    """The connection is released at the moment at which the claim's time is over."""
    held = [await world.pool.claim() for _ in range(2)]
    asyncio.get_running_loop().call_later(5.0, held[0].release)
    await claim()
    held[1].release()


async def timing_out(world: World, claim: Callable[[], Awaitable[Any]]) -> None:
    """Nothing comes free in time."""
    held = [await world.pool.claim() for _ in range(2)]
    await claim()
    for one in held:
        one.release()


SCENES = [
    idle,
    waiting,
    hand_over,
    cold,
    backing_off,
    failing_on_acquire,
    slow_on_acquire,
    backend_removed,
    timeout_in_the_same_tick,
    timing_out,
]


@pytest.mark.parametrize("by", ["cancel", "timeout", "wait_for", "anyio"])
@pytest.mark.parametrize("operation", [World.use, World.take], ids=["entered", "awaited"])
@pytest.mark.parametrize("connector", [FakeConnector, Simple], ids=["all hooks", "no hooks"])
@pytest.mark.parametrize("scene", SCENES, ids=[scene.__name__ for scene in SCENES])
def test_a_claim_that_is_interrupted_at_any_await_loses_nothing(
    scene: Callable[[World, Callable[[], Awaitable[Any]]], Awaitable[None]],
    connector: Callable[[], Connector[FakeConnection]],
    operation: Callable[[World], Awaitable[str]],
    by: Any,
) -> None:
    if connector is Simple and "on_acquire" in scene.__name__:
        connector = FakeConnector  # there is none to fail in the other

    async def play(attempt: Any) -> None:
        world = World(connector())
        await world.pool.start()

        async def claim() -> None:
            try:
                await attempt.cancel(operation(world))
            except ClaimTimeoutError:
                assert scene is timing_out or (scene is timeout_in_the_same_tick and connector is not Simple)
            except CancelSwallowedError:
                # On 3.11 asyncio.wait_for() returns the result when it comes in the same turn as its timeout
                # (python/cpython#86296): nothing that runs within could help it. What is asserted is the rest.
                assert by == "wait_for"

        await scene(world, claim)
        await world.everything_is_as_before()

    report = at_every_await(play, by=_ways()[by], at_least=0)
    if not (scene is idle and operation is World.take and connector is Simple):
        assert report.points >= 1, report


def _ways() -> dict[str, Any]:
    return {
        "cancel": "cancel",
        "timeout": "timeout",
        "wait_for": lambda operation: asyncio.wait_for(operation, float("inf")),
        "anyio": "anyio",
    }


@pytest.mark.parametrize("connector", [FakeConnector, Simple], ids=["all hooks", "no hooks"])
@pytest.mark.parametrize("pattern", ["qorb main slot *", "qorb main resolver"])
def test_a_task_of_the_pool_that_is_cancelled_at_any_await_ends_the_pool_and_nothing_is_left(
    connector: Callable[[], Connector[FakeConnection]], pattern: str
) -> None:
    async def play(_attempt: Any) -> None:
        world = World(connector())
        await world.pool.start()
        clients = [asyncio.create_task(world.use(), name=f"client {n}") for n in range(4)]
        await asyncio.sleep(0.1)
        world.resolver.set([A, B])
        await asyncio.sleep(31.0)  # a health check has passed
        world.resolver.set([B])
        await asyncio.gather(*clients, return_exceptions=True)
        await world.pool.terminate(grace=0)
        assert_nothing_left(world.pool)

    with pytest.warns(ResourceWarning, match="cancelled from outside"):
        report = at_every_await(play, tasks=pattern)
    assert report.points >= 2
