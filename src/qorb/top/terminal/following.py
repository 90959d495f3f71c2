"""One connection to a statistics server after the other, with pauses that grow while there is none to be had."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from qorb.top.terminal.frame import FrameError, read_frame
from qorb.top.terminal.rates import Rates, Reading

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    Receive = Callable[[], Awaitable[bytes]]
    """Wait for the next message. Raises TroubleError."""
    Connect = Callable[[], AbstractAsyncContextManager[Receive]]
    """Open a connection, and close it at the end. Raises TroubleError."""

PATIENCE = 10.0
"""Seconds for a connection, for its first frame, and for a frame that is late."""
_LEAST_PAUSE, _MOST_PAUSE = 0.5, 8.0
"""Seconds."""


class TroubleError(Exception):
    """Why nothing can be read, in a sentence that has no beginning and no full stop of its own."""


@dataclass(frozen=True, slots=True)
class Connecting:
    """A connection is being opened."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """There is no connection, and until when there will be none."""

    reason: str
    again_at: float
    """By the loop's clock."""


News: TypeAlias = "Connecting | Trouble | Reading"


async def follow(connect: Connect, interval: float, tell: Callable[[News], object]) -> NoReturn:
    """Tell all that is read, until cancelled. Cancellation closes the connection first."""
    loop = asyncio.get_running_loop()
    rates = Rates(interval)
    pause = _LEAST_PAUSE
    while True:
        tell(Connecting())
        try:
            async with connect() as receive:
                patience = PATIENCE
                while True:
                    frame = read_frame(await _in_time(receive, patience))
                    tell(rates.take(frame, loop.time()))
                    pause, patience = _LEAST_PAUSE, interval + PATIENCE
                    await asyncio.sleep(0)  # a server that sends without end does not keep everybody else from running
        except (TroubleError, FrameError) as error:
            rates.lose()
            tell(Trouble(sentence(error), loop.time() + pause))
        await asyncio.sleep(pause)
        pause = min(2 * pause, _MOST_PAUSE)


async def read_once(connect: Connect, interval: float) -> Reading:
    """Read until figures per second are known, which takes an interval; without them, if the server leaves before.

    Raises TroubleError and FrameError. Cancellation closes the connection first.
    """
    loop = asyncio.get_running_loop()
    rates = Rates(interval)
    async with connect() as receive:
        reading = rates.take(read_frame(await _in_time(receive, PATIENCE)), loop.time())
        until = loop.time() + interval + PATIENCE
        while reading.claims_per_second is None:
            try:
                message = await _in_time(receive, until - loop.time())
            except TroubleError:
                break
            reading = rates.take(read_frame(message), loop.time())
    return reading


async def _in_time(receive: Receive, seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return await receive()
    except TimeoutError:
        raise TroubleError(f"the server has sent nothing for {seconds:.0f} s") from None


def sentence(error: TroubleError | FrameError) -> str:
    """Say what is the matter."""
    return f"what the server sent is no reading: {error}" if isinstance(error, FrameError) else str(error)
