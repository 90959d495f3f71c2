"""A pool and a model of it are driven side by side, by rules in an order that Hypothesis chooses, and compared.

The rules are functions and the pool lives in a loop of virtual time, so each example has a loop of its own that is run
from one full second to the next: `settle`. What a rule asks for is done at the beginning of the second, several rules'
worth in one turn of the loop if Hypothesis says so; whatever follows from that takes less than half a second, since
backoffs are short; deadlines are due at three quarters. At its end nothing is under way, and what the model says must
be what the fake network, the claimers and the pool's own figures say.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from qorb import (
    Backend,
    Claim,
    ClaimRevokedError,
    Connector,
    Outcome,
    Policy,
    Pool,
    PoolError,
    PoolState,
    PoolTerminatedError,
    QueueFullError,
    TerminationError,
)
from qorb.resolvers import ManualResolver
from qorb.testing import FakeConnection, FakeConnector, assert_nothing_left
from qorb.testing._loop import VirtualLoop
from qorb.testing._run import _wind_up
from tests.model import Model

NAMES = ("b0", "b1", "b2")

DUE = 0.75
"""Deadlines are due at this part of a second, when everything else has come to rest."""

START_AT = 0.25
"""The pool starts at this part of a second, and so it rebalances then."""

REBALANCE_INTERVAL = 20
HEALTH_INTERVAL = 7

AT_ONCE = 4
"""When so much is asked for in one turn of the loop, it is done."""

BEFORE_THE_END = 24
"""A pool is driven by so many rules before one may end it."""

STEPS = 40

picks = st.integers(0, 11)
"""Which of those that there are."""

CLIENT_ACTS = ("claim", "claim", "give back", "give back", "cancel")

timeouts = st.sampled_from([None, DUE, 1 + DUE, 5 + DUE, math.inf, math.inf])

more = st.booleans()
"""Whether the next rule falls into the same turn of the loop."""


is_running = precondition(lambda machine: machine.model.state is PoolState.RUNNING)


class Plain(FakeConnector):
    """Overrides nothing but connect, close and abort: the short cuts for claims and releases are open."""

    validate = Connector.validate
    on_acquire = Connector.on_acquire
    on_recycle = Connector.on_recycle
    is_closed = Connector.is_closed
    needs_recycle = Connector.needs_recycle


class Watchful(Plain):
    """Sees when the other side has closed a connection, and takes the short cuts all the same."""

    is_closed = FakeConnector.is_closed


class OopsError(Exception):
    """A block ends with this."""


class Claimer:
    """Somebody who claims one connection, holds it, and gives it back in one way or another."""

    def __init__(self, machine: PoolMachine, number: int, timeout: float | None, *, in_a_block: bool) -> None:
        self.machine = machine
        self.number = number
        self.timeout = timeout
        self.in_a_block = in_a_block
        self.task: asyncio.Task[None] | None = None
        self.connection: FakeConnection | None = None
        self.claim: Claim[FakeConnection] | None = None
        self.error: type[PoolError] | None = None
        self.told: asyncio.Future[None] | None = None

    async def run(self) -> None:
        machine = self.machine
        self.told = machine.loop.create_future()
        machine.note_arrival(self)
        request = machine.pool.claim(timeout=self.timeout)
        try:
            if self.in_a_block:
                with contextlib.suppress(OopsError):
                    async with request as connection:
                        await self._hold(connection)
            else:
                self.claim = await request
                self._take(self.claim.connection)
        except PoolError as error:
            self.error = type(error)

    async def _hold(self, connection: FakeConnection) -> None:
        self._take(connection)
        try:
            await self.told
        finally:
            self.machine.in_use.discard(connection.id)

    def _take(self, connection: FakeConnection) -> None:
        self.connection = connection
        self.machine.note_grant(connection)

    def let_go(self, how: str) -> None:
        """Give the connection back; what the way is called by Outcome, or "discard"."""
        if self.in_a_block:
            if how == Outcome.CLEAN.value:
                self.told.set_result(None)
            elif how == Outcome.ERROR.value:
                self.told.set_exception(OopsError())
            else:
                self.task.cancel()
            return
        self.machine.in_use.discard(self.connection.id)
        if how == "discard":
            self.claim.discard()
        elif how == Outcome.LEAKED.value:
            self.task = None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                self.claim = None
        else:
            self.claim.release(Outcome(how))
            self.claim.release(Outcome.ERROR)  # a second time does nothing

    @property
    def ways(self) -> list[str]:
        """In which ways it can give back; the clean one is the usual one."""
        outcomes = [Outcome.CLEAN.value, Outcome.CLEAN.value, Outcome.ERROR.value, Outcome.CANCELLED.value]
        return outcomes if self.in_a_block else [*outcomes, Outcome.LEAKED.value, "discard"]


class Caller:
    """Somebody who terminates the pool, and waits for it until a deadline."""

    def __init__(self, task: asyncio.Task[None], deadline: float) -> None:
        self.task = task
        self.deadline = deadline
        self.cancelled = False
        self.told_in_vain = False
        """It has got its TerminationError."""


class PoolMachine(RuleBasedStateMachine):
    """The rules, and what is compared after them."""

    sound = False
    """Everything was as it should be until now; after a failure, only the loop is cleared away."""

    @initialize(
        connector=st.sampled_from([FakeConnector, Plain, Watchful]),
        limits=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 4)),
        max_waiters=st.sampled_from([10_000, 10_000, 10_000, 10_000, 3, 0]),
        ranks=st.tuples(*[st.tuples(st.sampled_from([0, 0, 1]), st.sampled_from([1, 1, 3]))] * len(NAMES)),
        known=st.sampled_from([NAMES, NAMES[:2], NAMES[:1]]),
        seed=st.integers(0, 3),
    )
    def begin(
        self,
        connector: type[FakeConnector],
        limits: tuple[int, int, int],
        max_waiters: int,
        ranks: tuple[tuple[int, int], ...],
        known: tuple[str, ...],
        seed: int,
    ) -> None:
        max_slots, per_backend, spares = limits
        self.loop = VirtualLoop(seed=seed, patience=100_000)
        self.loop.set_debug(enabled=False)  # it would take two thirds of the time; nearly all other tests have it
        policy = Policy(
            max_slots=max_slots,
            max_slots_per_backend=per_backend,
            spares_wanted=spares,
            max_waiters=max_waiters,
            claim_timeout=2 + DUE,
            rebalance_interval=REBALANCE_INTERVAL,
            health_interval=HEALTH_INTERVAL,
            connect_timeout=0.03,
            min_connection_backoff=0.01,
            max_connection_backoff=0.05,
            spread=0,
            long_claim_warning=math.inf,
        )
        self.places = {
            name: Backend(name, "10.0.0.1", 5000 + 100 * i, priority=priority, weight=weight)
            for i, (name, (priority, weight)) in enumerate(zip(NAMES, ranks, strict=True))
        }
        self.model = Model(policy, {name: self.places[name] for name in NAMES if name in known})
        self.connector = connector()
        self.resolver = ManualResolver(self.model.published.values())
        self.pool: Pool[FakeConnection] = Pool("main", self.resolver, self.connector, policy, rng=random.Random(seed))
        self.numbers = itertools.count(1)
        self.claimers: dict[int, Claimer] = {}
        self.callers: list[Caller] = []
        self.acts: list[Callable[[], object]] = []
        """What is to be done at the beginning of the next second."""
        self.expectations: list[Callable[[], None]] = []
        """What is to be true at its end, besides what always is."""
        self.rejected: dict[int, type[PoolError]] = {}
        """Claims that must fail at once, and how."""
        self.to_be_closed: set[int] = set()
        self.in_use: set[int] = set()
        self.dead: dict[int, float] = {}
        """Connections that the other side has closed, by id, and when."""
        self.complaints: list[str] = []
        self._run(self._start())
        self.settle()

    async def _start(self) -> None:
        await asyncio.sleep(START_AT)
        await self.pool.start()
        self.starts = self.loop.time()

    # What claimers tell.

    def note_arrival(self, claimer: Claimer) -> None:
        timeout = self.model.policy.claim_timeout if claimer.timeout is None else claimer.timeout
        self.model.line[claimer.number] = self.loop.time() + timeout

    def note_grant(self, connection: FakeConnection) -> None:
        if connection.id in self.in_use:
            self.complaints.append(f"{connection} was handed out while it was in use")
        if connection.id in self.to_be_closed:
            self.complaints.append(f"{connection} was handed out although it was dirty")
        if connection.closed and self.sees_the_dead:
            self.complaints.append(f"{connection} was handed out dead")
        self.in_use.add(connection.id)

    # Claiming.

    def _claim(self, timeout: float | None, *, in_a_block: bool) -> Claimer:
        claimer = Claimer(self, next(self.numbers), timeout, in_a_block=in_a_block)
        self.claimers[claimer.number] = claimer

        def ask() -> None:
            claimer.task = self.loop.create_task(claimer.run(), name=f"claimer {claimer.number}")

        self.acts.append(ask)
        return claimer

    @is_running
    @rule(seconds=timeouts, in_a_block=st.booleans(), more=more)
    def claim(self, seconds: float | None, *, in_a_block: bool, more: bool) -> None:
        if len(self.model.line) + len(self.acts) >= self.model.policy.max_waiters:
            self._end_turn()
            more = False
        if self.acts or more:
            self._claim(seconds, in_a_block=in_a_block)
        else:
            self._claim_alone(seconds, in_a_block=in_a_block)
        self._done(more=more)

    @is_running
    @rule(count=st.integers(2, AT_ONCE), seconds=timeouts, in_a_block=st.booleans(), more=more)
    def claim_several(self, count: int, seconds: float | None, *, in_a_block: bool, more: bool) -> None:
        if len(self.model.line) + len(self.acts) + count > self.model.policy.max_waiters:
            count = 1
        for _ in range(count - 1):
            self._claim(seconds, in_a_block=in_a_block)
        self.claim(seconds, in_a_block=in_a_block, more=more)

    @is_running
    @rule(
        turn=st.lists(st.tuples(st.sampled_from(CLIENT_ACTS), picks, timeouts, st.booleans()), min_size=2, max_size=6)
    )
    def be_busy(self, turn: list[tuple[str, int, float | None, bool]]) -> None:
        """Claim, give back and cancel in the same turn."""
        for act, pick, seconds, in_a_block in turn:
            if act == "claim":
                self.claim(seconds, in_a_block=in_a_block, more=True)
            elif act == "cancel" and self.model.line:
                self.cancel_a_waiter(pick, more=True)
            elif act == "give back" and self.model.held:
                self.give_back(pick, pick if in_a_block else 0, more=True)
        self._done()

    @is_running
    @rule(in_a_block=st.booleans())
    def claim_what_is_at_hand(self, *, in_a_block: bool) -> None:
        self._end_turn()
        self._claim_alone(0, in_a_block=in_a_block)
        self._done()

    def _claim_alone(self, timeout: float | None, *, in_a_block: bool) -> None:
        """Claim when nothing else happens: then it is known who serves it, and when it cannot be served."""
        model = self.model
        idle = [one for one in self.idle if not (one.closed and self.sees_the_dead)]
        stats = self.pool.stats().backends
        ranks = {one.backend.name: model.rank(one.backend.name, stats[one.backend.name].failures) for one in idle}
        claimer = self._claim(timeout, in_a_block=in_a_block)
        if idle and not model.line:

            def is_served_by_the_best() -> None:
                assert claimer.connection is not None, "there was a connection at hand"
                assert claimer.connection in idle
                assert ranks[claimer.connection.backend.name] == min(ranks.values())

            self.expectations.append(is_served_by_the_best)
        elif timeout == 0:
            self.rejected[claimer.number] = model.timeout_error(set(model.held.values()))
        elif len(model.line) >= model.policy.max_waiters:
            self.rejected[claimer.number] = QueueFullError

    @is_running
    @rule()
    def wait_until_ready(self) -> None:
        self._end_turn()
        model, tasks = self.model, []
        self.acts.append(lambda: tasks.append(self.loop.create_task(self.pool.ready(timeout=DUE))))

        def is_told_whether_it_is() -> None:
            here = sum(one.backend.name in model.published for one in self.connector.unclosed)
            if here >= model.ready_with:
                assert tasks[0].result() is None
            else:
                assert type(tasks[0].exception()) is model.timeout_error(self.connected)

        self.expectations.append(is_told_whether_it_is)
        self._done()

    @precondition(lambda self: self.model.line)
    @rule(pick=picks, more=more)
    def cancel_a_waiter(self, pick: int, *, more: bool) -> None:
        number = list(self.model.line)[pick % len(self.model.line)]
        claimer = self.claimers.pop(number)
        del self.model.line[number]
        self.acts.append(lambda: claimer.task.cancel())  # noqa: PLW0108 - the task is made in the same turn, if need be
        self.expectations.append(lambda: _assert_cancelled(claimer))
        self._done(more=more)

    @precondition(lambda self: self.model.line and self.model.held)
    @is_running
    @rule(pick=picks, more=more)
    def cancel_the_first_when_it_is_served(self, pick: int, *, more: bool) -> None:
        """What was handed over to it goes to the next."""
        self._end_turn()
        if self.model.line and self.model.held:
            self.give_back(pick, 0, more=True)
            self.cancel_a_waiter(0, more=more)

    # Giving back.

    @precondition(lambda self: self.model.held)
    @rule(pick=picks, more=more)
    def give_back_cleanly(self, pick: int, *, more: bool) -> None:
        self.give_back(pick, 0, more=more)

    @precondition(lambda self: self.model.held and self.model.state is PoolState.RUNNING)
    @rule(pick=picks, way=picks, seconds=timeouts, in_a_block=st.booleans(), more=more)
    def give_back_and_claim(self, pick: int, way: int, seconds: float | None, *, in_a_block: bool, more: bool) -> None:
        """Do both in one turn: whoever waits is first, and not who comes just now."""
        if len(self.model.line) + len(self.acts) + 1 < self.model.policy.max_waiters:
            self.give_back(pick, way, more=True)
            self.claim(seconds, in_a_block=in_a_block, more=more)

    @precondition(lambda self: self.model.held)
    @rule(pick=picks, way=picks, more=more)
    def give_back(self, pick: int, way: int, *, more: bool) -> None:
        self._give_back(list(self.model.held)[pick % len(self.model.held)], way, alone=not (more or self.acts))
        self._done(more=more)

    def _give_back(self, number: int, way: int, *, alone: bool) -> None:
        model = self.model
        claimer = self.claimers.pop(number)
        connection = claimer.connection
        name = model.held.pop(number)
        how = claimer.ways[way % len(claimer.ways)]
        if how != Outcome.CLEAN.value or model.state is not PoolState.RUNNING:
            self.to_be_closed.add(connection.id)
        elif alone and name in model.published.keys() <= self.connected and self._fit(connection) and not model.broken:
            self.expectations.append(self._to_be_used_again(connection))
        self.acts.append(lambda: claimer.let_go(how))

    def _fit(self, connection: FakeConnection) -> bool:
        backend = connection.backend
        sound = not connection.closed and (backend.name not in self.model.unfit or isinstance(self.connector, Plain))
        return sound and backend.address == self.model.published[backend.name].address

    def _to_be_used_again(self, connection: FakeConnection) -> Callable[[], None]:
        first = next(iter(self.model.line), None)

        def is_kept() -> None:
            if first is not None and isinstance(self.connector, Plain):
                assert self.claimers[first].connection is connection, "it is handed to the first in line"
            if sum(self.slots.values()) < self.model.policy.max_slots and not self.has_rebalanced:
                assert connection in self.connector.connections, "it was clean, and there is room for it"

        return is_kept

    # Backends.

    @precondition(lambda self: len(self.model.published) < len(NAMES))
    @is_running
    @rule(pick=picks, more=more)
    def publish(self, pick: int, *, more: bool) -> None:
        unknown = [name for name in NAMES if name not in self.model.published]
        name = unknown[pick % len(unknown)]
        self.model.published[name] = self.places[name]
        self._publish(more=more)

    @precondition(lambda self: self.model.published)
    @is_running
    @rule(pick=picks, more=more)
    def remove(self, pick: int, *, more: bool) -> None:
        if len(self.model.published) > 1:
            del self.model.published[self._published(pick)]
        elif pick == 0:  # seldom: without a backend not much happens
            self.model.published.clear()
        self._publish(more=more)

    @precondition(lambda self: self.model.published)
    @is_running
    @rule(pick=picks, more=more)
    def move(self, pick: int, *, more: bool) -> None:
        name = self._published(pick)
        self.places[name] = replace(self.places[name], port=self.places[name].port + 1)
        self.model.published[name] = self.places[name]
        self._publish(more=more)

    @precondition(lambda self: self.model.published)
    @is_running
    @rule(pick=picks, priority=st.integers(0, 1), weight=st.integers(0, 3))
    def rank_anew(self, pick: int, priority: int, weight: int) -> None:
        self._end_turn()
        name = self._published(pick)
        self.places[name] = replace(self.places[name], priority=priority, weight=weight)
        self.model.published[name] = self.places[name]
        before = self.connector.unclosed
        sound = not self.model.unfit and not any(one.closed for one in before)

        def nothing_is_reconnected() -> None:
            assert self.has_rebalanced or not sound or before == self.connector.unclosed

        self.expectations.append(nothing_is_reconnected)
        self._publish(more=False)

    def _published(self, pick: int) -> str:
        return list(self.model.published)[pick % len(self.model.published)]

    def _publish(self, *, more: bool) -> None:
        backends = list(self.model.published.values())
        self.acts.append(lambda: self.resolver.set(backends))
        self._done(more=more)

    @precondition(lambda self: self.model.accepting)
    @is_running
    @rule(pick=picks, silently=st.booleans(), more=more)
    def break_off(self, pick: int, *, silently: bool, more: bool) -> None:
        """No connect reaches a backend any more; it refuses, or nothing comes back at all."""
        accepting = sorted(self.model.accepting)
        name = accepting[pick % len(accepting)]
        self.model.broken.add(name)
        if silently:
            self.acts.append(lambda: self.connector.stall("connect", name))
        else:
            self.acts.append(lambda: self.connector.refuse(name))
        self._done(more=more)

    @precondition(lambda self: not isinstance(self.connector, Plain))
    @is_running
    @rule(name=st.sampled_from(NAMES), more=more)
    def make_unfit(self, name: str, *, more: bool) -> None:
        self.model.unfit.add(name)
        self.acts.append(lambda: self.connector.invalidate(name))
        self._done(more=more)

    @precondition(lambda self: self.model.broken | self.model.unfit)
    @is_running
    @rule(more=more)
    def heal(self, *, more: bool) -> None:
        for name in sorted(self.model.broken | self.model.unfit):
            self.acts.append(partial(self.connector.heal, name))
        self.model.broken.clear()
        self.model.unfit.clear()
        self._done(more=more)

    @precondition(lambda self: self.sees_the_dead and self.connector.connections)
    @rule(pick=picks, more=more)
    def kill(self, pick: int, *, more: bool) -> None:
        """The other side closes a connection."""
        alive = list(self.connector.connections)
        connection = alive[pick % len(alive)]
        self.dead[connection.id] = self.loop.time()
        self.acts.append(lambda: setattr(connection, "closed", True))
        self._done(more=more)

    @property
    def sees_the_dead(self) -> bool:
        return type(self.connector) is not Plain

    # Time.

    @rule(seconds=st.sampled_from([1, 2, HEALTH_INTERVAL + 1]))
    def let_time_pass(self, seconds: int) -> None:
        for _ in range(seconds):
            self.settle()

    # The end.

    @rule(
        grace=st.sampled_from([0, 1.5, 2.5, math.inf]),
        held=st.sampled_from(["revoke", "detach"]),
        again=st.sampled_from([None, 0, 1.5, 2.5]),
        timeout=st.sampled_from([None, None, 0.6, 1.6]),
        later=st.sampled_from([0, 0.0005, 0.001, 0.0015, 0.003]),
    )
    @precondition(lambda self: self.steps > BEFORE_THE_END and self.model.state is not PoolState.TERMINATED)
    def terminate(self, grace: float, held: str, again: float | None, timeout: float | None, later: float) -> None:
        """Terminate the pool, if need be while what was done before is under way."""
        later = later if self.acts else 0
        now = self.loop.time() + later
        in_the_midst = bool(self.acts)

        def begin() -> None:
            self._call_terminate(grace, held, timeout)
            if again is not None:
                self._call_terminate(again, "detach" if held == "revoke" else "revoke", None)

        if in_the_midst:
            self.acts.append(lambda: self.loop.call_later(later, begin))
        else:
            self.acts.append(begin)
        self.in_the_midst = in_the_midst and self.model.state is PoolState.RUNNING
        self.model.end_by(now + min(grace, math.inf if again is None else again), held)
        self.settle()

    def _call_terminate(self, grace: float, held: str, timeout: float | None) -> None:
        async def call() -> None:
            if not self.has_begun_to_end:  # of two in one turn the seed says who comes first
                self.has_begun_to_end = True
                self.model.ending.held = held
            await self.pool.terminate(grace=grace, held=held, timeout=timeout)

        deadline = math.inf if timeout is None else self.loop.time() + timeout
        self.callers.append(Caller(self.loop.create_task(call(), name="terminates"), deadline))

    @precondition(lambda self: any(not caller.task.done() for caller in self.callers))
    @rule(pick=picks, more=more)
    def cancel_one_who_terminates(self, pick: int, *, more: bool) -> None:
        waiting = [caller for caller in self.callers if not caller.task.done() and not caller.cancelled]
        if waiting:
            caller = waiting[pick % len(waiting)]
            caller.cancelled = True
            self.acts.append(caller.task.cancel)
            self._done(more=more)

    @precondition(lambda self: self.steps > BEFORE_THE_END and self.model.state is not PoolState.TERMINATED)
    @rule()
    def abort(self) -> None:
        self._end_turn()
        if self.model.state is not PoolState.TERMINATED:  # it was about to be
            self.acts.append(self.pool.abort)
            self.model.end_by(-math.inf, "revoke")
            self.model.ending.held = "revoke"
        self.settle()

    @precondition(lambda self: self.model.state is not PoolState.RUNNING)
    @rule(in_a_block=st.booleans(), more=more)
    def claim_too_late(self, *, in_a_block: bool, more: bool) -> None:
        claimer = self._claim(None, in_a_block=in_a_block)
        self.rejected[claimer.number] = PoolTerminatedError
        self._done(more=more)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            if self.sound:
                self._end_well()
            else:
                self._run(_call(self.pool.abort))
        finally:
            _wind_up(self.loop)
            self.loop.close()

    def _end_well(self) -> None:
        self._end_turn()
        if self.model.state is PoolState.RUNNING:
            self.terminate(grace=0, held="detach", again=None, timeout=None, later=0)
        for number in list(self.model.held):
            self._give_back(number, 0, alone=False)
        self.settle()
        assert self.model.state is PoolState.TERMINATED
        assert not self.connector.unclosed
        assert not asyncio.all_tasks(self.loop)
        assert_nothing_left(self.pool)

    # One second.

    steps = 0
    has_begun_to_end = False
    in_the_midst = False
    """The pool began to end before what had been asked for last was done."""

    def _done(self, *, more: bool = False) -> None:
        self.steps += 1
        if not more or len(self.acts) >= AT_ONCE:
            self.settle()

    def _end_turn(self) -> None:
        """Have what was asked for done before anything else is."""
        if self.acts:
            self.settle()

    def settle(self) -> None:
        """Do what was asked for, let everything come to rest, and compare."""
        self.sound = False
        before = self.loop.time()
        self._run(self._live_until(math.floor(before) + 1.0))
        self.has_rebalanced = (before - self.starts) // REBALANCE_INTERVAL < (
            self.loop.time() - self.starts
        ) // REBALANCE_INTERVAL
        self.compare()
        self.sound = True

    async def _live_until(self, moment: float) -> None:
        acts, self.acts = self.acts, []
        for act in acts:
            act()
        arrived = self.loop.create_future()
        self.loop.call_at(moment, arrived.set_result, None)
        await arrived

    def _run(self, coroutine: Any) -> None:
        self.loop.main = task = asyncio.Task(coroutine, loop=self.loop, name="main")
        self.loop.run_until_complete(task)

    # What must be true.

    def compare(self) -> None:
        assert not self.complaints
        assert not self.loop.errors
        self.connector.check()
        expired = self._compare_claims()
        if self.model.end(self.loop.time()):
            self.connector.forbid(allow=["abort"])
        self._compare_what_is_held()
        self._compare_connections(expired)
        self._compare_figures()
        self._compare_ending()
        for expectation in self.expectations:
            expectation()
        self.expectations.clear()

    def _compare_claims(self) -> int:
        """Compare who has got a connection, who waits, who was sent away and why; return how many waited in vain."""
        for number, error in self.rejected.items():
            assert self.claimers.pop(number).error is error
            self.model.line.pop(number, None)
        self.rejected.clear()
        if self.model.state is not PoolState.RUNNING:
            self._compare_line_of_the_ending()
            return 0
        served = [number for number in self.model.line if self.claimers[number].connection is not None]
        assert served == list(self.model.line)[: len(served)], "first come, first served"
        for number in served:
            self.model.serve(number, self.claimers[number].connection.backend.name)
        due = self.model.due(self.loop.time())
        unserved = len(self.model.line)
        for number in self.model.line:
            error = self.model.timeout_error(self.connected) if number in due else None
            assert self.claimers[number].error is error
        for number in due:
            del self.model.line[number], self.claimers[number]
        if unserved:
            assert not self.idle, "nobody waits while there is an idle connection"
            self._compare_room()
        return len(due)

    def _compare_line_of_the_ending(self) -> None:
        for number in list(self.model.line):
            claimer = self.claimers[number]
            if claimer.connection is not None and self.in_the_midst:
                self.model.serve(number, claimer.connection.backend.name)
            else:
                assert claimer.error is PoolTerminatedError
                del self.model.line[number], self.claimers[number]
        self.in_the_midst = False

    def _compare_what_is_held(self) -> None:
        over = self.model.state is PoolState.TERMINATED
        taken = over and self.model.ending.held == "revoke"
        for number in self.model.held:
            claimer = self.claimers[number]
            assert (claimer.connection in self.connector.unclosed) is not taken
            if claimer.claim is None:
                assert not claimer.task.done()
            elif taken:
                with pytest.raises(ClaimRevokedError):
                    _ = claimer.claim.connection
            else:
                assert claimer.claim.connection is claimer.connection

    def _compare_room(self) -> None:
        """Somebody has waited until now: let there be a reason."""
        model, cap = self.model, self.model.policy.max_slots_per_backend
        if not self.connected & model.published.keys() & model.broken:
            assert model.out == model.room, "as many claims are served as can be"
        # What a backend has that keeps its connections and makes no new ones counts, and not what it might have had.
        full = all(model.claims_on(name) == cap for name in model.accepting)
        assert full or model.out == model.budget, "as many claims are served as the backends that accept have room for"

    def _compare_connections(self, expired: int) -> None:
        model = self.model
        idle = Counter(one.backend.name for one in self.idle)
        assert self.connector.peak <= model.policy.max_slots
        assert max(self.connector.peak_of_backend.values(), default=0) <= model.policy.max_slots_per_backend
        open_ids = {one.id for one in self.connector.unclosed}
        assert not open_ids & self.to_be_closed, "what was dirty is closed"
        if model.state is not PoolState.RUNNING:
            assert not idle
            return
        assert idle.keys() <= model.published.keys(), "what has vanished has no idle connections"
        for one in self.idle:
            name = one.backend.name
            assert name in model.broken or one.backend.address == model.published[name].address
            found_by = self.dead.get(one.id, math.inf) + HEALTH_INTERVAL + 1
            assert found_by > self.loop.time(), "a dead connection is found when it is checked"
        if model.accepting == model.published.keys():
            self._compare_balance(expired)
        elif not self.connected & model.published.keys() and model.budget > 0:
            assert sum(one.connecting_slots for one in self.pool.stats().backends.values()), "it keeps trying"

    def _compare_balance(self, expired: int) -> None:
        """Compare how many connections there are, when all the backends would give some."""
        model = self.model
        here = Counter(one.backend.name for one in self.connector.unclosed if one.backend.name in model.published)
        assert sum(here.values()) >= model.wanted(len(model.line))
        if model.floors <= model.budget:
            assert here.keys() == model.published.keys(), "each has one at least"
        if self.has_rebalanced:
            slots = {name: self.slots[name] for name in model.published}
            assert sum(slots.values()) == model.after_rebalance(len(model.line) + expired)
            for name, other in itertools.permutations(slots, 2):
                floor, cap = max(1, model.claims_on(name)), model.policy.max_slots_per_backend
                assert slots[name] <= max(floor, slots[other] + 1) or slots[other] == cap, "slots are shared evenly"

    def _compare_figures(self) -> None:
        """Compare the pool's own figures with what the fake network knows."""
        model, stats = self.model, self.pool.stats()
        assert stats.state is self.pool.state is model.state
        assert stats.claims == model.served
        assert stats.waiting == len(model.line)
        if model.state is PoolState.TERMINATED:
            assert not stats.backends
            return
        if model.state is PoolState.RUNNING:
            assert stats.backends.keys() == model.published.keys() | set(model.held.values())
        assert sum(self.slots.values()) <= model.policy.max_slots
        idle = Counter(one.backend.name for one in self.idle)
        for name, one in stats.backends.items():
            assert one.claimed_slots == model.claims_on(name)
            assert one.unclaimed_slots + one.checking_slots == idle[name]
            assert self.slots[name] <= model.policy.max_slots_per_backend
            assert one.online is (name in self.connected)
            assert name not in model.published or one.backend == model.published[name]
        ledger = self.pool.ledger()
        assert ledger.connections == len(self.connector.unclosed)
        assert ledger.waiters == len(model.line)

    def _compare_ending(self) -> None:
        model, now = self.model, self.loop.time()
        for caller in self.callers:
            if caller.cancelled:
                assert caller.task.cancelled()
            elif caller.told_in_vain or (model.state is PoolState.TERMINATING and caller.deadline <= now):
                caller.told_in_vain = True
                assert isinstance(caller.task.exception(), TerminationError)
            else:
                assert caller.task.done() is (model.state is PoolState.TERMINATED)
                assert not caller.task.done() or caller.task.result() is None

    # The fake network.

    @property
    def idle(self) -> list[FakeConnection]:
        """The connections that are open and that nobody holds."""
        held = {self.claimers[number].connection.id for number in self.model.held}
        return [one for one in self.connector.unclosed if one.id not in held]

    @property
    def connected(self) -> set[str]:
        return {one.backend.name for one in self.connector.unclosed}

    @property
    def slots(self) -> Counter[str]:
        """How many slots each backend has, by the pool's own account."""
        return Counter(
            {
                name: one.connecting_slots + one.unclaimed_slots + one.checking_slots + one.claimed_slots
                for name, one in self.pool.stats().backends.items()
            }
        )


async def _call(function: Callable[[], object]) -> None:
    function()


def _assert_cancelled(claimer: Claimer) -> None:
    assert claimer.task.cancelled()


@pytest.mark.timeout(900)  # a failure is made small before it is told, which may take minutes
def test_a_pool_does_what_its_model_says_whatever_is_asked_of_it():
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(
            report_multiple_bugs=False, max_examples=2 * settings.default.max_examples, stateful_step_count=STEPS
        ),
    )
