"""The evaluate stage on a made-up run: artifacts, identities, resumption, every kind of task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json, read_records, write_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, LabelledQuery, Message, Query
from stillhouse.core.runfolder import RunFolder, StageKey
from stillhouse.evaluate import candidates, stage
from stillhouse.evaluate.candidates import answers_of, baseline_answers, load_sets
from stillhouse.evaluate.report_files import write_report
from stillhouse.evaluate.results import Evaluation, Prediction, SpeedResult
from stillhouse.evaluate.stage import run_evaluate
from stillhouse.models.completer import Sampling
from stillhouse.models.fake import FakeCompleter
from synthetic_run import (
    Double,
    completion_of,
    example_of,
    finish_evaluate,
    golden_query,
    install_students,
    make_recipe,
    make_run,
    teacher_double,
    true_label,
)


def work_folder(run: RunFolder, recipe: Recipe) -> Path:
    return run.open_partial(StageKey("evaluate", {}, {}, {}, recipe.seed))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Double]:
    found: list[Double] = []
    install_students(monkeypatch, found)
    return found


def test_a_run_is_judged_on_both_sets(tmp_path: Path, opened: list[Double]) -> None:
    recipe = make_recipe()
    run = make_run(tmp_path, recipe)
    work = work_folder(run, recipe)
    outcome = run_evaluate(recipe, run, work, Silent(), teacher_double())
    evaluation = Evaluation.model_validate(read_json(work / "evaluation.json"))
    assert evaluation.main == "golden"
    golden, held_out = evaluation.sets
    assert (golden.n, held_out.n) == (120, 60)
    assert set(golden.candidates) == {"teacher", "student", "twin", "tfidf", "majority"}

    # Scores are the shares that can be counted by hand.
    queries = [golden_query(recipe, n) for n in range(10_000, 10_120)]
    for name, double in (
        ("teacher", teacher_double()),
        ("student", opened[0]),
        ("twin", opened[1]),
    ):
        right = sum(completion_of(double, q).text == q.reference for q in queries)
        assert golden.candidates[name].score.estimate == pytest.approx(right / 120)
    student, teacher = golden.candidates["student"], golden.candidates["teacher"]
    assert golden.retention is not None
    assert golden.retention.estimate == pytest.approx(
        student.score.estimate / teacher.score.estimate
    )
    assert evaluation.gate.difference.estimate == pytest.approx(
        student.score.estimate - teacher.score.estimate
    )
    assert golden.mcnemar is not None
    assert golden.mcnemar.student_only - golden.mcnemar.teacher_only == round(
        120 * evaluation.gate.difference.estimate
    )
    table = golden.confusions["truth_by_student"]
    assert sum(map(sum, table)) == 120
    assert table[0][0] + table[1][1] == round(120 * student.score.estimate)

    # Held-out: the teacher's answers are the reference.
    assert held_out.reference == "teacher"
    assert held_out.candidates["teacher"].score.estimate == 1.0
    assert held_out.candidates["student"].score == held_out.candidates["student"].agreement
    assert outcome.measured == {"speed.json"}
    assert outcome.summary["verdict"] == evaluation.gate.verdict
    assert all(double.closed for double in opened)


def test_equal_runs_have_equal_artifacts(tmp_path: Path, opened: list[Double]) -> None:
    recipe = make_recipe()
    texts: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        run = make_run(tmp_path / name, recipe)
        work = work_folder(run, recipe)
        run_evaluate(recipe, run, work, Silent(), teacher_double())
        texts.append(
            {
                str(p.relative_to(work)): p.read_bytes()
                for p in work.rglob("*.json*")
                if p.name not in ("speed.json", ".key.json")
            }
        )
    assert texts[0] == texts[1]
    assert "evaluation.json" in texts[0]


def test_a_killed_evaluation_asks_only_what_is_missing(
    tmp_path: Path, opened: list[Double], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "CHUNK", 50)
    recipe = make_recipe()
    run = make_run(tmp_path, recipe)
    work = work_folder(run, recipe)

    class Killed(BaseException):
        pass

    whole = Double.complete

    async def dies(self: Double, query: Query, sampling: Sampling) -> Sequence[Completion]:
        if query.id == "g10110":
            raise Killed
        return await whole(self, query, sampling)

    monkeypatch.setattr(Double, "complete", dies)
    with pytest.raises(Killed):
        run_evaluate(recipe, run, work, Silent(), None)
    kept = sorted(p.name for p in (work / "answers").iterdir())
    assert kept == ["student.golden.0000.jsonl", "student.golden.0001.jsonl"]

    monkeypatch.setattr(Double, "complete", whole)
    opened.clear()
    run_evaluate(recipe, run, work, Silent(), None)
    timed = set(opened[0].asked[-200:])
    asked_golden = [i for i in opened[0].asked if i.startswith("g")]
    assert "g10099" not in asked_golden, "its piece was kept"
    assert "g10110" in asked_golden
    assert timed

    fresh = make_run(tmp_path / "fresh", recipe)
    fresh_work = work_folder(fresh, recipe)
    run_evaluate(recipe, fresh, fresh_work, Silent(), None)
    assert (fresh_work / "evaluation.json").read_bytes() == (work / "evaluation.json").read_bytes()


def test_an_api_teachers_speed_and_cost_come_from_its_answers(
    tmp_path: Path, opened: list[Double]
) -> None:
    recipe = make_recipe(
        teacher={"model": "openai:some-model"},
        prices={"models": {"some-model": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}},
    )
    run = make_run(tmp_path, recipe)
    work = work_folder(run, recipe)
    run_evaluate(recipe, run, work, Silent(), None)
    speed = SpeedResult.model_validate(read_json(work / "speed.json"))
    teacher = speed.candidates["teacher"]
    assert (teacher.qps, teacher.latency_p50_ms) == (4.0, 210.0)
    assert teacher.usd_per_1k == pytest.approx(1000 * (12 * 1 + 1 * 2) / 1e6)
    student = speed.candidates["student"]
    assert student.qps is not None
    assert student.usd_per_1k == pytest.approx(
        1000 * speed.machine_usd_per_hour / 3600 / student.qps
    )
    evaluation = Evaluation.model_validate(read_json(work / "evaluation.json"))
    assert evaluation.teacher.parameters is None
    assert evaluation.teacher.revision == "teacher-model-1"


def test_without_a_golden_set_the_teacher_is_the_reference(
    tmp_path: Path, opened: list[Double]
) -> None:
    recipe = make_recipe()
    run = make_run(tmp_path, recipe, golden=0, held_out=400)
    work = work_folder(run, recipe)
    run_evaluate(recipe, run, work, Silent(), None)
    finish_evaluate(recipe, run, work, stage.Outcome())
    report = write_report(recipe, run)
    assert report.reference == "teacher"
    assert report.gate.reference == "teacher"
    assert report.sets["golden"] is None
    assert any("no golden set" in warning for warning in report.warnings)
    assert report.gate.method == "cluster bootstrap"
    assert any("200 groups" in note for note in report.notes)


def test_predictions_hold_every_answer(tmp_path: Path, opened: list[Double]) -> None:
    recipe = make_recipe()
    run = make_run(tmp_path, recipe)
    work = work_folder(run, recipe)
    run_evaluate(recipe, run, work, Silent(), None)
    lines = list(read_records(work / "predictions.jsonl", Prediction))
    assert len(lines) == 180
    first = lines[0]
    assert first.text.startswith("a ")
    assert "Verdict" not in first.text, "the varying text alone"
    assert set(first.answers) == {"teacher", "student", "twin", "tfidf", "majority"}
    assert sum(first.probabilities["student"]) == pytest.approx(1, abs=1e-5)
    assert (first.answers["teacher"] == first.answers["student"]) == (first.agreement == 1.0)


@pytest.mark.parametrize("kind", ["extraction", "generation"])
def test_tasks_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    task: dict[str, Any] = {"kind": kind, "name": "t", "prompt": "{text}"}
    if kind == "extraction":
        task["json_schema"] = {"type": "object", "properties": {"word": {"type": "string"}}}
    raw = make_recipe().model_dump(mode="json", by_alias=True)
    recipe = Recipe.model_validate(
        {**raw, "task": task, "student": {"head": "text", "from": "hf:some/model"}}
    )

    def answer(query: Query, slip: bool) -> str:
        word = query.last_user_text.split()[1]
        if kind == "extraction":
            return json.dumps({"word": "wrong" if slip else word})
        return f"it is a {'wrong' if slip else word} film"

    def slips(query: Query) -> bool:
        return query.id.endswith("7")

    run = make_run(tmp_path, make_recipe())
    golden = [
        LabelledQuery(id=q.id, messages=q.messages, reference=answer(q, False))
        for q in read_records(run.stage("traffic") / "golden.jsonl", LabelledQuery)
    ]
    write_records(run.stage("traffic") / "golden.jsonl", golden)
    write_records(
        run.stage("ask") / "golden_completions.jsonl",
        [Completion(query_id=q.id, text=q.reference, model="t", revision="1") for q in golden],
    )
    examples = [
        example_of(make_recipe(), teacher_double(), n, f"h{n}").model_copy(
            update={"label": None, "label_probabilities": None}
        )
        for n in range(5_000, 5_040)
    ]
    examples = [
        e.model_copy(
            update={
                "messages": (
                    *e.prompt,
                    e.messages[-1].model_copy(update={"content": answer(e.to_query(), False)}),
                )
            }
        )
        for e in examples
    ]
    write_records(run.stage("dataset") / "held_out.jsonl", examples)
    student = FakeCompleter("s", answer=lambda query, _: answer(query, slips(query)))

    class Module:
        @staticmethod
        def open_student(*_: object) -> FakeCompleter:
            return student

    monkeypatch.setattr(stage, "require", lambda *_: Module)
    work = work_folder(run, recipe)
    outcome = run_evaluate(recipe, run, work, Silent(), None)
    finish_evaluate(recipe, run, work, outcome)
    report = write_report(recipe, run)
    assert report.metric == {"extraction": "field_f1", "generation": "rouge_l"}[kind]
    assert report.teacher.score.estimate == 1.0
    expected = {"extraction": 1 - 12 / 120, "generation": 1 - 12 / 120 * 0.2}[kind]
    assert report.student.score.estimate == pytest.approx(expected)
    assert report.baselines.tfidf is None
    assert report.fidelity.divergence is None
    assert report.student.calibration_error is None
    page = (run.root / "report.html").read_text(encoding="utf-8")
    assert "Where they differ" not in page
    assert "wrong" in page


def test_several_samples_give_the_majority_label() -> None:
    recipe = make_recipe()
    samples = [
        Completion(query_id="q", text=text, model="m", revision="1", sample=n)
        for n, text in enumerate(["rotten", "fresh", "maybe", "fresh"])
    ]
    answers = answers_of(recipe.task, [samples, samples[:1]], "samples")
    assert answers.texts == ("fresh", "rotten")
    assert answers.probabilities is not None
    assert answers.probabilities[0].argmax() == 0
    assert bool((answers.probabilities[1] != answers.probabilities[1]).all()), "one vote: unknown"


def test_max_queries_takes_the_same_few_each_time(tmp_path: Path) -> None:
    recipe = make_recipe(evaluate={"max_queries": 30})
    run = make_run(tmp_path, recipe)
    first, second = load_sets(recipe, run), load_sets(recipe, run)
    assert [len(s.queries) for s in first] == [30, 30]
    assert [s.queries for s in first] == [s.queries for s in second]
    assert all(
        true_label(q) == r for q, r in zip(first[0].queries, first[0].references, strict=True)
    )


def test_golden_queries_without_a_teacher_answer_are_left_out(tmp_path: Path) -> None:
    recipe = make_recipe()
    run = make_run(tmp_path, recipe)
    path = run.stage("ask") / "golden_completions.jsonl"
    completions = list(read_records(path, Completion))
    write_records(path, completions[5:])
    golden = load_sets(recipe, run)[0]
    assert (len(golden.queries), golden.left_out) == (115, 5)
    write_records(path, [])
    with pytest.raises(RunFolderError, match="no teacher answer"):
        load_sets(recipe, run)


def test_nothing_to_evaluate_on_is_an_error(tmp_path: Path) -> None:
    recipe = make_recipe()
    run = make_run(tmp_path, recipe, golden=0, held_out=0)
    with pytest.raises(RunFolderError, match="neither a golden nor a held-out"):
        load_sets(recipe, run)


def test_baselines_read_the_whole_chat() -> None:
    """Two chats that end alike are not one: the student and decontamination see both whole."""
    seen: list[str] = []

    class Reader:
        def predict_probabilities(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
            seen.extend(texts)
            return np.array([[0.9, 0.1]] * len(texts))

    task = make_recipe().task
    chats = [
        Query(
            id=first,
            messages=(
                Message(role="user", content=first),
                Message(role="assistant", content="no"),
                Message(role="user", content="why?"),
            ),
        )
        for first in ("Is X good?", "Is Y good?")
    ]
    baseline_answers(task, Reader(), chats)
    assert seen == ["Is X good?\nno\nwhy?", "Is Y good?\nno\nwhy?"]
    assert seen == [task.input_text(chat) for chat in chats]
