"""Probe students learn from what passes the checks alone, whatever soft filters the recipe has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import stillhouse.teacher_probe as probe
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.core.records import Completion, LabelledQuery, Query
from stillhouse.teacher_probe import Lesson, School, teach

JUDGE = {"model": "openai:m", "gold": "gold.jsonl"}


def recipe(**dataset: Any) -> Recipe:
    teacher: dict[str, Any] = {"model": "openai:a", "samples": 2, "sampling_temperature": 1.0}
    if "agreement" in dataset:
        teacher = {
            "model": "ensemble",
            "combine": "majority",
            "members": [{"model": f"openai:{name}"} for name in "abc"],
        }
    return parse_recipe(
        {
            "name": "r",
            "task": {"kind": "classification", "labels": ["good", "bad"]},
            "traffic": {"path": "t.jsonl", "labelled": "l.jsonl"},
            "teacher": teacher,
            "dataset": {"near_duplicate": 1.0, "min_examples": 2} | dataset,
            "student": {"head": "label", "from": "hf:x"},
            "train": {"alpha": 0},
        }
    )


class Trained(Exception):
    """The probe's dataset was made, and training began."""


@pytest.mark.parametrize(
    "dataset",
    [
        {"judge": JUDGE, "floor": 0.5},
        {"judge": JUDGE, "best_of": "judge"},
        {"judge": {**JUDGE, "mode": "pairwise"}, "best_of": "judge"},
        {"agreement": 0.6},
        {"consistency": 0.6},
        {"best_of": "likelihood"},
    ],
)
def test_soft_filters_do_not_starve_a_probe(
    dataset: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(**dataset)
    queries = [
        Query(id=f"q{i}", messages=made.task.messages_for(f"number {i} of the texts"))
        for i in range(40)
    ]
    labelled = [LabelledQuery(id="l", messages=made.task.messages_for("other"), reference="good")]
    lesson = Lesson(
        made.teacher,
        {
            q.id: [
                Completion(
                    query_id=q.id, text=("good", "bad")[i % 2], model="openai:a", revision="1"
                )
            ]
            for i, q in enumerate(queries)
        },
        (),
    )

    class Train:
        @staticmethod
        def run_train(*args: object) -> None:
            raise Trained

    monkeypatch.setattr(probe, "require", lambda *args: Train)
    school = School(made, queries, labelled, False, None, tmp_path / "probe", Silent())
    with pytest.raises(Trained):
        teach(school, {"a": lesson}, "recipe")
    lines = (tmp_path / "probe" / "dataset" / "train.jsonl").read_text().splitlines()
    held_out = (tmp_path / "probe" / "dataset" / "held_out.jsonl").read_text().splitlines()
    assert len(lines) + len(held_out) == 40
    assert all("judge" not in json.loads(line)["filters"] for line in lines)


def test_it_is_said_that_they_are_not_applied(tmp_path: Path) -> None:
    made = recipe(judge=JUDGE, agreement=0.6)
    school = School(made, [], [], False, None, tmp_path / "probe", Silent())
    (note,) = teach(school, {}, "recipe").notes
    assert note.startswith("dataset.agreement, dataset.judge")
    assert teach(school, {}, "tfidf").notes == []
