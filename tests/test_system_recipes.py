"""Every recipe that is shipped loads and can be trained; those of an ensemble and of Hugging Face's
examples run in small up to their student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification

from doubles import write_rows
from stillhouse.core.jsonl import read_json
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_corpus_file import load_corpus_recipe
from stillhouse.core.recipe_file import load_recipe
from stillhouse.core.recipe_images_file import load_image_recipe
from stillhouse.pipeline import run_stages
from stillhouse.train.planning import check_recipe
from tiny_models import byte_bpe, tiny_bert, tiny_llama, wordpiece

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
FOLDER = RECIPES[0].parent
LABELS = ("positive", "negative")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads(path: Path) -> None:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert raw["name"] == path.stem
    if "corpus" in raw:
        load_corpus_recipe(path)
    elif "images" in raw:
        load_image_recipe(path)
    else:
        check_recipe(load_recipe(path))


def rows(folder: Path) -> list[str]:
    """Traffic whose label is readable, and the overrides that point to it."""
    words = {"positive": ["gripping", "funny", "warm"], "negative": ["dull", "boring", "tired"]}
    texts = [
        {"text": f"the {words[LABELS[n % 2]][n // 2 % 3]} film" + " and the story" * (n % 5)
         + f" {n}", "label": LABELS[n % 2]}
        for n in range(90)
    ]  # fmt: skip
    write_rows(folder / "traffic.jsonl", [{"text": row["text"]} for row in texts[:60]])
    write_rows(folder / "labelled.jsonl", texts[60:])
    return [
        f"traffic.path={folder / 'traffic.jsonl'}",
        f"traffic.labelled={folder / 'labelled.jsonl'}",
        "traffic.golden=null",
        "dataset.near_duplicate=1",
        "dataset.min_examples=10",
        "train.epochs=1",
        "train.evals=1",
    ]


def classifier(folder: Path, seed: int) -> Path:
    """A classifier that knows nothing."""
    tokenizer = wordpiece()
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            id2label=dict(enumerate(LABELS)),
            label2id={label: n for n, label in enumerate(LABELS)},
        )
    )
    for part in (tokenizer, model):
        part.save_pretrained(folder)
    return folder


def encoder(folder: Path) -> Path:
    """A student's source."""
    tokenizer = wordpiece()
    for part in (tokenizer, tiny_bert(tokenizer)):
        part.save_pretrained(folder)
    return folder


def test_three_teachers_by_their_mean_logits(tmp_path: Path) -> None:
    models = [classifier(tmp_path / f"teacher-{n}", n) for n in range(3)]
    members = ", ".join(f"{{model: 'hf:{model}'}}" for model in models)
    recipe = load_recipe(
        FOLDER / "ensemble.yaml",
        [
            *rows(tmp_path),
            f"teacher.members=[{members}]",
            f"student.from=hf:{encoder(tmp_path / 'encoder')}",
            "student.layers=[0, 2]",
            "student.vocabulary=full",
            "student.max_tokens=32",
        ],
    )
    run_stages(recipe, tmp_path / "run", Silent(), last="train")
    facts: Any = read_json(tmp_path / "run" / "train" / "train.json")
    assert facts["distillation_temperature"] == 8
    assert facts["twin"]["alpha"] == 0
    lines = (tmp_path / "run" / "ask" / "member_completions.jsonl").read_text().splitlines()
    assert len(lines) >= 3 * 60


def test_hugging_faces_bert(tmp_path: Path) -> None:
    recipe = load_recipe(
        FOLDER / "hf-bert.yaml",
        [
            *rows(tmp_path),
            f"teacher.model=hf:{classifier(tmp_path / 'teacher', 0)}",
            f"student.from=hf:{encoder(tmp_path / 'encoder')}",
            "student.layers=[0, 3]",
            "student.max_tokens=32",
        ],
    )
    run_stages(recipe, tmp_path / "run", Silent(), last="train")
    facts: Any = read_json(tmp_path / "run" / "train" / "train.json")
    assert (facts["alpha"], facts["distillation_temperature"]) == (0.5, 2)
    assert facts["twin"]["alpha"] == 0


def test_hugging_faces_llama(tmp_path: Path) -> None:
    tokenizer = byte_bpe()
    for part in (tokenizer, tiny_llama(tokenizer)):
        part.save_pretrained(tmp_path / "llama")
    recipe = load_recipe(
        FOLDER / "hf-llama.yaml",
        [
            *rows(tmp_path),
            f"teacher.model=hf:{tmp_path / 'llama'}",
            "teacher.tune=null",
            "teacher.terms={waived_by: the tests, reason: made here}",
            "student.layers=2",
            "train.on_policy.max_new_tokens=4",
        ],
    )
    run_stages(recipe, tmp_path / "run", Silent(), last="train")
    facts: Any = read_json(tmp_path / "run" / "train" / "train.json")
    assert (facts["divergence"], facts["divergence_beta"]) == ("jsd", 0.5)
