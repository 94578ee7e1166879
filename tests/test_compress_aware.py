"""An INT8 form below its gate, with a real training: killed in between, it ends the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback

from compress_doubles import Workshop, evaluated
from stillhouse.compress_aware import compress
from stillhouse.core.jsonl import read_json
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.pipeline import stage_key
from stillhouse.stages import STAGES
from stillhouse.train.quantize import Quantizing
from synthetic_run import LABELS, make_recipe
from tiny_models import wordpiece

STAGE = next(stage for stage in STAGES if stage.name == "compress")
CALLBACKS = Quantizing.callbacks


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe_of(**section: object) -> Recipe:
    return make_recipe(
        train={"batch_size": 16, "learning_rate": 2e-3, "evals": 1},
        evaluate={"resamples": 100, "speed_repeats": 1},
        compress={
            "formats": ["onnx", "onnx-int8-static"],
            "speed_repeats": 1,
            "cold_starts": 1,
            "latency_queries": 2,
            **section,
        },
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is evaluated, with a real student in it."""
    with pytest.MonkeyPatch.context() as patch:
        run = evaluated(tmp_path_factory.mktemp("judged") / "run", recipe_of(), patch)
    tokenizer = wordpiece()
    torch.manual_seed(1)
    student = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=48,
            pad_token_id=0,
            id2label=dict(enumerate(LABELS)),
            label2id={label: n for n, label in enumerate(LABELS)},
        )
    )
    student.save_pretrained(run.stage("train") / "student")
    tokenizer.save_pretrained(run.stage("train") / "student")
    return run.root


def run_in(folder: Path, judged: Path, recipe: Recipe) -> tuple[RunFolder, Path]:
    if not folder.exists():
        shutil.copytree(judged, folder, symlinks=True)
    run = RunFolder(folder)
    return run, run.open_partial(stage_key(STAGE, recipe, run))


def go(folder: Path, judged: Path, recipe: Recipe) -> Path:
    run, work = run_in(folder, judged, recipe)
    tools = Workshop(better=0.17).tools
    compress(recipe, run, None, None, work=work, progress=Silent(), tools=tools)
    return work


class Killed(TrainerCallback):
    """Stops a training at its first checkpoint, as a kill would."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def test_the_student_is_distilled_further_and_a_killed_one_goes_on(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of()
    whole = go(tmp_path / "whole", judged, recipe)
    with monkeypatch.context() as patched:
        patched.setattr(
            Quantizing, "callbacks", lambda self, model: (*CALLBACKS(self, model), Killed())
        )
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "cut", judged, recipe)
    cut = go(tmp_path / "cut", judged, recipe)
    facts = read_json(cut / "quantization-aware" / "quantization_aware.json")
    assert facts["scheme"] == {
        "bits": 8, "group": None, "reduced": True, "activations": True, "tables": "row",
        "head": False,
    }  # fmt: skip
    assert facts["training_helped"]
    weights = [
        load_file(work / "quantization-aware" / "student" / "model.safetensors")
        for work in (whole, cut)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    names = [row["name"] for row in read_json(cut / "table.json")["rows"]]
    assert names == ["student", "onnx", "onnx-int8-static", "onnx-int8-static-aware"]


def test_it_is_off_where_the_recipe_says_so(judged: Path, tmp_path: Path) -> None:
    work = go(tmp_path / "off", judged, recipe_of(quantization_aware=False))
    assert not (work / "quantization-aware").exists()
    names = [row["name"] for row in read_json(work / "table.json")["rows"]]
    assert names == ["student", "onnx", "onnx-int8-static"]
