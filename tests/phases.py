"""A pool in each phase of its life, for the tests of how it ends.

A phase is a coroutine function that brings a Stage there, and makes sure that it is there.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from qorb import Backend, Policy, Pool, PoolState, PoolTerminatedError
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnection, FakeConnector, assert_nothing_left, run, settle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    import pytest

    from qorb import Claim
    from qorb.events import Event

A = Backend("a", "10.0.0.1", 1)
B = Backend("b", "10.0.0.2", 1)
POLICY = Policy(spares_wanted=3, max_slots=4)

SEEDS = (0, 1, 2)
NO_TIME = 1e-9
ALMOST_AT_ONCE = 0.050 + NO_TIME
"""Seconds that a termination may take that has no claim to wait for."""


class BookedResolver(ManualResolver):
    """A ManualResolver that keeps account of the calls of its watch()."""

    def __init__(self, backends: Iterable[Backend] = (A, B)) -> None:
        super().__init__(backends)
        self.calls = 0
        self.watching = 0
        self.silent = False
        """It never publishes."""
        self.during: Callable[[], Awaitable[object]] | None = None
        """What watch() does after it has published, instead of waiting for more."""

    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        self.calls += 1
        self.watching += 1
        try:
            if self.silent:
                await asyncio.get_running_loop().create_future()
            if self.during is not None:
                publish(self._backends)
                await self.during()
                return
            await super().watch(publish)
        finally:
            self.watching -= 1


class Stage:
    """A pool with everything round it. `disturb(operation)` is what goes wrong in the phases that need it."""

    def __init__(self, policy: Policy = POLICY, connector: FakeConnector | None = None) -> None:
        self.resolver = BookedResolver()
        self.connector = FakeConnector() if connector is None else connector
        self.events: list[Event] = []
        self.react: Callable[[Event], object] = lambda event: None
        """What the observer does besides writing the events down."""
        self.pool: Pool[FakeConnection] = Pool(
            "main", self.resolver, self.connector, policy, observer=self._observe, rng=random.Random(1)
        )
        self.disturb: Callable[[str], None] = self.connector.stall
        self.claims: list[Claim[FakeConnection]] = []
        """Those that are out."""
        self.refused: list[int] = []
        """The claimers that got PoolTerminatedError, in the order in which they got it."""
        self.served: list[int] = []
        """The claimers that got a connection."""
        self.claimers: list[asyncio.Task[None]] = []
        self.let_go = asyncio.Event()
        """What the claimers that were served wait for."""

    def _observe(self, event: Event) -> None:
        self.events.append(event)
        self.react(event)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def start(self) -> None:
        await self.pool.start()
        await self.pool.ready()

    async def claim_all(self) -> None:
        """Have a claim on every connection that there may be."""
        for _ in range(self.pool.policy.max_slots):
            self.claims.append(await self.pool.claim())

    async def queue(self, count: int) -> None:
        """Let so many claimers come, one after the other."""
        for _ in range(count):
            number = len(self.claimers)
            self.claimers.append(asyncio.create_task(self._claim(number), name=f"claimer {number}"))
        await settle()

    async def _claim(self, number: int) -> None:
        try:
            async with self.pool.claim():
                self.served.append(number)
                await self.let_go.wait()
        except PoolTerminatedError:
            self.refused.append(number)

    async def clear(self) -> None:
        """Let go of every claim."""
        self.let_go.set()
        while self.claims:
            self.claims.pop().release()
        await asyncio.gather(*self.claimers)

    def in_flight(self, operation: str) -> int:
        return sum(call.operation == operation for call in self.connector.in_flight)

    async def assert_over(self) -> None:
        """Assert that the pool is gone, and that nothing of it ever stirs again."""
        assert self.pool.state is PoolState.TERMINATED
        assert_nothing_left(self.pool)
        assert self.resolver.watching == 0
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("qorb ")]
        calls, heard = self.resolver.calls, len(self.events)
        self.connector.forbid()
        self.let_go.set()
        await asyncio.sleep(100_000)
        for claim in self.claims:
            claim.release()
        await asyncio.sleep(100_000)
        self.connector.check()
        assert self.resolver.calls == calls
        assert len(self.events) == heard
        assert all(claimer.done() for claimer in self.claimers)
        assert_nothing_left(self.pool)


async def new(stage: Stage) -> None:
    assert stage.pool.state is PoolState.NEW


async def resolving(stage: Stage) -> None:
    stage.resolver.silent = True
    await stage.pool.start()
    await stage.queue(2)
    assert stage.resolver.watching == 1
    assert not stage.pool.stats().backends


async def connecting(stage: Stage) -> None:
    stage.disturb("connect")
    await stage.pool.start()
    await stage.queue(2)
    await asyncio.sleep(0.5)
    assert stage.in_flight("connect")


async def backing_off(stage: Stage) -> None:
    stage.connector.refuse()
    await stage.pool.start()
    await stage.queue(2)
    await asyncio.sleep(15)
    assert not stage.connector.in_flight
    assert sum(backend.connecting_slots for backend in stage.pool.stats().backends.values())


async def idle(stage: Stage) -> None:
    await stage.start()
    assert not stage.connector.in_flight


async def checking(stage: Stage) -> None:
    await stage.start()
    stage.disturb("validate")
    await asyncio.sleep(30.5)
    assert stage.in_flight("validate")


async def recycling(stage: Stage) -> None:
    await stage.start()
    stage.disturb("on_recycle")
    claim = await stage.pool.claim()
    claim.release()
    await asyncio.sleep(0.1)
    assert stage.in_flight("on_recycle")


async def acquiring(stage: Stage) -> None:
    await stage.start()
    stage.disturb("on_acquire")
    await stage.queue(2)
    await asyncio.sleep(0.1)
    assert stage.in_flight("on_acquire")


async def closing(stage: Stage) -> None:
    await stage.start()
    claim = await stage.pool.claim()
    stage.disturb("close")
    claim.discard()
    await asyncio.sleep(0.1)
    assert stage.in_flight("close")


async def claimed(stage: Stage) -> None:
    await stage.start()
    await stage.claim_all()


async def waiting(stage: Stage) -> None:
    await stage.start()
    await stage.claim_all()
    await stage.queue(5)
    assert stage.pool.stats().waiting == 5


async def handing_over(stage: Stage) -> None:
    """A connection has been given to the first in line, who has not run since."""
    stage.connector.needs_recycle = lambda connection, outcome: False  # type: ignore[method-assign]
    await waiting(stage)
    stage.claims.pop().release()
    assert stage.pool.stats().waiting == 4
    assert not stage.served


async def about_to_rebalance(stage: Stage) -> None:
    """There is a slot too many, and the timer that will notice is due at this moment."""
    started = stage.now
    await stage.start()
    await stage.claim_all()
    while stage.claims:
        stage.claims.pop().release()
    await asyncio.sleep(started + stage.pool.policy.rebalance_interval - stage.now)


async def shrinking(stage: Stage) -> None:
    await about_to_rebalance(stage)
    stage.disturb("close")
    await asyncio.sleep(0.1)
    assert stage.in_flight("close")
    assert len(stage.connector.connections) == POLICY.max_slots


async def leaving(stage: Stage) -> None:
    """A backend has vanished: a claim on it is still out, and its idle connections are being closed."""
    await stage.start()
    while not {claim.backend for claim in stage.claims} >= {A, B}:
        stage.claims.append(await stage.pool.claim())
    stage.disturb("close")
    await asyncio.sleep(0.1)
    stage.resolver.set([A])
    await asyncio.sleep(0.1)
    assert stage.in_flight("close")
    assert stage.pool.stats().backends["b"].claimed_slots


async def converting(stage: Stage) -> None:
    """Backends have moved, and the first connections to their new addresses are coming up."""
    await stage.start()
    stage.disturb("connect")
    stage.resolver.set([Backend("a", "10.0.0.3", 1), Backend("b", "10.0.0.4", 1)])
    await asyncio.sleep(0.1)
    assert {call.backend.host for call in stage.connector.in_flight} <= {"10.0.0.3", "10.0.0.4"}
    assert stage.in_flight("connect")


PHASES: dict[str, Callable[[Stage], Awaitable[Any]]] = {
    phase.__name__: phase
    for phase in (
        new,
        resolving,
        connecting,
        backing_off,
        idle,
        checking,
        recycling,
        acquiring,
        closing,
        claimed,
        waiting,
        handing_over,
        about_to_rebalance,
        shrinking,
        leaving,
        converting,
    )
}


def play(
    phase: Callable[[Stage], Awaitable[Any]],
    scene: Callable[..., Awaitable[Any]],
    *arguments: Any,
    seeds: Iterable[int] = SEEDS,
) -> None:
    """Bring a stage into the phase, and go on with the scene."""
    for seed in seeds:

        async def main() -> None:
            stage = Stage()
            try:
                await phase(stage)
                await scene(stage, *arguments)
            finally:
                await stage.clear()

        try:
            run(main, seed=seed)
        except BaseException as error:
            error.add_note(f"phase {phase.__name__}, seed {seed}, {arguments}")
            raise


def at_once(awaitable: Awaitable[Any]) -> Any:
    """Await what must not wait."""
    steps = awaitable.__await__()
    try:
        steps.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError(f"{awaitable!r} waits")


def logged(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    """The messages of qorb's log with these words in them."""
    return [record.getMessage() for record in caplog.records if record.name == "qorb" and words in record.getMessage()]
