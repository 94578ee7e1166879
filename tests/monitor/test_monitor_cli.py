"""The command: exit codes, JSON, what people read; gauges that Prometheus reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from monitor_world import World
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.cli_monitor import EXIT_CRITICAL, EXIT_WARNING

NOW = 1_000_000.0
RUN = CliRunner()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("stillhouse.monitoring.time.time", lambda: NOW)
    world = World(tmp_path)
    yield world
    world.close()


def test_a_calm_task_exits_with_0(world: World) -> None:
    world.pairs(200, begin=NOW - 500, agree=0.95)
    done = RUN.invoke(app, ["monitor", "check", str(world.loop)])
    assert done.exit_code == 0, done.output
    assert "2 windows judged" in done.output
    assert "reviews: fine" in done.output
    again = RUN.invoke(app, ["monitor", "check", str(world.loop)])
    assert "no window is complete" in again.output


def test_a_warning_exits_with_4_and_json_holds_it(world: World) -> None:
    done = RUN.invoke(app, ["monitor", "check", str(world.loop), "--task", "reviews", "--json"])
    assert done.exit_code == EXIT_WARNING == 4
    (task,) = json.loads(done.output)["tasks"]
    assert task["severity"] == "warning"
    assert task["alerts"][0]["cause"] == "no_traffic"


def test_something_critical_exits_with_5(world: World) -> None:
    world.pairs(200, begin=NOW - 500, agree=0.95)
    world.pairs(100, begin=NOW - 200, agree=0.3, seed=1)
    done = RUN.invoke(app, ["monitor", "check", str(world.loop)])
    assert done.exit_code == EXIT_CRITICAL == 5
    assert "CRITICAL fidelity: agreement of student and teacher is" in done.output


def test_a_task_that_is_not_there(world: World) -> None:
    done = RUN.invoke(app, ["monitor", "check", str(world.loop), "--task", "mails"])
    assert done.exit_code != 0
    assert "--task: is not in the file" in str(done.exception)


def test_gauges_are_read_by_prometheus(world: World) -> None:
    world.pairs(100, begin=NOW - 500, agree=0.9, tenant=lambda _: 'a"b\\c')
    assert RUN.invoke(app, ["monitor", "check", str(world.loop)]).exit_code == 0
    text = (world.kept / "metrics.prom").read_text(encoding="utf-8")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(name.startswith("stillhouse_monitor_") for name in families)
    (severity,) = families["stillhouse_monitor_severity"].samples
    assert (severity.labels, severity.value) == ({"task": "reviews"}, 0.0)
    agreement = [
        sample
        for sample in families["stillhouse_monitor_figure"].samples
        if sample.labels["name"] == "agreement" and sample.labels["population"] == "random"
    ]
    report = json.loads((world.kept / "windows.jsonl").read_text().splitlines()[-1])
    (figure,) = [
        one
        for one in report["figures"]
        if one["name"] == "agreement" and one["population"] == "random"
    ]
    assert agreement[0].value == figure["interval"]["estimate"]
    segments = families["stillhouse_monitor_segment_requests"].samples
    assert [sample.labels["segment"] for sample in segments] == ['a"b\\c']
