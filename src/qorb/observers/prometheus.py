"""Pools as Prometheus sees them: `exposition` writes its text format, PoolCollector feeds prometheus-client.

Numbers are read when they are asked for; nothing is added to a claim. For the histograms a pool needs Pool.measure().

`exposition` needs nothing but qorb; PoolCollector needs `pip install "qorb[prometheus]"`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Literal

from qorb.observers._reading import Reading, Watched, read
from qorb.stats import PoolState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric

    from qorb.pool import Pool
    from qorb.stats import Histogram

__all__ = ["CONTENT_TYPE", "PoolCollector", "exposition"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""What the text of `exposition` is, for an HTTP header."""

_Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Family:
    """One metric with all its series."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    description: str
    samples: list[tuple[_Labels, float]] = field(default_factory=list[tuple[_Labels, float]])
    histograms: list[tuple[_Labels, Histogram]] = field(default_factory=list["tuple[_Labels, Histogram]"])

    def add(self, value: float, **labels: str) -> None:
        self.samples.append((tuple(labels.items()), value))


class _Families:
    """All the metrics that there are about pools."""

    def __init__(self) -> None:
        self.all: list[_Family] = []
        self.pool_state = self._gauge("qorb_pool_state", "1 for the state that the pool is in, 0 for the others.")
        self.claims = self._counter("qorb_claims_total", "Claims that got their connection.")
        self.timeouts = self._counter("qorb_claim_timeouts_total", "Claims that ran out of time.")
        self.waiting = self._gauge("qorb_waiting_claims", "Claims in the waiting line.")
        self.max_slots = self._gauge("qorb_max_slots", "The most slots that the pool may have.")
        self.max_slots_per_backend = self._gauge(
            "qorb_max_slots_per_backend", "The most slots that a backend may have."
        )
        self.spares_wanted = self._gauge("qorb_spares_wanted", "Idle connections that the pool tries to keep ready.")
        self.online = self._gauge("qorb_backend_online", "1 for a backend with a live connection, otherwise 0.")
        self.slots = self._gauge("qorb_slots", "Slots by backend and state.")
        self.backend_claims = self._counter("qorb_backend_claims_total", "Claims that the backend served.")
        self.failures = self._gauge(
            "qorb_backend_recent_failures",
            "Failed connects, checks, recyclings and on_acquires of the last 2 x max_connection_backoff seconds.",
        )
        self.wait = self._histogram("qorb_claim_wait_seconds", "From claim() until the caller had the connection.")
        self.use = self._histogram("qorb_claim_use_seconds", "From there until it was given back.")
        self.connect = self._histogram("qorb_connect_seconds", "Calls of connect() that gave a connection.")

    def _gauge(self, name: str, description: str) -> _Family:
        return self._new(_Family(name, "gauge", description))

    def _counter(self, name: str, description: str) -> _Family:
        return self._new(_Family(name, "counter", description))

    def _histogram(self, name: str, description: str) -> _Family:
        return self._new(_Family(name, "histogram", description))

    def _new(self, family: _Family) -> _Family:
        self.all.append(family)
        return family

    def add(self, reading: Reading) -> None:
        """Add the series of one pool."""
        name, stats, policy = reading.name, reading.stats, reading.policy
        for state in PoolState:
            self.pool_state.add(state is stats.state, pool=name, state=state.value)
        self.claims.add(stats.claims, pool=name)
        self.timeouts.add(stats.timeouts, pool=name)
        self.waiting.add(stats.waiting, pool=name)
        self.max_slots.add(policy.max_slots, pool=name)
        self.max_slots_per_backend.add(policy.max_slots_per_backend, pool=name)
        self.spares_wanted.add(policy.spares_wanted, pool=name)
        for backend, row in stats.backends.items():
            self.online.add(row.online, pool=name, backend=backend)
            self.slots.add(row.connecting_slots, pool=name, backend=backend, state="connecting")
            self.slots.add(row.unclaimed_slots, pool=name, backend=backend, state="unclaimed")
            self.slots.add(row.checking_slots, pool=name, backend=backend, state="checking")
            self.slots.add(row.claimed_slots, pool=name, backend=backend, state="claimed")
            self.backend_claims.add(row.total_claims, pool=name, backend=backend)
            self.failures.add(row.failures, pool=name, backend=backend)
        if reading.timings is not None:
            labels = (("pool", name),)
            self.wait.histograms.append((labels, reading.timings.wait))
            self.use.histograms.append((labels, reading.timings.use))
            self.connect.histograms.append((labels, reading.timings.connect))


def _families(readings: Iterable[Reading]) -> list[_Family]:
    families = _Families()
    for reading in readings:
        families.add(reading)
    return families.all


def exposition(pools: Iterable[Pool[Any]]) -> str:
    """Write the numbers of the pools, of this very moment, in Prometheus' text format 0.0.4 (see CONTENT_TYPE).

    May be called from any thread. The histograms of a pool appear when it counts times: Pool.measure(). A pool that
    bears the name of an earlier one appears with "#2" and so on behind it. One that was started in another process,
    before a fork, does not appear.
    """
    return "".join(f"{line}\n" for family in _families(read(pools)) for line in _lines(family))


def _lines(family: _Family) -> Iterator[str]:
    yield f"# HELP {family.name} {_escaped(family.description)}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, value in family.samples:
        yield f"{family.name}{_written(labels)} {_number(value)}"
    for labels, histogram in family.histograms:
        for bound, count in _added_up(histogram):
            yield f"{family.name}_bucket{_written((*labels, ('le', bound)))} {count}"
        yield f"{family.name}_sum{_written(labels)} {_number(histogram.sum)}"
        yield f"{family.name}_count{_written(labels)} {histogram.total}"


def _added_up(histogram: Histogram) -> Iterator[tuple[str, int]]:
    """Give the buckets as Prometheus wants them: how many were no greater than each bound."""
    bounds = [*map(repr, histogram.bounds), "+Inf"]
    return zip(bounds, accumulate(histogram.counts), strict=True)


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, int) else repr(value)


def _written(labels: _Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels) + "}"


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


class PoolCollector:
    """A collector for prometheus-client: `REGISTRY.register(PoolCollector([pool]))`.

    The pools are read whenever the registry is, from whatever thread that is done; they are not kept alive by it. The
    metrics are those of `exposition`. Give it all pools: a registry takes no second one. Raises ImportError, with the
    command that helps, without prometheus-client.
    """

    __slots__ = ("_metric", "_pools")

    def __init__(self, pools: Iterable[Pool[Any]]) -> None:
        """Collect from these pools, which need not have been started."""
        self._metric = _metric_class()
        self._pools = Watched(pools)

    def describe(self) -> Iterator[Metric]:
        """Give the metrics without series, so that the registry knows their names."""
        return (_filled(self._metric, family) for family in _families([]))

    def collect(self) -> Iterator[Metric]:
        """Give the numbers of this moment."""
        return (_filled(self._metric, family) for family in _families(self._pools.read()))


def _metric_class() -> type[Metric]:
    """Import what exposition() is to work without."""
    try:
        from prometheus_client import Metric  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            'PoolCollector needs prometheus-client; run: pip install "qorb[prometheus]"; exposition() needs nothing'
        ) from error
    return Metric


def _filled(kind: type[Metric], family: _Family) -> Metric:
    # Of a counter the registry wants the name without its suffix, which each sample has.
    metric = kind(family.name.removesuffix("_total"), family.description, family.kind)
    for labels, value in family.samples:
        metric.add_sample(family.name, dict(labels), value)
    for labels, histogram in family.histograms:
        for bound, count in _added_up(histogram):
            metric.add_sample(f"{family.name}_bucket", {**dict(labels), "le": bound}, count)
        metric.add_sample(f"{family.name}_sum", dict(labels), histogram.sum)
        metric.add_sample(f"{family.name}_count", dict(labels), histogram.total)
    return metric
