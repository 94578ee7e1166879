"""A tiny BERT whose answers differ, for the runners of one-file students."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from transformers import BertConfig, BertForSequenceClassification

from stillhouse.core.tasks import ClassificationTask
from tiny_models import TEXTS as FILM_TEXTS
from tiny_models import wordpiece

LABELS: Final = ("bad", "good", "so so")
TASK: Final = ClassificationTask(kind="classification", labels=LABELS)
LONGEST: Final = 40
# Cut, empty, unknown, accents, scripts, white space, special tokens in a text.
TEXTS: Final = [
    *FILM_TEXTS,
    "",
    "boring " * 90,
    "\u4f60\u597d, FILM!",
    "A \u00c9trange, W\u00d6NDERFUL\u3000film \u2014 \u201cwarm\u201d\u2026",
    "funny\tand\u200b dull \U0001f600\n[MASK] [SEP] finish",
    "unlike moving, wonderfully acted; wonderfulness?",
]


def make_student(folder: Path, seed: int = 5) -> Path:
    """Save it with its tokenizer."""
    tokenizer = wordpiece()
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=64,
            pad_token_id=0,
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
        )
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.08)
    tokenizer.model_max_length = LONGEST
    for part in (tokenizer, model):
        part.save_pretrained(folder)
    return folder
