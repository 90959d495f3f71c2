"""Situations: what is rare and has to happen to a pool now and then, or the laws would hold in easy times only.

A run counts which of them it reaches; a test says that the seeds that every run of the suite plays reach all of them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from qorb import PoolState
from qorb._diagnosis import Diagnosis
from qorb._slot import CHECKING, CLAIMED, CONNECTING, RECYCLING, TERMINATED, Slot
from tests.simulation.laws import in_line

if TYPE_CHECKING:
    from qorb import Backend
    from qorb._engine import Engine
    from qorb._slot_set import SlotSet
    from qorb.testing import FakeConnection
    from tests.simulation.books import Visit

NAMES = (
    # Backends.
    "all backends are dead",
    "all backends were dead, and a claim is served",
    "somebody waits while all backends are dead",
    "a backend leaves while a claim on it is out",
    "a backend comes back before its last slot is gone",
    "a backend comes back while a claim from before is out",
    "a backend moves while a claim on it is out",
    "an idle connection to an old address waits for its turn to be replaced",
    "a backend is without a slot, because all are in use",
    "a forgotten backend is due",
    "a worse backend serves while a better one is known",
    "attempts to one that fails wait for their turn",
    "no set can be used of what was published",
    "watch() ended and was started again",
    # Connections.
    "a check falls due while the connection is claimed",
    "a connection outlives its time while it is claimed",
    "several are checked together, because one check failed",
    "a dead idle connection is found",
    "a call goes on although it was told to stop",
    "a claim is made inside the connector",
    # Claims.
    "a claim is cancelled in the turn in which it was served",
    "a claim is cancelled in the turn in which its time was over",
    "a claim is served at the very moment of its deadline",
    "a claim is served after its deadline, because the loop stood still",
    "a claim that got something unfit stands in line again",
    "a claim that got something unfit stands before others",
    "the line is full",
    "a client that holds a connection waits for another",
    "a claim is dropped without release",
    "a claim takes the short cut",
    "a release may take the short cut",
    "a release may be handed on by the short cut",
    # The end.
    "the end comes in the midst of everything",
    "the end comes while claims are out",
    "the end comes while somebody waits",
    "the end comes while a backend leaves",
    "the end comes in the midst of rebalancing",
    "the end comes in the midst of rebalancing, while a backend leaves and somebody waits",
    "the end comes while all backends are dead",
    "the end comes during a connect",
    "the end comes during a check",
    "the end comes during a recycling",
    "the end comes during an on_acquire",
    "the end comes during a close",
    "the end comes during a backoff",
    "the end comes while a plan is due",
    "the end comes while a call does not listen",
    "a claim is revoked",
    "a claim is detached",
    "terminate() runs out of time",
    "terminate() is cancelled, while others wait for it",
)


class Situations:
    """Watches one run."""

    def __init__(self, engine: Engine[FakeConnection]) -> None:
        self.seen: Counter[str] = Counter()
        self._engine = engine
        self._leaving: set[int] = set()
        self._were_online = self._dark = False

    def see(self, name: str, truth: object = True) -> None:
        """Count a situation, if it is one."""
        if truth:
            if name not in NAMES:
                raise KeyError(name)
            self.seen[name] += 1

    def after_turn(self) -> None:
        """Look at what lasts for a turn only."""
        engine = self._engine
        leaving = {id(slots) for slots in engine.sets.values() if slots.leaving}
        if leaving != self._leaving:
            for slots in engine.sets.values():
                if id(slots) in self._leaving and id(slots) not in leaving:
                    self.see("a backend comes back before its last slot is gone", slots.slots)
                    self.see("a backend comes back while a claim from before is out", slots.claimed)
            self._leaving = leaving

    def at_rest(self) -> None:
        """Look at everything; nothing is ready to run, and the pool is running."""
        engine, desk = self._engine, self._engine.desk
        line = in_line(engine)
        dead = self._all_are_dead()
        self._dark = self._dark or dead
        self.see("all backends are dead", dead)
        self.see("somebody waits while all backends are dead", dead and line)
        self.see("a backend is without a slot, because all are in use", desk.starved)
        self.see("a forgotten backend is due", engine.forgotten_at <= engine.loop.time())
        self.see("a claim takes the short cut", desk.quick and desk.claimed)
        self.see("a release may take the short cut", desk.swift and desk.claimed)
        self.see("a release may be handed on by the short cut", desk.brisk and desk.claimed)
        self.see("a claim that got something unfit stands in line again", any(one.failure for one in line))
        self.see("a claim that got something unfit stands before others", len(line) > 1 and line[0].failure)
        for slots in engine.sets.values():
            self._look_at(slots)

    def _all_are_dead(self) -> bool:
        engine = self._engine
        online = any(slots.online for slots in engine.sets.values())
        self._were_online = self._were_online or online
        failing = bool(engine.sets) and all(slots.backoff.steps for slots in engine.sets.values())
        return self._were_online and not online and failing

    def _look_at(self, slots: SlotSet[FakeConnection]) -> None:
        self.see("a backend leaves while a claim on it is out", slots.leaving and slots.claimed)
        self.see("attempts to one that fails wait for their turn", slots.backoff.steps and slots.attempting)
        checked = 0
        for slot in slots.slots:
            checked += slot.state is CHECKING
            if slot.state is CLAIMED:
                self.see("a backend moves while a claim on it is out", slot.stale)
                self.see("a check falls due while the connection is claimed", slot.due)
                self.see("a connection outlives its time while it is claimed", slot.too_old)
            self.see("a call goes on although it was told to stop", _does_not_listen(slot))
        self.see("several are checked together, because one check failed", checked > 1)
        under_way = slots._converting is not None
        waits = under_way and any(slot.stale for slot in slots.idle)
        self.see("an idle connection to an old address waits for its turn to be replaced", waits)

    def served(self, visit: Visit, backend: Backend, now: float) -> None:
        """Look at a claim that is served just now."""
        engine = self._engine
        self.see("all backends were dead, and a claim is served", self._dark)
        self._dark = False
        due = visit.began + visit.timeout
        self.see("a claim is served at the very moment of its deadline", visit.timeout > 0 and now == due)
        late = visit.timeout > 0 and now > due
        self.see("a claim is served after its deadline, because the loop stood still", late)
        best = min((one.priority for one in engine.backends.values()), default=backend.priority)
        self.see("a worse backend serves while a better one is known", backend.priority > best)

    def cancelled(self, future: asyncio.Future[object]) -> None:
        """Look at a client that is cancelled before it has heard what has come of its claim."""
        given = future.result() if future.done() and not future.cancelled() and not future.exception() else None
        self.see("a claim is cancelled in the turn in which it was served", isinstance(given, Slot))
        self.see("a claim is cancelled in the turn in which its time was over", isinstance(given, Diagnosis))

    def ending(self, *, early: bool) -> None:
        """Look at what is under way as the pool is told to end, in this very moment."""
        engine, desk = self._engine, self._engine.desk
        if engine.state is not PoolState.RUNNING:
            return
        waiting = bool(in_line(engine))
        leaving = any(slots.leaving for slots in engine.sets.values())
        slots = [slot for slots in engine.sets.values() for slot in slots.slots]
        begins = any(slot.state is CONNECTING and slot not in slot.owner._waiting_to_connect for slot in slots)
        rebalancing = begins and any(slot.state is TERMINATED for slot in slots)
        self.see("the end comes in the midst of everything", early)
        self.see("the end comes while claims are out", any(slot.state is CLAIMED for slot in slots))
        self.see("the end comes while somebody waits", waiting)
        self.see("the end comes while a backend leaves", leaving)
        self.see("the end comes in the midst of rebalancing", rebalancing)
        self.see(
            "the end comes in the midst of rebalancing, while a backend leaves and somebody waits",
            rebalancing and leaving and waiting,
        )
        self.see("the end comes while all backends are dead", self._all_are_dead())
        self.see("the end comes during an on_acquire", desk.acquiring)
        self.see("the end comes while a plan is due", engine._plan_timer is not None)
        for slot in slots:
            self.see("the end comes during a connect", slot.attempting)
            self.see("the end comes during a check", slot.state is CHECKING)
            self.see("the end comes during a recycling", slot.state is RECYCLING)
            self.see("the end comes during a close", slot._closing)
            waits = slot.state is CONNECTING and not slot.attempting and slot.owner.next_attempt > engine.loop.time()
            self.see("the end comes during a backoff", waits)
            self.see("the end comes while a call does not listen", _does_not_listen(slot))


def _does_not_listen(slot: Slot[FakeConnection]) -> bool:
    return slot.call is not None and (slot.call.interrupted or slot.call._expired)
