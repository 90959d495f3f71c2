"""Company: the life of a companion, in a task of the pool's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qorb._tasks import Call, CallFailedError, Interrupted, call_now, logger
from qorb.errors import describe

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from qorb._tasks import TimerOwner
    from qorb.companions import Companion


class Company:
    """The life of one companion, and how it is left."""

    def __init__(self, pool: str, companion: Companion, timers: TimerOwner, ended: Callable[[Company], object]) -> None:
        """Prepare to run the companion; `ended` is called when its task has ended."""
        self.name = f"qorb {pool} {companion.name}"
        self.call: Call[None] | None = None
        self.task: asyncio.Task[None] | None = None
        """Its task, once that has ended."""
        self.companion = companion
        self._timers = timers
        self._ended = ended
        self._stopped = False

    async def live(self) -> None:
        """Run the companion, once; told to stop before, it can still give back what it has."""
        self.call = call = Call(self._timers, self.companion.live)
        if self._stopped:
            call.interrupt()
        try:
            await call.within(math.inf)
        except Interrupted:
            return
        except CallFailedError as failure:
            logger.error("%s failed: %s", self.name, describe(failure.error))
        finally:
            self.call = None

    def stop(self) -> None:
        """End at once."""
        self._stopped = True
        if self.call is not None:
            self.call.interrupt()

    def tell_of_backends(self) -> None:
        """Tell the companion that there are others."""
        try:
            call_now(self.companion.backends_changed)
        except CallFailedError as failure:
            logger.warning("%s: backends_changed() failed: %s", self.name, describe(failure.error))

    def settle(self, task: asyncio.Task[None]) -> None:
        """Note that the task has ended."""
        self.task = task
        self._ended(self)

    def describe(self) -> str:
        """Say what is under way."""
        call = self.call
        return f"{self.name}: {call.describe() if call is not None else 'beginning'}"
