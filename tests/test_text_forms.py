"""`run` with a text student to its end: GGUF forms gated again, and the student as a draft."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse.compress.speculate_report import SpeculateReport
from stillhouse.core.optional import EXTRAS, available
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe
from stillhouse.evaluate.compressed import read_table
from stillhouse.pipeline import report_of, run_stages
from tiny_models import byte_bpe

needs_gguf = pytest.mark.skipif(
    not all(available(module) for module in EXTRAS["gguf"]), reason="the gguf extra"
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


def text_project(folder: Path) -> dict[str, Any]:
    """A folder with traffic and a tiny teacher, which is its student's origin too; a recipe."""
    tokenizer = byte_bpe()
    torch.manual_seed(9)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=64,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.4)
        model.lm_head.weight[2] *= 2  # so that answers end
    model.save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    words = ("wonderful", "dull", "tired", "moving", "lifeless", "clever", "warm", "loud")
    texts = [
        f"the {a} cast and the {b} script, seen {n} times"
        for n, (a, b) in enumerate(
            (a, b) for a in words for b in (*words, *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJ")
        )
    ]
    (folder / "traffic.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    return {
        "name": "text",
        "task": {"kind": "generation", "name": "reply", "prompt": "{text}"},
        "traffic": {"path": "traffic.jsonl"},
        "teacher": {
            "model": f"hf:{folder / 'lm'}",
            "max_tokens": 24,
            "terms": {"waived_by": "the tests", "reason": "its weights are random"},
        },
        "dataset": {"near_duplicate": 1.0, "held_out": 0.6, "min_examples": 4},
        "student": {"head": "text", "from": f"hf:{folder / 'lm'}", "layers": 1, "max_tokens": 96},
        "train": {"epochs": 1, "learning_rate": 1e-3, "batch_size": 8, "evals": 1},
        "evaluate": {"resamples": 100, "speed_queries": 4, "speed_repeats": 1},
    }


def load(folder: Path, raw: dict[str, Any]) -> Any:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return load_recipe(folder / "recipe.yaml")


@pytest.mark.full
@needs_gguf
def test_gguf_forms_are_made_gated_and_reported(tmp_path: Path) -> None:
    raw = text_project(tmp_path)
    raw["compress"] = {
        "formats": ["gguf-f16", "gguf-q8_0"],
        "margin_teacher": 0.99,
        "margin_student": 0.99,
        "min_speedup": 0.001,
        "speed_repeats": 1,
        "latency_queries": 2,
        "cold_starts": 1,
    }
    recipe = load(tmp_path, raw)
    root = tmp_path / "run"
    results = run_stages(recipe, root, Silent())
    assert results[-1].name == "compress"
    table = read_table(root / "compress")
    assert table.left_out == {}
    assert [row.name for row in table.rows] == ["student", "gguf-f16", "gguf-q8_0"]
    for row in table.artefacts:
        assert row.agreement_student.estimate > 0.8, row.sentence
        assert row.tokens_per_s
        assert row.footprint.cold_start_s > 0
    assert table.best is not None, [row.sentence for row in table.artefacts]
    assert (root / "compress" / "best" / "artefact.json").is_file()
    assert report_of(root).compress == table
    assert all(result.skipped for result in run_stages(recipe, root, Silent()))


@pytest.mark.full
@needs_gguf
def test_the_student_is_measured_as_a_draft_in_both_runtimes(tmp_path: Path) -> None:
    raw = text_project(tmp_path)
    raw["speculate"] = {
        "prompts": 6,
        "choose_prompts": 2,
        "max_tokens": 8,
        "draft_lengths": [1, 3],
        "lookup_lengths": [2],
        "speed_prompts": 2,
        "speed_repeats": 1,
        "runtimes": ["transformers", "llama.cpp"],
        "gguf": "f32",
        "sampling_test": {"prompts": 4, "fixed_prompts": 1, "seeds": 20, "tokens": 2},
    }
    recipe = load(tmp_path, raw)
    root = tmp_path / "run"
    results = run_stages(recipe, root, Silent())
    assert results[-1].name == "speculate"
    report = SpeculateReport.model_validate_json((root / "speculate/speculate.json").read_text())
    assert report.lossless
    assert [one.runtime for one in report.runtimes] == ["transformers", "llama.cpp"]
    for one in report.runtimes:
        assert {"alone", "draft", "undistilled"} <= set(one.ways)
    assert all(result.skipped for result in run_stages(recipe, root, Silent()))
