"""A load of claims, and a note of each: when it was begun, when it was served, where it led, how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

TASKS = 8
PAUSE = 0.005
"""Seconds between two claims of one task."""
PATIENCE = 1.0
"""Seconds that a claim waits for its connection, and then for the answer to its queries."""
GIVE_UP = 2.0
"""Seconds after which a claim is cancelled that has no connection though its pool was told PATIENCE."""
_HANGS = 20.0
_WHERE = "SELECT host(inet_server_addr())"

Ask = Callable[[str], Awaitable[Any]]
"""Runs one statement on the claimed connection, and gives the first value of its result, if it has one."""
Claim = Callable[[], AbstractAsyncContextManager[Ask]]
"""Calling it gives what stands in `async with …:` to hold one connection."""


@dataclass(slots=True)
class Try:
    """One claim; times are those of the loop's clock."""

    begun: float
    served: float | None = None
    """When it had its connection; None: never."""
    ended: float | None = None
    where: str | None = None
    """The address of the server that it led to; None: no server has answered."""
    error: str | None = None


class Load:
    """Tasks that claim, ask where they are, do some work and release, over and over."""

    def __init__(self, claim: Claim, work: str) -> None:
        """Take what is to be claimed, and the statement that is the work. Starts nothing."""
        self.tries: list[Try] = []
        self._claim = claim
        self._work = work
        self._over = False
        self._may_begin = asyncio.Event()
        self._may_begin.set()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run(), name=f"load {number}") for number in range(TASKS)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Wait until all claims have ended. Raises TimeoutError when one does not."""
        self._over = True
        self.go_on()
        _, pending = await asyncio.wait(self._tasks, timeout=_HANGS)
        for task in pending:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=bool(pending))
        if pending:
            raise TimeoutError(f"{len(pending)} claims did not end within {_HANGS:g} s")

    def hold(self) -> None:
        """Begin no more claims; those that were begun go on."""
        self._may_begin.clear()

    def go_on(self) -> None:
        """Begin claims again."""
        self._may_begin.set()

    async def _run(self) -> None:
        while not self._over:
            await self._try()
            await asyncio.sleep(PAUSE)
            await self._may_begin.wait()

    async def _try(self) -> None:
        now = asyncio.get_running_loop().time
        one = Try(now())
        self.tries.append(one)
        try:
            async with asyncio.timeout(GIVE_UP) as limit, self._claim() as ask:
                if limit.expired():
                    raise TimeoutError(f"no connection within {GIVE_UP:g} s, and the cancellation was swallowed")
                limit.reschedule(None)
                one.served = now()
                async with asyncio.timeout(PATIENCE):
                    one.where = await ask(_WHERE)
                    await ask(self._work)
        except Exception as error:  # noqa: BLE001 - of whatever kind: it is what is counted
            one.error = f"{type(error).__name__}: {error}"
        one.ended = now()
