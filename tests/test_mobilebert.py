"""The recipe of MobileBERT in small: a bottleneck student, taught layer by layer by an encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForMaskedLM, MobileBertForMaskedLM

from corpora import corpus_recipe, write_corpus
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_corpus_file import load_corpus_recipe
from stillhouse.pretrain import run_pretrain
from tiny_models import tiny_bert, wordpiece

RECIPE = Path(__file__).parents[1] / "recipes" / "mobilebert.yaml"
SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intra_bottleneck_size": 8,
    "num_attention_heads": 1,
    "intermediate_size": 16,
    "embedding_size": 8,
}


def test_feature_maps_attention_and_stages_end_to_end(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    for part in (tokenizer, tiny_bert(tokenizer, layers=2)):
        part.save_pretrained(tmp_path / "encoder")
    shipped = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe = corpus_recipe(
        write_corpus(tmp_path / "c.jsonl"),
        tmp_path / "encoder",
        "masked_lm",
        teacher={"adapt": {"epochs": 1, "evals": 1}},
        student={"from": "scratch", "layers": None,
                 "config": {**shipped["student"]["config"], **SMALL}},
        objective=shipped["objective"],
    )  # fmt: skip
    run_pretrain(recipe, tmp_path / "run", Silent(), "train")
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "train" / "student")
    assert isinstance(student, MobileBertForMaskedLM)
    assert student.config.true_hidden_size == 8
    assert student.config.num_feedforward_networks == 2
    history: Any = json.loads((tmp_path / "run" / "train" / "history.json").read_text())
    named = {name for row in history if row.get("terms") for name in row["terms"]}
    assert {"hidden", "attention"} <= named
    ids = tokenizer("the film is dull", return_tensors="pt")
    with torch.no_grad():
        assert student(**ids).logits.isfinite().all()


def test_the_recipe_that_is_shipped_loads() -> None:
    recipe = load_corpus_recipe(RECIPE)
    assert recipe.objective.progressive is not None
    assert [term.kind for term in recipe.objective.terms] == ["hidden", "attention"]
