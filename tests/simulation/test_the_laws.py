"""Pools that are broken on purpose: each must be caught, soon, and in the name of the law that it breaks."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import math
from typing import TYPE_CHECKING, Any

import pytest

from qorb import AllClaimsUsedError, events
from qorb._core.backoff import Backoff
from qorb._core.line import Line
from qorb._core.ranking import Ranking
from qorb._desk import Desk
from qorb._diagnosis import Diagnosis
from qorb._engine import Engine
from qorb._slot import CLAIMED, CONNECTING, UNCLAIMED, Slot
from qorb._slot_set import SlotSet
from qorb._tasks import Call, TaskOwner, Timer
from qorb._termination import Termination
from qorb.claim import ClaimRequest
from tests.pools import OF_RESOLVERS
from tests.simulation.laws import Law
from tests.simulation.plan import OPTIONAL, draw
from tests.simulation.play import Failure, play

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = 25
"""So many seeds may be played until the breakage is noticed; nearly all are noticed by one of the first three."""

Break = Any
BROKEN: dict[str, tuple[Law, dict[str, Any], Callable[[Break], None]]] = {}


def breaks(law: Law, **changes: Any) -> Callable[[Callable[[Break], None]], Callable[[Break], None]]:
    """Note a way to break a pool, by which law it must be noticed, and what the plans must have for it to matter."""

    def note(function: Callable[[Break], None]) -> Callable[[Break], None]:
        BROKEN[function.__name__] = law, changes, function
        return function

    return note


def wrapped(patch: Break, owner: type, name: str, after: Callable[..., Any]) -> None:
    """Let `after(result, self, *args)` see to what a method returns."""
    before = getattr(owner, name)

    @functools.wraps(before)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return after(before(self, *args, **kwargs), self, *args)

    patch.setattr(owner, name, method)


# Claims.


@breaks(Law.WAITING)
def a_lost_wake_up(patch):
    patch.setattr(Desk, "serve_line", lambda _: None)


@breaks(Law.LINE)
def a_line_that_serves_the_last_first(patch):
    def pop(self):
        waiting = list(self)
        if not waiting:
            return None
        self.leave(waiting[-1])
        return waiting[-1]

    patch.setattr(Line, "pop", pop)


@breaks(Law.HELD)
def a_slot_lost_when_its_claim_is_cancelled(patch):
    patch.setattr(Desk, "_return_untouched", lambda _, __: None)


@breaks(Law.HELD)
def a_slot_lost_when_its_claim_is_dropped(patch):
    release = Desk.release
    patch.setattr(
        Desk, "release", lambda self, slot, how, *said: how.value == "leaked" or release(self, slot, how, *said)
    )


@breaks(Law.OWNER, overridden=[])
def a_connection_for_two_claims(patch):
    def to_the_next_as_well(_, self, slot):
        if slot.state is CLAIMED and self.line.waiting:
            attempt = self.first_in_line()
            if attempt is not None:
                attempt.future.set_result(slot)

    wrapped(patch, Desk, "_pass_on", to_the_next_as_well)


@breaks(Law.DEADLINE)
def a_deadline_that_is_missed(patch):
    arm = Desk._arm_deadline
    patch.setattr(Desk, "_arm_deadline", lambda self, deadline: arm(self, deadline + 0.01))


@breaks(Law.DEADLINE)
def a_deadline_that_comes_early(patch):
    wrapped(patch, Line, "next_deadline", lambda deadline, _: deadline - 1e-5)
    overdue = Line.pop_overdue
    patch.setattr(Line, "pop_overdue", lambda self, now: overdue(self, now + 1e-5))
    arm = Desk._arm_deadline
    patch.setattr(Desk, "_arm_deadline", lambda self, deadline: arm(self, deadline - 1e-5))


@breaks(Law.DEADLINE)
def a_wrong_reason_at_the_deadline(patch):
    patch.setattr(Diagnosis, "error", lambda *_: AllClaimsUsedError("whatever"))


@breaks(Law.ONCE)
def a_claim_refused_for_nothing(patch):
    wrapped(patch, Desk, "__init__", lambda _, self, __: setattr(self, "_max_waiters", 1))


@breaks(Law.CANCELLATION)
def a_body_whose_exception_is_swallowed(patch):
    leave = ClaimRequest.__aexit__

    async def swallow(self, *exc):
        await leave(self, *exc)
        return True

    patch.setattr(ClaimRequest, "__aexit__", swallow)


@breaks(Law.FITNESS)
def a_dirty_connection_handed_out(patch):
    patch.setattr(Desk, "must_recycle", lambda *_: False)


@breaks(Law.FITNESS, overridden=["is_closed"])
def a_dead_connection_handed_out(patch):
    patch.setattr(Engine, "seems_open", lambda _, __: True)


@breaks(Law.SECRETS)
def a_password_in_an_error(patch):
    def unmasked(error):
        return error.args[0] if error.args else "nothing is known"

    for module in ("_desk", "_slot_set", "_engine", "_resolving"):
        patch.setattr(f"qorb.{module}.describe", unmasked)


# Slots and connections.


@breaks(Law.TALLY)
def a_tally_that_forgets(patch):
    count = SlotSet._count_in
    patch.setattr(SlotSet, "_count_in", lambda self, slot, new: new is CONNECTING or count(self, slot, new))


@breaks(Law.LIMITS)
def one_slot_more_than_the_limit(patch):
    def more(_, engine, *__):
        engine._limits = dataclasses.replace(engine._limits, max_slots=engine._limits.max_slots + 1)

    wrapped(patch, Engine, "__init__", more)


@breaks(Law.LIMITS, policy={"max_slots": 24, "max_slots_per_backend": 16, "spares_wanted": 24})
def more_attempts_at_a_time_than_allowed(patch):
    patch.setattr("qorb._slot_set.MAX_ATTEMPTS_IN_FLIGHT", 100)


@breaks(Law.CALLS)
def a_connection_closed_twice(patch):
    wrapped(patch, Engine, "forget", lambda _, self, connection: self.connector.abort(connection))


@breaks(Law.CALLS)
def two_calls_at_a_time_on_a_connection(patch):
    check = Slot.check

    def hurry(self):
        checking = check(self)
        if checking:
            self.owner.engine.loop.create_task(self.owner.engine.connector.validate(self.connection))
        return checking

    patch.setattr(Slot, "check", hurry)


@breaks(Law.CONNECTIONS)
def a_connection_that_nobody_closes(patch):
    patch.setattr(Slot, "_abort_outgoing", lambda self: setattr(self, "_outgoing", None))


@breaks(Law.BACKENDS)
def a_connection_to_an_old_address(patch):
    patch.setattr(Slot, "stale", property(lambda _: False))


# Backends.


@breaks(Law.BACKENDS)
def a_removed_backend_kept(patch):
    patch.setattr(SlotSet, "leave", lambda _: None)


@breaks(Law.BACKENDS)
def a_new_backend_overlooked(patch):
    known = Engine.backends_known
    seen: set[int] = set()

    def first_only(self, backends):
        if id(self) not in seen or len(backends) < len(self.backends):
            seen.add(id(self))
            known(self, backends)

    patch.setattr(Engine, "backends_known", first_only)


@breaks(Law.PACE)
def a_backoff_ignored(patch):
    wrapped(patch, Backoff, "failed", lambda _, self, *__: setattr(self, "not_before", -math.inf))


@breaks(Law.PACE)
def a_backoff_that_does_not_grow(patch):
    wrapped(patch, Backoff, "failed", lambda _, self, *__: setattr(self, "steps", 1))
    patch.setattr(Backoff, "_pause", lambda self, cap: self._draw(min(self._least, self.longest, cap)))


@breaks(Law.RANKING)
def a_priority_ignored(patch):
    add = Ranking.add
    patch.setattr(Ranking, "add", lambda self, ranked, _, weight: add(self, ranked, 0, weight))


@breaks(Law.PLAN)
def a_plan_that_is_never_made(patch):
    patch.setattr(Engine, "replan", lambda _: None)


@breaks(Law.PROGRESS)
def a_check_that_never_comes(patch):
    def forget(_, self):
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None

    wrapped(patch, Slot, "set_due_timer", forget)


@breaks(Law.PROGRESS)
def a_retry_that_never_comes(patch):
    patch.setattr(SlotSet, "_arm_backoff_timer", lambda *_: None)


@breaks(Law.QUIET)
def a_loop_kept_busy(patch):
    patch.setattr(Desk, "_hesitate", lambda self, turns: self.engine.timers.soon(lambda: self._hesitate(turns)))


@breaks(Law.QUIET)
def connections_closed_and_opened_for_nothing(patch):
    def renew(checking, self):
        if checking:
            self.move(UNCLAIMED)
            self.renew()
        return False

    wrapped(patch, Slot, "check", renew)


# What the pool says.


@breaks(Law.STATS)
def a_number_that_is_wrong(patch):
    more = dataclasses.replace
    wrapped(patch, SlotSet, "stats", lambda one, _: more(one, unclaimed_slots=one.unclaimed_slots + one.claimed_slots))


@breaks(Law.STATS)
def a_claim_counted_twice(patch):
    wrapped(patch, Engine, "stats", lambda stats, _: dataclasses.replace(stats, claims=2 * stats.claims))


@breaks(Law.STATS)
def a_failure_that_is_not_told(patch):
    wrapped(patch, SlotSet, "stats", lambda one, _: dataclasses.replace(one, last_error=None))


@breaks(Law.LEDGER)
def a_timer_that_is_left(patch):
    patch.setattr(Timer, "cancel", lambda self: self._owner.alive.pop(self, None))


@breaks(Law.LEDGER)
def a_task_that_nobody_owns(patch):
    start = TaskOwner.start

    def forget(self, life):
        start(self, life)
        if not isinstance(life, Slot):
            self.tasks.popitem()

    patch.setattr(TaskOwner, "start", forget)


@breaks(Law.LOG)
def an_error_logged_for_nothing(patch):
    wrapped(patch, Engine, "ready", lambda future, _, __: logging.getLogger("qorb").error("not ready") or future)


# The end.


@breaks(Law.END)
def a_task_left_at_the_end(patch):
    def one_more(_, self, *__):
        engine = self._engine
        engine.loop.create_task(asyncio.sleep(1e3), name=f"qorb {engine.name} helper")

    wrapped(patch, Termination, "begin", one_more)


@breaks(Law.END)
def an_end_that_waits_for_what_hangs(patch):
    interrupt = Call.interrupt
    patch.setattr(Call, "interrupt", lambda self: self._timers.after(60, lambda: interrupt(self)))


@breaks(Law.END)
def a_claim_that_is_not_told_of_the_end(patch):
    close = Desk.close

    def silently(self):
        line, self.line = self.line, Line()
        close(self)
        self.line = line

    patch.setattr(Desk, "close", silently)


@breaks(Law.END)
def a_retry_after_the_end(patch):
    patch.setattr(SlotSet, "cancel_timers", lambda _: None)
    patch.setattr(Engine, "ended", lambda self: setattr(self, "observer", None))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pool_breaks_a_law(name, monkeypatch):
    law, changes, patch = BROKEN[name]
    patch(monkeypatch)
    assert first_broken({"observer": "none"} | changes) is law  # an observer would often be told of it first


# What a resolver tells of its own work is no part of a claim's or slot's story: tests/test_events.py has it.
EVENTS = sorted(
    (
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, events.Event) and kind not in OF_RESOLVERS
    ),
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", [kind.__name__ for kind in EVENTS if not kind.__subclasses__()])
def test_an_event_that_is_missing_breaks_a_law(kind, monkeypatch):
    emit = Engine.emit
    monkeypatch.setattr(Engine, "emit", lambda self, event: type(event).__name__ == kind or emit(self, event))

    assert first_broken({"observer": "quiet", "overridden": list(OPTIONAL)}) is Law.STORY


def first_broken(changes: dict[str, Any]) -> Law | None:
    """Play one seed after the other until a law is broken, and say which."""
    for seed in range(SEEDS):
        try:
            plan = draw(seed)
            policy = plan.policy | changes.get("policy", {})
            play(dataclasses.replace(plan, **changes | {"policy": policy}))
        except Failure as failure:
            return failure.law
    return None


def test_every_law_is_broken_by_something():
    assert {law for law, _, _ in BROKEN.values()} | {Law.STORY} == set(Law)
