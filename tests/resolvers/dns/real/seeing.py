"""Waiting, on a real loop, for what a resolver makes of DNS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeAlias

from qorb import Backend, ResolveError
from qorb.resolvers import DnsResolver
from qorb.resolvers.dns._journal import Journal
from qorb.resolvers.dns._servers import Server
from qorb.resolvers.dns._values import Question, Reply

Found: TypeAlias = "dict[str, str]"
"""Address and port by the name of the backend."""


class _Publisher:
    """Keeps what the resolver would tell a pool."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def query_started(self, server: str, question: str) -> None: ...
    def query_done(self, server: str, question: str, records: int, ttl: float) -> None: ...
    def query_failed(self, server: str, question: str, reason: str) -> None: ...
    def failed(self, error: ResolveError) -> None:
        self.errors.append(str(error))


class Seen(Journal):
    """What a resolver has published, asked and got, and a way to wait for it."""

    def __init__(self, service: str) -> None:
        self._of = _Publisher()
        super().__init__(service, self._of)  # type: ignore[arg-type]
        self.sets: list[Found] = []
        self.replies: list[tuple[Question, Reply]] = []
        self.rounds = 0
        self._changed = asyncio.Event()

    @property
    def errors(self) -> list[str]:
        return self._of.errors

    def publish(self, backends: Iterable[Backend]) -> None:
        self.sets.append({one.name: f"{one.host}:{one.port}" for one in backends})
        self._changed.set()

    def replied(self, server: Server, question: Question, reply: Reply, seconds: float) -> None:
        super().replied(server, question, reply, seconds)
        self.replies.append((question, reply))
        self._changed.set()

    def round_is_over(self, missing: object, now: float) -> None:
        super().round_is_over(missing, now)  # type: ignore[arg-type]
        self.rounds += 1
        self._changed.set()

    @property
    def latest(self) -> Found | None:
        return self.sets[-1] if self.sets else None

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until this is true; pytest's timeout is the only limit."""
        while not true():
            self._changed.clear()
            await self._changed.wait()

    async def until_published(self, found: Found) -> None:
        await self.until(lambda: self.latest == found)


@contextlib.asynccontextmanager
async def watching(resolver: DnsResolver) -> AsyncIterator[Seen]:
    """Run the resolver, and end it."""
    seen = Seen(resolver.service)
    task = asyncio.create_task(resolver.follow(seen.publish, seen))
    try:
        yield seen
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
