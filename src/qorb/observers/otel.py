"""Pools in OpenTelemetry: `register` publishes metrics, SpanObserver makes spans of claims and connects.

The metrics are those of the semantic conventions for database client connection pools, `db.client.connection.*`. All
are read when they are collected; nothing is added to a claim. The three histograms among them are in otel_sdk.py.

Needs `pip install "qorb[otel]"`.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from qorb import events
from qorb.observers._failures import given_up
from qorb.observers._reading import Reading, Watched
from qorb.stats import PoolState

try:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter, get_meter_provider
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
except ImportError as _error:
    raise ImportError('qorb.observers.otel needs opentelemetry-api; run: pip install "qorb[otel]"') from _error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from qorb.events import Event
    from qorb.pool import Pool

__all__ = ["SpanObserver", "register"]

POOL_NAME: Final = "db.client.connection.pool.name"
_STATE: Final = "db.client.connection.state"
_BACKEND: Final = "qorb.backend"
"""The backend's name: unique within its pool, as its address need not be."""
_CONNECTIONS, _REQUESTS, _TIMEOUTS = "{connection}", "{request}", "{timeout}"

_published: Final[weakref.WeakKeyDictionary[MeterProvider, Watched]] = weakref.WeakKeyDictionary()
"""What each provider's instruments read. To one that gets them again the SDK gives the old ones, and no word."""


def register(pools: Iterable[Pool[Any]], meter_provider: MeterProvider | None = None) -> None:
    """Publish these pools' numbers as observable instruments of a meter provider, by default the global one.

    They are read when they are collected, from whatever thread that is done, and not kept alive by it. A pool that
    bears the name of an earlier one appears with "#2" and so on behind it, as long as it lives; one whose namesake is
    gone takes its place. It may be called again, for pools that come later; if that is to be with the global provider,
    set it before the first call.

    db.client.connection.count has, besides the pool and the state, the backend, as `qorb.backend`, `server.address` and
    `server.port`; besides "idle" and "used" there is the state "checking", for connections that are being checked or
    recycled. db.client.connection.limit was called db.client.connection.max before version 1.45 of the conventions, and
    is published under that name, too.
    """
    provider = get_meter_provider() if meter_provider is None else meter_provider
    if (watched := _published.get(provider)) is not None:
        watched.add(pools)
    else:
        _published[provider] = watched = Watched(pools)
        _create_instruments(get_meter("qorb.observers.otel", meter_provider=provider), watched)


def _create_instruments(meter: Meter, watched: Watched) -> None:
    def observing(observe: Callable[[Reading], Iterator[Observation]]) -> list[Callable[[CallbackOptions], Any]]:
        return [lambda _: [observation for reading in watched.read() for observation in observe(reading)]]

    for name, unit, description, observe in _GAUGES:
        meter.create_observable_up_down_counter(
            f"db.client.connection.{name}", observing(observe), unit=unit, description=description
        )
    meter.create_observable_counter(
        "db.client.connection.timeouts",
        observing(_Timeouts().observe),
        unit=_TIMEOUTS,
        description="The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
    )


def _counts(reading: Reading) -> Iterator[Observation]:
    for name, row in reading.stats.backends.items():
        states = {"idle": row.unclaimed_slots, "used": row.claimed_slots, "checking": row.checking_slots}
        for state, count in states.items():
            attributes: dict[str, str | int] = {
                POOL_NAME: reading.name,
                _STATE: state,
                _BACKEND: name,
                "server.address": row.backend.host,
                "server.port": row.backend.port,
            }
            yield Observation(count, attributes)


class _Timeouts:
    """Counts of timeouts that never fall: a pool that bears the name of one that is gone counts on from there."""

    def __init__(self) -> None:
        self._counted: dict[str, tuple[weakref.ref[Pool[Any]], int, int]] = {}
        """By name: the last pool of that name, how many there had been before it, and how many with it."""

    def observe(self, reading: Reading) -> Iterator[Observation]:
        """Observe one pool."""
        last, before, so_far = self._counted.get(reading.name, (None, 0, 0))
        if last is None or last() is not reading.pool:
            last, before = weakref.ref(reading.pool), so_far
        so_far = before + reading.stats.timeouts
        self._counted[reading.name] = last, before, so_far
        yield Observation(so_far, {POOL_NAME: reading.name})


