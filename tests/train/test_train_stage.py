"""The train stage: what it writes, that it learns, and that a kill changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from stillhouse.core.errors import DataError, RunFolderError, StillhouseError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import hash_folder
from stillhouse.train.checkpoints import weight_errors
from stillhouse.train.history import Report
from stillhouse.train.schedule import warmup_steps
from stillhouse.train.stage import run_train

KILLED_RUN = Path(__file__).with_name("killed_run.py")

PEFT_ASKS_BY_THE_OLD_NAME = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)


def recipe_for(
    source: str, head: str = "label", student: dict[str, Any] | None = None, **train: Any
) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "seed": 7,
            "task": {"kind": "classification", "labels": ["positive", "negative"]},
            "traffic": {"path": "x"},
            "teacher": {"model": f"hf:{source}"},
            "student": {"head": head, "from": f"hf:{source}", "max_tokens": 48, **(student or {})},
            "train": {"batch_size": 8, "learning_rate": 5e-3, "epochs": 4, "evals": 4, **train},
        }
    )


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def looks(folder: Path) -> list[dict[str, Any]]:
    """Rows of a learning curve at which the held-out set was measured."""
    rows = json.loads((folder / "history.json").read_text())
    assert all(row["loss"] is not None for row in rows)
    return [row for row in rows if row["held_out_divergence"] is not None]


def test_a_label_student_is_cut_trained_and_plain(
    encoder_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(
        str(encoder_folder),
        student={"layers": 2, "vocabulary": "task"},
        hard_label_twin=True,
        epochs=20,
        patience=None,
    )
    outcome = run_train(recipe, dataset_folder, None, tmp_path, Silent())
    result = read(tmp_path / "train.json")
    assert outcome.summary["parameters"] == result["student"]["parameters"]
    assert not (tmp_path / "checkpoints").exists()

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert model.config.id2label == {0: "positive", 1: "negative"}
    assert model.config.num_hidden_layers == 2
    assert sum(p.numel() for p in model.parameters()) == result["student"]["parameters"]
    plan = result["student"]["plan"]
    assert plan["parameters_before"] > plan["parameters"]
    assert (plan["layers_kept"], plan["layers_before"]) == ([0, 3], 4)
    assert plan["vocabulary"] == model.config.vocab_size == len(tokenizer)
    rows = looks(tmp_path)
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert rows[-1]["held_out_divergence"] < rows[0]["held_out_divergence"]
    assert rows[-1]["held_out_agreement"] > 0.9
    assert all(0 <= row["held_out_agreement"] <= 1 for row in rows)
    best = min(rows, key=lambda row: row["held_out_divergence"])
    assert (result["best_step"], result["selected_by"]) == (best["step"], "held_out_divergence")
    twin = result["twin"]
    assert (twin["alpha"], twin["selected_by"]) == (0.0, "held_out_cross_entropy")
    assert twin["student"]["plan"] == plan
    assert (tmp_path / "twin" / "student" / "model.safetensors").exists()
    assert looks(tmp_path / "twin") != rows


def test_the_best_checkpoint_is_what_is_kept(
    encoder_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    """A rate that tears the student apart after a good start: early stop, best weights back."""
    recipe = recipe_for(
        str(encoder_folder), epochs=20, evals=40, patience=3, learning_rate=0.05, warmup_ratio=0.3
    )
    run_train(recipe, dataset_folder, None, tmp_path, Silent())
    result, rows = read(tmp_path / "train.json"), looks(tmp_path)
    values = [row["held_out_divergence"] for row in rows]
    assert result["stopped_early"]
    assert result["steps"] < result["max_steps"]
    assert len(values) == values.index(min(values)) + 1 + 3
    assert result["best_step"] == rows[values.index(min(values))]["step"]
    assert min(values) < values[-1]


@PEFT_ASKS_BY_THE_OLD_NAME
@pytest.mark.parametrize("alpha", [0.5, 0.0])
def test_a_text_student_with_adapters_is_saved_apart_and_merged(
    lm_folder: Path, dataset_folder: Path, tmp_path: Path, alpha: float
) -> None:
    recipe = recipe_for(str(lm_folder), "text", {"max_tokens": 200}, alpha=alpha, lora={"r": 4})
    run_train(recipe, dataset_folder, None, tmp_path, Silent())
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapter} == {"q_proj", "v_proj"}
    config = read(tmp_path / "adapter" / "adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (4, 32)
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    base = AutoModelForCausalLM.from_pretrained(lm_folder)
    assert config["base_model_name_or_path"] == str(lm_folder)
    put_on = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").merge_and_unload()
    for name, weight in put_on.state_dict().items():
        torch.testing.assert_close(weight, student.state_dict()[name], rtol=1e-5, atol=1e-6)
    changed = {
        name
        for name, weight in student.state_dict().items()
        if not torch.equal(weight, base.state_dict()[name])
    }
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
    name = "model.layers.0.self_attn.q_proj"
    key = f"base_model.model.{name}"
    delta = adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"] * (32 / 4)
    got = student.state_dict()[f"{name}.weight"] - base.state_dict()[f"{name}.weight"]
    torch.testing.assert_close(got, delta, rtol=1e-4, atol=1e-6)
    assert student.config.use_cache
    rows = looks(tmp_path)
    assert rows[-1]["held_out_cross_entropy"] < rows[0]["held_out_cross_entropy"]
    assert (rows[0]["held_out_divergence"] == rows[0]["held_out_cross_entropy"]) == (alpha == 0)


@PEFT_ASKS_BY_THE_OLD_NAME
def test_the_base_of_a_cut_student_is_beside_its_adapter(
    lm_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    section = {"from": "teacher", "layers": 2, "max_tokens": 200}
    recipe = recipe_for(str(lm_folder), "text", section, alpha=0, lora={"r": 4})
    run_train(recipe, dataset_folder, None, tmp_path, Silent())
    assert read(tmp_path / "adapter" / "adapter_config.json")["base_model_name_or_path"] == "base"
    assert '"../base"' in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    whole = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(weight, student.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "steps", "wanted"), [(0.06, 1, 0), (0.06, 16, 0), (0.06, 17, 2), (0.0, 9, 0)]
)
def test_a_warm_up_of_less_than_a_step_is_none(ratio: float, steps: int, wanted: int) -> None:
    assert warmup_steps(ratio, steps) == wanted


def test_weights_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    unwritten = pytest.raises(RunFolderError, match=r"cannot be written .*File too large")
    with unwritten, weight_errors(tmp_path):
        raise SafetensorError("I/O error: File too large (os error 27)")
    with pytest.raises(RunFolderError, match="disk is full"), weight_errors(tmp_path):
        raise SafetensorError("I/O error: Disk quota exceeded (os error 122)")


def test_a_text_student_is_cut_from_its_teacher(
    lm_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(
        str(lm_folder),
        "text",
        {"from": "teacher", "layers": 2, "vocabulary": 300, "max_tokens": 200},
        alpha=0,
    )
    run_train(recipe, dataset_folder, lm_folder, tmp_path, Silent())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert model.config.num_hidden_layers == 2
    assert 260 < len(tokenizer) == model.config.vocab_size <= 300
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the boring film"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    prompt.pop("token_type_ids", None)
    written = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(written[0, prompt["input_ids"].shape[1] :])
    assert answer.endswith("<|end|>"), "it has learned to stop"


def test_two_runs_are_equal_byte_for_byte(
    encoder_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(str(encoder_folder), student={"vocabulary": "task"})
    for name in ("one", "two"):
        run_train(recipe, dataset_folder, None, tmp_path / name, Silent())
    assert hash_folder(tmp_path / "one") == hash_folder(tmp_path / "two")


def kill_run(recipe: Recipe, stage: str, inputs: Path, work: Path, death: str) -> None:
    recipe_file = work.parent / "recipe.json"
    recipe_file.write_text(recipe.model_dump_json(by_alias=True))
    done = subprocess.run(
        [sys.executable, str(KILLED_RUN), stage, str(recipe_file), str(inputs), str(work), death],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def test_a_head_has_its_own_rate_on_the_same_schedule(
    encoder_folder: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []

    def on_step_begin(self: Report, args: Any, state: Any, control: Any, **more: Any) -> Any:
        names = {id(weight): name for name, weight in more["model"].named_parameters()}
        rates = {
            names[id(weight)]: group["lr"]
            for group in more["optimizer"].param_groups
            for weight in group["params"]
        }
        assert set(rates) == set(names.values()), "each weight is in one group"
        seen.append(rates)
        return control

    monkeypatch.setattr(Report, "on_step_begin", on_step_begin)
    recipe = recipe_for(
        str(encoder_folder), learning_rate=1e-4, head_learning_rate=5e-3, warmup_ratio=0.25
    )
    run_train(recipe, dataset_folder, None, tmp_path, Silent())
    body, head = [], []
    for rates in seen:
        own = {rate for name, rate in rates.items() if name.split(".")[-2] == "classifier"}
        rest = {r for n, r in rates.items() if "classifier" not in n and "pooler" not in n}
        assert len(own) == len(rest) == 1
        head += own
        body += rest
    assert max(body) == pytest.approx(1e-4)
    assert max(head) == pytest.approx(5e-3)
    assert body[0] == head[0] == 0
    assert body[-1] < body[len(body) // 2] < max(body)
    assert head == pytest.approx([50 * rate for rate in body])
    assert read(tmp_path / "train.json")["head_learning_rate"] == 5e-3


@pytest.mark.parametrize(
    "rates",
    [
        pytest.param({}, marks=pytest.mark.full),
        {"learning_rate": 1e-3, "head_learning_rate": 1e-2},
    ],
)
def test_a_killed_run_ends_with_the_same_bytes(
    encoder_folder: Path, dataset_folder: Path, tmp_path: Path, rates: dict[str, float]
) -> None:
    recipe = recipe_for(
        str(encoder_folder),
        student={"layers": 2, "vocabulary": "task"},
        micro_batch_size=4,
        **rates,
    )
    run_train(recipe, dataset_folder, None, tmp_path / "whole", Silent())
    work = tmp_path / "killed" / "train"
    work.mkdir(parents=True)
    kill_run(recipe, "train", dataset_folder, work, "step:11")
    first = sorted(p.name for p in (work / "checkpoints").iterdir())
    assert first
    kill_run(recipe, "train", dataset_folder, work, "checkpoint:1")
    torn = [p for p in (work / "checkpoints").iterdir() if not (p / "trainer_state.json").exists()]
    assert torn
    suffixes = {p.suffix for p in (work / "checkpoints").rglob("*") if p.is_file()}
    assert suffixes == {".json", ".safetensors"}, "no pickle in a checkpoint"
    moved = tmp_path / "moved"
    (tmp_path / "killed").rename(moved)
    run_train(recipe, dataset_folder, None, moved / "train", Silent())
    assert hash_folder(moved / "train") == hash_folder(tmp_path / "whole")


def test_a_run_killed_after_its_last_step_is_only_saved(
    encoder_folder: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(str(encoder_folder))
    run_train(recipe, dataset_folder, None, tmp_path / "whole", Silent())

    class _Full(Exception):
        pass

    def full(*_: Any) -> None:
        raise _Full

    with monkeypatch.context() as patch:
        patch.setattr("stillhouse.train.distil.save_student", full)
        with pytest.raises(_Full):
            run_train(recipe, dataset_folder, None, tmp_path / "late", Silent())
    patch.setattr(
        "stillhouse.train.trainer.DistillationTrainer.train", lambda *_, **__: pytest.fail("again")
    )
    run_train(recipe, dataset_folder, None, tmp_path / "late", Silent())
    patch.undo()
    assert hash_folder(tmp_path / "late") == hash_folder(tmp_path / "whole")


def test_what_cannot_be_trained_is_one_line(
    encoder_folder: Path, lm_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((encoder_folder / name).read_bytes())
    cases: list[tuple[Recipe, type[Exception], str]] = [
        (recipe_for(str(bare)), UserError, "no tokenizer"),
        (recipe_for(str(encoder_folder), lora={}), UserError, "choose among dense, key, query"),
        (recipe_for(str(lm_folder), student={"layers": 9}), UserError, "source has 4 layers"),
        (recipe_for(str(encoder_folder), precision="bf16"), UserError, "bf16 needs a CUDA GPU"),
        (
            recipe_for(str(encoder_folder), learning_rate=1e30, warmup_ratio=0, weight_decay=0),
            StillhouseError,
            "training went off",
        ),
    ]
    for number, (recipe, kind, says) in enumerate(cases):
        with pytest.raises(kind, match=says) as caught:
            run_train(recipe, dataset_folder, None, tmp_path / str(number), Silent())
        assert "\n" not in str(caught.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "train.jsonl").touch()
    with pytest.raises(DataError, match="holds no examples"):
        run_train(recipe_for(str(encoder_folder)), empty, None, tmp_path / "e", Silent())
