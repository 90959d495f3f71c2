"""What happened, as values: an observer is called with one of these (the original's USDT probes, as Python objects).

An observer is called synchronously, in the pool's event loop, at the moment when the thing happened; it must be quick
and must not await. What it raises is reported once and harms nothing; KeyboardInterrupt and SystemExit leave the loop
in its next turn. Claim and slot ids are unique 64-bit integers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qorb._core.quick import quickly_made
from qorb.errors import kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qorb.stats import BackendStats


@quickly_made
@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    pool: str


@quickly_made
@dataclass(frozen=True, slots=True)
class _ClaimEvent(Event):
    claim_id: int


@quickly_made
@dataclass(frozen=True, slots=True)
class _SlotEvent(Event):
    slot_id: int
    backend: str


@quickly_made
@dataclass(frozen=True, slots=True)
class _SlotFailure(_SlotEvent):
    reason: str


class ClaimStart(_ClaimEvent):
    """claim-start: claim() was entered."""

    __slots__ = ()


@quickly_made
@dataclass(frozen=True, slots=True)
class ClaimDone(_ClaimEvent):
    """claim-done: the caller has its connection, after `wait` seconds."""

    slot_id: int
    wait: float


@quickly_made
@dataclass(frozen=True, slots=True)
class ClaimFailed(_ClaimEvent):
    """claim-failed: the claim gave up, was refused or was cancelled."""

    wait: float
    reason: str


@quickly_made
@dataclass(frozen=True, slots=True)
class ClaimAcquireFailed(_ClaimEvent):
    """claim-acquire-failed: on_acquire failed or timed out; the claim goes on."""

    slot_id: int
    reason: str


class PoolClaimStart(_ClaimEvent):
    """pool-claim-start: an attempt to find a slot begins; repeats while the claim waits."""

    __slots__ = ()


@quickly_made
@dataclass(frozen=True, slots=True)
class PoolClaimDone(_ClaimEvent):
    """pool-claim-done: the attempt found a slot."""

    slot_id: int


class PoolClaimFailed(_ClaimEvent):
    """pool-claim-failed: no slot is free at this moment."""

    __slots__ = ()


@quickly_made
@dataclass(frozen=True, slots=True)
class SlotSetClaimStart(_ClaimEvent):
    """slot-set-claim-start: one backend is tried."""

    backend: str


@quickly_made
@dataclass(frozen=True, slots=True)
class SlotSetClaimDone(_ClaimEvent):
    """slot-set-claim-done: that backend had a slot."""

    backend: str
    slot_id: int


@quickly_made
@dataclass(frozen=True, slots=True)
class SlotSetClaimFailed(_ClaimEvent):
    """slot-set-claim-failed: that backend had none that was fit."""

    backend: str
    reason: str


class ConnectStart(_SlotEvent):
    """connect-start."""

    __slots__ = ()


class ConnectDone(_SlotEvent):
    """connect-done."""

    __slots__ = ()


class ConnectFailed(_SlotFailure):
    """connect-failed: the attempt failed, timed out or was given up."""

    __slots__ = ()


@quickly_made
@dataclass(frozen=True, slots=True)
class SlotSetOnline(Event):
    """slot-set-online: the backend has a live connection now."""

    backend: str
    has_unclaimed_slots: bool


@quickly_made
@dataclass(frozen=True, slots=True)
class SlotSetOffline(Event):
    """slot-set-offline: the backend has no live connection any more."""

    backend: str
    has_unclaimed_slots: bool


@quickly_made
@dataclass(frozen=True, slots=True)
class SlotStateChange(Event):
    """slot-state-change: every transition, with the state names that travel on the wire; `stats` is after it."""

    backend: str
    slot_id: int
    old: str
    new: str
    stats: BackendStats


@quickly_made
@dataclass(frozen=True, slots=True)
class HandleClaimed(Event):
    """handle-claimed: a slot was taken for a claim, before on_acquire."""

    claim_id: int
    slot_id: int
    backend: str


@quickly_made
@dataclass(frozen=True, slots=True)
class HandleReturned(Event):
    """handle-returned: the slot is back, or at the pool's end taken back, or its connection detached."""

    claim_id: int
    slot_id: int
    backend: str


class HealthCheckStart(_SlotEvent):
    """health-check-start."""

    __slots__ = ()


class HealthCheckDone(_SlotEvent):
    """health-check-done."""

    __slots__ = ()


class HealthCheckFailed(_SlotFailure):
    """health-check-failed: validate raised, timed out or was given up."""

    __slots__ = ()


class RecycleStart(_SlotEvent):
    """recycle-start."""

    __slots__ = ()


class RecycleDone(_SlotEvent):
    """recycle-done."""

    __slots__ = ()


class RecycleFailed(_SlotFailure):
    """recycle-failed: on_recycle raised, timed out or was given up."""

    __slots__ = ()


@quickly_made
@dataclass(frozen=True, slots=True)
class RebalanceStart(Event):
    """rebalance-start: the plan is about to be carried out. Positive: slots to start, negative: slots to end."""

    plan: Mapping[str, int]


@quickly_made
@dataclass(frozen=True, slots=True)
class RebalanceDone(Event):
    """rebalance-done: the plan has been carried out; connecting and closing go on."""

    plan: Mapping[str, int]


@quickly_made
@dataclass(frozen=True, slots=True)
class ResolverUpdated(Event):
    """resolver-updated: names of the backends that came, went, or changed under the same name."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


@quickly_made
@dataclass(frozen=True, slots=True)
class ResolverFailed(Event):
    """resolver-failed: there is no newer set of backends, and why; the last one stays."""

    reason: str


@quickly_made
@dataclass(frozen=True, slots=True)
class ResolverQueryStart(Event):
    """resolver-query-start: the resolver asks a server."""

    server: str
    question: str


@quickly_made
@dataclass(frozen=True, slots=True)
class ResolverQueryDone(Event):
    """resolver-query-done: it has so many records; `ttl`: seconds until the first of them expires."""

    server: str
    question: str
    records: int
    ttl: float


@quickly_made
@dataclass(frozen=True, slots=True)
class ResolverQueryFailed(Event):
    """resolver-query-failed: it says that there are none, or gives no answer that can be used."""

    server: str
    question: str
    reason: str


@quickly_made
@dataclass(frozen=True, slots=True)
class PoolTerminateStart(Event):
    """pool-terminate-start."""

    left: str


@quickly_made
@dataclass(frozen=True, slots=True)
class PoolTerminateDone(Event):
    """pool-terminate-done: nothing of the pool is running any more."""

    left: str


Observer = Callable[[Event], None]


def check_observer(observer: object) -> None:
    """Raise TypeError for what cannot be an observer."""
    if not callable(observer):
        raise TypeError(f"observer must be callable, not {kind_of(observer)}")
    for function in (observer, type(observer).__call__):
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("observer must be a plain function, not an async one: nobody would await what it returns")