def _of_pool(value: Callable[[Reading], int]) -> Callable[[Reading], Iterator[Observation]]:
    """Observe one number of each pool that has not ended."""

    def observe(reading: Reading) -> Iterator[Observation]:
        if reading.stats.state is not PoolState.TERMINATED:
            yield Observation(value(reading), {POOL_NAME: reading.name})

    return observe


_LIMIT: Final = (
    _CONNECTIONS,
    "The maximum number of open connections allowed.",
    _of_pool(lambda reading: reading.policy.max_slots),
)
_GAUGES: Final = (
    (
        "count",
        _CONNECTIONS,
        "The number of connections that are currently in state described by the `state` attribute.",
        _counts,
    ),
    (
        "idle.max",
        _CONNECTIONS,
        "The maximum number of idle open connections allowed.",
        _of_pool(lambda reading: reading.policy.max_slots),
    ),
    (
        "idle.min",
        _CONNECTIONS,
        "The minimum number of idle open connections allowed.",
        _of_pool(lambda reading: min(reading.policy.spares_wanted, reading.policy.max_slots)),
    ),
    ("limit", *_LIMIT),
    ("max", *_LIMIT),
    (
        "pending_requests",
        _REQUESTS,
        "The number of current pending requests for an open connection.",
        _of_pool(lambda reading: reading.stats.waiting),
    ),
)


class SpanObserver:
    """Makes a span of every claim, from claim() until the caller has the connection, and of every connect.

    `Pool(..., observer=SpanObserver(trace.get_tracer(__name__)))`. A claim's span is a child of the one that is current
    where the claim is made; connecting is nobody's, and its span a root. Spans of what failed have the status ERROR;
    those of what nobody wanted any longer, because it was cancelled or the pool ended, have none; all have the pool,
    and those of connects and of claims that were served the backend.

    With an observer every claim takes the long way, and a span costs several times what that does.
    """

    __slots__ = ("_claims", "_connects", "_tracer")

    def __init__(self, tracer: Tracer) -> None:
        """Make spans by this tracer."""
        self._tracer = tracer
        self._claims: dict[int, Span] = {}
        self._connects: dict[int, Span] = {}

    def __call__(self, event: Event) -> None:
        """Begin or end a span, when the event is about that."""
        match event:
            case events.ClaimStart():
                self._claims[event.claim_id] = self._start("qorb claim", event.pool, SpanKind.INTERNAL)
            case events.HandleClaimed():
                self._claims[event.claim_id].set_attributes({_BACKEND: event.backend, "qorb.slot.id": event.slot_id})
            case events.ClaimAcquireFailed():
                facts: dict[str, str | int] = {"qorb.reason": event.reason, "qorb.slot.id": event.slot_id}
                self._claims[event.claim_id].add_event("on_acquire failed", facts)
            case events.ClaimDone():
                self._claims.pop(event.claim_id).end()
            case events.ClaimFailed():
                _fail(self._claims.pop(event.claim_id), event)
            case events.ConnectStart():
                span = self._start("qorb connect", event.pool, SpanKind.CLIENT)
                span.set_attributes({_BACKEND: event.backend, "qorb.slot.id": event.slot_id})
                self._connects[event.slot_id] = span
            case events.ConnectDone():
                self._connects.pop(event.slot_id).end()
            case events.ConnectFailed():
                _fail(self._connects.pop(event.slot_id), event)
            case _:
                pass

    def _start(self, name: str, pool: str, kind: SpanKind) -> Span:
        return self._tracer.start_span(name, kind=kind, attributes={POOL_NAME: pool})


def _fail(span: Span, event: events.ClaimFailed | events.ConnectFailed) -> None:
    span.set_attribute("qorb.reason", event.reason)
    if not given_up(event):
        span.set_attribute("error.type", event.reason.partition(":")[0])
        span.set_status(Status(StatusCode.ERROR, event.reason))
    span.end()
