"""How long an event loop is kept from its next turn: CPU time of its thread, beside that of a yardstick.

Programs that wait for the same core do not lengthen CPU time; those that share caches and memory with it do.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

T = TypeVar("T")

_LIMIT = 0.005
"""Seconds that no turn may take, whatever arrives, where the yardstick takes a fifth of it or less."""
_YARDSTICKS = 5
_TRIES = 3


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


def too_long(seconds: float) -> bool:
    """Say whether a turn that has just cost this much CPU time keeps others waiting.

    It is compared with a yardstick of this moment: the same machine may be three times slower in the next minute.
    """
    return seconds >= _LIMIT and seconds >= _YARDSTICKS * min(_yardstick() for _ in range(_TRIES))


def _yardstick() -> float:
    """What it costs to make, keep and sort names: a millisecond where an idle pool's claim takes 1.1 µs."""
    began = time.thread_time()
    names = {}
    for number in range(2300):
        name = _Name(f"{number}.TEST", number)
        names[name.text.lower()] = name
    sorted(names)
    return time.thread_time() - began


class _Name:
    __slots__ = ("number", "text")

    def __init__(self, text: str, number: int) -> None:
        self.text = text
        self.number = number


def run_measured(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run on a MeasuredLoop: not in debug mode, and without collections of the garbage of all the other tests."""
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(debug=False, loop_factory=MeasuredLoop) as runner:
            return runner.run(main())
    finally:
        gc.enable()
