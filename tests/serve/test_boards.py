"""The Grafana dashboard and the Prometheus rules: every metric in them is one that there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.monitor.gauges import _HELP, PREFIX
from stillhouse.serve.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
BOARD = DEPLOY / "grafana" / "stillhouse.json"
RULES = DEPLOY / "prometheus" / "rules.yaml"
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}


def known() -> set[str]:
    """Names of the series: the gateway's and the monitor's."""
    gateway = {
        metric.name + suffix
        for metric in Metrics().registry.collect()
        for suffix in SUFFIXES[metric.type]
    }
    return gateway | {PREFIX + name for name in _HELP}


def labels_of() -> dict[str, set[str]]:
    """Labels of the gateway's metrics, by name without suffix."""
    made = Metrics()
    return {
        f"stillhouse_{one._name.removeprefix('stillhouse_')}": set(one._labelnames)
        for one in vars(made).values()
        if hasattr(one, "_labelnames")
    }


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BOARD.read_text(encoding="utf-8"))
    return found


def panels() -> Iterator[dict[str, Any]]:
    yield from (one for one in board()["panels"] if one["type"] != "row")


def rules() -> list[dict[str, Any]]:
    found = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in found["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    return asked + [rule["expr"] for rule in rules()]


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bstillhouse_\w+", expression))


def test_every_metric_of_dashboard_and_rules_is_one_that_there_is() -> None:
    there = known()
    for expression in expressions():
        assert names_in(expression) <= there, expression
    assert names_in(json.dumps(board()["templating"])) <= there


def test_every_label_they_ask_for_is_one_of_its_metric() -> None:
    own = labels_of()
    asked = 0
    for expression in expressions():
        for name, inside in re.findall(r"(stillhouse_(?!monitor)\w+)\{([^}]*)\}", expression):
            base = re.sub(r"_(total|bucket|sum|count)$", "", name)
            for label in re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", inside):
                asked += 1
                assert label in own[base], f"{name} has no label {label}"
    assert asked > 20


def test_the_dashboard_shows_every_metric() -> None:
    shown = {
        name for one in panels() for target in one["targets"] for name in names_in(target["expr"])
    }
    bases = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown}
    ours = {metric.name for metric in Metrics().registry.collect()}
    assert ours <= bases
    missing = {PREFIX + name for name in _HELP} - shown
    assert missing == {PREFIX + "window_number", PREFIX + "window_since_seconds"}


def test_panels_have_units_titles_and_places_of_their_own() -> None:
    found = board()
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["expr"] for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_expression_is_promql() -> None:
    promql = pytest.importorskip("promql_parser", reason="needs promql-parser")
    for expression in expressions():
        plain = expression.replace("$__rate_interval", "5m").replace("$__range", "6h")
        promql.parse(plain.replace("$task", ".*"))


def test_every_alert_has_a_page_that_says_what_to_do() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("#")
    }
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert path == "docs/operations.md"
        assert anchor in anchors, rule["alert"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
@pytest.mark.parametrize(
    "said", [("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")]
)
def test_promtool_takes_the_rules_and_they_fire_when_they_should(said: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *said], cwd=RULES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
