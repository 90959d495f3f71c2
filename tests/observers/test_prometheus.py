"""Prometheus' text format and prometheus-client's registry, read by prometheus-client's own parser."""

from __future__ import annotations

import asyncio
import gc
import math
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from qorb import Backend, ClaimTimeoutError, Policy, Pool
from qorb.observers.prometheus import CONTENT_TYPE, PoolCollector, exposition
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, run
from tests.pools import backends, hold


def series(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Parse, and see that no series is there twice."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    return series(text)[name, frozenset(labels.items())]


def a_day() -> tuple[str, str]:
    """Give the exposition, and what a registry makes of the same pool, of a busy moment."""

    async def main():
        connector = FakeConnector(latency=0)
        connector.refuse("b1")
        pool = Pool("main", FixedResolver(backends(2)), connector, Policy(max_slots=2, spares_wanted=2, spread=0))
        pool.measure([0.1, 1])
        registry = CollectorRegistry()
        registry.register(PoolCollector([pool]))
        async with pool:
            await hold(pool, 0.5)
            await hold(pool, 2)
            held = [await pool.claim() for _ in range(2)]
            with pytest.raises(ClaimTimeoutError):
                await pool.claim(timeout=0.5)
            waiting = asyncio.create_task(hold(pool, 0))
            await asyncio.sleep(0.01)
            told = exposition([pool]), generate_latest(registry).decode()
            for claim in held:
                claim.release()
            await waiting
        return told

    return run(main)


def test_every_number_is_there():
    text, _ = a_day()

    assert value(text, "qorb_pool_state", pool="main", state="running") == 1
    assert value(text, "qorb_pool_state", pool="main", state="terminated") == 0
    assert value(text, "qorb_claims_total", pool="main") == 4
    assert value(text, "qorb_claim_timeouts_total", pool="main") == 1
    assert value(text, "qorb_waiting_claims", pool="main") == 1
    assert value(text, "qorb_max_slots", pool="main") == 2
    assert value(text, "qorb_max_slots_per_backend", pool="main") == 16
    assert value(text, "qorb_spares_wanted", pool="main") == 2
    assert value(text, "qorb_backend_online", pool="main", backend="b0") == 1
    assert value(text, "qorb_backend_online", pool="main", backend="b1") == 0
    assert value(text, "qorb_slots", pool="main", backend="b0", state="claimed") == 2
    assert value(text, "qorb_slots", pool="main", backend="b1", state="claimed") == 0
    assert value(text, "qorb_slots", pool="main", backend="b0", state="connecting") == 0
    assert value(text, "qorb_slots", pool="main", backend="b0", state="unclaimed") == 0
    assert value(text, "qorb_slots", pool="main", backend="b0", state="checking") == 0
    assert value(text, "qorb_backend_claims_total", pool="main", backend="b0") == 4
    assert value(text, "qorb_backend_recent_failures", pool="main", backend="b0") == 0
    assert value(text, "qorb_backend_recent_failures", pool="main", backend="b1") >= 1


def test_the_histograms_add_up():
    text, _ = a_day()

    for name, counts, total in [
        ("qorb_claim_wait_seconds", [4, 4, 4], 0),
        ("qorb_claim_use_seconds", [0, 1, 2], 2.5),
    ]:
        buckets = [value(text, f"{name}_bucket", pool="main", le=bound) for bound in ("0.1", "1.0", "+Inf")]
        assert buckets == counts
        assert value(text, f"{name}_count", pool="main") == counts[-1]
        assert value(text, f"{name}_sum", pool="main") == pytest.approx(total)
    assert value(text, "qorb_connect_seconds_count", pool="main") >= 2


def test_each_metric_has_the_kind_and_the_name_that_the_conventions_ask_for():
    for family in text_string_to_metric_families(a_day()[0]):
        assert family.name.startswith("qorb_")
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert {sample.name for sample in family.samples} == {f"{family.name}_total"}
        elif family.type == "histogram":
            assert family.name.endswith("_seconds")
        else:
            assert family.type == "gauge"
            assert not family.name.endswith(("_total", "_seconds", "_count", "_sum", "_bucket"))


def test_a_registry_of_prometheus_client_says_the_same():
    text, of_registry = a_day()
    assert series(of_registry) == series(text)


def test_a_pool_that_counts_no_times_has_no_histograms():
    text = exposition([Pool("p", FixedResolver(backends(1)), FakeConnector())])
    assert value(text, "qorb_pool_state", pool="p", state="new") == 1
    assert not [name for name, _ in series(text) if name.endswith("_seconds_count")]


def test_no_pools_are_no_series():
    assert series(exposition([])) == {}


def test_names_are_escaped_and_come_back_as_they_are():
    odd = 'a"b\\n\\'

    async def main():
        backend = Backend(odd, "10.0.0.1", 1)
        async with Pool(odd, FixedResolver([backend]), FakeConnector()) as pool:
            await hold(pool, 0)
            return exposition([pool])

    text = run(main)
    assert value(text, "qorb_backend_online", pool=odd, backend=odd) == 1


def test_pools_of_one_name_are_told_apart():
    pools = [Pool(name, FixedResolver(backends(1)), FakeConnector()) for name in ("a", "b", "a", "a")]
    text = exposition(pools)
    names = {dict(labels)["pool"] for _, labels in series(text)}
    assert names == {"a", "b", "a#2", "a#3"}


@pytest.mark.parametrize("names", [("a", "a", "a#2"), ("a#2", "a", "a"), ("a", "a#2", "a")])
def test_no_pool_gets_for_its_number_what_another_is_called(names):
    text = exposition([Pool(name, FixedResolver(backends(1)), FakeConnector()) for name in names])
    told = [line for line in text.splitlines() if line.startswith("qorb_claims_total")]
    assert sorted(told) == [f'qorb_claims_total{{pool="{name}"}} 0' for name in ("a", "a#2", "a#3")]


def test_a_pool_that_is_given_twice_is_one():
    pool = Pool("a", FixedResolver(backends(1)), FakeConnector())
    assert exposition([pool, pool]) == exposition([pool])


def test_a_collector_gives_each_pool_the_same_name_for_as_long_as_it_lives():
    pools = [Pool("a", FixedResolver(backends(1)), FakeConnector(), Policy(max_slots=most)) for most in (1, 2)]
    registry = CollectorRegistry()
    registry.register(PoolCollector(pools))
    assert b'qorb_max_slots{pool="a"} 1.0\nqorb_max_slots{pool="a#2"} 2.0' in generate_latest(registry)
    del pools[0]
    gc.collect()
    told = generate_latest(registry)
    assert b'qorb_max_slots{pool="a#2"} 2.0' in told
    assert b'pool="a"' not in told


def test_a_pool_that_has_ended_keeps_its_counts():
    async def main():
        pool = Pool("p", FixedResolver(backends(1)), FakeConnector())
        pool.measure()
        async with pool:
            await hold(pool, 0)
        return exposition([pool])

    text = run(main)
    assert value(text, "qorb_claims_total", pool="p") == 1
    assert value(text, "qorb_claim_use_seconds_count", pool="p") == 1
    assert value(text, "qorb_pool_state", pool="p", state="terminated") == 1


def test_a_collector_keeps_no_pool_alive():
    pool = Pool("p", FixedResolver(backends(1)), FakeConnector())
    registry = CollectorRegistry()
    registry.register(PoolCollector([pool]))
    assert b'pool="p"' in generate_latest(registry)
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None
    assert b'pool="p"' not in generate_latest(registry)


def test_a_pool_that_another_process_started_is_left_out():
    async def main():
        async with Pool("p", FixedResolver(backends(1)), FakeConnector()) as pool:
            pool._engine.home.forked = True
            try:
                return exposition([pool])
            finally:
                pool._engine.home.forked = False

    assert series(run(main)) == {}


def test_a_second_collector_is_refused_by_the_registry():
    registry = CollectorRegistry()
    registry.register(PoolCollector([]))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(PoolCollector([]))


def test_the_numbers_are_plain():
    for line in a_day()[0].splitlines():
        if not line.startswith("#"):
            number = float(line.rpartition(" ")[2])
            assert math.isfinite(number)
            assert "True" not in line
            assert "e-05" not in line
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_the_observing_page_has_every_metric_with_its_kind_and_labels():
    page = (Path(__file__).parents[2] / "docs/observing.md").read_text(encoding="utf-8")
    table = page.partition("| metric | kind | labels | |\n")[2].partition("\n\n")[0]
    said = {}
    for names, kind, labels in re.findall(r"^\| (`.*?`) \| (\w+) \| (.*?) \|", table, re.MULTILINE):
        said |= {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name in re.findall(r"`(\w+)`", names)}
    found = {}
    for family in text_string_to_metric_families(a_day()[0]):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
    assert said == found


def test_without_prometheus_client_the_text_is_there_and_the_collector_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['prometheus_client'] = None\n"
        "from qorb.observers.prometheus import PoolCollector, exposition\n"
        "assert 'qorb_claims_total' in exposition([])\n"
        "PoolCollector([])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith('pip install "qorb[prometheus]"; exposition() needs nothing')
