"""What a finished stage's key rests on, and when it need not be done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import MANIFEST, Outcome, RunFolder, StageKey
from stillhouse.pipeline import _fits, stage_key, up_to_date
from stillhouse.stages import STAGES, stages_of
from synthetic_run import make_recipe


class Said(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def finish(run: RunFolder, key: StageKey, text: str = "result\n") -> None:
    work = run.open_partial(key)
    (work / "out.jsonl").write_text(text)
    run.finish(key, Outcome(), 1.0, 1.0)


def finish_all(run: RunFolder, recipe: Recipe) -> None:
    for stage in stages_of(recipe):
        finish(run, stage_key(stage, recipe, run), f"{stage.name}\n")


def stale(run: RunFolder, recipe: Recipe) -> list[str]:
    return [
        stage.name
        for stage in stages_of(recipe)
        if run.look(stage_key(stage, recipe, run)).manifest is None
    ]


def without(raw: Any, name: str) -> Any:
    """A manifest as it was before there was a key of this name."""
    if isinstance(raw, dict):
        return {key: without(value, name) for key, value in raw.items() if key != name}
    return [without(value, name) for value in raw] if isinstance(raw, list) else raw


@pytest.mark.parametrize("name", ["keep_head", "balancing", "signals", "floor", "best_of"])
def test_a_run_of_before_there_was_a_key_is_current(tmp_path: Path, name: str) -> None:
    recipe, run = make_recipe(), RunFolder(tmp_path)
    finish_all(run, recipe)
    lacking = 0
    for stage in stages_of(recipe):
        path = run.stage(stage.name) / MANIFEST
        raw = json.loads(path.read_text())
        older = {**raw, "key": {**raw["key"], "section": without(raw["key"]["section"], name)}}
        if name == "signals":  # the dataset's own entry of that name is no key of the recipe
            kept = raw["key"]["section"].get("signals")
            older["key"]["section"] |= {} if kept is None else {"signals": kept}
        lacking += older != raw
        older["digest"] = "of the older key"
        older.pop("measured")
        path.write_text(json.dumps(older))
    assert lacking
    assert stale(run, recipe) == []
    assert all(_fits(stage, recipe, run) for stage in stages_of(recipe))


def test_a_key_that_is_set_makes_its_stage_stale(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    plain = make_recipe(student={"head": "label", "from": f"hf:{tmp_path}/encoder"})
    finish_all(run, plain)
    kept = make_recipe(
        student={"head": "label", "from": f"hf:{tmp_path}/encoder", "keep_head": True}
    )
    assert stale(run, kept) == ["train"]
    train = next(stage for stage in STAGES if stage.name == "train")
    assert not _fits(train, kept, run)


def test_a_changed_file_is_named_and_its_stage_done_again(tmp_path: Path) -> None:
    recipe, run, said = make_recipe(), RunFolder(tmp_path), Said()
    finish_all(run, recipe)
    ask = next(stage for stage in STAGES if stage.name == "ask")
    key = stage_key(ask, recipe, run)
    assert up_to_date(run, key, "[2/5] ask", said) is not None
    (run.stage("ask") / "out.jsonl").write_text("an edit\n")
    assert up_to_date(run, key, "[2/5] ask", said) is None
    assert stale(run, recipe) == ["ask"]
    assert said.lines == [
        "[2/5] ask: up to date",
        "[2/5] ask: out.jsonl changed since it was made; done again",
    ]


def test_speculate_rests_on_the_weights_of_teacher_and_student(tmp_path: Path) -> None:
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    recipe = make_recipe(
        teacher={"model": f"hf:{tmp_path / 'teacher'}"},
        student={"head": "text", "from": f"hf:{tmp_path / 'student'}"},
        speculate={"prompts": 6, "speed_prompts": 2},
    )
    run = RunFolder(tmp_path / "run")
    speculate = stages_of(recipe)[-1]
    assert speculate.name == "speculate"
    key = stage_key(speculate, recipe, run)
    finish(run, key)
    assert {"teacher model.safetensors", "student model.safetensors"} <= set(key.inputs)
    assert run.look(stage_key(speculate, recipe, run)).manifest is not None
    # The answers may be the same, and another target's speed is not.
    (tmp_path / "teacher" / "model.safetensors").write_text("quantized")
    assert run.look(stage_key(speculate, recipe, run)).manifest is None
