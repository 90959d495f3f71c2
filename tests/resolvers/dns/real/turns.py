"""How long an event loop is kept from its next turn: CPU time of its thread, which other programs do not lengthen."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

T = TypeVar("T")

LIMIT = 0.005
"""Seconds that no turn may take, whatever arrives."""


class MeasuredLoop(asyncio.SelectorEventLoop):
    """Notes what its longest turn has cost."""

    longest = 0.0

    def _run_once(self) -> None:
        began = time.thread_time()
        super()._run_once()  # type: ignore[misc]
        self.longest = max(self.longest, time.thread_time() - began)


def longest_turn() -> float:
    """What the longest turn of the running loop has cost since the last call, in seconds."""
    loop = cast("MeasuredLoop", asyncio.get_running_loop())
    longest, loop.longest = loop.longest, 0.0
    return longest


def run_measured(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run on a MeasuredLoop: not in debug mode, and without collections of the garbage of all the other tests."""
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(debug=False, loop_factory=MeasuredLoop) as runner:
            return runner.run(main())
    finally:
        gc.enable()
