"""Tiny students as `run` and `compress` leave them, made here."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from mobile_student import make_student
from stillhouse.compress.gguf_export import export_gguf
from stillhouse.compress.onnx_export import export_onnx
from stillhouse.compress.onnx_mobile import pack
from stillhouse.core.artefact import write_artefact
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from tiny_models import byte_bpe, loud_llama, wordpiece

TASK = ClassificationTask(kind="classification", labels=("bad", "good", "so so"))


def label_folder(folder: Path) -> Path:
    """A label student in ONNX, as one file too, and beside it the weights that it was made from."""
    make_student(folder / "float")
    made = export_onnx(folder / "float", folder / "onnx", TASK, name="tiny", texts=["dull"])
    (folder / "one").mkdir()
    pack(folder / "onnx", folder / "one")
    write_artefact(
        folder / "one",
        kind="onnx",
        precision=made.precision,
        head="label",
        made_from=made.made_from,
        task=TASK,
    )
    return folder


def text_folder(folder: Path) -> Path:
    """A text student in GGUF, and beside it the weights that it was made from."""
    tokenizer = byte_bpe()
    tokenizer.model_max_length = 60
    loud_llama(tokenizer, 2, 0.4).save_pretrained(folder / "float")
    tokenizer.save_pretrained(folder / "float")
    export_gguf(folder / "float", folder / "gguf", "f32", task=GenerationTask(kind="generation"))
    return folder


def taught_student(
    folder: Path, texts: list[str], labels: list[str], names: tuple[str, ...], steps: int = 40
) -> Path:
    """A tiny classifier that has learned these labels."""
    tokenizer = wordpiece()
    tokenizer.model_max_length = 40
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            pad_token_id=0,
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
    )
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    wanted = torch.tensor([names.index(label) for label in labels])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(**batch, labels=wanted).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
