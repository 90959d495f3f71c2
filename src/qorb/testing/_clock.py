"""The clock of virtual time, as seen from inside: let it stand still, or let it run on while nothing else does."""

from __future__ import annotations

import asyncio
import math

from qorb.testing._loop import VirtualLoop


def latest_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running loop; when there is none, the virtual loop that was made last, unless it is gone."""
    running = asyncio._get_running_loop()  # noqa: SLF001 - documented by asyncio, and does not raise
    if running is not None:
        return running
    return None if VirtualLoop.latest is None else VirtualLoop.latest()


def virtual_loop(asked: str) -> VirtualLoop:
    """Return the running loop. Raise RuntimeError when it is none of ours; `asked` is what the caller wants of it."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualLoop):
        raise RuntimeError(f"{asked} works in qorb.testing.run() only; this is {type(loop).__name__}")  # noqa: TRY004 - it is not the argument that is wrong
    return loop


def block(seconds: float) -> None:
    """Stand for code that blocks the event loop: `seconds` of virtual time pass while nothing else runs.

    Timers that were due meanwhile run late, all of them in the next turn. For tests inside `run` only.
    """
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be a time that can pass, not {seconds!r}")
    virtual_loop("block()").block(seconds)


async def settle() -> None:
    """Wait until everything has happened that can happen at the present moment; no time passes.

    When several tasks wait for that, each is told in turn and what it does is waited for before the next. Cancelling it
    is harmless. For tests inside `run` only.
    """
    await virtual_loop("settle()").settled()
