"""What happens in the demo, and when: a table of steps, and the stage that they act on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from qorb._demo.servers import EchoServer
from qorb.resolvers import ManualResolver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qorb import Backend


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the demo does to the pool's surroundings. The pool is not told."""

    at: float
    """When, as a share of the run."""
    title: str
    say: str
    """What is happening."""
    look: str
    """What to look at."""
    act: Callable[[Stage], Awaitable[None]]


def scenario(backends: int) -> tuple[Step, ...]:
    """Give the steps, in order, for that many backends (2 at least: one is always left to serve)."""
    names = _names(backends + 1)
    first, second, third = (names[number % backends] for number in range(3))
    fresh = names[backends]
    return (
        Step(
            0.13,
            f"kill {first}",
            f"{first} is killed: its connections drop, its port refuses.",
            f"{first} is soon offline, the others take over, no claim fails.",
            lambda stage: stage.kill(first),
        ),
        Step(
            0.30,
            f"revive {first}",
            f"{first} is back on the same port.",
            f"{first} is online at its next try (1 s at most) and has claims.",
            lambda stage: stage.revive(first),
        ),
        Step(
            0.43,
            f"hang {second}",
            f"{second} hangs: it accepts and reads, but never answers.",
            f"checks and clients time out, {second} goes offline, others go on.",
            lambda stage: stage.hang(second),
        ),
        Step(
            0.60,
            f"heal {second}",
            f"{second} answers again, beginning with all that it owed.",
            "no late reply reaches a client: wrong echoes stay 0.",
            lambda stage: stage.heal(second),
        ),
        Step(
            0.70,
            f"remove {third}",
            f"{third} is taken out of the resolver's set, though it is well.",
            "idle connections close at once, claims finish, then the row goes.",
            lambda stage: stage.remove(third),
        ),
        Step(
            0.80,
            f"add {fresh}",
            f"{fresh}, a new server, is put into the resolver's set.",
            f"{fresh} gets connections at once, and claims like the others.",
            lambda stage: stage.add(fresh),
        ),
    )


class Stage:
    """The servers and the resolver's set. Entering it starts the servers, leaving it stops them."""

    def __init__(self, backends: int) -> None:
        """Start nothing yet."""
        self.servers = {name: EchoServer(name) for name in _names(backends + 1)[:backends]}
        """All that ever were, by name."""
        self.resolver = ManualResolver()
        self._published = dict.fromkeys(self.servers)

    async def __aenter__(self) -> Self:
        try:
            for server in self.servers.values():
                await server.start()
        except BaseException:
            self._stop()
            raise
        self.resolver.set(self._backends())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop()

    @property
    def connections(self) -> int:
        """How many connections are open, seen from the servers."""
        return sum(server.connections for server in self.servers.values())

    def condition(self, name: str) -> str:
        """Say in a word how a backend really is."""
        return self.servers[name].health.value if name in self._published else "removed"

    async def deserted(self, patience: float) -> None:
        """Wait until no server has a connection, at most `patience` seconds. May be cancelled."""
        try:
            async with asyncio.timeout(patience):
                for server in self.servers.values():
                    await server.deserted()
        except TimeoutError:
            # Who asked counts what is left.
            return

    async def kill(self, name: str) -> None:
        """Let a server die."""
        self.servers[name].kill()

    async def revive(self, name: str) -> None:
        """Start a killed server again."""
        await self.servers[name].revive()

    async def hang(self, name: str) -> None:
        """Let a server hold its answers back."""
        self.servers[name].hang()

    async def heal(self, name: str) -> None:
        """Let a server that hangs answer again."""
        self.servers[name].heal()

    async def remove(self, name: str) -> None:
        """Take a backend out of the resolver's set; its server goes on."""
        del self._published[name]
        self.resolver.set(self._backends())

    async def add(self, name: str) -> None:
        """Start a new server and put it into the resolver's set."""
        server = EchoServer(name)
        self.servers[name] = server
        await server.start()
        self._published[name] = None
        self.resolver.set(self._backends())

    def _backends(self) -> list[Backend]:
        return [self.servers[name].backend for name in self._published]

    def _stop(self) -> None:
        for server in self.servers.values():
            server.stop()


def _names(count: int) -> list[str]:
    """Give so many names, whose order in the alphabet is that of their numbers."""
    digits = len(str(count))
    return [f"echo-{number:0{digits}}" for number in range(1, count + 1)]
