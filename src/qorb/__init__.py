"""Connection pooling for asyncio services that talk to a service with many backends."""

from qorb.backend import Backend
from qorb.claim import Claim, ClaimRequest
from qorb.connector import Connector, Outcome
from qorb.errors import (
    AllClaimsUsedError,
    BackendUnfitError,
    ClaimError,
    ClaimReleasedError,
    ClaimRevokedError,
    ClaimTimeoutError,
    ConnectError,
    NoBackendsError,
    NoBackendsOnlineError,
    PolicyError,
    PoolError,
    PoolForkedError,
    PoolNotStartedError,
    PoolTerminatedError,
    QueueFullError,
    ResolveError,
    TerminationError,
    WrongLoopError,
)
from qorb.events import Event, Observer
from qorb.explanation import Explanation
from qorb.policy import Policy
from qorb.pool import Pool
from qorb.resolver import Monitor, Resolver
from qorb.stats import BackendStats, Histogram, Ledger, PoolState, PoolStats, Timings

__all__ = [
    "AllClaimsUsedError",
    "Backend",
    "BackendStats",
    "BackendUnfitError",
    "Claim",
    "ClaimError",
    "ClaimReleasedError",
    "ClaimRequest",
    "ClaimRevokedError",
    "ClaimTimeoutError",
    "ConnectError",
    "Connector",
    "Event",
    "Explanation",
    "Histogram",
    "Ledger",
    "Monitor",
    "NoBackendsError",
    "NoBackendsOnlineError",
    "Observer",
    "Outcome",
    "Policy",
    "PolicyError",
    "Pool",
    "PoolError",
    "PoolForkedError",
    "PoolNotStartedError",
    "PoolState",
    "PoolStats",
    "PoolTerminatedError",
    "QueueFullError",
    "ResolveError",
    "Resolver",
    "TerminationError",
    "Timings",
    "WrongLoopError",
]
