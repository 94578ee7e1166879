"""Cycles over the real pipeline: teacher, training and student are doubles, all else is real."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from doubles import double, doubles, recipe_of, write_rows
from retrain_doubles import DAY, START, Clock, Rows, row
from stillhouse import cli_retrain, retraining, stage_calls
from stillhouse.cli import app
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import read_json, read_objects
from stillhouse.core.live import LiveRow
from stillhouse.core.loop_retrain import RetrainSection
from stillhouse.core.progress import Silent
from stillhouse.core.records import Query
from stillhouse.forget import forget_user
from stillhouse.models.fake import FakeCompleter
from stillhouse.pipeline import run_stages
from stillhouse.retrain.cycle import run_cycle
from stillhouse.retrain.cycle_files import TaskFolder
from stillhouse.retrain.loop import Loop
from stillhouse.retrain_loops import look, open_loops
from stillhouse.retrain_recipe import reuses_log
from stillhouse.retraining import PipelineWorkshop
from stillhouse.teacher import stage as teacher_stage
from stillhouse.teacher.build import teacher_info

pytestmark = pytest.mark.usefixtures("_students")


@pytest.fixture
def _students() -> Iterator[None]:
    """Students know the words that the teacher knows."""
    students = SimpleNamespace(open_student=lambda *_: double("student"))
    # Not `monkeypatch`: a test's own changes must be undone before those of `doubles`.
    with pytest.MonkeyPatch.context() as patch, doubles():
        patch.setattr(retraining, "require", lambda *_: students)
        yield


def live_row(number: int) -> LiveRow:
    word = "lovely" if number % 2 else "awful"
    place = ("harbour", "cinema", "museum", "garden")[number % 4]
    text = f"Judge: {word} {place} visit {number} with {number * 31} others and {number * 7} dogs"
    return row(number, START + number, text=text, teacher_cost_usd=0)


def project(folder: Path, **retrain: Any) -> Path:
    """recipe.yaml, its run, gateway.yaml and loop.yaml; returns the last."""
    write_rows(
        folder / "traffic.jsonl",
        [
            {"id": f"q{n}", "text": f"{'lovely' if n % 2 else 'awful'} first {n} of {n * 53} days"}
            for n in range(40)
        ],
    )
    recipe = recipe_of(folder)
    run_stages(recipe, folder / "run", Silent())
    raw = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    gateway = {
        "upstreams": {"teacher": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}},
        "tasks": {"mood": {"teacher": "teacher"}},
    }
    (folder / "gateway.yaml").write_text(yaml.safe_dump(gateway), encoding="utf-8")
    section = {"min_requests": 60, "new": 30, "held_out": 30, "incumbent_margin": 0.1, **retrain}
    task = {"recipe": "recipe.yaml", "run": "run", "retrain": section}
    loop = {"gateway": "gateway.yaml", "tasks": {"mood": task}}
    (folder / "loop.yaml").write_text(yaml.safe_dump(loop), encoding="utf-8")
    return folder / "loop.yaml"


def loop_at(path: Path, rows: Sequence[LiveRow], day: int = 1) -> Loop:
    (loop,) = open_loops(path, None, Silent(), clock=Clock(START + day * DAY), live=Rows(rows))
    return loop


def test_a_cycle_is_a_run_that_shares_the_store_of_the_first(tmp_path: Path) -> None:
    path = project(tmp_path, start="scratch", margin=0.2)
    loop = loop_at(path, [live_row(n) for n in range(120)])
    seen = look(loop)
    assert seen.plan is not None
    assert len(seen.plan.chosen.indices) == 30
    assert not (tmp_path / "loop" / "mood" / "cycles").exists()

    cycle = run_cycle(loop, "once")
    assert cycle.outcome == "promoted", cycle.verdict
    line = loop.files.journal()[0]
    assert line.asked == 60
    assert set(line.scores) == {"0000", "0001"}
    assert line.average_forgetting == 0
    folder = loop.files.cycle(1)
    assert (folder / "run" / "report.html").exists()
    assert (folder / "run" / "store").resolve() == (tmp_path / "run" / "store").resolve()
    # Half of the first run's examples are replayed, from its answers.
    timings = read_json(folder / "run" / "ask" / "timings.json")
    assert (timings["asked"], timings["reused"]) == (30, line.replayed)
    assert line.replayed > 5
    # All that it paid for may be replayed, what its run held out too; none of the first run's that
    # judges students.
    earlier = loop.earlier_examples(loop.files.journal())
    new = {query.id for query in loop.files.new_queries(1)}
    assert {one.query.id for one in earlier if one.source == "0001"} == new
    judging = {one.query.id for one in loop.files.held_out(0)}
    assert judging
    assert not judging & {one.query.id for one in earlier}
    live = loop.registry.live("mood")
    assert live is not None
    assert live.parent is not None
    assert loop.registry.get(live.parent).lineage["run"] == "run"
    assert live.lineage["dataset"]["hash"]  # type: ignore[index, call-overload]
    assert live.lineage["cycle"] == 1
    revisions = live.lineage["teacher"]["revisions"]  # type: ignore[index, call-overload]
    assert set(revisions) == {"fake-1"}


def test_earlier_held_out_texts_are_never_learnt(tmp_path: Path) -> None:
    path = project(tmp_path, start="scratch", margin=0.2)
    rows = [live_row(n) for n in range(120)]
    path_of_held = tmp_path / "run" / "dataset" / "held_out.jsonl"
    held = [raw for _, raw in read_objects(path_of_held)]
    text = held[0]["messages"][0]["content"]  # type: ignore[index]
    rows += [row(500 + n, START + 500 + n, text=f"{text}{'!' * n}") for n in range(3)]
    loop = loop_at(path, rows)
    run_cycle(loop, "once")
    learnt = (loop.files.cycle(1) / "run" / "dataset" / "train.jsonl").read_text(encoding="utf-8")
    assert text not in learnt


def test_a_warm_start_goes_on_from_the_live_student(tmp_path: Path) -> None:
    path = project(tmp_path, margin=0.2)
    loop = loop_at(path, [live_row(n) for n in range(120)])
    # The doubles' student is no classifier that says so: its folder has no architecture.
    with pytest.raises(UserError, match=r"is no classifier; set retrain.start: scratch"):
        run_cycle(loop, "once")
    config = tmp_path / "run" / "train" / "student" / "config.json"
    raw = json.loads(config.read_text(encoding="utf-8"))
    names = {"architectures": ["BertForSequenceClassification"]}
    config.write_text(json.dumps({**raw, **names}), encoding="utf-8")
    assert run_cycle(loop, "once").outcome == "promoted"
    made = read_json(loop.files.cycle(1) / "run" / "recipe.json")
    student = made["student"]
    assert isinstance(student, dict)
    assert student["from"] == f"hf:{config.parent}"
    assert student["keep_head"] is True


def test_the_answers_of_the_log_serve_where_no_belief_is_needed(tmp_path: Path) -> None:
    project(tmp_path)
    terms = {"waived_by": "test", "reason": "a double"}
    api = {"model": "openai:m", "terms": terms}
    assert not reuses_log(recipe_of(tmp_path))
    assert not reuses_log(recipe_of(tmp_path, teacher=api))
    hard = recipe_of(tmp_path, teacher=api, train={"alpha": 0})
    assert reuses_log(hard)
    assert not reuses_log(
        recipe_of(
            tmp_path,
            teacher={**api, "samples": 3, "sampling_temperature": 1.0},
            train={"alpha": 0},
        )
    )


def test_answers_of_the_log_go_into_the_store(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[str] = []

    class Paid(FakeCompleter):
        @property
        def info(self) -> Any:
            return teacher_info(recipe.teacher)

        async def complete(self, query: Any, sampling: Any) -> Any:
            asked.append(query.id)
            return await super().complete(query, sampling)

    terms = {"waived_by": "test", "reason": "a double"}
    recipe = recipe_of(tmp_path, teacher={"model": "openai:m", "terms": terms}, train={"alpha": 0})
    for module in (teacher_stage, stage_calls):
        monkeypatch.setattr(module, "open_teacher", lambda *_: Paid("openai:m"))
    workshop = PipelineWorkshop(recipe, RetrainSection(), tmp_path / "loop", None, Silent())
    queries = [Query(id=f"n{n}", messages=live_row(n).messages, task="task") for n in range(8)]
    known = {"n0": "bad", "n1": "good", "n2": "bad"}
    found = workshop.prepare(tmp_path / "loop" / "c" / "run", queries, known, None)
    assert sorted(asked) == ["n3", "n4", "n5", "n6", "n7"]
    assert {name: found.answers[name] for name in known} == known
    assert workshop.answers() == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"other": {"recipe": "recipe.yaml"}}}, "tasks.other: is no task of"),
        (
            {"tasks": {"mood": {"recipe": "recipe.yaml", "run": "gone"}}},
            "tasks.mood.run: there is no such folder",
        ),
        (
            {"tasks": {"mood": {"recipe": "recipe.yaml", "retrain": {"gateway": True}}}},
            "has no admin section",
        ),
        (
            {
                "tasks": {
                    "mood": {"recipe": "recipe.yaml", "retrain": {"fallback": {"on": "golden"}}}
                }
            },
            "tasks.mood.retrain.fallback.on: is golden, and the recipe has no golden set",
        ),
        (
            {"tasks": {"mood": {"recipe": "recipe.yaml", "retrain": {"windw": "3d"}}}},
            "did you mean 'window'",
        ),
        (
            {"tasks": {"mood": {"recipe": "recipe.yaml", "retrain": {"window": "3 days"}}}},
            "must be a number above 0 and a unit",
        ),
    ],
)
def test_mistakes_in_loop_yaml_are_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = project(tmp_path)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**raw, **change}), encoding="utf-8")
    with pytest.raises(UserError) as error:
        loop_at(path, [])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gateway_that_gates_wants_its_students_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project(tmp_path, gateway=True, fallback={"calibrate": "never"})
    gateway = yaml.safe_load((tmp_path / "gateway.yaml").read_text(encoding="utf-8"))
    gateway["admin"] = {"port": 9}
    monkeypatch.setenv("STILLHOUSE_ADMIN_KEY", "a key that is long enough")
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(gateway), encoding="utf-8")
    assert loop_at(path, []).calibrator is None
    gateway["tasks"]["mood"]["fallback"] = {"calibrator": "there/gate.json"}
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(gateway), encoding="utf-8")
    with pytest.raises(UserError, match=r"fallback.calibrate: is never, and the gateway, which"):
        loop_at(path, [])
    gateway["tasks"]["mood"]["fallback"]["ungated"] = "shown"
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(gateway), encoding="utf-8")
    assert loop_at(path, []).calibrator == tmp_path / "there" / "gate.json"


def test_a_gateway_without_a_log_is_one_line(tmp_path: Path) -> None:
    path = project(tmp_path)
    with pytest.raises(UserError, match=r"has no log\.url: there is no traffic to learn from"):
        open_loops(path, None, Silent())
    with pytest.raises(UserError, match="name one of: mood"):
        open_loops(path, "moo", Silent())


def test_a_user_is_forgotten_in_all_that_cycles_keep(tmp_path: Path) -> None:
    path = project(tmp_path, start="scratch", margin=0.2)
    gone = "0123456789abcdef0123456789abcdef"
    rows = [
        live_row(n).model_copy(update={"user": gone if n % 4 == 0 else f"user-{n}"})
        for n in range(120)
    ]
    run_cycle(loop_at(path, rows), "once")
    folder = tmp_path / "loop" / "mood"
    asked = {row.id for row in rows if row.user == gone}
    text = "".join(one.read_text(encoding="utf-8") for one in folder.rglob("*.jsonl"))
    assert any(f'"{name}"' in text for name in asked)
    forget_user(gone, [folder], dry_run=False)
    later = [
        live_row(n).model_copy(update={"at": START + DAY + n, "user": gone if n % 4 else "u"})
        for n in range(120, 300)
    ]
    loop = loop_at(path, [*rows, *later], day=2)
    cycle = run_cycle(loop, "once")
    assert cycle.window["of_forgotten_users"] == 135
    assert cycle.outcome == "nothing"
    asked |= {row.id for row in later if row.user == gone}
    for one in folder.rglob("*.jsonl"):
        kept = one.read_text(encoding="utf-8")
        assert gone not in kept, one
        assert not any(f'"{name}"' in kept for name in asked), one


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: Any) -> Any:
    """`stillhouse retrain` on a project, over a log in memory."""
    path = project(tmp_path, start="scratch", margin=0.2)
    rows = Rows([live_row(n) for n in range(120)])

    def opened(file: Path, task: str | None, progress: Any, **more: Any) -> list[Loop]:
        return open_loops(file, task, Silent(), clock=Clock(START + DAY), live=rows, **more)

    monkeypatch.setattr(cli_retrain, "open_loops", opened)
    return lambda *options: CliRunner().invoke(app, ["retrain", str(path), *options])


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(command: Any, tmp_path: Path) -> None:
    before = sorted(path for path in tmp_path.rglob("*"))
    done = command("--dry-run")
    assert done.exit_code == 0, done.output
    assert "mood: window: read 120, usable 120, pool 120; 30 new queries of 90" in done.output
    found = json.loads(command("mood", "--dry-run", "--json").output)
    assert found["plan"]["new"] == 30
    assert found["window"]["usable"] == 120
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_one_cycle_says_its_verdict_and_a_refusal_is_exit_code_3(
    command: Any, tmp_path: Path
) -> None:
    done = command("--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output.splitlines()[-1])["outcome"] == "promoted"
    # The same clock: nothing has come in since.
    done = command()
    assert done.exit_code != 0
    assert "clock: stands 0 s before the end of the last window" in str(done.exception)


def test_what_is_wrong_with_one_task_is_no_other_tasks(command: Any, tmp_path: Path) -> None:
    for file, place in (("loop.yaml", "tasks"), ("gateway.yaml", "tasks")):
        raw = yaml.safe_load((tmp_path / file).read_text(encoding="utf-8"))
        first = dict(raw[place]["mood"])
        others = {"broken": first, "unreadable": first}
        if file == "loop.yaml":
            others = {"broken": {"recipe": "none.yaml"}, "unreadable": {"recipe": "recipe.yaml"}}
        raw[place] = {**others, "mood": first}
        (tmp_path / file).write_text(yaml.safe_dump(raw), encoding="utf-8")
    journal = tmp_path / "loop" / "unreadable" / "cycles.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text("{\n", encoding="utf-8")
    done = command("--json")
    assert done.exit_code == 2, done.output
    lines = [json.loads(one) for one in done.output.splitlines() if one.startswith("{")]
    told = {one["task"]: one for one in lines}
    assert told["broken"]["error"]["kind"] == "RecipeError"
    assert told["unreadable"]["error"]["kind"] == "DataError"
    assert told["mood"]["outcome"] == "promoted"
    said = [one for one in done.output.splitlines() if one.startswith("error: task ")]
    assert [one.split(":")[1] for one in said] == [" task broken", " task unreadable"]
    alone = command("broken")
    assert isinstance(alone.exception, UserError)


def test_the_log_is_the_database_of_the_gateway(tmp_path: Path) -> None:
    path = project(tmp_path)
    raw = yaml.safe_load((tmp_path / "gateway.yaml").read_text(encoding="utf-8"))
    raw["log"] = {"url": f"sqlite:///{tmp_path / 'log.db'}"}
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    done = CliRunner().invoke(app, ["retrain", str(path)])
    assert done.exit_code == 0, done.output
    assert "mood, cycle 0001: nothing: the window holds 0 usable requests" in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--every", "weekly"), "--every: must be a number above 0 and a unit"),
        (("--dry-run", "--on-alert"), "--dry-run: is for one cycle"),
        (("mod",), "TASK: is not in"),
    ],
)
def test_wrong_options_are_one_line(command: Any, options: tuple[str, ...], message: str) -> None:
    done = command(*options)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


def test_sigterm_ends_the_process_that_runs_on_and_its_cycle_goes_on_later(
    command: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    workshop = retraining.PipelineWorkshop
    train = workshop.train

    def interrupted(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal ends the cycle")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(workshop, "train", interrupted)
    done = command("--every", "7d")
    assert done.exit_code == 0, done.output
    assert "an unfinished cycle goes on at the next start" in done.output
    assert signal.getsignal(signal.SIGTERM) is before
    state = TaskFolder(tmp_path / "loop" / "mood").unfinished()
    assert state is not None
    assert state.step == "train"
    monkeypatch.setattr(workshop, "train", train)
    assert command().exit_code == 0
    assert TaskFolder(tmp_path / "loop" / "mood").journal()[0].outcome == "promoted"
