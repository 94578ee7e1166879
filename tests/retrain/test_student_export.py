"""Exports: what transformers and MLflow load from them answers as the student does."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from registry_students import student_folder
from stillhouse.core.errors import UserError
from stillhouse.core.optional import available
from stillhouse.core.records import Query
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.completer import Sampling
from stillhouse.models.student import open_student
from stillhouse.retrain import mlflow_flavour
from stillhouse.retrain.registry import Entry, Registry
from stillhouse.retrain.student_export import export_huggingface, export_mlflow
from tiny_models import TEXTS, wordpiece

TASK = ClassificationTask(
    name="reviews", kind="classification", prompt="{text}", labels=("positive", "negative")
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, Entry]:
    """A registry with one tiny classifier."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = wordpiece()
    torch.manual_seed(3)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=48, pad_token_id=0,
            id2label={0: "positive", 1: "negative"}, label2id={"positive": 0, "negative": 1},
        )
    )  # fmt: skip
    model.eval().classifier.weight.data *= 40
    with torch.no_grad():  # so that both labels are among the answers
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
        model.classifier.bias -= logits.median(0).values
    student = folder / "student"
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    (student / "README.md").write_text("---\nlicense: mit\n---\n\n# The run's card\n")
    registry = Registry(folder / "registry")
    entry = registry.add(
        student,
        task="reviews",
        lineage={"task": TASK.model_dump(mode="json"), "teacher": {"model": "openai:x"}},
        metrics={"score": 0.9},
    )
    return registry, entry


def answers_of(student: Path) -> list[tuple[str, float]]:
    """What the student says to the texts, and how sure it is."""
    completer = open_student(student, TASK, "label", 4)

    async def ask() -> list[Any]:
        queries = [Query(id=str(n), messages=TASK.messages_for(t)) for n, t in enumerate(TEXTS)]
        sampling = Sampling(labels=TASK.labels)
        return [(await completer.complete(q, sampling))[0] for q in queries]

    found = asyncio.run(ask())
    return [(one.text, float(np.exp(one.label_logprobs[one.text]))) for one in found]


def test_transformers_loads_the_folder_and_answers_the_same(
    made: tuple[Registry, Entry], tmp_path: Path
) -> None:
    registry, entry = made
    out = export_huggingface(registry, entry.id, tmp_path / "hf")
    model = AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    beliefs = logits.softmax(-1)
    expected = answers_of(registry.folder(entry.id))
    assert len({label for label, _ in expected}) == 2
    for row, (label, sure) in zip(beliefs, expected, strict=True):
        assert model.config.id2label[int(row.argmax())] == label
        assert float(row.max()) == pytest.approx(sure, abs=1e-4)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n\n# The run's card\n")
    assert f"`{entry.digest}`" in card
    assert "openai:x" in card
    (out / "config.json").write_text("{}")  # a copy, that may be written to
    assert registry.verify() == []


def test_a_student_without_a_card_gets_one(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    source = tmp_path / "s"
    source.mkdir()
    (source / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    entry = registry.add(source, task="mail", lineage={}, metrics={})
    card = (export_huggingface(registry, entry.id, tmp_path / "hf") / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pipeline_tag"] == "text-generation"
    assert f"# {entry.id}: a student for mail" in card


def test_the_flavour_answers_as_the_student(made: tuple[Registry, Entry], tmp_path: Path) -> None:
    registry, entry = made
    out = export_mlflow(registry, entry.id, tmp_path / "ml")
    told = yaml.safe_load((out / "MLmodel").read_text())
    flavour = told["flavors"]["python_function"]
    assert flavour["loader_module"] == mlflow_flavour.__name__
    assert not [p for p in out.rglob("*") if p.suffix in (".pkl", ".pickle")]
    loaded = mlflow_flavour._load_pyfunc(str(out / flavour["data"]))
    table = loaded.predict(pd.DataFrame({"text": TEXTS}))
    expected = answers_of(registry.folder(entry.id))
    assert list(table["answer"]) == [label for label, _ in expected]
    assert table["confidence"].tolist() == pytest.approx([sure for _, sure in expected], abs=1e-4)
    chat = [[{"role": "user", "content": text}] for text in TEXTS]
    assert loaded.predict(chat)["answer"].tolist() == table["answer"].tolist()
    assert loaded.predict(TEXTS[0])["answer"].tolist() == table["answer"].tolist()[:1]

    async def in_a_notebook() -> Any:
        return loaded.predict(TEXTS[:2])

    assert len(asyncio.run(in_a_notebook())) == 2
    with pytest.raises(UserError, match="text: is no column"):
        loaded.predict(pd.DataFrame({"txt": TEXTS}))
    with pytest.raises(UserError, match="neither a text nor a chat"):
        loaded.predict([3])


LOAD = """
import json, sys
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
table = model.predict(pandas.DataFrame({"text": json.loads(sys.argv[2])}))
signature = model.metadata.signature
assert signature.inputs.input_names() == ["text"], signature
assert "pickle" not in str(model.metadata.flavors)
print("ANSWERS" + json.dumps(table.values.tolist()))
"""


@pytest.mark.full
@pytest.mark.skipif(not available("mlflow"), reason="mlflow-skinny is not installed")
def test_mlflow_itself_loads_it_and_answers_the_same(
    made: tuple[Registry, Entry], tmp_path: Path
) -> None:
    registry, entry = made
    out = export_mlflow(registry, entry.id, tmp_path / "ml")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(out), json.dumps(TEXTS)],
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout.rpartition("ANSWERS")[2])
    expected = answers_of(registry.folder(entry.id))
    assert [row[0] for row in table] == [label for label, _ in expected]
    assert [row[1] for row in table] == pytest.approx([sure for _, sure in expected], abs=1e-4)


def test_what_cannot_be_exported_is_said(made: tuple[Registry, Entry], tmp_path: Path) -> None:
    registry, entry = made
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("x")
    with pytest.raises(UserError, match="is there already"):
        export_huggingface(registry, entry.id, tmp_path / "there")
    other = Registry(tmp_path / "registry")
    plain = other.add(student_folder(tmp_path / "s", "s"), task="mail", lineage={}, metrics={})
    with pytest.raises(UserError, match="its lineage has no task"):
        export_mlflow(other, plain.id, tmp_path / "ml")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "model.gguf").write_text("x")
    gguf = other.add(bare, task="mail", lineage={}, metrics={})
    with pytest.raises(UserError, match=r"transformers cannot load.*--to mlflow"):
        export_huggingface(other, gguf.id, tmp_path / "hf")
    assert not (tmp_path / "ml").exists()
