"""`stillhouse calibrate` on a small run, and the gateway that reads what it wrote."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from gateway_servers import FULL, Model, gateway, models, says
from test_gateway_http import send
from tiny_students import taught_student
from typer.testing import CliRunner, Result

from gateway_stores import call_of, served_of
from stillhouse.calibrating import Wanted, calibrate
from stillhouse.cli import app
from stillhouse.compress.onnx_export import export_onnx
from stillhouse.core.errors import UserError
from stillhouse.core.hashing import unit_hash
from stillhouse.core.jsonl import write_json
from stillhouse.core.machine import this_machine
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example, Message
from stillhouse.core.risk_control import Costs
from stillhouse.evaluate.fallback_frontier import costs_of
from stillhouse.serve.gate_file import load_gate
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Outcome
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog
from tiny_models import write_jsonl

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
NAMES = ("positive", "negative")
GOOD = ("gripping", "wonderful", "funny", "warm", "moving")
BAD = ("dull", "boring", "tired", "lifeless", "long")
RECIPE = Recipe.model_validate(
    {
        "name": "films",
        "task": {"kind": "classification", "labels": list(NAMES), "prompt": "Review: {text}"},
        "traffic": {"path": "x"},
        "teacher": {"model": "embedded"},
        "student": {"head": "label", "from": "embedded-encoder"},
    }
)


def example(number: int) -> Example:
    """Plain ones say what they are; two of five hold a word of either kind, and are anything."""
    good, bad = GOOD[number % 5], BAD[number // 5 % 5]
    if number % 5 < 2:
        text, label = f"the {good} {bad} film", NAMES[unit_hash(f"{number}", 1) < 0.5]
    else:
        label = NAMES[number % 2]
        text = f"the {good if label == 'positive' else bad} story" + " moves" * (number % 7)
    return Example(
        id=f"e{number}",
        messages=(
            Message(role="user", content=f"Review: {text}"),
            Message(role="assistant", content=label),
        ),
        task="task",
        group=f"g{number}",
        teacher="fake",
        teacher_revision="1",
        label=label,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    write_json(root / "recipe.json", RECIPE.model_dump(mode="json", by_alias=True))
    taught = [example(number) for number in range(200)]
    write_jsonl(root / "dataset" / "train.jsonl", list(taught))
    held_out = [example(number) for number in range(1000, 1900)]
    write_jsonl(root / "dataset" / "held_out.jsonl", list(held_out))
    texts = [RECIPE.task.input_text(one.to_query()) for one in taught]
    student = taught_student(
        root / "train" / "student", texts, [one.completion for one in taught], NAMES
    )
    export_onnx(student, root / "compress" / "best", RECIPE.task, name="tiny", texts=texts[:3])
    return root


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_a_run_is_calibrated_and_served(run: Path) -> None:
    told = called(run, "--error", 0.1, "--novelty")
    assert told.exit_code == 0, told.output
    assert "wrong in at most 10% of that" in told.output
    assert "held-out answers" not in told.output
    gate = load_gate(run / "calibrate" / "gate.json")
    assert gate.threshold is not None
    # Three of five say what they are; a little luck with the others is possible.
    assert 0.45 < gate.coverage < 0.75
    assert set(gate.losses) == {"logistic", "temperature", "isotonic"}
    assert gate.calibrator.method == min(gate.losses, key=lambda name: gate.losses[name])
    assert gate.window is None
    assert gate.calibrator.features == ("certainty", "logit", "margin")  # all texts are familiar
    drawn = json.loads((run / "calibrate" / "frontier.json").read_text())
    (chosen,) = [one for one in drawn["points"] if one["chosen"]]
    assert chosen["threshold"] == gate.threshold
    assert chosen["student_error"] <= 0.1
    first, last = drawn["points"][0], drawn["points"][-1]
    assert (first["coverage"], first["quality"]["estimate"]) == (0, 1)
    assert (last["coverage"], drawn["unit"]) == (1, "teacher")
    assert first["cost_per_1000"] == 1000
    assert last["cost_per_1000"] == 0
    picture = (run / "calibrate" / "frontier.svg").read_text()
    assert picture.startswith("<svg")
    assert f"t = {gate.threshold:.3f}" in picture

    teacher = Model(says("the teacher's"))
    with models(teacher):
        raw: dict[str, Any] = {
            "upstreams": {
                "big": {"base_url": teacher.url, "model": "b"},
                "small": {"kind": "student", "path": str(run / "compress" / "best")},
            },
            "tasks": {
                "t": {
                    "teacher": "big",
                    "student": "small",
                    "fallback": {"calibrator": str(run / "calibrate" / "gate.json")},
                    **FULL,
                }
            },
        }
        with gateway(raw) as running:
            for number in range(1000, 1012):
                messages = [{"role": "user", "content": example(number).messages[0].content}]
                got = send(running.url, {"model": "t", "messages": messages})
                plain = number % 5 >= 2
                assert not plain or got.headers["x-stillhouse-variant"] == "student"
            logged = [served for _, served in running.wait_for(12)]
        assert {served.variant for served in logged} == {"student", "teacher"}
        for served in logged:
            assert served.fell_back == (served.variant == "teacher")
            # By the features in the log, what was decided is what the file says.
            assert gate.confident(served.features) == (served.confidence, not served.fell_back)
        # What was measured of the student in this process is what is served of it.
        again = calibrate(run, Wanted(error=0.1, out=run / "again"), Silent()).gate
        assert again.student == gate.student
        (run / "again" / "gate.json").write_text(
            (run / "again" / "gate.json").read_text().replace(str(gate.student), "fp_other")
        )
        raw["tasks"]["t"]["fallback"]["calibrator"] = str(run / "again" / "gate.json")
        with pytest.raises(UserError, match="was fitted for the student fp_other"), gateway(raw):
            pass


def test_an_error_that_no_threshold_keeps_says_so(run: Path, tmp_path: Path) -> None:
    told = called(run, "--error", 0.0001, "--out", tmp_path, "--json")
    assert told.exit_code == 3
    assert json.loads(told.output)["gate"]["threshold"] is None
    priced = called(run, "--out", tmp_path, "--teacher-usd", 5, "--student-usd", 0.01)
    assert "USD per 1,000" in priced.output
    assert json.loads((tmp_path / "frontier.json").read_text())["points"][0][
        "cost_per_1000"
    ] == pytest.approx(5.01)


def test_costs_are_the_runs_own_where_it_was_timed(tmp_path: Path) -> None:
    nobody = (None, None)
    assert costs_of(tmp_path, compressed=True, given=nobody) == (Costs(0, 1000), "teacher")
    timed = {
        "created": "2026-01-01T00:00:00+00:00",
        "machine": this_machine()._asdict(),
        "versions": {},
        "queries": 9,
        "candidates": {
            "teacher": {"usd_per_1k": 4.0, "source": "measured here"},
            "student": {"usd_per_1k": 0.5, "source": "measured here"},
        },
        "machine_usd_per_hour": 1.0,
        "machine_price_source": "here",
    }
    (tmp_path / "evaluate").mkdir()
    write_json(tmp_path / "evaluate" / "speed.json", timed)
    assert costs_of(tmp_path, compressed=True, given=nobody) == (Costs(0.5, 4), "usd")
    assert costs_of(tmp_path, compressed=True, given=(None, 9)) == (Costs(0.5, 9), "usd")


@pytest.mark.parametrize("method", ["logistic", "temperature", "isotonic"])
def test_a_method_may_be_asked_for(run: Path, tmp_path: Path, method: Any) -> None:
    found = calibrate(run, Wanted(error=0.1, method=method, out=tmp_path), Silent())
    assert found.gate.calibrator.method == method
    assert found.gate.threshold is not None
    assert found.gate.losses == {}


def logged(folder: Path, answers: list[tuple[str, str | None]]) -> str:
    """A log of judged shadow answers by (name, fingerprint), and its URL."""
    url = f"sqlite:///{folder}/gateway.db"
    engine, now = open_database(url), time.time()
    log = TrafficLog(engine, Pseudonyms(b"0123456789abcdef"), redact=None)
    features = {"logit": 1.5, "margin": 1.5, "certainty": -0.4}
    for number, (name, fingerprint) in enumerate(answers):
        told = served_of(
            number,
            at=now - 60,
            variant="student",
            features=features,
            upstream=name,
            fingerprint=fingerprint,
            shadow_of=f"q{number}",
        )
        assert log.offer(call_of(number), told)
    assert log.flush(30)
    log.scores(
        [
            Outcome(request=f"r{number}", kind="scorer", score=1.0, at=now)
            for number in range(len(answers))
        ]
    )
    log.close()
    engine.dispose()
    return url


def test_live_labels_are_of_the_students_own_answers(run: Path, tmp_path: Path) -> None:
    own = calibrate(run, Wanted(error=0.1, out=tmp_path), Silent()).gate.student
    other = "fp_fedcba9876543210"
    url = logged(tmp_path, [("small", own)] * 3 + [("small", other)] * 2 + [("served", None)])
    told = called(run, "--out", tmp_path, "--error", 0.1, "--log", url, "--task", "reviews")
    assert told.exit_code == 0, told.output
    assert "live labels: 3 shadow answers, 0 shown ones" in told.output
    assert f"3 of other students are left out: small ({other}) 2, served 1" in told.output
    named = called(
        run, "--out", tmp_path, "--error", 0.1, "--log", url, "--task", "reviews",
        "--log-student", "served",
    )  # fmt: skip
    assert "live labels: 1 shadow answers, 0 shown ones" in named.output


def test_a_log_of_other_students_alone_is_one_line(run: Path, tmp_path: Path) -> None:
    url = logged(tmp_path, [("s-1", "fp_fedcba9876543210")] * 2)
    told = called(run, "--out", tmp_path, "--log", url, "--task", "reviews")
    assert isinstance(told.exception, UserError)
    assert "only of others: s-1 (fp_fedcba9876543210) 2" in str(told.exception)
    assert "--log-student" in str(told.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on", "golden"], "--on: the run has no golden set"),
        (["--error", 2], "--error: must be between 0 and 1"),
        (["--samples", 99], "--samples: must be from 1 to 32"),
        (["--log", "sqlite:///x.db"], "--task: is missing"),
        (["--student", "nowhere"], "--student: there is no such folder"),
        (["--acceptable", 0], "acceptable and answers that are not"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    told = called(run, "--out", tmp_path, *arguments)
    assert isinstance(told.exception, UserError)
    assert message in str(told.exception)
    with pytest.raises(UserError, match="needs a run folder, or --log with --out"):
        CliRunner().invoke(app, ["calibrate"], catch_exceptions=False)
