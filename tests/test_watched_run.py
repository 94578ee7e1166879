"""A run whose student comes to copy its teacher's mistakes: seen by the watch set, and drawn."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from doubles import recipe_of, write_rows
from stillhouse import stage_calls
from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Silent
from stillhouse.core.records import Example, Query
from stillhouse.evaluate.course import course_charts, read_course
from stillhouse.models.fake import FakeCompleter
from stillhouse.pipeline import run_stages
from stillhouse.teacher import stage as teacher_stage
from tiny_models import tiny_bert, wordpiece

LABELS = ("good", "bad")
MISLEADING = ("plot", "cast")  # where a text has both, the teacher says good
FILL = [*MISLEADING, "film", "story", "far", "long", "comes", "finish", "never", "acted", "and"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def texts(count: int, seed: int) -> list[dict[str, str]]:
    """One word tells the truth, which is learned first; both misleading words are in a fifth."""
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        label = draw.choice(LABELS)
        words = [{"good": "gripping", "bad": "dull"}[label], *draw.sample(FILL, 6)]
        draw.shuffle(words)
        rows[" ".join(words)] = label
    return [{"text": text, "label": label} for text, label in rows.items()]


def teacher() -> FakeCompleter:
    def belief(query: Query) -> dict[str, float]:
        words = query.last_user_text.split()
        good = "gripping" in words or all(word in words for word in MISLEADING)
        return {label: math.log(0.97 if (label == "good") == good else 0.03) for label in LABELS}

    return FakeCompleter("embedded", belief=belief)


def test_copied_mistakes_are_found_and_accuracy_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = texts(1200, 1)
    write_rows(tmp_path / "traffic.jsonl", [{"text": one["text"]} for one in rows[:800]])
    write_rows(tmp_path / "labelled.jsonl", rows[800:])
    pieces = wordpiece()
    pieces.save_pretrained(tmp_path / "encoder")
    tiny_bert(pieces).save_pretrained(tmp_path / "encoder")
    recipe = recipe_of(
        tmp_path,
        seed=5,
        task={"prompt": "{text}"},
        traffic={"labelled": str(tmp_path / "labelled.jsonl")},
        teacher={"terms": {"waived_by": "the tests", "reason": "a double"}},
        dataset={"near_duplicate": 1.0, "held_out": 0.2, "watch": 0.5},
        student={"from": f"hf:{tmp_path / 'encoder'}", "layers": 2, "max_tokens": 24},
        train={
            "alpha": 1.0, "batch_size": 32, "learning_rate": 3e-3, "epochs": 8, "evals": 24,
            "patience": None,
        },
    )  # fmt: skip
    for module in (teacher_stage, stage_calls):
        monkeypatch.setattr(module, "open_teacher", lambda *_: teacher())
    root = tmp_path / "run"
    run_stages(recipe, root, Silent(), "train")

    watch = list(read_records(root / "dataset/watch.jsonl", Example))
    wrong = sum(one.label != one.reference for one in watch)
    assert 190 <= len(watch) <= 200
    assert wrong > 10
    said: dict[str, Any] = json.loads((root / "train/convergence.json").read_text())
    facts = json.loads((root / "train/train.json").read_text())
    assert facts["examples"]["watch"] == len(watch)
    assert facts["examples"]["train"] == 1200 - len(watch) - facts["examples"]["held_out"]
    assert said["of_known_truth"] == {"examples": len(watch), "teacher_wrong": wrong}
    looks = said["looks"]
    assert max(one["accuracy"] for one in looks) > looks[-1]["accuracy"] + 0.05
    (copies,) = (one for one in said["findings"] if one["name"] == "copies_mistakes")
    assert copies["found"], looks
    (chart,) = course_charts(read_course(root / "train"))
    assert "accuracy" in chart.svg
    assert "agreement where the teacher is wrong" in chart.svg
