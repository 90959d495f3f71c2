"""Metrics and spans as OpenTelemetry's SDK collects them, beside what the semantic conventions ask for."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import Histogram as HistogramInstrument
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    InMemoryMetricReader,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
    Sum,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes.db_attributes import (
    DB_CLIENT_CONNECTION_POOL_NAME,
    DB_CLIENT_CONNECTION_STATE,
    DbClientConnectionStateValues,
)
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.trace import StatusCode

from qorb import ClaimTimeoutError, Policy, Pool, PoolTerminatedError
from qorb.observers.otel import SpanObserver, register
from qorb.observers.otel_sdk import TimingsExporter
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, run, settle
from tests.pools import backends, hold


class KeepingExporter(MetricExporter):
    """Keeps what it is given."""

    def __init__(self, temporality: AggregationTemporality | None = None) -> None:
        super().__init__(None if temporality is None else {HistogramInstrument: temporality})
        self.kept: list[MetricsData] = []
        self.calls: list[str] = []

    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        self.kept.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        self.calls.append("force_flush")
        return True

    def shutdown(self, timeout_millis=30_000, **kwargs):
        self.calls.append("shutdown")


def metrics_of(told: MetricsData | None) -> dict[str, Metric]:
    resources = [] if told is None else told.resource_metrics
    found = [metric for one in resources for scope in one.scope_metrics for metric in scope.metrics]
    named = {metric.name: metric for metric in found}
    assert len(named) == len(found)
    return named


class Collected:
    """One provider that publishes pools, and what it exports whenever it is asked."""

    def __init__(self, *pools: Pool, temporality: AggregationTemporality | None = None) -> None:
        self.exporter = KeepingExporter(temporality)
        self.reader = PeriodicExportingMetricReader(TimingsExporter(self.exporter, pools), 1e9)
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)
        register(pools, self.provider)

    def now(self) -> dict[str, Metric]:
        self.reader.collect()
        return metrics_of(self.exporter.kept[-1] if self.exporter.kept else None)

    def close(self) -> None:
        self.provider.shutdown()


@contextlib.contextmanager
def collected(*pools: Pool, **settings) -> Iterator[Collected]:
    one = Collected(*pools, **settings)
    try:
        yield one
    finally:
        one.close()


def points(metric: Metric, *names: str) -> dict[tuple[object, ...], object]:
    of = [DB_CLIENT_CONNECTION_POOL_NAME, *names]
    return {tuple(point.attributes[name] for name in of): point.value for point in metric.data.data_points}


def a_pool(name: str = "main", connector: FakeConnector | None = None, **policy) -> Pool:
    connector = FakeConnector(latency=0) if connector is None else connector
    pool = Pool(name, FixedResolver(backends(2)), connector, Policy(**{"max_slots": 2, "spread": 0} | policy))
    pool.measure([0.1, 1.0])
    return pool


def a_busy_moment(**policy) -> dict[str, Metric]:
    async def main():
        pool = a_pool(**policy)
        with collected(pool) as told:
            async with pool:
                await pool.ready()
                await hold(pool, 0.5)
                async with pool.claim():
                    await hold(pool, 2)
                    other = await pool.claim()
                    with pytest.raises(ClaimTimeoutError):
                        await pool.claim(timeout=0.5)
                    waiting = asyncio.create_task(hold(pool, 0))
                    await settle()
                    metrics = told.now()
                    other.release()
                    await waiting
        return metrics

    return run(main)


def conventions() -> dict[str, tuple[str, str, str]]:
    """Give the metrics of the conventions: name -> (kind of instrument, unit, description)."""

    class Asked:
        """Stands in for a meter."""

        def __getattr__(self, method: str):
            def create(name: str, description: str, unit: str) -> tuple[str, str, str, str]:
                return name, method.removeprefix("create_"), unit, description

            return create

    makers = [maker for name, maker in vars(db_metrics).items() if name.startswith("create_db_client_connection_")]
    asked = {name: rest for name, *rest in (maker(Asked()) for maker in makers)}
    # Version 1.45 of the conventions calls it so; opentelemetry-semantic-conventions is at 1.44.
    return {"db.client.connection.limit": asked["db.client.connection.max"]} | asked


def test_every_metric_of_the_conventions_is_there_as_they_ask_for_it_and_no_other():
    found = {}
    for name, metric in a_busy_moment().items():
        if isinstance(metric.data, Histogram):
            kind = "histogram"
        else:
            assert isinstance(metric.data, Sum)
            kind = "counter" if metric.data.is_monotonic else "up_down_counter"
        found[name] = [kind, metric.unit, metric.description]
    assert found == conventions()
    assert len(found) == 10


def test_the_attributes_are_those_of_the_conventions_and_our_backend():
    for name, metric in a_busy_moment().items():
        for point in metric.data.data_points:
            assert point.attributes[DB_CLIENT_CONNECTION_POOL_NAME] == "main"
            more = set(point.attributes) - {DB_CLIENT_CONNECTION_POOL_NAME}
            if name == db_metrics.DB_CLIENT_CONNECTION_COUNT:
                assert more == {DB_CLIENT_CONNECTION_STATE, SERVER_ADDRESS, SERVER_PORT, "qorb.backend"}
            else:
                assert more == set()


def test_the_numbers_are_those_of_the_pool():
    metrics = a_busy_moment(spares_wanted=9)

    def number(name: str) -> object:
        return points(metrics[f"db.client.connection.{name}"])["main",]

    assert number("idle.max") == 2
    assert number("idle.min") == 2
    assert number("limit") == 2
    assert number("max") == 2
    assert number("pending_requests") == 1
    assert number("timeouts") == 1
    counts = points(metrics["db.client.connection.count"], DB_CLIENT_CONNECTION_STATE, "qorb.backend", SERVER_ADDRESS)
    idle, used = (state.value for state in DbClientConnectionStateValues)
    assert counts == {
        ("main", idle, "b0", "10.0.0.1"): 0,
        ("main", idle, "b1", "10.0.0.2"): 0,
        ("main", used, "b0", "10.0.0.1"): 1,
        ("main", used, "b1", "10.0.0.2"): 1,
        ("main", "checking", "b0", "10.0.0.1"): 0,
        ("main", "checking", "b1", "10.0.0.2"): 0,
    }


def test_the_histograms_are_exact():
    (use,) = a_busy_moment()["db.client.connection.use_time"].data.data_points
    assert (use.count, use.bucket_counts, use.explicit_bounds) == (2, [0, 1, 1], (0.1, 1.0))
    assert use.sum == pytest.approx(2.5)
    assert use.min is None
    assert use.max is None
    assert use.start_time_unix_nano < use.time_unix_nano <= time.time_ns()


def totals(temporality: AggregationTemporality | None) -> list[tuple[int, float, bool]]:
    """Collect four times: after 2 claims, 1, none, and 1 after measuring has begun anew with other bounds."""

    async def main():
        pool = a_pool()
        found = []
        async with pool:
            await pool.ready()
            await hold(pool, 0.25)  # before there is an exporter
            with collected(pool, temporality=temporality) as told:
                for seconds in ([0.5, 2.0], [0.5], [], "anew", [4.0]):
                    if seconds == "anew":
                        pool.measure([5.0])
                        continue
                    for each in seconds:
                        await hold(pool, each)
                    metric = told.now().get("db.client.connection.use_time")
                    if metric is None:
                        found.append(None)
                        continue
                    (point,) = metric.data.data_points
                    assert metric.data.aggregation_temporality == (temporality or AggregationTemporality.CUMULATIVE)
                    assert sum(point.bucket_counts) == point.count
                    found.append((point.count, round(point.sum, 6), point.start_time_unix_nano))
        return found

    return run(main)


@pytest.mark.parametrize("temporality", [None, AggregationTemporality.CUMULATIVE])
def test_cumulative_histograms_begin_with_the_exporter(temporality):
    first, second, third, anew = totals(temporality)
    assert [first[:2], second[:2], third[:2]] == [(2, 2.5), (3, 3.0), (3, 3.0)]
    assert first[2] == second[2] == third[2]
    assert anew[:2] == (1, 4.0)
    assert anew[2] > third[2]


def test_delta_histograms_begin_where_the_last_export_ended():
    first, second, third, anew = totals(AggregationTemporality.DELTA)
    assert [first[:2], second[:2], third, anew[:2]] == [(2, 2.5), (1, 0.5), None, (1, 4.0)]
    assert first[2] < second[2] < anew[2]


def test_a_pool_that_counts_no_times_has_all_but_the_histograms():
    pool = Pool("p", FixedResolver(backends(1)), FakeConnector())
    with collected(pool) as told:
        names = set(told.now())
    assert names == {
        "db.client.connection.idle.max",
        "db.client.connection.idle.min",
        "db.client.connection.limit",
        "db.client.connection.max",
        "db.client.connection.pending_requests",
        "db.client.connection.timeouts",
    }


def test_flush_and_shutdown_reach_the_exporter():
    with collected() as told:
        assert told.provider.force_flush()
    assert told.exporter.calls[0] == "force_flush"
    assert told.exporter.calls[-1] == "shutdown"
    exporter = KeepingExporter()
    assert TimingsExporter(exporter, []).force_flush()
    assert exporter.calls == ["force_flush"]


def test_what_has_no_resource_is_passed_on_as_it_is():
    exporter = KeepingExporter()
    nothing = MetricsData([])
    assert TimingsExporter(exporter, [a_pool()]).export(nothing) is MetricExportResult.SUCCESS
    assert exporter.kept == [nothing]


def test_several_pools_are_told_apart_even_by_one_name():
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    pools = [a_pool("a"), a_pool("b", max_slots=3), a_pool("a", max_slots=4)]
    register(pools, provider)
    most = points(metrics_of(reader.get_metrics_data())["db.client.connection.limit"])
    provider.shutdown()
    assert most == {("a",): 2, ("b",): 3, ("a#2",): 4}


def test_pools_that_come_later_are_published_by_another_call():
    reader, other = InMemoryMetricReader(), InMemoryMetricReader()
    providers = [MeterProvider([each], shutdown_on_exit=False) for each in (reader, other)]

    def most() -> dict[tuple[object, ...], object]:
        return points(metrics_of(reader.get_metrics_data())["db.client.connection.limit"])

    first, second = a_pool("a"), a_pool("b", max_slots=3)
    register([first], providers[0])
    register([second], providers[1])
    assert most() == {("a",): 2}
    register([second, first, second], providers[0])
    assert most() == {("a",): 2, ("b",): 3}
    del first
    gc.collect()
    again = a_pool("a", max_slots=4)
    register([again], providers[0])
    assert most() == {("b",): 3, ("a",): 4}
    for provider in providers:
        provider.shutdown()


def test_timeouts_never_count_backwards_when_a_pool_begins_anew_under_its_name():
    reader = InMemoryMetricReader(preferred_temporality={ObservableCounter: AggregationTemporality.DELTA})
    provider = MeterProvider([reader], shutdown_on_exit=False)

    async def life(timeouts):
        pool = a_pool()
        register([pool], provider)
        async with pool, pool.claim(), pool.claim():
            for _ in range(timeouts):
                with pytest.raises(ClaimTimeoutError):
                    await pool.claim(timeout=0)
        return points(metrics_of(reader.get_metrics_data())["db.client.connection.timeouts"])

    told = []
    for timeouts in (5, 2, 9):
        told.append(run(lambda count=timeouts: life(count)))
        gc.collect()
    provider.shutdown()
    assert told == [{("main",): 5}, {("main",): 2}, {("main",): 9}]


@pytest.mark.parametrize(
    ("temporality", "later"),
    [(AggregationTemporality.DELTA, [0, 2, 0]), (AggregationTemporality.CUMULATIVE, [0, 5, 0])],
)
def test_no_pool_goes_on_with_the_histograms_of_a_namesake_that_is_gone(temporality, later):
    def uses(told):
        metric = told.now()["db.client.connection.use_time"]
        return {
            point.attributes[DB_CLIENT_CONNECTION_POOL_NAME]: list(point.bucket_counts)
            for point in metric.data.data_points
        }

    async def main():
        first, second = a_pool("a"), a_pool("a")
        for pool in (first, second):
            pool.measure((0.1, 1.0))
        told = Collected(first, second, temporality=temporality)
        async with second:
            async with first:
                for _ in range(4):
                    await hold(first, 0.01)
            for _ in range(3):
                await hold(second, 0.5)
            before = uses(told)
            del first, pool
            gc.collect()
            for _ in range(2):
                await hold(second, 0.5)
            after = uses(told)
        told.close()
        return before, after

    assert run(main) == ({"a": [4, 0, 0], "a#2": [0, 3, 0]}, {"a#2": later})


def test_a_pool_that_has_ended_keeps_its_timeouts_and_has_no_connections():
    async def main():
        pool = a_pool()
        async with pool, pool.claim(), pool.claim():
            with pytest.raises(ClaimTimeoutError):
                await pool.claim(timeout=0)
        return pool

    pool = run(main)
    with collected(pool) as told:
        metrics = told.now()
    assert set(metrics) == {"db.client.connection.timeouts"}
    assert points(metrics["db.client.connection.timeouts"]) == {("main",): 1}


def test_no_pool_is_kept_alive():
    pool = a_pool()
    told = Collected(pool)
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None
    assert told.now() == {}
    told.close()


def test_it_may_be_collected_in_another_thread_while_the_pool_works():
    async def main():
        pool = a_pool(max_slots=4)
        failed: list[BaseException] = []
        done = threading.Event()
        with collected(pool) as told:

            def look() -> None:
                try:
                    while not done.is_set():
                        told.now()
                except BaseException as error:  # noqa: BLE001 - it is looked at in the other thread
                    failed.append(error)

            async with pool:
                thread = threading.Thread(target=look)
                thread.start()
                try:
                    for _ in range(300):
                        await hold(pool, 0)
                finally:
                    done.set()
                    thread.join()
            (point,) = told.now()["db.client.connection.use_time"].data.data_points
        assert failed == []
        assert point.count == 300

    run(main)


def test_nothing_is_collected_in_vain_without_an_sdk():
    register([a_pool()], NoOpMeterProvider())
    register([a_pool()])


# Spans.


class Traced:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("tests")
        self.observer = SpanObserver(self.tracer)

    def spans(self, name: str) -> list:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


def traced(main, connector: FakeConnector | None = None, **policy) -> Traced:
    one = Traced()

    async def with_pool():
        settings = Policy(**{"max_slots": 1, "spread": 0} | policy)
        connecting = FakeConnector() if connector is None else connector
        async with Pool("p", FixedResolver(backends(1)), connecting, settings, observer=one.observer) as pool:
            await main(pool, one)
        assert one.observer._claims == one.observer._connects == {}

    run(with_pool)
    return one


def test_a_claim_is_a_child_of_the_span_in_which_it_is_made_and_a_connect_is_nobodys():
    async def main(pool, one):
        with one.tracer.start_as_current_span("request"):
            await hold(pool, 1)

    one = traced(main)
    (request,), (claim,), (connect,) = one.spans("request"), one.spans("qorb claim"), one.spans("qorb connect")
    assert claim.parent.span_id == request.context.span_id
    assert connect.parent is None
    assert claim.attributes[DB_CLIENT_CONNECTION_POOL_NAME] == connect.attributes[DB_CLIENT_CONNECTION_POOL_NAME] == "p"
    assert claim.attributes["qorb.backend"] == connect.attributes["qorb.backend"] == "b0"
    assert claim.attributes["qorb.slot.id"] == connect.attributes["qorb.slot.id"]
    assert {span.status.status_code for span in (claim, connect)} == {StatusCode.UNSET}


def test_what_failed_is_an_error():
    async def main(pool, one):
        async with pool.claim():
            with pytest.raises(ClaimTimeoutError):
                await pool.claim(timeout=0.5)
        pool.connector.refuse()
        pool.connector.drop()
        with pytest.raises(ClaimTimeoutError):
            await pool.claim(timeout=0.5)

    one = traced(main)
    claims = one.spans("qorb claim")
    assert [span.status.status_code for span in claims] == [StatusCode.UNSET, StatusCode.ERROR, StatusCode.ERROR]
    assert [span.attributes.get("error.type") for span in claims] == [
        None,
        "AllClaimsUsedError",
        "NoBackendsOnlineError",
    ]
    failed = [span for span in one.spans("qorb connect") if span.status.status_code is StatusCode.ERROR]
    assert failed
    assert {span.attributes["error.type"] for span in failed} == {"ConnectionRefusedError"}


def test_what_nobody_wants_any_longer_is_no_error():
    async def main(pool, one):
        async with pool.claim():
            tasks = [asyncio.create_task(hold(pool, 0)) for _ in range(2)]
            await settle()
            tasks[0].cancel()
            await settle()
            end = asyncio.create_task(pool.terminate(grace=1))
            await settle()
        await end
        with pytest.raises(PoolTerminatedError):
            await tasks[1]

    one = traced(main)
    reasons = [span.attributes.get("qorb.reason") for span in one.spans("qorb claim")]
    assert [reason and re.split(r"\W", reason)[0] for reason in reasons] == [
        None,
        "CancelledError",
        "PoolTerminatedError",
    ]
    assert {span.status.status_code for span in one.spans("qorb claim")} == {StatusCode.UNSET}


def test_an_on_acquire_that_failed_is_an_event_of_the_claim():
    async def main(pool, one):
        pool.connector.fail("on_acquire", lambda: OSError("unfit, password=hunter2"))
        with pytest.raises(ClaimTimeoutError):
            await pool.claim(timeout=0.5)

    one = traced(main)
    (claim,) = one.spans("qorb claim")
    assert {event.name for event in claim.events} == {"on_acquire failed"}
    assert claim.events[0].attributes["qorb.reason"].startswith("OSError: unfit")
    assert "hunter2" not in claim.to_json()


@pytest.mark.parametrize(
    ("missing", "module", "command"),
    [
        ("opentelemetry", "otel", 'pip install "qorb[otel]"'),
        ("opentelemetry.sdk", "otel_sdk", 'pip install "qorb[otel-sdk]"'),
    ],
)
def test_without_opentelemetry_it_says_what_to_install(missing, module, command):
    code = f"import sys; sys.modules[{missing!r}] = None; import qorb.observers.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(command)
