"""Termination: nothing begins any more, what is out may come back for a while, then everything stops and is waited for.

It is driven by callbacks, not by a coroutine, so that nobody's cancellation can stop it half-way; whoever calls
terminate() waits on a future of his own.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Literal

from qorb import events
from qorb._company import Company
from qorb._holders import describe_holder, holder
from qorb._slot import CLAIMED, Slot
from qorb._tasks import logger
from qorb.errors import TerminationError
from qorb.stats import PoolState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from qorb._engine import Engine
    from qorb._tasks import Life, Timer

Held = Literal["revoke", "detach"]

GRACEFUL_CLOSE = 0.025
"""Seconds that graceful closes get when no claims are out."""
WARN_EVERY = 5.0
_MOST_NAMED = 20
"""Of what has not ended, so much is described."""


class Termination:
    """How one pool ends."""

    def __init__(self, engine: Engine[Any]) -> None:
        """Nothing yet."""
        self._engine = engine
        self._held: Held = "revoke"
        self._began = 0.0
        self._stop_at = math.inf
        self._stop_timer: Timer | None = None
        self._stopped = False
        self._heard = False
        """Whoever waited for a connection has heard of the end."""
        self._warn_timer: Timer | None = None
        self._callers: dict[asyncio.Future[bool], None] = {}

    async def terminate(self, grace: float, held: Held, timeout: float | None) -> None:
        """Begin, or join what has begun; return when nothing of the pool is running any more.

        Raises TerminationError when `timeout` runs out. Cancelling the caller stops nothing but his waiting.
        """
        engine = self._engine
        task = engine.check_place()
        if engine.observing:  # in a task that the observer has started eagerly: what he is told of is still under way
            engine.timers.soon(lambda: self.begin(grace, held))
        else:
            self.begin(grace, held)
        own = engine.tasks.owns(task)
        if own is not None:
            own.stop()  # a task of the pool cannot wait for its own end
        if engine.over:
            return
        future: asyncio.Future[bool] = engine.loop.create_future()
        self._callers[future] = None
        timer = None
        if timeout is not None:
            timer = engine.timers.after(timeout, lambda: None if future.done() else future.set_result(False))
        try:
            ended = await future
        finally:
            self._callers.pop(future, None)
            if timer is not None:
                timer.cancel()
        if not ended and not engine.over:
            text = f"pool {engine.name} has not ended within {timeout:g} s: {self._left()}"
            remedy = ". Call terminate() again to go on waiting"
            raise TerminationError(text + remedy, engine.ledger(), pool=engine.name)

    def begin(self, grace: float, held: Held) -> None:
        """Let nothing begin any more, and fix when everything is to stop. A second call can only bring that forward."""
        engine = self._engine
        now = engine.loop.time()
        if engine.state is PoolState.RUNNING:
            self._held = held
            self._halt()
            self._retire_all()
        if not self._stopped and not engine.over:
            self._stop_by(now + (grace if engine.claims_out() else min(grace, GRACEFUL_CLOSE)))

    def _halt(self) -> None:
        """Let nothing begin any more, and say so."""
        engine = self._engine
        left = str(engine.ledger()) if engine.observer is not None else ""
        self._began = engine.loop.time()
        engine.halt()
        self._warn_later()
        # Whoever waited has to hear of the end before it has come, even when there is no task to be waited for.
        engine.timers.soon(self._all_have_heard)
        if engine.observer is not None:
            engine.emit(events.PoolTerminateStart(engine.name, left))

    def _all_have_heard(self) -> None:
        self._heard = True
        self.look()

    def _retire_all(self) -> None:
        """Close idle connections gracefully, give up attempts and checks, stop the resolver.

        Companions go on: who watches a pool wants to see it end.
        """
        for life in tuple(self._engine.tasks.tasks.values()):
            if isinstance(life, Slot):
                life.retire()
            elif not isinstance(life, Company):
                life.stop()

    def claim_returned(self) -> None:
        """Note that a claim came back: after the last one, only graceful closes are waited for."""
        engine = self._engine
        if not self._stopped and not engine.claims_out():
            self._stop_by(engine.loop.time() + GRACEFUL_CLOSE)

    def _stop_by(self, moment: float) -> None:
        if moment >= self._stop_at:
            return
        self._stop_at = moment
        if self._stop_timer is not None:
            self._stop_timer.cancel()
        if moment <= self._engine.loop.time():
            self._stop()
        else:
            self._stop_timer = self._engine.timers.at(moment, self._stop)

    def _stop(self) -> None:
        """Tell everything to stop at once; claims that are still out are revoked or detached."""
        engine = self._engine
        self._stopped = True
        self._stop_timer = None
        if self._held == "detach":
            acquiring = set(engine.desk.acquiring.values())
            for slots in engine.sets.values():
                for slot in tuple(slots.slots):
                    if slot.state is CLAIMED and slot not in acquiring:
                        slot.detach()
        self._warn_later()
        engine.tasks.stop_all()

    def abort(self) -> None:
        """End at once, without grace: for emergencies. Synchronous, except in an observer; needs no running loop."""
        engine = self._engine
        if engine.observing:  # what the observer is told of is still under way
            engine.timers.soon(self.abort)
            return
        if engine.state is PoolState.TERMINATED:
            return
        if engine.loop.is_closed():
            self._destroy()
            return
        if engine.state is PoolState.RUNNING:
            self._halt()
        for life in tuple(engine.tasks.tasks.values()):
            if isinstance(life, Slot):
                life.emergency_exit()
        if self._stop_timer is not None:
            self._stop_timer.cancel()
        self._stop()

    def _destroy(self) -> None:
        """End although the loop is closed: nothing can be waited for, but everything can be closed."""
        engine = self._engine
        engine.state = PoolState.TERMINATING
        engine.observer = None
        engine.desk.abandon()
        engine.tasks.destroy_all()
        engine.ended()

    def look(self) -> None:
        """End when nothing is left that runs."""
        engine = self._engine
        if engine.state is not PoolState.TERMINATING or not self._heard:
            return
        if engine.desk.acquiring or engine.threads.alive:
            return
        if engine.tasks.tasks:
            self._stop_companions()
            return
        engine.state = PoolState.TERMINATED  # before the observer hears of it, who may call abort()
        if engine.observer is not None:
            engine.emit(events.PoolTerminateDone(engine.name, "nothing"))
        engine.ended()
        for future in tuple(self._callers):
            if not future.done():
                future.set_result(True)

    def _stop_companions(self) -> None:
        """Tell the companions to stop when they are all that is left."""
        engine = self._engine
        if len(engine.companies) == len(engine.tasks.tasks):
            for company in tuple(engine.companies):
                company.stop()

    def _warn_later(self) -> None:
        if self._warn_timer is not None:
            self._warn_timer.cancel()
        self._warn_timer = self._engine.timers.after(WARN_EVERY, self._warn)

    def _warn(self) -> None:
        self._warn_later()
        now = self._engine.loop.time()
        if self._stopped or now < self._stop_at:  # otherwise it stops in this very turn
            waited = now - self._began
            logger.warning("pool %s has not ended after %.1f s: %s", self._engine.name, waited, self._left())

    def _left(self) -> str:
        """Say what is under way, or how much it is and what some of it is."""
        acquiring = set(self._engine.desk.acquiring.values())
        others = [life for life in self._engine.tasks.tasks.values() if life not in acquiring]
        count = len(acquiring) + len(others)
        if not count:
            return "; ".join(f"thread {name!r}" for name in self._engine.threads.alive[:_MOST_NAMED])
        left = list(itertools.islice(self._describe(others), _MOST_NAMED))
        if count > len(left):
            left.append(f"and {count - len(left)} more")
        return "; ".join(left)

    def _describe(self, lives: list[Life]) -> Iterator[str]:
        """Say of every on_acquire, and of these lives, for how long and where it waits."""
        now = self._engine.loop.time()
        for call, slot in self._engine.desk.acquiring.items():
            yield f"{slot.name}: {call.describe(holder(slot))}"
        for life in lives:
            if isinstance(life, Slot) and life.state is CLAIMED:
                yield f"{life.name}: claimed for {describe_holder(life, now)}"
            else:
                yield life.describe()
