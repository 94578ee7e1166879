"""Checks on a real log: windows judged once, alerts, and what goes wrong with data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monitor_world import World

from stillhouse.core.errors import RunFolderError, StillhouseError, UserError
from stillhouse.monitor.state import Place
from stillhouse.monitoring import check_tasks
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.stored_calls import delete_user
from stillhouse.serve.traffic_log import UnknownRequestError

BEGIN = 1_000_000.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def checked(world: World, now: float) -> Any:
    (found,) = check_tasks(world.loop, now=now)
    return found


def causes(found: Any) -> list[str]:
    return [alert.cause for alert in found.alerts]


def test_a_fall_of_agreement_is_alerted_once(world: World) -> None:
    world.pairs(300, begin=BEGIN, agree=0.95)
    first = checked(world, BEGIN + 400)
    assert [one.requests for one in first.reports] == [100, 100, 100]
    assert first.alerts == []
    assert first.severity is None
    figure = first.reports[-1].figure("agreement", "random")
    assert 0.88 < figure.interval.estimate < 1
    world.pairs(250, begin=BEGIN + 400, agree=0.6, seed=1)
    second = checked(world, BEGIN + 800)
    assert [one.number for one in second.reports] == [4, 5]
    alert = next(one for one in second.alerts if one.cause == "agreement")
    assert (alert.kind, alert.severity, second.severity) == ("fidelity", "critical", "critical")
    assert alert.evidence["p_adjusted"] <= 0.01
    assert alert.evidence["effect"] > alert.evidence["bound"]
    assert {"request", "at", "text", "student", "teacher"} <= alert.examples[0].keys()
    third = checked(world, BEGIN + 900)
    assert (third.reports, third.alerts, third.severity) == ([], [], "critical")
    assert [line["number"] for line in world.lines("windows.jsonl")] == [1, 2, 3, 4, 5]
    assert len(world.lines("alerts.jsonl")) == len(second.alerts)
    assert (
        'stillhouse_monitor_severity{task="reviews"} 3.0'
        in (world.kept / "metrics.prom").read_text()
    )


def test_one_bad_window_of_three_is_no_alert_where_two_are_needed(tmp_path: Path) -> None:
    world = World(tmp_path, {"bounds": {"persist": [2, 3]}})
    for part, agree in enumerate((0.95, 0.95, 0.5, 0.95, 0.5)):
        world.pairs(100, begin=BEGIN + 200 * part, agree=agree, seed=part, users=90)
        found = checked(world, BEGIN + 200 * part + 150)
        flagged = [one.cause for one in found.reports[0].findings if one.flagged]
        assert ("agreement" in flagged) == (agree == 0.5)
        assert ("agreement" in causes(found)) == (part == 4)
    world.close()


def test_small_windows_are_pooled_until_there_are_enough(tmp_path: Path) -> None:
    world = World(tmp_path, {"window": {"requests": 20, "least": 50}})
    world.pairs(200, begin=BEGIN, agree=0.9)
    found = checked(world, BEGIN + 300)
    figures = [one.figure("agreement", "random") for one in found.reports]
    assert [one.windows for one in figures] == [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    assert [one.n for one in figures] == [20, 40, *[60] * 8]
    # The same, where each check sees one window more.
    again = World(tmp_path / "again", {"window": {"requests": 20, "least": 50}})
    for part in range(3):
        again.pairs(20, begin=BEGIN + 100 * part, agree=0.9)
        one = checked(again, BEGIN + 100 * part + 50)
    assert one.reports[0].figure("agreement", "random").n == 60
    world.close()
    again.close()


def test_outcomes_that_come_late_are_in_the_pooled_accuracy(tmp_path: Path) -> None:
    world = World(tmp_path, {"window": {"requests": 50, "least": 30}})
    ids = world.pairs(50, begin=BEGIN, agree=0.9)
    assert checked(world, BEGIN + 60).reports[0].figure("accuracy", "judged") is None
    for request in ids[:20]:
        world.outcome(f"{request}s", 1.0, BEGIN + 70)
    world.pairs(50, begin=BEGIN + 100, agree=0.9)
    report = checked(world, BEGIN + 200).reports[0]
    figure = report.figure("accuracy", "judged")
    assert (figure.n, figure.windows, figure.interval.estimate) == (20, 2, 1.0)
    world.close()


def test_a_corrected_answer_judges_both(world: World) -> None:
    ids = world.pairs(100, begin=BEGIN, agree=0.0)
    for request in ids:
        world.outcome(request, 0.0, BEGIN + 5, corrected="fresh")
    report = checked(world, BEGIN + 200).reports[0]
    student = report.figure("accuracy", "judged").interval.estimate
    teacher = report.figure("teacher_accuracy", "judged").interval.estimate
    assert student + teacher == pytest.approx(1.0)  # they never agree, and one of them is right


def test_a_sure_student_that_is_wrong_is_overconfident(world: World) -> None:
    world.pairs(200, begin=BEGIN, agree=0.7, confidence=0.95)
    found = checked(world, BEGIN + 300)
    assert "teacher" in causes(found)
    alert = next(one for one in found.alerts if one.kind == "calibration")
    assert 0.15 < alert.evidence["effect"] < 0.35
    report = found.reports[-1]
    assert report.figure("ece", "random").interval.estimate > 0.15
    assert 0.15 < report.figure("brier", "random").interval.estimate < 0.35


def test_a_bad_tenant_is_named(world: World) -> None:
    world.pairs(400, begin=BEGIN, agree=0.95, tenant=lambda n: f"t{n % 2}")
    world.pairs(100, begin=BEGIN + 500, agree=0.95, tenant=lambda _: "t0", seed=3)
    world.pairs(100, begin=BEGIN + 600, agree=0.4, tenant=lambda _: "t1", seed=4)
    found = checked(world, BEGIN + 900)
    assert "agreement in tenant:t1" in causes(found)
    assert "agreement in tenant:t0" not in causes(found)
    segments = {one.name: one for one in found.reports[-1].segments}
    assert segments["t1"].figures[0].n >= 30


def test_small_segments_are_said_to_be_small(world: World) -> None:
    world.pairs(100, begin=BEGIN, agree=0.9, tenant=lambda n: "big" if n else "small")
    report = checked(world, BEGIN + 200).reports[0]
    small = next(one for one in report.segments if one.name == "small")
    assert "too few" in small.note


# --- bad input ----------------------------------------------------------------------------------


def test_empty_windows_are_one_finding(tmp_path: Path) -> None:
    world = World(tmp_path, {"window": {"requests": None, "hours": 1, "silent_hours": 1000}})
    world.pairs(60, begin=BEGIN, agree=0.9)
    found = checked(world, BEGIN + 10 * 3600)
    assert [one.requests for one in found.reports] == [60, 0]
    assert causes(found) == ["empty_windows"]
    assert "9 windows" in found.alerts[0].summary
    assert found.reports[1].until == BEGIN + 10 * 3600
    assert checked(world, BEGIN + 10 * 3600 + 1).reports == []
    world.close()


def test_silence_is_a_problem_of_the_data(world: World) -> None:
    assert causes(checked(world, BEGIN)) == ["no_traffic"]
    world.pairs(10, begin=BEGIN, agree=0.9)
    assert checked(world, BEGIN + 100).severity is None
    assert checked(world, BEGIN + 3 * 86_400).severity == "warning"


def test_requests_of_the_future_wait_for_their_time(world: World) -> None:
    world.pairs(100, begin=BEGIN, agree=0.9)
    world.pairs(100, begin=BEGIN + 10_000_000, agree=0.9)
    found = checked(world, BEGIN + 1000)
    assert [one.requests for one in found.reports] == [100]
    assert "clock_ahead" in causes(found)
    world.pairs(100, begin=BEGIN + 2000, agree=0.9)
    assert [one.requests for one in checked(world, BEGIN + 3000).reports] == [100]


def test_a_gateway_whose_clock_went_back(world: World) -> None:
    world.pairs(200, begin=BEGIN, agree=0.9)
    assert len(checked(world, BEGIN + 300).reports) == 2
    world.pairs(30, begin=BEGIN + 20, agree=0.9)  # into windows that were judged
    found = checked(world, BEGIN + 400)
    assert found.reports == []
    assert causes(found) == ["late_requests"]
    assert "30 requests" in found.alerts[0].summary
    assert checked(world, BEGIN + 500).severity is None  # they are counted once


def test_this_machines_clock_went_back(world: World) -> None:
    world.pairs(200, begin=BEGIN, agree=0.9)
    assert len(checked(world, BEGIN + 300).reports) == 2
    found = checked(world, BEGIN - 5000)
    assert "clock_backwards" in causes(found)
    assert found.reports == []
    assert checked(world, BEGIN + 300).reports == []


def test_no_texts_are_kept(world: World) -> None:
    world.log._sample = 0.0  # as log.sample: 0 of gateway.yaml
    world.pairs(100, begin=BEGIN, agree=0.9)
    found = checked(world, BEGIN + 200)
    assert causes(found) == ["no_texts"]
    assert found.reports[0].figure("agreement", "random").interval is None


def test_a_deleted_users_texts_leave_the_alerts_and_late_labels_are_refused(world: World) -> None:
    world.pairs(200, begin=BEGIN, agree=0.95, users=5)
    ids = world.pairs(100, begin=BEGIN + 300, agree=0.3, users=5, seed=2)
    found = checked(world, BEGIN + 500)
    assert found.alerts
    requests = {one["request"] for alert in found.alerts for one in alert.examples}
    assert requests
    names = Pseudonyms(b"0123456789abcdef")
    for user in range(5):
        delete_user(world.engine, names.of("shop", f"user{user}"))
    with pytest.raises(UnknownRequestError):
        world.outcome(f"{ids[0]}s", 1.0, BEGIN + 600)
    again = checked(world, BEGIN + 700)
    assert again.reports == []
    assert not any(line.get("examples") for line in world.lines("alerts.jsonl"))
    text = "".join(path.read_text() for path in world.kept.iterdir() if path.is_file())
    assert "of a film" not in text
    assert len(world.lines("alerts.jsonl")) >= len(found.alerts)


def test_a_label_without_its_text_or_user_is_counted_and_breaks_nothing(world: World) -> None:
    world.log._sample = 0.0
    ids = world.pairs(100, begin=BEGIN, agree=0.9)
    for request in ids:
        world.outcome(f"{request}s", 1.0, BEGIN + 5)
    report = checked(world, BEGIN + 200).reports[0]
    assert report.figure("accuracy", "judged").n == 100


def test_an_alert_storm_becomes_one_alert(tmp_path: Path) -> None:
    world = World(tmp_path, {"alerts": {"most_per_hour": 2}, "segments": {"least": 20}})
    world.pairs(400, begin=BEGIN, agree=0.99, tenant=lambda n: f"t{n % 4}")
    world.pairs(100, begin=BEGIN + 500, agree=0.2, tenant=lambda n: f"t{n % 4}", seed=1)
    found = checked(world, BEGIN + 700)
    assert causes(found)[2:] == ["alert_storm"]
    assert found.alerts[2].evidence["held_back"] == {"fidelity": 3}
    assert found.alerts[2].severity == "critical"
    assert checked(world, BEGIN + 800).alerts == []
    world.close()


# --- crashes and two at once ---------------------------------------------------------------------


@pytest.mark.parametrize("dies_in", ["commit", "save"])
def test_a_killed_check_is_gone_on_with(
    world: World, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    class Killed(BaseException):
        """As SIGKILL: nothing is caught."""

    world.pairs(300, begin=BEGIN, agree=0.95)
    world.pairs(200, begin=BEGIN + 300, agree=0.5, seed=1)
    real = getattr(Place, dies_in)
    calls = []

    def dying(self: Place, *args: Any) -> Any:
        calls.append(dies_in)
        if len(calls) == 5:
            if dies_in == "commit":  # lines are there, the state is not
                monkeypatch.setattr(Place, "save", _raise(Killed))
                return real(self, *args)
            raise Killed
        return real(self, *args)

    monkeypatch.setattr(Place, dies_in, dying)
    with pytest.raises(Killed):
        checked(world, BEGIN + 600)
    written = len(world.lines("windows.jsonl"))
    monkeypatch.undo()
    found = checked(world, BEGIN + 600)
    numbers = [line["number"] for line in world.lines("windows.jsonl")]
    assert numbers == [1, 2, 3, 4, 5]
    assert written > 5 - len(found.reports) or dies_in == "save"
    ids = [line["id"] for line in world.lines("alerts.jsonl")]
    assert len(ids) == len(set(ids)) >= 1


def _raise(error: type[BaseException]) -> Any:
    def call(*_: Any) -> None:
        raise error

    return call


def test_two_checks_at_once_are_impossible(world: World) -> None:
    place = Place(world.kept, "reviews")
    with place.locked(), pytest.raises(RunFolderError, match="another check is at work"):
        checked(world, BEGIN)


def test_a_torn_line_is_cut_and_a_lost_state_is_an_error(world: World) -> None:
    world.pairs(200, begin=BEGIN, agree=0.95)
    checked(world, BEGIN + 300)
    with (world.kept / "windows.jsonl").open("a") as handle:
        handle.write('{"task": "rev')
    checked(world, BEGIN + 400)
    assert [line["number"] for line in world.lines("windows.jsonl")] == [1, 2]
    state = world.kept / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": 2}))
    with pytest.raises(StillhouseError, match=r"another version"):
        checked(world, BEGIN + 500)
    state.unlink()
    with pytest.raises(UserError, match=r"state\.json: is gone"):
        checked(world, BEGIN + 500)


def test_windows_left_over_are_judged_by_the_next_check(tmp_path: Path) -> None:
    world = World(tmp_path, {"window": {"requests": 20, "per_check": 3, "least": 20}})
    world.pairs(100, begin=BEGIN, agree=0.9)
    first = checked(world, BEGIN + 200)
    assert (len(first.reports), first.more) == (3, True)
    second = checked(world, BEGIN + 200)
    assert (len(second.reports), second.more) == (2, False)
    world.close()


def test_a_database_that_is_not_there_is_not_made(world: World) -> None:
    world.url = f"sqlite:///{world.folder}/other.db"
    world.write()
    with pytest.raises(UserError, match="names no database that is there"):
        checked(world, BEGIN)
    assert not (world.folder / "other.db").exists()


def test_a_task_that_the_gateway_has_not(world: World) -> None:
    text = world.loop.read_text().replace("reviews:", "mails:")
    world.loop.write_text(text)
    with pytest.raises(UserError, match=r"tasks\.mails: is no task of the gateway"):
        check_tasks(world.loop)
