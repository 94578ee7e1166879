"""A whole run without weights: teacher, training and student are doubles, all else is real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse import pipeline, stage_calls
from stillhouse.core.jsonl import read_records, write_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example
from stillhouse.core.runfolder import Outcome
from stillhouse.evaluate import stage as evaluate_stage
from stillhouse.models.fake import FakeCompleter, keyword_belief
from stillhouse.teacher import stage as teacher_stage

LABELS = ("good", "bad")
WORDS = {"lovely": "good", "awful": "bad"}


def double(name: str = "embedded") -> FakeCompleter:
    return FakeCompleter(name=name, belief=keyword_belief(LABELS, WORDS))


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    """A classification recipe whose files lie in `folder`; keyword sections are merged in."""
    raw: dict[str, Any] = {
        "name": "doubles",
        "task": {"kind": "classification", "labels": list(LABELS), "prompt": "Judge: {text}"},
        "traffic": {"path": str(folder / "traffic.jsonl")},
        "teacher": {"model": "embedded"},
        "dataset": {"min_examples": 4, "held_out": 0.3},
        "student": {"head": "label", "from": "embedded-encoder"},
        "evaluate": {"resamples": 100, "speed_queries": 2, "speed_repeats": 1},
    }
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    return Recipe.model_validate(raw)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _train(
    recipe: Recipe,
    dataset_dir: Path,
    tuned: Path | None,
    work: Path,
    progress: Progress,
    *,
    signals: Path | None = None,
) -> Outcome:
    count = len(list(read_records(dataset_dir / "train.jsonl", Example)))
    student = work / "student"
    student.mkdir(exist_ok=True)
    write_json(student / "config.json", {"trained_on": count})
    (student / "model.safetensors").write_bytes(f"weights of {count}".encode())
    (work / "history.json").write_text("[]", encoding="utf-8")
    return Outcome(summary={"steps": count})


@contextmanager
def doubles() -> Iterator[None]:
    """Local models are doubles while the block runs."""
    students = SimpleNamespace(open_student=lambda *_: double("student"))
    with pytest.MonkeyPatch.context() as patch:
        for module in (teacher_stage, stage_calls):
            patch.setattr(module, "open_teacher", lambda *_: double())
        patch.setattr(stage_calls, "require", lambda *_: SimpleNamespace(run_train=_train))
        patch.setattr(pipeline, "require", lambda *_: SimpleNamespace(check_student=lambda _: None))
        patch.setattr(evaluate_stage, "require", lambda *_: students)
        yield
