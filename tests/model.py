"""A pool as plain data: what its users may count on once nothing is under way any more.

There are no tasks here, no timers and no plans. Where the pool is free to choose, as in which backend serves a claim,
the model is told what it chose and says whether that was allowed; the rest it knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qorb import (
    AllClaimsUsedError,
    Backend,
    ClaimTimeoutError,
    NoBackendsError,
    NoBackendsOnlineError,
    Policy,
    PoolState,
)

MAX_PENALTY = 8
LEAST_WEIGHT = 0.1


@dataclass
class Ending:
    """How the pool is being terminated."""

    held: str
    at: float
    """When claims that are still out are taken away or left to their claimers."""


@dataclass
class Model:
    """What has been asked of the pool, and what it has given."""

    policy: Policy
    published: dict[str, Backend] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """The names of backends that no connect reaches."""
    unfit: set[str] = field(default_factory=set)
    """The names of backends whose connections fail when they are validated or recycled."""
    state: PoolState = PoolState.RUNNING
    ending: Ending | None = None
    line: dict[int, float] = field(default_factory=dict)
    """Who asked and has got nothing yet, first come first, and until when each waits."""
    held: dict[int, str] = field(default_factory=dict)
    """Whose claims are out, and on which backend."""
    served: int = 0

    def serve(self, claim: int, backend: str) -> None:
        del self.line[claim]
        self.held[claim] = backend
        self.served += 1

    def end_by(self, moment: float, held: str) -> None:
        """Terminate: the earliest end wins, the first `held` stays."""
        if self.ending is None:
            self.state = PoolState.TERMINATING
            self.ending = Ending(held, moment)
        self.ending.at = min(self.ending.at, moment)

    def end(self, now: float) -> bool:
        """Be terminated if it is time for that; say whether it has been just now."""
        over = self.ending is not None and (not self.held or self.ending.at <= now)
        if over and self.state is PoolState.TERMINATING:
            self.state = PoolState.TERMINATED
            return True
        return False

    def claims_on(self, backend: str) -> int:
        return sum(name == backend for name in self.held.values())

    @property
    def accepting(self) -> set[str]:
        return self.published.keys() - self.broken

    @property
    def out(self) -> int:
        """Claims on backends that are published."""
        return sum(name in self.published for name in self.held.values())

    @property
    def budget(self) -> int:
        """What claims on backends that have vanished leave of max_slots."""
        return self.policy.max_slots - (len(self.held) - self.out)

    @property
    def room(self) -> int:
        """How many claims can be out at a time, as long as only the accepting backends have connections."""
        return min(self.budget, len(self.accepting) * self.policy.max_slots_per_backend)

    @property
    def ready_with(self) -> int:
        """How many connections to published backends there must be for the pool to be ready."""
        policy = self.policy
        if not policy.spares_wanted:
            return 0
        reachable = len(self.published) * policy.max_slots_per_backend
        return max(1, min(self.out + policy.spares_wanted, policy.max_slots, reachable))

    def wanted(self, waiting: int) -> int:
        """How many connections there should be at least, when every published backend is accepting."""
        return min(self.out + waiting + self.policy.spares_wanted, self.room)

    def after_rebalance(self, waiting: int) -> int:
        """How many slots there should be exactly, when every published backend is accepting."""
        return min(self.room, max(self.out + waiting + self.policy.spares_wanted, self.floors))

    @property
    def floors(self) -> int:
        """The least that the published backends have, if there is room for it: their claims, or one slot."""
        return sum(max(1, self.claims_on(name)) for name in self.published)

    def timeout_error(self, connected: set[str]) -> type[ClaimTimeoutError]:
        """What a claim gets at its deadline, when these backends have connections."""
        if not self.published:
            return NoBackendsError
        return AllClaimsUsedError if connected & self.published.keys() else NoBackendsOnlineError

    def rank(self, backend: str, failures: int) -> tuple[int, float]:
        """Lower is to be served first."""
        one = self.published[backend]
        load = self.claims_on(backend) + min(failures, MAX_PENALTY)
        return one.priority, load / (one.weight or LEAST_WEIGHT)

    def due(self, now: float) -> list[int]:
        return [claim for claim, deadline in self.line.items() if deadline <= now]
