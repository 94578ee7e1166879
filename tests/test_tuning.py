"""`stillhouse tune` on tiny models: what it chooses and leaves, its budget, what kills change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("optuna", reason="the tune extra is not installed")

from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from stillhouse import tuning
from stillhouse.cli import app
from stillhouse.core.errors import (
    BudgetError,
    DataError,
    RecipeError,
    StillhouseError,
    UserError,
)
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.search import TuneResult
from stillhouse.evaluate.search_page import lines, rows
from stillhouse.pipeline import run_stages
from stillhouse.train import search_run
from stillhouse.train.search_space import space_of, with_values
from stillhouse.tuning import tune_recipe
from tuning_project import write_project

KILLED = Path(__file__).with_name("killed_tuning.py")
TIMED = {"created", "seconds", "usd"}
TRIALS = 5


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    return folder


def tune(project: Path, root: Path, *overrides: str) -> TuneResult:
    return tune_recipe(load_recipe(project / "recipe.yaml", overrides), root, Silent())


@pytest.fixture(scope="module")
def finished(project: Path) -> TuneResult:
    return tune(project, project / "run")


def copied(project: Path, root: Path) -> Path:
    """The finished stages, without the search."""
    for stage in ("traffic", "ask", "dataset", "store"):
        shutil.copytree(project / "run" / stage, root / stage)
    return root


def plain(result: TuneResult) -> dict[str, Any]:
    """The result without what a clock says."""
    raw = result.model_dump(mode="json", exclude=TIMED)
    for trial in raw["trials"]:
        del trial["seconds"]
    return raw


def test_it_tries_chooses_and_reports(project: Path, finished: TuneResult) -> None:
    assert len(finished.trials) == TRIALS
    assert finished.trials[0].own
    assert finished.own == 0
    done = [trial for trial in finished.trials if trial.value is not None]
    assert finished.trials[finished.best].value == min(trial.value or 9.0 for trial in done)
    assert (finished.train, finished.tuning) == (108, 36)
    assert {one.name: one.reference for one in finished.sets} == {
        "golden": "truth",
        "held_out": "teacher",
    }
    for one in finished.sets:
        assert one.own is not None
        assert one.gain is not None
        assert one.gain.estimate == pytest.approx(one.best.estimate - one.own.estimate)
    assert finished.seconds == pytest.approx(sum(t.seconds for t in finished.trials), abs=0.1)
    assert finished.usd > 0
    assert finished.held_out_looks == 1


def test_the_recipe_that_comes_out_loads_and_differs_in_what_was_searched(
    project: Path, finished: TuneResult
) -> None:
    before = load_recipe(project / "recipe.yaml").model_copy(update={"tune": None})
    after = load_recipe(project / "run" / "tuning" / "tuned.yaml")
    best = finished.trials[finished.best]
    assert after == with_values(before, best.values)


def test_weights_are_kept_of_the_own_and_the_best_alone(
    project: Path, finished: TuneResult
) -> None:
    folder = project / "run" / "tuning" / "trials" / finished.study
    kept = {int(path.parent.name) for path in folder.glob("*/student")}
    assert kept == {0, finished.best}
    assert not list(folder.glob("*/checkpoints"))


def test_the_page_stands_alone(project: Path, finished: TuneResult) -> None:
    html = (project / "run" / "tuning" / "tune.html").read_text()
    assert html.startswith("<!doctype html>")
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("<svg") == 1 + len(finished.parameters)
    stored = json.loads((project / "run" / "tuning" / "tune.json").read_text())
    assert TuneResult.model_validate(stored) == finished
    assert any("too few" in line for line in lines(finished))
    assert {row[0] for row in rows(finished)} == {one.key for one in finished.parameters}


def test_the_second_call_trains_nothing(
    project: Path, finished: TuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_run, "distil", lambda *_: pytest.fail("trained again"))
    said: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    again = tune_recipe(load_recipe(project / "recipe.yaml"), project / "run", Heard())
    assert plain(again) == plain(finished)
    assert f"tune: goes on after {TRIALS} trials that are there" in said


def test_trials_never_open_what_is_held_out(
    project: Path, finished: TuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(project, tmp_path / "run")
    (root / "dataset" / "held_out.jsonl").write_text("{no example\n")
    (root / "traffic" / "golden.jsonl").write_text("{no example\n")

    class Enough(Exception):
        pass

    def judged(*_: Any) -> Any:
        raise Enough

    monkeypatch.setattr(tuning, "run_stages", lambda *_, **__: None)
    monkeypatch.setattr(tuning, "_judged", judged)
    with pytest.raises(Enough):
        tune(project, root, "tune.trials=1")


@pytest.mark.full
def test_a_budget_ends_it_inside_a_trial_and_more_goes_on_there(
    project: Path, finished: TuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(project, tmp_path / "run")
    ticks = iter(range(10_000))
    ground = search_run.Ground
    monkeypatch.setattr(
        search_run, "Ground", lambda *given: ground(*given, clock=lambda: float(next(ticks)))
    )
    with pytest.raises(BudgetError, match=r"raise tune\.budget_s"):
        tune(project, root, "tune.budget_s=2")
    short = tune(project, root, "tune.budget_s=10")
    assert short.stopped_by == "budget"
    assert short.trials[0].state == "complete"
    assert short.trials[-1].state == "unfinished"
    assert len(short.trials) < TRIALS
    assert any("budget" in note for note in short.notes)
    # An unfinished trial is counted, and did not end the search.
    last = tune(project, root, "tune.budget_s=10", f"tune.trials={len(short.trials)}")
    assert last.trials[-1].state == "unfinished"
    assert last.stopped_by == "budget"
    monkeypatch.undo()
    whole = tune(project, root)
    assert [plain(whole)["trials"][n]["value"] for n in range(TRIALS)] == [
        trial.value for trial in finished.trials
    ]
    assert [trial.values for trial in whole.trials] == [trial.values for trial in finished.trials]


@pytest.mark.full
def test_another_recipe_is_another_study_in_the_same_file(
    project: Path, finished: TuneResult
) -> None:
    found = tune(project, project / "run", "tune.trials=2", "train.weight_decay=0.2")
    assert found.study != finished.study
    assert len(found.trials) == 2
    assert found.held_out_looks == 2
    assert any("judged on the held-out sets" in note for note in found.notes)
    assert [path.name for path in (project / "run" / "tuning").glob("*.db")] == ["study.db"]


@pytest.mark.parametrize("of", ["student.from", "teacher.model", "teacher.members"])
def test_other_weights_in_the_same_folder_are_another_study(
    of: str, project: Path, finished: TuneResult, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(project / ("encoder" if of == "student.from" else "teacher"), folder)
    override = [f"{of}=hf:{folder}"]
    if of == "teacher.members":
        other = project / "teacher"
        override = [
            "teacher.model=ensemble",
            f"{of}=[{{model: 'hf:{folder}'}}, {{model: 'hf:{other}'}}]",
        ]
    recipe = load_recipe(project / "recipe.yaml", override)
    assert recipe.tune is not None
    space, run = space_of(recipe, recipe.tune), RunFolder(project / "run")

    def name() -> str:
        assert recipe.tune is not None
        return tuning._study_name(recipe, recipe.tune, space, run)

    before = name()
    assert name() == before
    weights = load_file(folder / "model.safetensors")
    weights[min(weights)] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert name() != before


def test_the_recipe_that_comes_out_is_run_with_the_answers_that_are_there(
    project: Path, finished: TuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project / "run" / "tuning"

    def asked(*_: Any, **__: Any) -> Any:
        pytest.fail("the teacher was asked again")

    monkeypatch.setattr("stillhouse.teacher.stage.run_ask", asked)
    tuned = load_recipe(folder / "tuned.yaml")
    done = {one.name: one for one in run_stages(tuned, folder / "run", Silent())}
    assert [name for name, one in done.items() if not one.skipped] == ["train", "evaluate"]
    assert (
        done["ask"].manifest.output_hash == RunFolder(project / "run").manifest("ask").output_hash
    )  # type: ignore[union-attr]
    assert not (project / "run" / "train").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tune.search={train.lora.r: [2, 4]}", "no train.lora"),
        ("tune.search={student.layers: [1, 9]}", "layers"),
        ("tune.search={train.learning_rat: [1, 2]}", "known keys"),
        ("train.distributed={processes: 2}", "one process"),
        ("tune.budget_usd=-1", "greater than 0"),
    ],
)
def test_what_cannot_work_is_refused_before_the_teacher_is_asked(
    override: str, said: str, project: Path, tmp_path: Path
) -> None:
    with pytest.raises((RecipeError, UserError), match=said):
        tune(project, tmp_path / "run", override)
    assert not (tmp_path / "run" / "ask").exists()


def test_too_few_examples_to_judge_by(project: Path, finished: TuneResult, tmp_path: Path) -> None:
    root = copied(project, tmp_path / "run")
    with pytest.raises(DataError, match="20 are needed"):
        tune(project, root, "tune.split=0.05")


def test_trials_that_go_off_or_cannot_be_run_do_not_end_the_search(
    project: Path, finished: TuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(project, tmp_path / "run")
    distil = search_run.distil

    def fragile(job: Any, folder: Path, progress: Any) -> Any:
        if folder.name == "0001":
            raise StillhouseError("training went off")
        if folder.name == "0002":
            raise UserError("train", "does not fit")
        return distil(job, folder, progress)

    monkeypatch.setattr(search_run, "distil", fragile)
    found = tune(project, root, "tune.trials=3")
    assert [(trial.state, trial.why) for trial in found.trials] == [
        ("complete", None),
        ("pruned", "training went off"),
        ("failed", "train: does not fit"),
    ]
    assert found.best == 0
    assert any("no trial was better" in note for note in found.notes)
    assert any("could not be run" in note for note in found.notes)
    tuned = yaml.safe_load((root / "tuning" / "tuned.yaml").read_text())
    assert tuned["train"]["learning_rate"] == 1e-3


def test_the_command(project: Path, finished: TuneResult) -> None:
    at = ["--run-dir", str(project / "run")]
    done = CliRunner().invoke(app, ["tune", str(project / "recipe.yaml"), *at])
    assert done.exit_code == 0, done.output
    folder = project / "run" / "tuning"
    assert f"stillhouse run {folder / 'tuned.yaml'} --run-dir {folder / 'run'}" in done.output
    assert "train.learning_rate" in done.output
    done = CliRunner().invoke(app, ["tune", str(project / "recipe.yaml"), *at, "--json"])
    assert json.loads(done.stdout)["study"] == finished.study


@pytest.mark.full
@pytest.mark.parametrize(
    "deaths",
    [
        ["step:3", "look:2", "step:9", "told:1", "look:5", "judged:2"],
        ["look:1", "told:1", "step:20", "step:1", "told:2", "judged:1"],
    ],
)
def test_killed_again_and_again_it_ends_as_if_it_never_was(
    deaths: list[str], project: Path, finished: TuneResult, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",  # as the tests themselves: other threads add in another order
    }
    for death in deaths:
        done = subprocess.run(
            [sys.executable, str(KILLED), str(project / "recipe.yaml"), str(root), death],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert plain(tune(project, root)) == plain(finished)
    assert (root / "tuning" / "tuned.yaml").read_text() == (
        project / "run" / "tuning" / "tuned.yaml"
    ).read_text()
