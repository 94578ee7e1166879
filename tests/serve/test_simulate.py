"""`stillhouse simulate`: forecasts against what is known of the log, and refusals in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rollout_world import FEEDBACK, LABELS, PLAN, SCORER, file_of
from typer.testing import CliRunner

from gateway_stores import call_of, served_of
from stillhouse.cli import app
from stillhouse.core.anytime_margin import margin_of
from stillhouse.core.errors import DataError, UserError
from stillhouse.serve.evidence_sections import EvidenceSection
from stillhouse.serve.forecast import Units, at_the_margin, units_of
from stillhouse.serve.logged_pairs import LoggedPair, read_pairs, write_pairs
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Outcome
from stillhouse.serve.simulate import Asked, Forecast, simulate
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog

EVIDENCE = EvidenceSection.model_validate(SCORER)
QUICK = Asked(repetitions=30, requests=2500)


def at_most(p: float, repetitions: int) -> float:
    return p * repetitions + 3.3 * math.sqrt(p * (1 - p) * repetitions)


def logged(student: float, teacher: float, count: int = 1200, **fields: Any) -> list[LoggedPair]:
    """A log of pairs, one a user, a hundred an hour; the student costs a tenth."""
    rng = np.random.default_rng(0)
    return [
        LoggedPair(
            task="reviews",
            request=f"r{number}",
            unit=f"u{number}",
            at=number * 36.0,
            teacher=float(rng.random() < teacher),
            student=float(rng.random() < student),
            confidence=float(rng.random()),
            teacher_usd=0.01,
            student_usd=0.001,
            teacher_ms=300.0,
            student_ms=50.0,
        ).model_copy(update=fields)
        for number in range(count)
    ]


def forecast(pairs: list[LoggedPair], asked: Asked = QUICK, **experiment: Any) -> Forecast:
    file = file_of(**experiment)
    return simulate("reviews", file.tasks["reviews"], pairs, asked)


def test_a_good_student_reaches_the_last_stage_and_saves() -> None:
    found = forecast(logged(0.92, 0.9))
    assert found.reaches_last > 0.95
    assert found.rolled_back < 0.05
    assert found.per_day == pytest.approx(2400 / 0.98, rel=0.01)
    assert found.days is not None
    assert found.days[0] <= found.days[1] <= found.days[2]
    teacher = found.money.requests * 0.01
    assert found.money.teacher_only == pytest.approx(teacher, rel=1e-3)
    # at full 98% of the requests cost a tenth
    assert 0.6 * teacher < found.money.saved[1] < 0.882 * teacher
    assert found.money.per_1000_student == pytest.approx(1.0)
    assert found.student.low < 0.92 < found.student.high
    assert not any(one.tripped for one in found.guardrails)


def test_a_bad_student_is_rolled_back_and_costs_a_little() -> None:
    found = forecast(logged(0.6, 0.9))
    assert found.rolled_back > 0.95
    assert found.reaches_last < 0.05
    assert found.slack.high < 0
    # from then on it is shadowed: a tenth on top of the teacher
    assert -0.11 < found.money.saved[1] / found.money.teacher_only < 0.02


def test_the_risk_is_that_of_a_student_at_the_margin() -> None:
    pairs = logged(0.9, 0.9)
    asked = Asked(repetitions=100, requests=2500)
    stages = [{"kind": "shadow", "min_requests": 10}, {"kind": "full", "share": 1}]
    found = forecast(pairs, asked, stages=stages)
    assert found.at_margin_advances is not None
    assert found.at_margin_advances * 100 <= at_most(0.05, 100)
    assert found.reaches_last > 0.9


def test_the_margin_is_met_exactly_by_weights() -> None:
    rng = np.random.default_rng(1)
    student, teacher = (rng.random((2, 500)) < 0.9).astype(float)
    units = Units(student, teacher, np.ones(500))
    margin = margin_of("relative", 0.05)
    weights = at_the_margin(units, margin)
    assert weights is not None
    assert weights.sum() == pytest.approx(1)
    assert weights.min() > 0
    assert weights @ margin.slack(student, teacher) == pytest.approx(0, abs=1e-9)
    right = np.ones(500)
    assert at_the_margin(Units(right, right, right), margin) is None
    assert forecast(logged(1.0, 1.0, 300)).at_margin_advances is None


def test_a_threshold_makes_the_teacher_answer_the_rest() -> None:
    pairs = [
        one.model_copy(update={"student": float((one.confidence or 0) > 0.5)})
        for one in logged(0.5, 0.9)
    ]
    raw = file_of().tasks["reviews"]
    fallback = raw.fallback.model_copy(update={"threshold": 0.5})
    task = raw.model_copy(update={"fallback": fallback})
    found = simulate("reviews", task, pairs, QUICK)
    assert found.answered == pytest.approx(0.5, abs=0.05)
    assert found.student.estimate > 0.9 > found.bare
    assert found.money.per_1000_student == pytest.approx(1.0 + 10 * (1 - found.answered), rel=1e-6)
    assert forecast(pairs).student.estimate < 0.6


def test_a_student_that_fails_is_replaced_by_the_teacher() -> None:
    pairs = [
        one.model_copy(update={"failed": number % 2 == 0, "student": 0.0})
        for number, one in enumerate(logged(0.9, 0.9, 400))
    ]
    found = forecast(pairs)
    assert found.student.estimate == pytest.approx(0.45, abs=0.05)
    assert any(one.tripped for one in found.guardrails if one.name == "error_rate")
    assert any("error_rate" in note for note in found.notes)


def test_a_user_counts_once_with_their_first_hour() -> None:
    rows = [
        LoggedPair(task="t", request=f"r{n}", unit="u", at=at, teacher=1.0, student=score)
        for n, (at, score) in enumerate([(0.0, 1.0), (60.0, 0.0), (9000.0, 0.0)])
    ]
    hourly = file_of(evidence={**SCORER, "unit_hours": 1}).tasks["reviews"]
    assert units_of(rows, hourly, None) == (
        pytest.approx([0.5]),
        pytest.approx([1.0]),
        pytest.approx([3.0]),
    )
    first = file_of().tasks["reviews"]
    assert units_of(rows, first, None).student == pytest.approx([1.0])
    alone = file_of(sticky="request").tasks["reviews"]
    assert len(units_of(rows, alone, None).student) == 3


def test_feedback_plans_are_tried_on_the_pairs_scores() -> None:
    found = forecast(logged(0.95, 0.9), evidence=FEEDBACK)
    assert [one.design for one in found.stages] == [None, "arms", "arms", "arms"]
    assert found.stages[0].requests == (100.0, 100.0, 100.0)
    assert any("feedback" in note for note in found.notes)


def test_two_runs_are_alike() -> None:
    pairs = logged(0.9, 0.9, 200)
    asked = Asked(repetitions=20, requests=1000)
    assert forecast(pairs, asked) == forecast(pairs, asked)


def database(tmp_path: Path, scored: bool) -> str:
    """A log of 40 users with shadow answers, one in four of them wrong."""
    url = f"sqlite:///{tmp_path}/x.db"
    log = TrafficLog(open_database(url), Pseudonyms(b"0123456789abcdef"), redact=None)
    for number in range(40):
        said = "rotten" if number % 4 == 0 else "fresh"
        unit = f"u{number}"
        log.offer(call_of(number), served_of(number, unit=unit, arm="shadow"))
        response = {"choices": [{"message": {"role": "assistant", "content": said}}]}
        shadow = {"id": f"s{number}", "variant": "student", "shadow_of": f"r{number}"}
        log.offer(
            call_of(number, id=f"s{number}", response=response),
            served_of(number, **shadow, unit=unit, arm="shadow", confidence=0.7),
        )
    assert log.flush(10)
    if scored:
        log.scores([Outcome(request="r1", kind="judge", score=0.5, at=1.0)])
        log.scores([Outcome(request="s1", kind="judge", score=0.5, at=1.0)])
    log.close()
    return url


def test_pairs_of_a_database_are_scored_where_nobody_did(tmp_path: Path) -> None:
    url = database(tmp_path, scored=False)
    pairs = read_pairs(url, "reviews", EVIDENCE)
    assert len(pairs) == 40
    assert [one.student for one in pairs[:5]] == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert {one.teacher for one in pairs} == {1.0}
    assert {one.confidence for one in pairs} == {0.7}
    assert read_pairs(str(tmp_path / "x.db"), "reviews", EVIDENCE) == pairs
    assert write_pairs(tmp_path / "pairs.jsonl", pairs) == 40
    assert read_pairs(str(tmp_path / "pairs.jsonl"), "reviews", EVIDENCE) == pairs
    assert "Review" not in (tmp_path / "pairs.jsonl").read_text()


def test_a_judges_scores_are_not_made_up(tmp_path: Path) -> None:
    judge = {"source": "judge", "task": LABELS, "judge": {"upstream": "big"}}
    section = EvidenceSection.model_validate(judge)
    assert [one.request for one in read_pairs(database(tmp_path, True), "reviews", section)] == [
        "r1"
    ]
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="40 shadow answers of reviews, but no scores"):
        read_pairs(database(tmp_path / "other", False), "reviews", section)


def test_a_log_without_pairs_is_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/y.db"
    log = TrafficLog(open_database(url), Pseudonyms(b"0123456789abcdef"), redact=None)
    with pytest.raises(UserError, match="no requests of the task reviews"):
        read_pairs(url, "reviews", EVIDENCE)
    log.offer(call_of(1), served_of(1))
    log.close()
    with pytest.raises(UserError, match="1 requests of reviews but no pairs"):
        read_pairs(url, "reviews", EVIDENCE)
    with pytest.raises(UserError, match="no such file"):
        read_pairs(str(tmp_path / "none"), "reviews", EVIDENCE)
    assert not (tmp_path / "none").exists()
    lines = tmp_path / "calls.jsonl"
    lines.write_text(call_of(1).model_dump_json() + "\n")
    with pytest.raises(UserError, match="requests, not pairs"):
        read_pairs(str(lines), "reviews", EVIDENCE)
    lines.write_text('{"log": "stillhouse-pairs", "task": "reviews", "student": NaN}\n')
    with pytest.raises(DataError, match="line 1"):
        read_pairs(str(lines), "reviews", EVIDENCE)
    write_pairs(lines, logged(0.9, 0.9, 5))
    with pytest.raises(UserError, match="no pairs of the task other"):
        read_pairs(str(lines), "other", EVIDENCE)
    with pytest.raises(UserError, match="5 units, and a forecast needs 30"):
        forecast(logged(0.9, 0.9, 5))


def gateway_yaml(path: Path, **experiment: Any) -> Path:
    raw = {
        "upstreams": {
            "big": {"base_url": "http://127.0.0.1:1/v1", "model": "m"},
            "small": {"base_url": "http://127.0.0.1:1/v1", "model": "s"},
        },
        "tasks": {
            "reviews": {
                "teacher": "big",
                "student": "small",
                "experiment": {"stages": PLAN, **experiment},
            }
        },
    }
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def test_the_command_says_it_in_a_table_and_as_json(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs, logged(1.0, 0.95, 300))
    policy = gateway_yaml(tmp_path / "gateway.yaml", evidence=SCORER)
    command = ["simulate", str(pairs), "--policy", str(policy), "--repetitions", "20"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    for words in ("canary 5%", "per 1,000 requests", "risk:", "rolled back", "saved"):
        assert words in shown.output
    told = CliRunner().invoke(app, [*command, "--json", "--export", str(tmp_path / "again.jsonl")])
    found = json.loads(told.output)
    assert found["pairs"] == 300
    assert len(found["stages"]) == 4
    assert (tmp_path / "again.jsonl").read_text() == pairs.read_text()


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs, logged(1.0, 0.95, 40))
    bare = gateway_yaml(tmp_path / "bare.yaml")
    good = gateway_yaml(tmp_path / "good.yaml", evidence=SCORER)
    for policy, more, told in (
        (bare, [], "has 0 tasks with an experiment.evidence section"),
        (bare, ["--task", "reviews"], "has no student with an experiment.evidence section"),
        (good, ["--task", "other"], "is not in the file"),
    ):
        found = CliRunner().invoke(app, ["simulate", str(pairs), "--policy", str(policy), *more])
        assert isinstance(found.exception, UserError)
        assert told in str(found.exception)
        assert "\n" not in str(found.exception)
