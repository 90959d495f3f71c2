"""What the peers are put through: one task on an idle pool, and crowds of tasks on 16 connections."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter, thread_time

from benchmarks.measure import percentile
from benchmarks.peers import Borrow, Peer

CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Waits:
    """How long claims had to wait for their connection, in seconds."""

    median: float
    p99: float
    longest: float
    places_lost: int
    """So much later than its turn came the claim that was overtaken most. A fair pool: 0."""


async def idle(peer: Peer, claims: int) -> float:
    """Run one task with connections at hand: seconds of processor time for one claim and release."""
    async with peer.open(CONNECTIONS) as borrow:
        await _borrow_often(borrow, claims // 10)
        started = thread_time()
        await _borrow_often(borrow, claims)
        return (thread_time() - started) / claims


async def throughput(peer: Peer, tasks: int, claims: int) -> float:
    """Run many tasks on 16 connections: seconds from the first claim to the last release, for each of `claims` claims.

    Each task claims, uses the connection for one turn of the loop, releases, and starts again. So the figure holds the
    loop's own work besides the pool's; that of the bare deque tells how much that is.
    """
    async with peer.open(CONNECTIONS) as borrow:
        each = claims // tasks
        crowd = [asyncio.create_task(_use_often(borrow, each)) for _ in range(tasks)]
        started = thread_time()
        await all_done(crowd)
        return (thread_time() - started) / (each * tasks)


async def waits(peer: Peer, tasks: int, claims: int) -> Waits:
    """Run the same crowd and time each wait for a connection. A pool that lets newcomers overtake shows here."""
    async with peer.open(CONNECTIONS) as borrow:
        each = claims // tasks
        tickets = itertools.count()
        taken: list[tuple[int, float]] = []
        crowd = [asyncio.create_task(_use_and_time(borrow, each, tickets, taken)) for _ in range(tasks)]
        await all_done(crowd)
    places_lost = max(served - ticket for served, (ticket, _) in enumerate(taken))
    seconds = sorted(wait for _, wait in taken)
    return Waits(percentile(seconds, 0.5), percentile(seconds, 0.99), seconds[-1], places_lost)


async def all_done(crowd: Sequence[asyncio.Task[None]]) -> None:
    """Wait until all tasks have ended; raise what one of them raised."""
    await asyncio.wait(crowd)
    for task in crowd:
        task.result()


async def _borrow_often(borrow: Borrow, times: int) -> None:
    for _ in range(times):
        async with borrow():
            pass


async def _use_often(borrow: Borrow, times: int) -> None:
    for _ in range(times):
        async with borrow():
            await asyncio.sleep(0)


async def _use_and_time(borrow: Borrow, times: int, tickets: Iterator[int], taken: list[tuple[int, float]]) -> None:
    for _ in range(times):
        ticket, asked = next(tickets), perf_counter()
        async with borrow():
            taken.append((ticket, perf_counter() - asked))
            await asyncio.sleep(0)
