"""The end of the demo: what was there just before terminate(), what is left after it, and whether all went well."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qorb import Ledger
from qorb._demo.process import possessions, sockets_among

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from qorb import Pool
    from qorb._demo.clients import Tally

_MOST_SURPRISES = 5
_PAUSE = 0.005


@dataclass(frozen=True, slots=True)
class Census:
    """Everything of the pools that is alive at one moment, counted in four independent ways."""

    ledger: Ledger
    """By the pools."""
    named_tasks: int
    """By asyncio: unfinished tasks that bear a pool's name."""
    server_connections: int
    """By the servers: connections that are open."""
    sockets: int = 0
    """By the system: sockets of this process that were not there before the pools, and are not the servers'."""
    threads: int = 0
    """By the system: threads of this process that were not there before the pools, but for pycares' idle one."""

    @property
    def empty(self) -> bool:
        """Say whether nothing is left, by all counts."""
        return self.ledger.empty and not (self.named_tasks or self.server_connections or self.sockets or self.threads)


class Servers(ABC):
    """What the pools connect to, by its own account."""

    @abstractmethod
    def sockets(self) -> Iterable[int]:
        """Give the descriptors of all sockets of this process that are the servers' own."""

    @abstractmethod
    async def connections(self) -> int:
        """Count the connections that are open, seen from the servers."""


class Counter:
    """Takes the census of pools."""

    def __init__(self, pools: Sequence[Pool[Any]], servers: Servers) -> None:
        """Look at what there is before the pools are started."""
        self._pools = pools
        self._servers = servers
        self._before = possessions()

    async def census(self) -> Census:
        """Count now."""
        connections = await self._servers.connections()
        names = [pool.name for pool in self._pools]
        named = sum(any(name in task.get_name() for name in names) for task in asyncio.all_tasks())
        now = possessions()
        sockets = now.sockets - self._before.sockets - sockets_among(self._servers.sockets())
        threads = now.threads - self._before.threads
        ledger = _sum([pool.ledger() for pool in self._pools])
        return Census(ledger, named, connections, len(sockets), len(threads))

    async def settled(self, patience: float) -> Census:
        """Count when nothing is left any more, or `patience` seconds have passed. May be cancelled.

        The servers learn from the network that a connection is closed, and pycares closes its sockets in its own
        thread: both a moment later.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while not (counted := await self.census()).empty and loop.time() < until:  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(_PAUSE)
        return counted


def _sum(ledgers: Sequence[Ledger]) -> Ledger:
    return Ledger(
        tasks=tuple(task for ledger in ledgers for task in ledger.tasks),
        timers=sum(ledger.timers for ledger in ledgers),
        connections=sum(ledger.connections for ledger in ledgers),
        waiters=sum(ledger.waiters for ledger in ledgers),
        threads=sum(ledger.threads for ledger in ledgers),
    )


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a demo."""

    before: Census
    after: Census
    claims_out: int
    """How many clients held a claim when terminate() was called."""
    took: float
    """Seconds until terminate() returned."""
    tally: Tally
    logged_errors: tuple[str, ...]
    failure: str | None
    """Why terminate() did not come to its end, if it did not."""
    whose: ClassVar[str] = "the pool"
    by_the_servers: ClassVar[str] = "open connections, by the servers"

    @property
    def good(self) -> bool:
        """Say whether nothing was left and nothing happened but what the demo did on purpose."""
        clean = self.after.empty and self.failure is None
        return clean and not (self.tally.wrong or self.tally.surprises or self.logged_errors)

    def lines(self) -> Iterator[str]:
        """Give it in words, in lines of 80 columns (but for error texts)."""
        yield (
            f"terminate() under load took {1000 * self.took:.0f} ms "
            f"(claims in use: {self.claims_out}, waiting: {self.before.ledger.waiters})."
        )
        if self.failure is not None:
            yield f"It failed: {self.failure}"
        yield f"{'':42}{'before':>8}{'after':>8}"
        for label, before, after in self._counts():
            yield f"  {label:<40}{before:8}{after:8}"
        yield "* but for one idle daemon thread, which pycares (it asks DNS) keeps in a process"
        yield f"left: {self._left()}"
        yield ""
        yield from self.answers()
        unexpected = [*self.tally.surprises, *self.logged_errors]
        yield f"Failed claims and other unexpected failures: {len(unexpected)}"
        for text in unexpected[:_MOST_SURPRISES]:
            yield f"  {text}"
        if len(unexpected) > _MOST_SURPRISES:
            yield f"  and {len(unexpected) - _MOST_SURPRISES} more"

    def answers(self) -> Iterator[str]:
        """Say what the clients got."""
        yield (
            f"Echoes that were right: {self.tally.right}, wrong: {self.tally.wrong}, "
            f"cut short by what the demo did: {self.tally.cut_short}"
        )

    def _counts(self) -> Iterator[tuple[str, int, int]]:
        before, after = self.before.ledger, self.after.ledger
        yield f"tasks of {self.whose}, by the ledger", len(before.tasks), len(after.tasks)
        yield f"timers of {self.whose}, by the ledger", before.timers, after.timers
        yield "connections, by the ledger", before.connections, after.connections
        yield "waiting claims, by the ledger", before.waiters, after.waiters
        yield f"threads of {self.whose}, by the ledger", before.threads, after.threads
        yield "tasks with a pool's name, by asyncio", self.before.named_tasks, self.after.named_tasks
        yield self.by_the_servers, self.before.server_connections, self.after.server_connections
        yield "sockets but the servers', by the system", self.before.sockets, self.after.sockets
        yield "threads since its start*, by the system", self.before.threads, self.after.threads

    def _left(self) -> str:
        if self.after.empty:
            return "nothing"
        names = ", ".join(self.after.ledger.tasks)
        return f"something; see above{f' (tasks: {names})' if names else ''}"
