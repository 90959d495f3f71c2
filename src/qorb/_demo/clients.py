"""The demo's clients: each claims a connection, holds it a while, asks something and compares what comes back."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypeVar

from qorb import ClaimError, ConnectError, PoolError, PoolState, PoolTerminatedError
from qorb._demo.servers import server_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from qorb import Claim, Pool
    from qorb._demo.servers import EchoServer
    from qorb.connectors.tcp import TcpStream

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds that a client waits for an answer."""

_MEAN_PAUSE = 0.030
_MEAN_HOLD = 0.010
_SLOW_SHARE = 0.15
_SLOW_HOLD = (0.050, 0.250)


@dataclass(slots=True)
class Tally:
    """What the clients saw, counted by them and not by the pool."""

    right: int = 0
    """Answers that were what they should be."""
    wrong: int = 0
    """Answers that were something else: cross talk, or a late reply to somebody's earlier line."""
    cut_short: int = 0
    """Exchanges that failed on a server that the demo had killed or hung meanwhile, or that the end revoked."""
    turned_away: int = 0
    """Claims that were told that the pool is terminating."""
    failed_claims: int = 0
    """Claims that ended with another error. Each is a surprise, too."""
    longest_wait: float = 0.0
    """Seconds that the slowest claim which was served has taken."""
    waits: deque[tuple[float, float]] = field(default_factory=deque)
    """Of the claims served lately: when (the loop's time), and after how many seconds."""
    surprises: list[str] = field(default_factory=list)
    """What should not have happened: failed claims, and failed exchanges with a server that was well."""


def total(tallies: Iterable[Tally]) -> Tally:
    """Add up what several kinds of clients saw; of the waits only the longest is kept."""
    added = Tally()
    for tally in tallies:
        added.right += tally.right
        added.wrong += tally.wrong
        added.cut_short += tally.cut_short
        added.turned_away += tally.turned_away
        added.failed_claims += tally.failed_claims
        added.longest_wait = max(added.longest_wait, tally.longest_wait)
        added.surprises += tally.surprises
    return added


class Clients(ABC, Generic[T]):
    """So many tasks. They end when the pool turns them away; leaving the `async with` waits for that."""

    failures: ClassVar[tuple[type[Exception], ...]] = (OSError, PoolError)
    """What an exchange may raise when its server fails; TimeoutError is an OSError too."""

    def __init__(self, pool: Pool[T], was_well_since: Callable[[str, float], bool], *, count: int, seed: int) -> None:
        """Start nothing yet. `was_well_since` says whether the server of that name was well all the time since then."""
        self.tally = Tally()
        self.holding = 0
        """How many of them hold a claim right now."""
        self._pool = pool
        self._was_well_since = was_well_since
        self._count = count
        self._seed = seed
        self._tasks: list[asyncio.Task[None]] = []

    @abstractmethod
    async def exchange(self, connection: T, client: int, turn: int) -> None:
        """Ask something, and raise one of `failures` when the answer is not right. The two numbers are unique."""

    def wrong(self, sent: object, answer: object) -> ConnectError:
        """Count an answer that is somebody else's, and give the error to raise."""
        self.tally.wrong += 1
        return ConnectError(f"sent {sent!r} and got {answer!r} back")

    def start(self) -> None:
        """Send them off."""
        self._tasks = [
            asyncio.create_task(self._live(number, random.Random(f"{self._seed}/{number}")), name=f"client {number}")
            for number in range(1, self._count + 1)
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.gone()

    async def gone(self) -> None:
        """Wait until each has ended, which they do only on a pool that is terminating. Raises what one raised."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        for task in self._tasks:
            task.result()

    async def _live(self, number: int, rng: random.Random) -> None:
        loop = asyncio.get_running_loop()
        turn = 0
        while True:
            await asyncio.sleep(rng.expovariate(1 / _MEAN_PAUSE))
            asked = loop.time()
            try:
                claim = await self._pool.claim()
            except PoolTerminatedError:
                self.tally.turned_away += 1
                return
            except ClaimError as error:
                self.tally.failed_claims += 1
                self.tally.surprises.append(f"claim failed: {type(error).__name__}: {error}")
                continue
            wait = loop.time() - asked
            self.tally.waits.append((asked + wait, wait))
            self.tally.longest_wait = max(self.tally.longest_wait, wait)
            turn += 1
            await self._use(claim, number, turn, rng)

    async def _use(self, claim: Claim[T], number: int, turn: int, rng: random.Random) -> None:
        server = server_name(claim.backend.name)
        began = asyncio.get_running_loop().time()
        self.holding += 1
        try:
            with claim as connection:
                slow = rng.random() < _SLOW_SHARE
                await asyncio.sleep(rng.uniform(*_SLOW_HOLD) if slow else rng.expovariate(1 / _MEAN_HOLD))
                await self.exchange(connection, number, turn)
                self.tally.right += 1
        except self.failures as error:
            if self._was_well_since(server, began) and self._pool.state is PoolState.RUNNING:
                self.tally.surprises.append(f"exchange with {server} failed: {type(error).__name__}: {error}")
            else:
                self.tally.cut_short += 1
        finally:
            self.holding -= 1


class EchoClients(Clients["TcpStream"]):
    """Each sends a line and expects the same line back."""

    def __init__(self, pool: Pool[TcpStream], servers: Mapping[str, EchoServer], *, count: int, seed: int) -> None:
        """Start nothing yet. `servers` are all that ever were, by name."""
        super().__init__(pool, lambda name, moment: servers[name].was_well_since(moment), count=count, seed=seed)

    async def exchange(self, connection: TcpStream, client: int, turn: int) -> None:
        """Send a line and read one."""
        line = f"client {client} line {turn}\n".encode()
        connection.writer.write(line)
        async with asyncio.timeout(PATIENCE):
            echo = await connection.reader.readline()
        if not echo.endswith(b"\n"):
            raise ConnectError(f"the server closed the connection after {echo!r}")
        if echo != line:
            raise self.wrong(line, echo)
