"""A classifier as the teacher of a whole run: its beliefs are what the student learns from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stillhouse.core.errors import UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Message
from stillhouse.pipeline import run_stages
from stillhouse.train.stage import run_train
from stillhouse.train.tune_teacher import run_tune
from tiny_models import review_examples, tiny_bert, wordpiece

LABELS = ["negative", "positive"]  # the classifier below has them the other way round


@pytest.fixture(scope="module")
def classifier(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT classifier that knows its task."""
    folder, pieces = tmp_path_factory.mktemp("classifier"), wordpiece()
    pieces.save_pretrained(folder / "base")
    tiny_bert(pieces).save_pretrained(folder / "base")
    recipe = _recipe(folder / "base", LABELS[::-1], epochs=12, batch_size=8, learning_rate=5e-3)
    run_train(recipe, dataset_folder, None, folder / "run", Silent())
    return folder / "run" / "student"


def _recipe(model: Path, labels: list[str], tune: bool = False, **train: Any) -> Recipe:
    teacher: dict[str, Any] = {"model": f"hf:{model}"}
    traffic = {"path": str(model.parent / "traffic.jsonl")}
    if tune:
        teacher["tune"] = {}
        traffic["labelled"] = traffic["path"]
    return Recipe.model_validate(
        {
            "name": "tiny",
            "task": {"kind": "classification", "labels": labels},
            "traffic": traffic,
            "teacher": {"terms": {"waived_by": "a test", "reason": "made up"}, **teacher},
            "dataset": {"near_duplicate": 1.0},
            "student": {"head": "label", "from": f"hf:{model}", "layers": 2, "max_tokens": 32},
            "train": train,
            "evaluate": {"resamples": 100, "speed_queries": 4, "speed_repeats": 1},
        }
    )


def test_a_student_learns_from_a_classifiers_beliefs(classifier: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in _texts()]
    (classifier.parent / "traffic.jsonl").write_text("".join(lines))
    recipe = _recipe(classifier, LABELS, epochs=12, batch_size=8, learning_rate=5e-3, alpha=1.0)
    run_stages(recipe, tmp_path / "run", Silent())
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    rows = (tmp_path / "run" / "dataset" / "train.jsonl").read_text().splitlines()
    assert len(rows) > 30
    for example in map(json.loads, rows):
        text = example["messages"][-2]["content"]
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            p = model(input_ids=inputs["input_ids"]).logits[0].softmax(-1).tolist()
        assert example["label_probabilities"] == pytest.approx(p[::-1], abs=1e-4)
        assert example["label"] == LABELS[int(p[0] > p[1])]
    history = json.loads((tmp_path / "run" / "train" / "history.json").read_text())
    looks = [row for row in history if row["held_out_divergence"] is not None]
    best = min(looks, key=lambda row: row["held_out_divergence"])
    assert best["held_out_divergence"] < 0.02
    assert best["held_out_agreement"] > 0.9


def _texts() -> list[str]:
    """Distinct texts of at most 32 tokens, whose label can be read from one word."""
    words = [example.prompt[-1].content.split()[1] for example in review_examples(10)]
    heads = ("the film is", "the story", "a plot and", "the cast is", "script and film", "it is")
    return [f"{head} {word}" for head in heads for word in words]


def test_tuning_a_classifier_is_refused_in_one_line(classifier: Path, tmp_path: Path) -> None:
    query = {
        "id": "a",
        "messages": [Message(role="user", content="warm").model_dump()],
        "reference": "positive",
    }
    (tmp_path / "labelled.jsonl").write_text(json.dumps(query) + "\n")
    with pytest.raises(UserError, match=r"teacher\.tune: .*only language models") as caught:
        run_tune(_recipe(classifier, LABELS, tune=True), tmp_path, tmp_path / "w", Silent())
    assert "\n" not in str(caught.value)
