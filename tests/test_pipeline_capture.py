"""`capture` as a stage of a run: in its place, skipped, shared by students, verified, forgotten."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import load_recipe
from stillhouse.forget import forget_user
from stillhouse.pipeline import run_stages
from tiny_models import byte_bpe, tiny_llama

WORDS = ["gripping", "wonderful", "funny", "warm", "dull", "boring", "tired", "long", "the", "film"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name, layers in (("lm", 4), ("small", 2)):
        tokenizer = byte_bpe()
        tokenizer.save_pretrained(folder / name)
        tiny_llama(tokenizer, layers).save_pretrained(folder / name)
    draw = random.Random(1)
    rows = [{"text": " ".join(draw.choices(WORDS, k=7)), "user": f"u{n % 40}"} for n in range(120)]
    (folder / "traffic.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "tiny",
        "task": {"kind": "classification", "labels": ["positive", "negative"]},
        "traffic": {"path": "traffic.jsonl"},
        "teacher": {
            "model": f"hf:{folder / 'lm'}",
            "terms": {"waived_by": "the tests", "reason": "its weights are random"},
        },
        "dataset": {"near_duplicate": 1.0},
        "student": {"head": "text", "from": f"hf:{folder / 'lm'}", "max_tokens": 64},
        "capture": {"format": "sampled"},
        "train": {"epochs": 1, "batch_size": 16, "evals": 1, "signals": "cache"},
        "evaluate": {"resamples": 200, "speed_queries": 8, "speed_repeats": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def trained(project: Path) -> Path:
    root = project / "run"
    results = run_stages(load_recipe(project / "recipe.yaml"), root, Silent(), last="train")
    assert [r.name for r in results] == ["traffic", "ask", "dataset", "capture", "train"]
    return root


def changed(project: Path, *overrides: str) -> Recipe:
    return load_recipe(project / "recipe.yaml", list(overrides))


def skipped(recipe: Recipe, root: Path, last: str = "train") -> dict[str, bool]:
    return {r.name: r.skipped for r in run_stages(recipe, root, Silent(), last=last)}


def test_one_cache_trains_many_students(project: Path, trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(trained, root)
    assert skipped(changed(project), root) == dict.fromkeys(
        ["traffic", "ask", "dataset", "capture", "train"], True
    )
    small = changed(project, f"student.from=hf:{project / 'small'}", "train.learning_rate=0.001")
    found = skipped(small, root)
    assert (found["capture"], found["train"]) == (True, False)
    assert json.loads((root / "train" / "train.json").read_text())["signals"] == "cache"
    more = changed(project, "capture.samples=6")
    assert skipped(more, root, "capture")["capture"] is False


def test_a_recipe_without_capture_has_no_such_stage(project: Path, tmp_path: Path) -> None:
    raw = changed(project).model_dump(by_alias=True, mode="json")
    live = Recipe.model_validate(
        raw | {"capture": None, "train": {**raw["train"], "signals": "live"}}
    )
    with pytest.raises(RecipeError, match=r"capture.*no such stage"):
        run_stages(live, tmp_path, Silent(), last="capture")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_verify_prints_what_was_lost(trained: Path) -> None:
    done = invoke("signals", "verify", str(trained), "--sample", "4")
    assert done.exit_code == 0, done.output
    assert "sampled" in done.output
    assert "bytes a row" in done.output
    assert "mean" in done.output
    done = invoke("signals", "verify", str(trained), "--sample", "4", "--json")
    sets = json.loads(done.output)["sets"]
    assert [one["set"] for one in sets] == ["train", "held_out"]
    assert all(one["compared_rows"] > 0 for one in sets)
    assert sets[0]["bytes_per_row"] < 60  # 4 rows an example: the index weighs much here
    done = invoke("signals", "verify", str(trained), "--sample", "2", "--most", "0.0")
    assert done.exit_code == 1


def test_a_forgotten_users_signals_go_and_others_stay(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(trained, root)
    shard = root / "capture" / "train" / "shard-00000.safetensors"
    with pytest.raises(UserError, match="no record of this user"):
        forget_user("nobody", [root], dry_run=False)
    assert shard.exists()
    (result,) = forget_user("u3", [root], dry_run=False)
    assert result.found
    assert not shard.exists()
    assert "capture" in result.stale
