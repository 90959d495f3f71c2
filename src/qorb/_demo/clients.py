"""The demo's clients: each claims a connection, holds it a while, sends a line and compares what comes back."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from qorb import ClaimError, ConnectError, PoolError, PoolState, PoolTerminatedError
from qorb._demo.servers import server_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qorb import Claim, Pool
    from qorb._demo.servers import EchoServer
    from qorb.connectors.tcp import TcpStream

PATIENCE = 1.0
"""Seconds that a client waits for an echo."""

_MEAN_PAUSE = 0.030
_MEAN_HOLD = 0.010
_SLOW_SHARE = 0.15
_SLOW_HOLD = (0.050, 0.250)


@dataclass(slots=True)
class Tally:
    """What the clients saw, counted by them and not by the pool."""

    right: int = 0
    """Echoes that were what had been sent."""
    wrong: int = 0
    """Echoes that were something else: cross talk, or a late reply to somebody's earlier line."""
    cut_short: int = 0
    """Exchanges that failed on a server that the demo had killed or hung meanwhile, or that the end revoked."""
    turned_away: int = 0
    """Claims that were told that the pool is terminating."""
    waits: deque[tuple[float, float]] = field(default_factory=deque)
    """Of the claims served lately: when (the loop's time), and after how many seconds."""
    surprises: list[str] = field(default_factory=list)
    """What should not have happened: failed claims, and failed exchanges with a server that was well."""


class Clients:
    """So many tasks. They end when the pool turns them away; leaving the `async with` waits for that."""

    def __init__(self, pool: Pool[TcpStream], servers: Mapping[str, EchoServer], *, count: int, seed: int) -> None:
        """Start nothing yet. `servers` are all that ever were, by name."""
        self.tally = Tally()
        self.holding = 0
        """How many of them hold a claim right now."""
        self._pool = pool
        self._servers = servers
        self._count = count
        self._seed = seed
        self._tasks: list[asyncio.Task[None]] = []

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
        lines = 0
        while True:
            await asyncio.sleep(rng.expovariate(1 / _MEAN_PAUSE))
            asked = loop.time()
            try:
                claim = await self._pool.claim()
            except PoolTerminatedError:
                self.tally.turned_away += 1
                return
            except ClaimError as error:
                self.tally.surprises.append(f"claim failed: {type(error).__name__}: {error}")
                continue
            served = loop.time()
            self.tally.waits.append((served, served - asked))
            lines += 1
            await self._use(claim, f"client {number} line {lines}\n".encode(), rng)

    async def _use(self, claim: Claim[TcpStream], line: bytes, rng: random.Random) -> None:
        server = self._servers[server_name(claim.backend.name)]
        began = asyncio.get_running_loop().time()
        self.holding += 1
        try:
            with claim as stream:
                await self._exchange(stream, line, rng)
        except (OSError, PoolError) as error:
            # TimeoutError is an OSError too.
            if server.was_well_since(began) and self._pool.state is PoolState.RUNNING:
                self.tally.surprises.append(f"exchange with {server.name} failed: {type(error).__name__}: {error}")
            else:
                self.tally.cut_short += 1
        finally:
            self.holding -= 1

    async def _exchange(self, stream: TcpStream, line: bytes, rng: random.Random) -> None:
        slow = rng.random() < _SLOW_SHARE
        await asyncio.sleep(rng.uniform(*_SLOW_HOLD) if slow else rng.expovariate(1 / _MEAN_HOLD))
        stream.writer.write(line)
        async with asyncio.timeout(PATIENCE):
            echo = await stream.reader.readline()
        if echo == line:
            self.tally.right += 1
            return
        if echo.endswith(b"\n"):
            self.tally.wrong += 1
        raise ConnectError(f"sent {line!r} and got {echo!r} back" if echo else "the server closed the connection")
