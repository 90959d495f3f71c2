"""A pool over fakes, for tests in virtual time, that must leave nothing behind and keep its caps."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

from qorb import Backend, Claim, Policy, Pool, Resolver, events
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnection, FakeConnector, assert_nothing_left, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

# What a resolver tells of its own work; the others are about claims, slots and backends.
OF_RESOLVERS = frozenset(
    {events.ResolverFailed, events.ResolverQueryStart, events.ResolverQueryDone, events.ResolverQueryFailed}
)


def backends(count: int, **values: Any) -> list[Backend]:
    """Make backends named b0, b1, ..."""
    return [Backend(f"b{i}", f"10.0.0.{i + 1}", 5432, **values) for i in range(count)]


class Scripted(Resolver):
    """A resolver whose watch() does what a test says, call by call; the last one again and again."""

    def __init__(self, *script: Callable[[Callable[[Iterable[Backend]], None]], Any]) -> None:
        self.script = list(script)
        self.began: list[float] = []
        self.alive = 0

    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        self.began.append(now())
        self.alive += 1
        try:
            does = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            awaited = does(publish)
            if awaited is not None:
                await awaited
        finally:
            self.alive -= 1


class Watched:
    """A pool, what it is made of, and what its observer saw."""

    def __init__(
        self,
        known: Iterable[Backend] | Resolver,
        connector: FakeConnector | None = None,
        *,
        observed: bool = False,
        seed: int = 1,
        name: str = "main",
        **policy: Any,
    ) -> None:
        self.resolver: Any = known if hasattr(known, "watch") else ManualResolver(known)
        self.connector = FakeConnector() if connector is None else connector
        self.events: list[tuple[float, events.Event]] = []
        self.pool: Pool[FakeConnection] = Pool(
            name,
            self.resolver,
            self.connector,
            Policy(**policy),
            observer=self._observe if observed else None,
            rng=random.Random(seed),
        )

    def _observe(self, event: events.Event) -> None:
        self.events.append((asyncio.get_running_loop().time(), event))

    def stats(self, name: str = "b0") -> Any:
        return self.pool.stats().backends[name]

    def slots(self, name: str = "b0") -> int:
        """How many slots of a backend there are, whatever their state."""
        one = self.stats(name)
        count: int = one.connecting_slots + one.unclaimed_slots + one.checking_slots + one.claimed_slots
        return count

    def attempts(self, name: str | None = None) -> list[float]:
        """When connects began."""
        calls = [call for call in self.connector.calls if call.operation == "connect"]
        return [call.started for call in calls if name in (None, call.backend.name)]

    async def claims(self, count: int) -> list[Claim[FakeConnection]]:
        return [await self.pool.claim() for _ in range(count)]


@contextlib.asynccontextmanager
async def opened(
    known: Iterable[Backend] | Resolver,
    connector: FakeConnector | None = None,
    *,
    ready: bool = True,
    observed: bool = False,
    seed: int = 1,
    name: str = "main",
    **policy: Any,
) -> AsyncIterator[Watched]:
    """Start a pool, by default until it is ready; at the end nothing of it may be left, and no cap been exceeded."""
    watched = Watched(known, connector, observed=observed, seed=seed, name=name, **policy)
    async with watched.pool as pool:
        if ready:
            await pool.ready()
            await settle()
        yield watched
    watched.connector.check()
    assert_nothing_left(pool)
    assert watched.connector.peak <= pool.policy.max_slots
    assert all(peak <= pool.policy.max_slots_per_backend for peak in watched.connector.peak_of_backend.values())


def now() -> float:
    return asyncio.get_running_loop().time()


async def hold(pool: Pool[FakeConnection], seconds: float, served: list[str] | None = None) -> None:
    """Claim a connection and keep it so long; note whose it was."""
    async with pool.claim() as connection:
        if served is not None:
            served.append(connection.backend.name)
        await asyncio.sleep(seconds)
