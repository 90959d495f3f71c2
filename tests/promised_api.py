"""The public interface as users may rely on it: names, parameters with their kinds and defaults, what is a coroutine.

tests/test_public_api.py compares it with the library. More may be added to the library; what stands here stays, and a
change here breaks somebody's program. Types are left out: tests/typing checks them.
"""

# ruff: noqa: B027 - bodies are left out

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

SOME = object()
"""A default that is not promised, only that there is one."""


@dataclass(frozen=True, order=True, slots=True)
class Backend:
    name: str
    host: str
    port: int
    server_name: str | None = None
    priority: int = 0
    weight: int = 1

    @classmethod
    def parse(cls, text, default_port=None): ...
    @property
    def address(self): ...
    def __str__(self): ...


class Resolver(ABC):
    @abstractmethod
    async def watch(self, publish): ...
    def monitor(self): ...


class Monitor:
    async def __aenter__(self): ...
    async def __aexit__(self, *exc): ...
    @property
    def backends(self): ...
    async def changed(self): ...
    async def terminate(self): ...


class Outcome(enum.Enum):
    CLEAN = "clean"
    ERROR = "error"
    CANCELLED = "cancelled"
    LEAKED = "leaked"


class Connector(ABC):
    @abstractmethod
    async def connect(self, backend): ...
    async def validate(self, connection): ...
    async def on_acquire(self, connection): ...
    async def on_recycle(self, connection, outcome): ...
    async def close(self, connection): ...
    def abort(self, connection): ...
    def is_closed(self, connection): ...
    def needs_recycle(self, connection, outcome): ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    spares_wanted: int = 8
    max_slots: int = 16
    max_slots_per_backend: int = 16
    rebalance_interval: float = 60.0
    claim_timeout: float = 30.0
    max_waiters: int = 10_000
    connect_timeout: float = 10.0
    min_connection_backoff: float = 0.020
    max_connection_backoff: float = 30.0
    spread: float = 0.020
    health_interval: float = 30.0
    health_check_timeout: float = 3.0
    close_timeout: float = 5.0
    max_lifetime: float = math.inf
    long_claim_warning: float = 60.0


class PoolState(enum.Enum):
    NEW = "new"
    RUNNING = "running"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


class Pool:
    def __init__(self, name, resolver, connector, policy=SOME, *, observer=None, rng=None): ...
    @property
    def state(self): ...
    async def start(self): ...
    async def __aenter__(self): ...
    async def __aexit__(self, *exc): ...
    async def ready(self, *, timeout=None): ...
    def claim(self, *, timeout=None): ...
    async def terminate(self, *, grace=5.0, held="revoke", timeout=None): ...
    def abort(self): ...
    def stats(self): ...
    def ledger(self): ...
    def explain(self): ...


class ClaimRequest:
    def __await__(self): ...
    async def __aenter__(self): ...
    async def __aexit__(self, *exc): ...


class Claim:
    @property
    def connection(self): ...
    @property
    def backend(self): ...
    def release(self, outcome=Outcome.CLEAN): ...
    def discard(self): ...
    def __enter__(self): ...
    def __exit__(self, *exc): ...


@dataclass(frozen=True, slots=True)
class Explanation:
    pool: str
    state: PoolState
    verdict: str
    holders: object
    waiting: object
    backends: object
    plan: object
    advice: object = ()

    def as_dict(self): ...
    def __str__(self): ...


@dataclass(frozen=True, slots=True)
class BackendStats:
    backend: Backend
    online: bool
    connecting_slots: int
    unclaimed_slots: int
    checking_slots: int
    claimed_slots: int
    total_claims: int
    failures: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class PoolStats:
    name: str
    state: PoolState
    claims: int
    waiting: int
    backends: dict[str, BackendStats]


@dataclass(frozen=True, slots=True)
class Ledger:
    tasks: tuple[str, ...]
    timers: int
    connections: int
    waiters: int
    threads: int

    @property
    def empty(self): ...


@dataclass(frozen=True, slots=True)
class Event:
    pool: str


class PoolError(Exception): ...


class ClaimError(PoolError): ...


class ClaimTimeoutError(ClaimError, TimeoutError): ...


class NoBackendsError(ClaimTimeoutError): ...


class NoBackendsOnlineError(ClaimTimeoutError): ...


class AllClaimsUsedError(ClaimTimeoutError): ...


class QueueFullError(ClaimError): ...


class PoolTerminatedError(PoolError): ...


class PoolNotStartedError(PoolError): ...


class TerminationError(PoolError): ...


class ClaimReleasedError(PoolError): ...


class ClaimRevokedError(PoolError): ...


class WrongLoopError(PoolError): ...


class PoolForkedError(PoolError): ...


class ResolveError(PoolError): ...


class ConnectError(PoolError): ...


class PolicyError(ValueError): ...


class FixedResolver(Resolver):
    async def watch(self, publish): ...
    def __init__(self, backends): ...


class ManualResolver(Resolver):
    async def watch(self, publish): ...
    def __init__(self, backends=()): ...
    def set(self, backends): ...


class FallbackResolver(Resolver):
    async def watch(self, publish): ...
    def __init__(self, resolvers, *, patience=0.5): ...


class MergeResolver(Resolver):
    async def watch(self, publish): ...
    def __init__(self, resolvers, *, patience=0.5): ...


class FileResolver(Resolver):
    async def watch(self, publish): ...
    def __init__(self, path, *, interval=1.0): ...


async def watch_all(resolvers, publishers): ...


class TcpStream: ...


class TcpConnector(Connector):
    async def connect(self, backend): ...
    def __init__(self, *, ssl=None, keepalive=30.0, user_timeout=30.0): ...


class FakeConnection: ...


class FakeConnector(Connector):
    async def connect(self, backend): ...
    def __init__(self, *, latency=0.001): ...
    def refuse(self, backend=None): ...
    def stall(self, operation=None): ...
    def invalidate(self, backend=None): ...
    def forbid(self): ...
    def heal(self): ...


def run(main, *, seed=0): ...


def assert_nothing_left(pool): ...


ERRORS = (
    *(PoolError, ClaimError, ClaimTimeoutError, NoBackendsError, NoBackendsOnlineError, AllClaimsUsedError),
    *(QueueFullError, PoolTerminatedError, PoolNotStartedError, TerminationError, ClaimReleasedError),
    *(ClaimRevokedError, WrongLoopError, PoolForkedError, ResolveError, ConnectError, PolicyError),
)

PROMISED = {
    "qorb": (
        *(Backend, Resolver, Monitor, Outcome, Connector, Policy, PoolState, Pool, ClaimRequest, Claim),
        *(BackendStats, PoolStats, Ledger, Explanation, Event),
        *ERRORS,
    ),
    "qorb.errors": ERRORS,
    "qorb.resolvers": (FixedResolver, ManualResolver, FallbackResolver, MergeResolver, FileResolver),
    "qorb.watching": (watch_all,),
    "qorb.connectors": (TcpStream, TcpConnector),
    "qorb.testing": (FakeConnection, FakeConnector, run, assert_nothing_left),
}
