"""Small corpora and recipes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stillhouse.core.recipe_corpus import CorpusRecipe
from stillhouse.core.recipe_corpus_file import parse_corpus_recipe

SUBJECTS = ["the film", "the story", "the cast", "a script", "the plot"]
WORDS = ["gripping", "dull", "funny", "boring", "warm", "tired", "moving", "wonderful"]


def write_corpus(path: Path, count: int = 80, *, languages: bool = False) -> Path:
    """Texts of the tiny tokenizers' words."""
    rows = []
    for number in range(count):
        subject, word = SUBJECTS[number % 5], WORDS[number // 5 % 8]
        text = f"{subject} is {word}" + " and long" * (number % 3) + f" {number}"
        row = {"text": text, "doc": f"d{number // 2}"}
        if languages:
            row["language"] = ("en", "fr")[number % 2]
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def corpus_recipe(path: Path, model: Path, kind: str, **changes: Any) -> CorpusRecipe:
    """A student of two layers that learns from the model in a folder; sections are updated."""
    raw: dict[str, Any] = {
        "name": "c",
        "seed": 3,
        "corpus": {"path": str(path), "group": "doc", "validation": 0.15, "test": 0.2,
                   "max_tokens": 24},
        "teacher": {"model": f"hf:{model}"},
        "student": {"from": "teacher", "layers": 2},
        "objective": {"kind": kind, "soft": 5, "hard": 2},
        "train": {"epochs": 2, "batch_size": 8, "evals": 2, "learning_rate": 1e-3},
        "evaluate": {"resamples": 100, "speed_rows": 8, "speed_repeats": 2},
    }  # fmt: skip
    for name, value in changes.items():
        raw[name] = {**raw[name], **value} if isinstance(raw.get(name), dict) else value
    return parse_corpus_recipe(raw)
