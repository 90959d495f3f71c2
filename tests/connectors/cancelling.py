"""at_every_await for real loops: that of qorb.testing is for virtual time, where there is no network."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qorb.testing import Timing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Generator

T = TypeVar("T")

_TURNS = {Timing.SUSPENDED: 1, Timing.SAME_TICK: 0, Timing.NEXT_TICK: 1, Timing.SECOND_TICK: 2}


class Cancelling(Generic[T]):
    """Awaits an operation in a task of its own, and cancels that at its n-th suspension point with one timing."""

    def __init__(self, step: int, timing: Timing) -> None:
        self.reached = False
        self._step = step
        self._timing = timing
        self._task: asyncio.Task[T] | None = None

    async def run(self, operation: Awaitable[T]) -> T | None:
        """Return what the operation returns, or None when it was cancelled."""
        self._task = asyncio.create_task(self._await(operation))
        await asyncio.wait({self._task})
        return None if self._task.cancelled() else self._task.result()

    async def _await(self, operation: Awaitable[T]) -> T:
        return await _Stepping(operation, self._suspended)

    def _suspended(self, step: int, waits_for: asyncio.Future[Any] | None) -> None:
        if step != self._step:
            return
        self.reached = True
        turns = _TURNS[self._timing]
        if self._timing is Timing.SUSPENDED or waits_for is None:
            self._cancel_after(turns)
        else:
            # Added before the task adds its own wake-up, and therefore called before it.
            waits_for.add_done_callback(lambda _: self._cancel_after(turns))

    def _cancel_after(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._cancel_after, turns - 1)
        elif self._task is not None:
            self._task.cancel()


class _Stepping(Generic[T]):
    def __init__(self, operation: Awaitable[T], suspended: Any) -> None:
        self._steps = operation.__await__()
        self._suspended = suspended

    def __await__(self) -> Generator[Any, Any, T]:
        advance, argument = self._steps.send, None
        for step in itertools.count(1):
            try:
                waits_for = advance(argument)
            except StopIteration as stop:
                return stop.value
            self._suspended(step, waits_for)
            try:
                advance, argument = self._steps.send, (yield waits_for)
            except BaseException as error:  # noqa: BLE001 - passed on, as a task does
                advance, argument = self._steps.throw, error
        raise AssertionError("unreachable")


async def at_every_await() -> AsyncIterator[Cancelling[Any]]:
    """Give a Cancelling for each suspension point and timing, until one finds no such point any more."""
    for step in itertools.count(1):
        for timing in Timing:
            attempt: Cancelling[Any] = Cancelling(step, timing)
            yield attempt
            if not attempt.reached:
                return
