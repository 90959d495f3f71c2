"""TimingsExporter: the histograms of the conventions for connection pools, added to what OpenTelemetry's SDK exports.

OpenTelemetry has no histogram that is read when it is collected, and to record every claim in one would cost several
times the claim. docs/decisions/0006-timings-join-the-export.md says more.

Needs `pip install "qorb[otel-sdk]"`.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, Final, cast

from qorb.observers._reading import Watched
from qorb.observers.otel import POOL_NAME
from qorb.stats import Histogram

try:
    from opentelemetry.sdk.metrics import Histogram as HistogramInstrument
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        HistogramDataPoint,
        Metric,
        MetricExporter,
        MetricExportResult,
        MetricsData,
        ScopeMetrics,
    )
    from opentelemetry.sdk.metrics.export import Histogram as ExportedHistogram
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
except ImportError as _error:
    raise ImportError('TimingsExporter needs opentelemetry-sdk; run: pip install "qorb[otel-sdk]"') from _error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qorb.pool import Pool
    from qorb.stats import Timings

__all__ = ["TimingsExporter"]

_KINDS: Final[tuple[tuple[str, str, Callable[[Timings], Histogram]], ...]] = (
    ("create_time", "The time it took to create a new connection.", lambda timings: timings.connect),
    ("wait_time", "The time it took to obtain an open connection from the pool.", lambda timings: timings.wait),
    ("use_time", "The time between borrowing a connection and returning it to the pool.", lambda timings: timings.use),
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Mark:
    """From where on is counted: what the histogram said then, and when that was."""

    histogram: Histogram
    moment: int
    """Nanoseconds since the epoch."""


class TimingsExporter(MetricExporter):
    """Wraps an exporter, to whose exports it adds the histograms of pools that count times: Pool.measure().

    `PeriodicExportingMetricReader(TimingsExporter(OTLPMetricExporter(), pools))`, and `register(pools, provider)` for
    the other metrics, without which the SDK has nothing to export, and nothing that the histograms can join.

    Counts, sums and buckets are exact, and begin when this is made; the least and the greatest value are not known and
    None. Temporality is what the exporter prefers for histograms. The pools are not kept alive.
    """

    def __init__(self, exporter: MetricExporter, pools: Iterable[Pool[Any]]) -> None:
        """Export through this exporter, as it prefers it."""
        preferred = exporter._preferred_temporality  # noqa: SLF001 - where PeriodicExportingMetricReader looks, too
        super().__init__(preferred, exporter._preferred_aggregation)  # noqa: SLF001 - as above
        self._exporter: Any = exporter  # not all of its signature has types
        self._watched = Watched(pools)
        self._temporality = (preferred or {}).get(HistogramInstrument, AggregationTemporality.CUMULATIVE)
        self._began = time.time_ns()
        self._marks: dict[tuple[str, str], _Mark] = {}
        self._points(self._began)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: object) -> MetricExportResult:
        """Export what the SDK has collected, and the histograms."""
        result: MetricExportResult = self._exporter.export(
            self._joined(metrics_data), timeout_millis=timeout_millis, **kwargs
        )
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Let the exporter do so."""
        return bool(self._exporter.force_flush(timeout_millis))

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: object) -> None:
        """Let the exporter do so."""
        self._exporter.shutdown(timeout_millis, **kwargs)

    def _joined(self, metrics_data: MetricsData) -> MetricsData:
        """Add the histograms to those metrics that have the first resource: there is one for each provider."""
        metrics = [
            Metric(f"db.client.connection.{name}", description, "s", ExportedHistogram(points, self._temporality))
            for (name, description, _), points in zip(_KINDS, self._points(time.time_ns()), strict=True)
            if points
        ]
        if not metrics or not metrics_data.resource_metrics:
            return metrics_data
        first, *others = metrics_data.resource_metrics
        ours = ScopeMetrics(InstrumentationScope("qorb.observers.otel_sdk"), metrics, "")
        first = dataclasses.replace(first, scope_metrics=[*first.scope_metrics, ours])
        return dataclasses.replace(metrics_data, resource_metrics=[first, *others])

    def _points(self, now: int) -> list[list[HistogramDataPoint]]:
        """Give the points of every kind, one for each pool that counts times and has something to tell."""
        points: list[list[HistogramDataPoint]] = [[] for _ in _KINDS]
        for reading in self._watched.read():
            if reading.timings is None:
                continue
            for of_kind, (kind, _, chosen) in zip(points, _KINDS, strict=True):
                point = self._point((reading.name, kind), chosen(reading.timings), now)
                if point is not None:
                    of_kind.append(point)
        return points

    def _point(self, key: tuple[str, str], histogram: Histogram, now: int) -> HistogramDataPoint | None:
        mark = self._marks.get(key)
        if mark is None or mark.histogram.bounds != histogram.bounds or mark.histogram.total > histogram.total:
            # Either there is no earlier one, and at birth all that there is was before; or it has begun anew.
            nothing = Histogram(histogram.bounds, (0,) * len(histogram.counts), 0, 0.0)
            mark = _Mark(histogram if now == self._began else nothing, self._began if mark is None else now)
            self._marks[key] = mark
        if self._temporality is AggregationTemporality.DELTA:
            self._marks[key] = _Mark(histogram, now)
        count = histogram.total - mark.histogram.total
        if not count:
            return None
        return HistogramDataPoint(
            attributes={POOL_NAME: key[0]},
            start_time_unix_nano=mark.moment,
            time_unix_nano=now,
            count=count,
            sum=histogram.sum - mark.histogram.sum,
            bucket_counts=[one - before for one, before in zip(histogram.counts, mark.histogram.counts, strict=True)],
            explicit_bounds=histogram.bounds,
            min=cast("Any", None),  # as the protocol has it, where they are optional
            max=cast("Any", None),
        )
