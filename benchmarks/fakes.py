"""Connections that do nothing, and backends that misbehave, for qorb."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import NoReturn

from qorb import Backend, Connector


def backends(count: int, kind: str = "backend") -> Sequence[Backend]:
    """So many backends with names that start with `kind`. Nothing listens at their addresses."""
    return [Backend(f"{kind}-{n}", f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", 5432) for n in range(count)]


class NoOpConnector(Connector[object]):
    """Connects at once; every hook is the default."""

    async def connect(self, backend: Backend) -> object:  # noqa: ARG002
        """Return a bare object."""
        return object()


class PreparingConnector(NoOpConnector):
    """Prepares every connection for its claim, which leads the claim the long way."""

    async def on_acquire(self, connection: object) -> None:
        """Do nothing, but be asked."""


class BadConnection:
    """A connection that remembers how its backend misbehaves."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class BadConnector(Connector[BadConnection]):
    """Misbehaves as the first word of a backend's name says.

    "dead": connect() fails at once. "connect", "check", "close": that operation never ends unless it is cancelled.
    "backend": everything works.
    """

    def __init__(self) -> None:
        self.hanging: Counter[str] = Counter()
        """Operations that hang right now, by kind."""
        self.refused: set[str] = set()
        """The names of backends that have refused a connection."""
        self.calls = 0
        """Calls of connect(), validate() and close() so far."""

    async def connect(self, backend: Backend) -> BadConnection:
        """Fail, hang or return a connection."""
        self.calls += 1
        kind = backend.name.partition("-")[0]
        if kind == "dead":
            self.refused.add(backend.name)
            raise ConnectionRefusedError(f"{backend} is dead")
        if kind == "connect":
            await self._hang(kind)
        return BadConnection(kind)

    async def validate(self, connection: BadConnection) -> None:
        """Hang where the check is to hang; fail where the close is to hang, since that leads to a close."""
        self.calls += 1
        if connection.kind == "check":
            await self._hang("check")
        if connection.kind == "close":
            raise ConnectionResetError("to be closed")

    async def close(self, connection: BadConnection) -> None:
        """Hang or end at once."""
        self.calls += 1
        if connection.kind == "close":
            await self._hang("close")

    async def _hang(self, kind: str) -> NoReturn:
        self.hanging[kind] += 1
        try:
            while True:
                await asyncio.get_running_loop().create_future()
        finally:
            self.hanging[kind] -= 1
