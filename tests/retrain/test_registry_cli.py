"""`stillhouse registry`: each command as a user gives it, and the lineage of a run."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from registry_students import student_folder
from stillhouse.cli import app
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import write_json
from stillhouse.core.runfolder import Outcome, RunFolder, StageKey
from stillhouse.retrain.registry import Registry
from stillhouse.retrain.registry_gate import gate_words
from stillhouse.retrain.registry_lineage import is_run, lineage_of
from stillhouse.serve.gate_file import Calibrator, GateFile, save_gate


def called(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["registry", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def staged(run: RunFolder, stage: str, files: dict[str, str], **inputs: str) -> str:
    """A finished stage of a run; its output hash."""
    key = StageKey(stage, inputs, {}, {"stillhouse": "0"}, 0)
    folder = run.open_partial(key)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return run.finish(key, Outcome(summary={"queries": 2, "train": 9}), 1.5, 10).output_hash


def finished_run(root: Path) -> Path:
    """A run folder with the records that lineage is read from."""
    run = RunFolder(root)
    rows = [{"id": "a", "messages": [{"role": "user", "content": "x"}], "at": at} for at in "21"]
    staged(run, "traffic", {"queries.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    dataset = staged(run, "dataset", {"train.jsonl": "{}\n"})
    staged(run, "train", {"student/config.json": "{}", "student/w": "1"}, dataset=dataset)
    task = {"name": "spam", "kind": "classification", "labels": ["spam", "ham"]}
    write_json(
        root / "recipe.json",
        {"name": "r", "seed": 3, "task": task, "teacher": {"model": "openai:x"}},
    )
    score = {"estimate": 0.9, "low": 0.8, "high": 0.95, "n": 10}
    write_json(
        root / "report.json",
        {
            "teacher": {"revision": "7", "score": score},
            "student": {"score": score, "parameters": 5},
            "gate": {"verdict": "pass", "margin": 0.05},
            "sets": {"golden": {"metric": "accuracy", "candidates": {"student": {"score": score}}}},
        },
    )
    return root


def test_lineage_and_figures_are_those_of_the_run(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    assert is_run(run)
    found: Any = lineage_of(run)
    assert found.folder == run / "train" / "student"
    assert found.task == "spam"
    lineage = found.lineage
    dataset = json.loads((run / "train" / "manifest.json").read_text())["key"]["inputs"]["dataset"]
    assert lineage["traffic"]["window"] == ["1", "2"]
    assert lineage["traffic"]["queries"] == 2
    assert lineage["teacher"] == {"model": "openai:x", "revision": "7"}
    assert (lineage["dataset"]["hash"], lineage["dataset"]["train"]) == (dataset, 9)
    assert lineage["recipe"]["name"] == "r"
    assert len(lineage["recipe"]["sha256"]) == 64
    assert lineage["task"]["labels"] == ["spam", "ham"]
    assert lineage["train"]["seconds"] == 1.5
    assert found.metrics["score"]["estimate"] == 0.9
    assert found.metrics["gate"] == "pass"
    assert found.metrics["sets"]["golden"]["score"]["n"] == 10


def test_a_pruned_student_is_the_runs(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    staged(RunFolder(run), "prune", {"student/config.json": "{}"})
    found: Any = lineage_of(run)
    assert found.folder == run / "prune" / "student"
    assert found.lineage["train"]["stage"] == "prune"


def test_a_folder_that_is_no_run_has_no_lineage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no trained student"):
        lineage_of(tmp_path)


def test_from_add_to_gc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = finished_run(tmp_path / "run")
    assert "candidate of task spam" in called("add", run, "--task", "spam", "--reason", "first")
    registry = Registry(Path("registry"))
    (first,) = registry.entries()
    assert first.metrics["gate"] == "pass"
    assert registry.history("spam")[0].by == getpass.getuser()
    plain = student_folder(tmp_path / "plain", "b")
    told = json.loads(called("add", plain, "--task", "spam", "--parent", first.id, "--json"))
    assert (told["parent"], told["lineage"]) == (first.id, {})
    called("promote", first.id, "--reason", "good", "--by", "ann")
    called("move", told["id"], "shadow")
    listed = called("list", "--task", "spam")
    assert f"{first.id}  spam" in listed
    assert "0.900" in listed
    seen = str(registry.version("spam"))
    called("promote", told["id"], "--version", seen, "--by", "bo")
    assert json.loads(called("show", "spam@previous", "--json"))["id"] == first.id
    assert "candidate -> live by ann: good" in called("show", first.id)
    assert f"{first.id}: live again" in called("rollback", "spam", "--reason", "worse")
    assert called("alias", "spam", "old", told["id"]) == f"spam@old: {told['id']}\n"
    assert "0 would be removed" in called("gc", "--days", "0")
    assert called("alias", "spam", "old") == "spam@old: nothing\n"
    assert f"{told['id']}: of task spam, retired" in called("gc", "--days", "0")
    assert len(registry.entries()) == 2
    assert "1 removed" in called("gc", "--days", "0", "--yes")
    assert [entry.id for entry in registry.entries()] == [first.id]
    said = called("verify")
    assert f"head {registry.head('spam')}" in said
    assert "as it was written" in said
    with pytest.raises(UserError, match="at version"):
        called("promote", first.id, "--version", seen)


def test_another_form_of_a_runs_student_has_its_lineage_and_no_figures(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    form = student_folder(run / "compress" / "onnx", "form")
    told = json.loads(called("add", form, "--task", "spam", "--registry", tmp_path / "r", "--json"))
    assert told["lineage"]["form"] == "compress/onnx"
    assert told["lineage"]["recipe"]["name"] == "r"
    assert told["metrics"] == {}


def test_verify_says_what_is_wrong_with_exit_code_1(tmp_path: Path) -> None:
    root = tmp_path / "r"
    plain = student_folder(tmp_path / "plain", "b")
    entry = json.loads(called("add", plain, "--task", "t", "--registry", root, "--json"))
    path = root / "entries" / f"{entry['id']}.json"
    path.write_text(path.read_text().replace('"task": "t"', '"task": "u"'))
    done = CliRunner().invoke(app, ["registry", "verify", "--registry", str(root)])
    assert done.exit_code == 1
    assert f"- {path}: was changed" in done.output


def test_whether_a_student_carries_a_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Calibrator(features=("logit",), means=(0,), scales=(1,), weights=(1,), bias=0, n=10)
    gate = GateFile(
        calibrator=own, threshold=0.87, error=0.05, delta=0.1, coverage=0.6, n=300, source="there"
    )
    ids = {}
    for name, threshold in (("plain", 0.0), ("gated", 0.87), ("closed", None), ("torn", 1.0)):
        folder = student_folder(tmp_path / name, name)
        if name != "plain":
            save_gate(folder / "gate.json", gate.model_copy(update={"threshold": threshold}))
        if name == "torn":
            (folder / "gate.json").write_text("{}")
        ids[name] = json.loads(called("add", folder, "--task", "spam", "--json"))["id"]
    lines = {line.split()[0]: line for line in called("list").splitlines()}
    assert "gate" in lines["student"].split()
    assert " none " in lines[ids["plain"]]
    assert " 0.870, error 5% " in lines[ids["gated"]]
    assert " lets nothing through " in lines[ids["closed"]]
    assert " damaged " in lines[ids["torn"]]
    assert json.loads(called("show", ids["plain"], "--json"))["gate"] is None
    assert "is no gate" in json.loads(called("show", ids["torn"], "--json"))["gate"]["damaged"]
    assert len(json.loads(called("list", "--json"))) == 4
    assert json.loads(called("show", ids["gated"], "--json"))["gate"] == {
        "threshold": 0.87,
        "error": 0.05,
        "delta": 0.1,
        "coverage": 0.6,
        "n": 300,
        "source": "there",
        "student": None,
    }
    assert '"threshold": 0.87' in called("show", ids["gated"])
    # Of one with a smaller form, what is served counts.
    folder = student_folder(tmp_path / "formed", "formed")
    (folder / "forms" / "best").mkdir(parents=True)
    save_gate(folder / "forms" / "best" / "gate.json", gate)
    registry = Registry(Path("registry"))
    for artefacts, said in (({}, "none"), ({"best": "forms/best"}, "0.870, error 5%")):
        (folder / "note").write_text(said)
        entry = registry.add(folder, task="spam", lineage={}, metrics={}, artefacts=artefacts)
        assert gate_words(registry, entry) == said
