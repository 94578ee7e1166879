"""A project to tune: a tiny classifier as teacher, a small recipe. Nothing is loaded
from outside."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import BertForSequenceClassification

from tiny_models import tiny_bert, wordpiece

GOOD = ["gripping", "wonderful", "funny", "warm", "moving"]
BAD = ["dull", "boring", "tired", "lifeless", "long"]
FILLER = ["the", "film", "and", "story", "cast", "script", "plot", "is", "start", "never"]


def write_project(folder: Path, **tune: Any) -> Path:
    """Recipe, data and models in a folder; the recipe's path."""
    teacher, encoder = folder / "teacher", folder / "encoder"
    pieces = wordpiece()
    pieces.save_pretrained(encoder)
    tiny_bert(pieces, layers=2).save_pretrained(encoder)
    draw = random.Random(1)
    rows: dict[str, str] = {}
    while len(rows) < 240:
        label, words = draw.choice((("positive", GOOD), ("negative", BAD)))
        rows[" ".join([*draw.choices(FILLER, k=5), draw.choice(words)])] = label
    lines = [{"text": text, "label": label} for text, label in rows.items()]
    _teach(pieces, lines[180:], teacher)
    _write(folder / "traffic.jsonl", [{"text": row["text"]} for row in lines[:180]])
    _write(folder / "golden.jsonl", lines[180:])
    recipe = {
        "name": "tiny",
        "seed": 3,
        "task": {
            "kind": "classification",
            "name": "verdict",
            "prompt": "{text}",
            "labels": ["positive", "negative"],
        },
        "traffic": {"path": "traffic.jsonl", "golden": "golden.jsonl"},
        "teacher": {
            "model": f"hf:{teacher}",
            "terms": {"waived_by": "the tests", "reason": "it was made here"},
        },
        "dataset": {"near_duplicate": 1.0, "min_examples": 20, "held_out": 0.2},
        "student": {"head": "label", "from": f"hf:{encoder}", "max_tokens": 32},
        "train": {"epochs": 2, "learning_rate": 1e-3, "batch_size": 16, "evals": 3},
        "evaluate": {"resamples": 200},
        "tune": {
            "search": {
                "train.learning_rate": {"low": 1e-4, "high": 3e-2},
                "train.distillation_temperature": {"low": 1, "high": 8},
                "student.layers": [1, 2],
            },
            "trials": 5,
            "split": 0.25,
            "startup": 2,
            **tune,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def _teach(pieces: Any, rows: list[dict[str, str]], folder: Path) -> None:
    """A classifier that has learned from the golden rows."""
    body = tiny_bert(pieces, layers=2)
    names = ["positive", "negative"]
    body.config.update(
        {"id2label": dict(enumerate(names)), "label2id": {"positive": 0, "negative": 1}}
    )
    torch.manual_seed(5)
    model = BertForSequenceClassification(body.config)
    model.bert.load_state_dict(body.state_dict())
    batch = pieces([row["text"] for row in rows], padding=True, return_tensors="pt")
    truth = torch.tensor([names.index(row["label"]) for row in rows])
    step = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        step.zero_grad()
        model(**batch, labels=truth).loss.backward()
        step.step()
    model.eval().save_pretrained(folder)
    pieces.save_pretrained(folder)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
