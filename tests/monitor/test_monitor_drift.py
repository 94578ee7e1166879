"""What a check gives to drift detection, and what it makes of the report: with a double of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from monitor_world import HOUR, World
from test_monitor_reference import write_run

from stillhouse.core.live import LiveRow
from stillhouse.core.loop_monitor import CanariesSection
from stillhouse.monitor.baselines import Baselines
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
from stillhouse.monitor.state import Place
from stillhouse.monitoring import open_loop, open_rows, watch
from stillhouse.serve.stored_calls import delete_before

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
            persistence=Persistence(
                history={"seen": (True,) * count}, leaning={"inputs:mmd": count}
            ),
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
    assert first["earlier"](1) is None  # the windows before it are the reference
    (before,) = second["earlier"](1)
    assert [one.id for one in before] == ids[200:300]
    assert second["earlier"](2) is None  # of the two before, one is in the reference
    assert second["earlier"](9) is None  # there never were so many
    assert first["persistence"] is None
    assert second["persistence"].leaning == {"inputs:mmd": 1}  # the same student and reference


def test_a_student_that_comes_later_leans_anew_and_has_only_its_own_windows(
    world: World, detector: Detector
) -> None:
    world.pairs(300, begin=BEGIN, agree=0.9)
    world.pairs(400, begin=BEGIN + 300, agree=0.9, student="other")
    checked(world, BEGIN + 900)
    small, first, second = detector.calls
    assert small["earlier"](1) is None
    assert first["persistence"].history == {"seen": (True,)}  # what signalled is kept
    assert first["persistence"].leaning == {}
    assert first["earlier"](1) is None  # in its own reference
    assert second["persistence"].leaning == {"inputs:mmd": 2}
    assert len(second["earlier"](1)[0]) == 100
    world.pairs(100, begin=BEGIN + 1000, agree=0.9)
    checked(world, BEGIN + 1200)
    assert detector.calls[3]["persistence"].leaning == {}
    assert detector.calls[3]["earlier"](1) is None  # the window before is the other student's


def test_a_reference_that_is_taken_anew_begins_the_row_of_windows_anew(
    world: World, detector: Detector
) -> None:
    world.pairs(400, begin=BEGIN, agree=0.9)
    checked(world, BEGIN + 500)
    delete_before(world.engine, BEGIN + 250)
    world.pairs(400, begin=BEGIN + 500, agree=0.9, seed=1)
    checked(world, BEGIN + 1000)
    # Window 5 has no reference, 6 is compared with 5, 7 and 8 with both.
    six, seven, eight = detector.calls[2:]
    assert [len(one["reference"]) for one in (six, seven, eight)] == [100, 200, 200]
    assert [one["persistence"].leaning for one in (six, seven)] == [{}, {}]
    assert [one["earlier"](1) for one in (six, seven)] == [None, None]
    assert eight["persistence"].leaning == {"inputs:mmd": 4}
    assert len(eight["earlier"](1)[0]) == 100


def test_a_window_whose_requests_the_log_has_lost_is_not_there(
    world: World, detector: Detector
) -> None:
    world.pairs(500, begin=BEGIN, agree=0.9)
    checked(world, BEGIN + 600)
    last = detector.calls[-1]
    loop = open_loop(world.loop)
    with open_rows(loop) as rows:
        base = Baselines(watch(loop, "reviews", rows).setting, rows, None, None)
        state = Place(world.kept, "reviews").load()
        assert [len(one) for one in base.before(state, "small", 2) or ()] == [100, 100]
        delete_before(world.engine, BEGIN + 340)  # of window 4, 60 are left
        assert [len(one) for one in base.before(state, "small", 2) or ()] == [60, 100]
        delete_before(world.engine, BEGIN + 360)
        assert base.before(state, "small", 2) is None
        assert [len(one) for one in base.before(state, "small", 1) or ()] == [100]
    assert last["persistence"].leaning == {"inputs:mmd": 2}


def test_without_windows_to_look_back_to_there_is_none_before(
    tmp_path: Path, detector: Detector
) -> None:
    world = World(tmp_path, {"drift": {}, "window": {"lookback": 0}})
    world.pairs(500, begin=BEGIN, agree=0.9)
    checked(world, BEGIN + 600)
    assert len(detector.calls) == 3
    assert [one["earlier"](1) for one in detector.calls] == [None] * 3
    world.close()


def test_a_window_without_requests_ends_the_row(tmp_path: Path, detector: Detector) -> None:
    world = World(tmp_path, {"drift": {}, "window": {"requests": None, "hours": 1}})
    world.pairs(400, begin=BEGIN, agree=0.9, step=HOUR / 100)
    world.pairs(200, begin=BEGIN + 5 * HOUR, agree=0.9, step=HOUR / 100)
    checked(world, BEGIN + 7 * HOUR)
    third, fourth, sixth, seventh = detector.calls
    assert fourth["persistence"].leaning == {"inputs:mmd": 1}
    assert len(fourth["earlier"](1)[0]) == 100
    assert sixth["persistence"].leaning == {}
    assert sixth["earlier"](1) is None
    assert seventh["persistence"].leaning == {"inputs:mmd": 3}
    assert len(seventh["earlier"](1)[0]) == 100
    assert third["earlier"](1) is None
    world.close()


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
