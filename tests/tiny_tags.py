"""An extraction task in the words of `tiny_models`, its examples, and tag students of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForTokenClassification,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
)

from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example, Message
from stillhouse.core.tagging import tag_fields, tag_names
from stillhouse.core.tasks import ExtractionTask
from tiny_models import save_drawn, tiny_bert, wordpiece, write_jsonl
from train.cut_families import config_of

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"praise": {"type": "string"}, "blame": {"type": "string"}},
    "additionalProperties": False,
}
RAW_TASK: dict[str, Any] = {
    "kind": "extraction",
    "name": "words",
    "prompt": "{text}\nJSON:",
    "json_schema": SCHEMA,
}
TASK = ExtractionTask.model_validate(RAW_TASK)
PRAISE = ("gripping", "wonderful", "funny", "warm", "moving")
BLAME = ("dull", "boring", "tired", "lifeless", "long")


def example(number: int, text: str, answer: str) -> Example:
    """An answer to a text, as the dataset stage writes it."""
    return Example(
        id=f"t{number}",
        messages=(*TASK.messages_for(text), Message(role="assistant", content=answer)),
        task="words",
        group=f"g{number}",
        teacher="fake",
        teacher_revision="1",
    )


def tag_examples(count: int, offset: int = 0) -> list[Example]:
    """Examples whose fields are readable from single words; every third has no blame."""
    found = []
    for number in range(offset, offset + count):
        good, bad = PRAISE[number % 5], BLAME[number // 5 % 5]
        text, answer = f"a {good} film and the {bad} story", {"praise": good, "blame": bad}
        if number % 3 == 0:
            text, answer = f"the {good} cast", {"praise": good}
        found.append(example(number, text, json.dumps(answer)))
    return found


def tag_dataset(folder: Path) -> Path:
    """A dataset stage's folder: 60 examples to train on, 16 held out."""
    write_jsonl(folder / "train.jsonl", list(tag_examples(60)))
    write_jsonl(folder / "held_out.jsonl", list(tag_examples(16, 60)))
    return folder


def tag_recipe(source: str, student: dict[str, Any] | None = None, **train: Any) -> Recipe:
    """A tag student cut from an encoder's folder."""
    return Recipe.model_validate(
        {
            "name": "t",
            "seed": 7,
            "task": RAW_TASK,
            "traffic": {"path": "x"},
            "teacher": {"model": f"hf:{source}"},
            "student": {
                "head": "tags",
                "from": f"hf:{source}",
                "max_tokens": 32,
                **(student or {}),
            },
            "train": {
                "alpha": 0,
                "batch_size": 8,
                "learning_rate": 1e-2,
                "epochs": 12,
                "evals": 4,
                **train,
            },
        }
    )


def noisy_tagger(
    folder: Path, family: str, tokenizer: PreTrainedTokenizerFast, spread: float = 0.3
) -> Path:
    """A student of a family whose weights are drawn, and whose tags are of every kind."""
    names, config = tag_names(tag_fields(SCHEMA)), config_of(family, len(tokenizer))
    kind, tokenizer.model_max_length = AutoModelForTokenClassification, 40
    return save_drawn(folder, kind, config, tokenizer, names, seed=11, spread=spread)


def word_tagger(folder: Path, most: int = 12) -> Path:
    """A student that knows words alone: of each, whether it praises or blames."""
    names = tag_names(tag_fields(SCHEMA))
    tokenizer = wordpiece()
    config = tiny_bert(tokenizer, layers=1).config
    config.num_hidden_layers = 0
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    model = BertForTokenClassification(config).eval()
    with torch.no_grad():
        for weight in model.bert.embeddings.parameters():
            if weight.dim() == 2:
                weight.zero_()
        words = model.bert.embeddings.word_embeddings.weight
        words[:, 0] = 4.0
        for axis, known in ((1, PRAISE), (2, BLAME)):
            for word in known:
                number = tokenizer.convert_tokens_to_ids(word)
                words[number, 0], words[number, axis] = 0.0, 4.0
        model.classifier.weight.zero_()
        for tag, axis in ((0, 0), (1, 1), (3, 2)):
            model.classifier.weight[tag, axis] = 2.0
        model.classifier.bias.zero_()
    model.save_pretrained(folder)
    tokenizer.model_max_length = most
    tokenizer.save_pretrained(folder)
    return folder
