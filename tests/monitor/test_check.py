"""Checks on a real log: windows judged once, alerts, what goes wrong with data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor_world import HOUR, World
from stillhouse.monitoring import check_tasks

BEGIN = 1_000_000.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def checked(world: World, now: float) -> Any:
    (found,) = check_tasks(world.loop, now=now)
    return found


def test_a_fall_of_agreement_is_alerted_once(world: World) -> None:
    world.pairs(300, begin=BEGIN, agree=0.95)
    first = checked(world, BEGIN + 400)
    assert [one.requests for one in first.reports] == [100, 100, 100]
    assert first.alerts == []
    assert first.severity is None
    figure = first.reports[-1].figure("agreement", "random")
    assert figure is not None
    assert figure.interval is not None
    assert 0.88 < figure.interval.estimate < 1
    world.pairs(250, begin=BEGIN + 400, agree=0.6, seed=1)
    second = checked(world, BEGIN + 800)
    assert [one.number for one in second.reports] == [4, 5]
    kinds = [(one.kind, one.cause) for one in second.alerts]
    assert ("fidelity", "agreement") in kinds
    alert = next(one for one in second.alerts if one.cause == "agreement")
    assert alert.severity == second.severity == "critical"
    assert alert.evidence["p_adjusted"] <= 0.01
    assert {"request", "at", "text", "student", "teacher"} <= alert.examples[0].keys()
    third = checked(world, BEGIN + 900)
    assert (third.reports, third.alerts, third.severity) == ([], [], "critical")
    assert [line["number"] for line in world.lines("windows.jsonl")] == [1, 2, 3, 4, 5]
    assert len(world.lines("alerts.jsonl")) == len(second.alerts)
