"""The books: what each client asked for, got and gave back, kept without looking into the pool."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qorb import (
    AllClaimsUsedError,
    ClaimTimeoutError,
    NoBackendsError,
    NoBackendsOnlineError,
    PoolState,
    PoolTerminatedError,
    QueueFullError,
)
from qorb._slot import CLAIMED
from tests.simulation.laws import BrokenError, Law, require, upholding

if TYPE_CHECKING:
    from qorb import Claim
    from qorb._engine import Engine
    from qorb.testing import FakeConnection
    from tests.simulation.situations import Situations


@dataclass(eq=False)
class Visit:
    """One claim, from the moment when it was asked for."""

    number: int
    client: str
    timeout: float
    began: float
    turn: int
    waiting: int
    """How many stood in line when it was asked for."""
    counted: int
    """The same, with those who had been cancelled and had not heard of it yet."""
    lateness: float
    """How long the loop had been blocked, and user code deaf, up to then."""
    connection: FakeConnection | None = None
    over: bool = False
    raised: bool = False
    """The body of the claim ended in an exception."""
    _finalizer: Any = field(default=None, repr=False)


class Books:
    """Who holds what, and what is allowed to have come of each claim."""

    def __init__(self, loop: asyncio.AbstractEventLoop, note: Any) -> None:
        self._loop = loop
        self._note = note
        self._serial = 0
        self.turn = 0
        self.deafness = 0.0
        """For so many seconds an on_acquire may go on after its time, as long as that is not healed."""
        self.lateness = 0.0
        """Seconds for which the loop was blocked or user code did not listen, all in all."""
        self.holding: dict[int, Visit] = {}
        """By the number of the connection."""
        self.granted_count = 0
        self.granted_to: Counter[str] = Counter()
        """By the name of the backend; so are the next."""
        self.unclean: Counter[str] = Counter()
        """Claims that did not end well."""
        self.open_visits: dict[Visit, None] = {}
        self.leaked = 0
        self.situations: Situations | None = None
        self.dirty: set[int] = set()
        """Connections of which a claim did not end well; no connector of the simulation cleans them."""
        self.set_changed_at = -math.inf
        self.policy: dict[str, float] = {}
        self.checks_closed = False
        self.prepares = False
        self.dropped_at: dict[int, float] = {}
        self.blocked_at = -math.inf

    def arrive(self, client: str, timeout: float, waiting: int, counted: int) -> Visit:
        """Note that a claim is asked for."""
        self._serial += 1
        lateness = self.lateness - self.deafness
        visit = Visit(self._serial, client, timeout, self._loop.time(), self.turn, waiting, counted, lateness)
        self.open_visits[visit] = None
        if self.situations is not None and waiting:
            own = any(other.client == client for other in self.holding.values())
            self.situations.see("a client that holds a connection waits for another", own)
        self._note(f"{client}: claim {visit.number}, timeout {timeout:g}, {waiting} waiting")
        return visit

    def granted(self, visit: Visit, connection: FakeConnection) -> None:
        """Note that a claim got its connection, and check that it may have it."""
        now = self._loop.time()
        self.granted_count += 1
        self._note(f"{visit.client}: claim {visit.number} got connection {connection.id} to {connection.backend}")
        require(not visit.over and visit.connection is None, f"claim {visit.number} was served twice", Law.ONCE)
        other = self.holding.get(connection.id)
        if other is not None:
            raise BrokenError(f"claims {other.number} and {visit.number} have connection {connection.id}", Law.OWNER)
        if visit.waiting and visit.turn == self.turn:
            text = f"claim {visit.number} was served at once, although {visit.waiting} were waiting"
            raise BrokenError(text, Law.LINE)
        late = now - visit.began - visit.timeout
        excused = self.lateness - visit.lateness
        if excused and self.prepares:  # after a stall, what was at hand is prepared although the time is over
            excused += self.policy["health_check_timeout"]
        if visit.timeout > 0 and late > 1e-9 + excused:
            raise BrokenError(f"claim {visit.number} was served {late:.6f} s after its deadline", Law.DEADLINE)
        dropped_at = self.dropped_at.get(connection.id, math.inf)
        if self.checks_closed and not self.prepares and dropped_at < now and self.blocked_at < dropped_at:
            text = f"claim {visit.number} got a connection that was closed at {dropped_at:.6f}"
            raise BrokenError(text, Law.FITNESS)
        if connection.id in self.dirty:
            raise BrokenError(f"claim {visit.number} got connection {connection.id}, which is dirty", Law.FITNESS)
        self.granted_to[connection.backend.name] += 1
        if self.situations is not None:
            self.situations.served(visit, connection.backend, now)
            self.situations.see("a claim is made inside the connector", visit.client == "connector")
        visit.connection = connection
        self.holding[connection.id] = visit

    def watch(self, visit: Visit, claim: Claim[FakeConnection]) -> None:
        """Notice when the Claim of a visit is dropped without release."""
        visit._finalizer = weakref.finalize(claim, self._dropped, visit)
        visit._finalizer.atexit = False

    def _dropped(self, visit: Visit) -> None:
        if not visit.over:
            self.leaked += 1
            if self.situations is not None:
                self.situations.see("a claim is dropped without release")
            self.gave_back(visit, clean=False)

    def gave_back(self, visit: Visit, *, clean: bool) -> None:
        """Note that a claim is about to be released."""
        if visit.over:
            return
        visit.over = True
        self.open_visits.pop(visit, None)
        if visit.connection is not None:
            self._note(f"{visit.client}: claim {visit.number} gives back {visit.connection.id}, clean: {clean}")
            self.holding.pop(visit.connection.id, None)
            if not clean:
                self.dirty.add(visit.connection.id)
                self.unclean[visit.connection.backend.name] += 1

    def gave_up(self, visit: Visit, error: BaseException, engine: Engine[Any], *, wrapped: float, asked: bool) -> None:
        """Note that a claim was not served, and check that it may end like that."""
        now = self._loop.time()
        visit.over = True
        self.open_visits.pop(visit, None)
        self._note(f"{visit.client}: claim {visit.number} failed: {type(error).__name__}")
        words = f"{error} {error!r} {error.__cause__!r}"
        require("canary" not in words, lambda: f"a secret in {error!r}", Law.SECRETS)
        spent, slack = now - visit.began, self.lateness - visit.lateness
        if isinstance(error, ClaimTimeoutError):
            self._check_deadline(visit, error, engine, spent, slack)
        elif isinstance(error, QueueFullError):
            full = visit.counted >= self.policy["max_waiters"] or wrapped < math.inf  # then it began a turn later
            text = f"claim {visit.number}: {error}, although only {visit.waiting} were waiting"
            require(full, text, Law.ONCE)
            if self.situations is not None:
                self.situations.see("the line is full")
        elif isinstance(error, PoolTerminatedError):
            ends = engine.state is not PoolState.RUNNING
            require(ends, f"claim {visit.number}: {error}, although the pool runs", Law.ONCE)
        elif isinstance(error, TimeoutError):
            text = f"claim {visit.number}: TimeoutError after {spent}, wanted {wrapped}"
            require(wrapped <= spent + 1e-9, text, Law.CANCELLATION)
        elif isinstance(error, asyncio.CancelledError):
            text = f"claim {visit.number} was cancelled, and nobody had asked for it"
            require(asked or wrapped < math.inf, text, Law.CANCELLATION)
        else:
            raise BrokenError(f"claim {visit.number} ended in {error!r}", Law.ONCE) from error

    @upholding(Law.DEADLINE)
    def _check_deadline(
        self, visit: Visit, error: ClaimTimeoutError, engine: Engine[Any], spent: float, slack: float
    ) -> None:
        what = f"claim {visit.number}, timeout {visit.timeout:g}, after {spent:.6f}: {type(error).__name__}"
        require(type(error) in (NoBackendsError, NoBackendsOnlineError, AllClaimsUsedError), what)
        if visit.timeout > 0:
            require(spent >= visit.timeout - 1e-9, f"{what}: too early")
            require(spent <= visit.timeout + 1e-6 + slack, f"{what}: too late by {spent - visit.timeout - slack:.6f}")
        elif not self.prepares:
            require(spent <= slack, f"{what}: it should not wait")
        if self.set_changed_at < self._loop.time() and engine.state is PoolState.RUNNING:
            require(isinstance(error, NoBackendsError) is not bool(engine.backends), f"{what}: {engine.backends}")

    def check_held(self, engine: Engine[Any]) -> None:
        """Check that whoever holds a connection still has it, and nobody else."""
        for visit in self.holding.values():
            connection = visit.connection
            slot = engine.connections.get(id(connection))
            if slot is None or slot.state is not CLAIMED or slot.connection is not connection:
                raise BrokenError(
                    f"claim {visit.number} holds {connection}, its slot is {slot and slot.state}", Law.OWNER
                )
