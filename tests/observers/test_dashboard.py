"""The dashboard for Grafana asks for nothing that the metrics do not have."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from qorb import Pool
from qorb.observers.prometheus import exposition
from qorb.resolvers import FixedResolver
from qorb.testing import FakeConnector, run
from tests.pools import backends, hold

DASHBOARD = json.loads((Path(__file__).parents[2] / "examples/grafana/qorb.json").read_text(encoding="utf-8"))


def labels_of_series() -> dict[str, set[str]]:
    async def main():
        pool = Pool("p", FixedResolver(backends(1)), FakeConnector())
        pool.measure()
        async with pool:
            await hold(pool, 0)
            return exposition([pool])

    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(run(main)):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def queries() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return panels + [one["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]


def test_every_metric_that_it_asks_for_is_there_with_these_labels():
    series = labels_of_series()
    assert len(queries()) > 15
    for query in queries():
        names = set(re.findall(r"\bqorb_\w+", query))
        assert names
        assert names <= set(series), query
        for name, selected in re.findall(r"\b(qorb_\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)=", selected)) <= series[name], query
        for grouped in re.findall(r"\bby \(([^)]*)\)", query):
            assert set(grouped.split(", ")) <= set.intersection(*(series[name] for name in names)), query
        for label in re.findall(r"label_values\(.*, (\w+)\)", query):
            assert label in set.intersection(*(series[name] for name in names)), query


def test_every_metric_but_the_settings_is_shown():
    asked = " ".join(queries())
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in labels_of_series()}
    shown = {name for name in families if name in asked}
    assert families - shown == {"qorb_max_slots_per_backend", "qorb_spares_wanted"}


def test_counters_are_asked_for_their_rate_and_quantiles_of_buckets_by_le():
    for query in queries():
        for name in re.findall(r"\bqorb_\w+(?:_total|_bucket)\b", query):
            assert f"rate({name}" in query
        if "_bucket" in query:
            assert "histogram_quantile(" in query
            assert "by (le," in query


def test_what_a_legend_names_is_left_by_its_query():
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            grouped = {label for found in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in found.split(", ")}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= grouped, target


def test_the_panels_have_numbers_and_places_of_their_own_and_say_what_they_show():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_a_single_number_that_draws_a_graph_asks_for_more_than_one_value():
    for panel in DASHBOARD["panels"]:
        if panel["options"].get("graphMode", "none") != "none":
            assert not any(target.get("instant") for target in panel["targets"]), panel["title"]


def test_a_single_number_is_coloured_by_what_it_means():
    """Grafana's own thresholds would show whatever is above 80 in red, were it claims per second."""
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "stat":
            defaults = panel["fieldConfig"]["defaults"]
            assert "thresholds" in defaults or defaults["color"]["mode"] == "fixed", panel["title"]


def test_a_value_that_stands_alone_between_gaps_is_drawn():
    """A quantile of nothing is a gap, and connects are rare: a line needs two values side by side."""
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "timeseries":
            assert panel["fieldConfig"]["defaults"]["custom"]["showPoints"] == "auto", panel["title"]
