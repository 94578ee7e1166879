"""Tiny models and a tiny dataset on disk, made once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tiny_models import byte_bpe, review_examples, tiny_bert, tiny_llama, wordpiece, write_jsonl


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models lose more to handing work to threads than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT encoder on disk."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = wordpiece()
    tokenizer.save_pretrained(folder)
    tiny_bert(tokenizer, dropout=0.1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama language model on disk, with a chat template."""
    folder = tmp_path_factory.mktemp("lm")
    tokenizer = byte_bpe()
    tokenizer.save_pretrained(folder)
    tiny_llama(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset stage's folder: 60 examples to train on, 16 held out."""
    folder = tmp_path_factory.mktemp("dataset")
    write_jsonl(folder / "train.jsonl", list(review_examples(60)))
    write_jsonl(folder / "held_out.jsonl", list(review_examples(16, 60)))
    return folder
