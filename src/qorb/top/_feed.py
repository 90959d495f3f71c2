"""Feed: what one WebSocket is told of one pool, and when."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from qorb.companions import Companion
from qorb.top._numbers import frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qorb.pool import Pool

_SHORTEST = 0.25
"""Seconds between frames for those who ask for none between."""

_EARLY = 0.01
"""Seconds that a loop may call before the time."""

GOING_AWAY = 1001
TOO_BIG = 1009


class Feed(Companion):
    """Frames: one at once, one per interval, and one whenever the set of backends changes, until the pool ends."""

    name = "statistics socket"

    def __init__(self, pool: Pool[Any], seconds: int, left: Callable[[Feed], object]) -> None:
        """Begin now. `left` is called when it ends. Raises what Pool.accompany() does."""
        self.code = GOING_AWAY
        """How the socket is to be closed,"""
        self.reason = f"pool {pool.name} has ended"[:100]
        """and with which words."""
        self.client_gone = False
        """There is nobody to be told that."""
        self._pool = weakref.ref(pool)
        self._interval = max(seconds, _SHORTEST)
        self._left = left
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()
        self._claims = pool.stats().claims
        self._wake = asyncio.Event()
        self._over = False
        self._stop = pool.accompany(self)

    async def live(self) -> None:
        """Live as long as the pool does."""
        try:
            await self._loop.create_future()
        finally:
            self.leave()

    def backends_changed(self) -> None:
        """Send a frame now."""
        self._wake.set()

    def leave(self) -> None:
        """End: what is being sent is the last. A second call does nothing."""
        if not self._over:
            self._over = True
            self._wake.set()
            self._stop()
            self._left(self)

    def refuse(self, code: int, reason: str) -> None:
        """End because of what the client does."""
        if not self._over:
            self.code, self.reason = code, reason
            self.leave()

    def first(self) -> bytes | None:
        """Give the frame that is sent at once; None when it is over."""
        return self._frame()

    async def next(self) -> bytes | None:
        """Wait for the next frame that is due; None when it is over."""
        now = self._loop.time()
        self._due = max(self._due + self._interval, now)
        timer = self._loop.call_at(self._due, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        if self._loop.time() < self._due - _EARLY:  # another set of backends: the interval goes on
            self._due -= self._interval
        return self._frame()

    def _frame(self) -> bytes | None:
        self._wake.clear()
        pool = self._pool()
        if self._over or pool is None:
            return None
        stats = pool.stats()
        claims, self._claims = stats.claims - self._claims, stats.claims
        return frame(pool, stats, claims)


async def converse(
    feed: Feed,
    send: Callable[[bytes], Awaitable[None]],
    receive: Callable[[], Awaitable[int | None]],
    patience: float,
) -> None:
    """Send a feed's frames until it is over. Then feed.client_gone says whether there is anybody to be told so.

    `send` sends one frame; a client that takes it in so slowly that this needs more than `patience` seconds is given
    up. `receive` waits for something that the client has sent, and gives its size, or None when the client has gone.
    Both may raise OSError when it has. Cancellation ends it.
    """
    listening = asyncio.ensure_future(_listen(feed, receive))
    try:
        content = feed.first()
        while content is not None:
            async with asyncio.timeout(patience):
                await send(content)
            content = await feed.next()
    except OSError:  # a TimeoutError, too
        feed.client_gone = True
    finally:
        feed.leave()
        listening.cancel()
        await asyncio.wait((listening,))
    if not listening.cancelled():
        listening.result()


MOST_RECEIVED = 1024
"""Bytes in one frame: a client has nothing to say."""


async def _listen(feed: Feed, receive: Callable[[], Awaitable[int | None]]) -> None:
    """Take in what the client sends, so that it does not pile up, until it goes."""
    try:
        while (size := await receive()) is not None:
            if size > MOST_RECEIVED:
                feed.refuse(TOO_BIG, "nothing to be said here")
                return
        feed.client_gone = True
    except OSError:
        feed.client_gone = True
    finally:
        feed.leave()
