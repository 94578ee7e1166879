"""What a check gives to drift detection, and what it makes of the report: with a double of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from monitor_world import World
from test_monitor_reference import write_run

from stillhouse.core.live import LiveRow
from stillhouse.core.loop_monitor import CanariesSection
from stillhouse.monitor.canaries import Replay
from stillhouse.monitor.check import Watched, check
from stillhouse.monitor.drift_records import (
    Canary,
    CauseFinding,
    DriftReport,
    Example,
    Observation,
    Persistence,
)
from stillhouse.monitoring import open_loop, open_rows, watch

BEGIN = 1_000_000.0


class Detector:
    """A double: says what it is told to, and remembers what it was given."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.causes: tuple[CauseFinding, ...] = ()

    def observe(self, rows: Iterable[LiveRow], **_: Any) -> list[Observation]:
        return [Observation(id=row.id, at=row.at, text=row.messages[-1].content) for row in rows]

    def detect(self, reference: Any, window: Any, settings: Any = None, **more: Any) -> DriftReport:
        self.calls.append({"reference": reference, "window": window, **more})
        count = len(self.calls)
        return DriftReport(
            alarm=bool(self.causes),
            cause=self.causes[0].cause if self.causes else "none",
            summary="s",
            action="a",
            evidence={},
            causes=self.causes,
            persistence=Persistence(history={"seen": (True,) * count}),
        )


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Detector:
    detector = Detector()
    monkeypatch.setattr("stillhouse.monitor.check.detect", detector.detect)
    monkeypatch.setattr("stillhouse.monitor.baselines.observe", detector.observe)
    return detector


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, {"drift": {}})
    yield world
    world.close()


def checked(world: World, now: float, replay: Any = None) -> Any:
    loop = open_loop(world.loop)
    with open_rows(loop) as rows:
        watched: Watched = watch(loop, "reviews", rows)
        if replay is not None:
            section = watched.setting.section.model_copy(update={"canaries": CANARIES})
            setting = watched.setting._replace(section=section)
            watched = watched._replace(setting=setting, replay=replay)
        return check(watched, now)


def cause(name: str, example: str, strength: float = 2.0) -> CauseFinding:
    return CauseFinding(
        cause=name,  # type: ignore[arg-type]
        strength=strength,
        tests=("t",),
        summary=f"{name} was found",
        action="act",
        examples=(Example(id=example, text="Review of a film", score=1.0, now="fresh"),),
    )


def test_windows_are_compared_with_the_first_ones_and_states_are_handed_on(
    world: World, detector: Detector
) -> None:
    world.pairs(300, begin=BEGIN, agree=0.9)
    checked(world, BEGIN + 400)
    (call,) = detector.calls  # two windows are the reference
    assert (len(call["reference"]), len(call["window"])) == (200, 100)
    assert call["persistence"] is None
    world.pairs(100, begin=BEGIN + 500, agree=0.9)
    found = checked(world, BEGIN + 700)
    assert len(detector.calls[1]["reference"]) == 200
    assert detector.calls[1]["persistence"].history == {"seen": (True,)}
    assert found.reports[0].drift.persistence.history == {"seen": (True, True)}


def test_the_window_before_is_read_again_where_it_is_no_reference(
    world: World, detector: Detector
) -> None:
    ids = world.pairs(400, begin=BEGIN, agree=0.9)
    checked(world, BEGIN + 500)
    first, second = detector.calls
    assert first["earlier"](1) == []  # the windows before it are the reference
    assert [one.id for one in second["earlier"](1)] == ids[200:300]
    assert [one.id for one in second["earlier"](3)] == ids[200:300]


def test_a_run_is_the_reference_of_its_student(tmp_path: Path, detector: Detector) -> None:
    write_run(tmp_path / "run", agree=95, count=80)
    world = World(tmp_path, {"drift": {}}, run="run")
    world.pairs(100, begin=BEGIN, agree=0.9)
    checked(world, BEGIN + 200)
    reference = detector.calls[0]["reference"]
    assert len(reference) == 80
    assert {one.agreement for one in reference} == {0.0, 1.0}
    assert reference[0].teacher_answer == "fresh"
    world.close()


def test_a_cause_becomes_an_alert_with_requests_and_its_texts_stay_out_of_windows(
    world: World, detector: Detector
) -> None:
    ids = world.pairs(300, begin=BEGIN, agree=0.9)
    detector.causes = (cause("input_shift", ids[250]),)
    found = checked(world, BEGIN + 400)
    (alert,) = found.alerts
    assert (alert.kind, alert.severity, alert.action) == ("input_shift", "warning", "act")
    (example,) = alert.examples
    assert (example["request"], example["at"]) == (ids[250], BEGIN + 250)
    assert found.severity == "warning"
    assert "Review of a film" not in (world.kept / "windows.jsonl").read_text()
    assert "Review of a film" in (world.kept / "alerts.jsonl").read_text()
    detector.causes = ()
    world.pairs(100, begin=BEGIN + 500, agree=0.9)
    assert checked(world, BEGIN + 700).severity is None


CANARIES = CanariesSection()


def replayed(_: int) -> Replay:
    said = Canary(id="c1", prompt="Review", frozen="fresh", now="rotten", likeness=0.0)
    return Replay((said,), (), 0.0, ())


def test_canaries_are_given_once_with_the_newest_window(world: World, detector: Detector) -> None:
    world.pairs(400, begin=BEGIN, agree=0.9)
    detector.causes = (cause("teacher_drift", "c1", strength=5.0),)
    found = checked(world, BEGIN + 500, replayed)
    assert [len(call["teacher_canaries"]) for call in detector.calls] == [0, 1]
    assert [alert.kind for alert in found.alerts] == ["teacher_drift"]
    assert found.alerts[0].examples[0]["canary"] == "c1"
    detector.causes = ()
    world.pairs(100, begin=BEGIN + 600, agree=0.9)
    later = checked(world, BEGIN + 800, replayed)
    assert len(detector.calls[2]["teacher_canaries"]) == 0  # not due
    assert later.severity == "critical"  # holds until they are asked again
    day = checked(world, BEGIN + 90_000, replayed)
    assert len(detector.calls[3]["teacher_canaries"]) == 1  # alone: no window is complete
    assert detector.calls[3]["window"] == []
    assert [one.kind for one in day.alerts] == ["data"]  # the silence; the canaries are fine
    assert day.severity == "warning"
