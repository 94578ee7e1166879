"""What a signal cache is keyed by: examples, their tokens, tokenizer, template, teacher.

A cache row belongs to one example with exactly these token ids; everything here is compared before
it is read. Knows tokenizers, examples and tokenised items; no tensors and no files of a cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.records import Example, message_key
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.chat import has_template
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.models.loading import locate
from stillhouse.models.signal_writer import Named, digest
from stillhouse.train.batches import Item


class Cutting(NamedTuple):
    """How text becomes tokens: hashes of tokenizer and chat template, and the longest input."""

    tokenizer: str
    chat_template: str
    max_tokens: int


def cutting_of(tokenizer: Any, max_tokens: int) -> Cutting:
    """The identity of a tokenizer: its whole definition, without what padding and truncation some
    caller last asked it for."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        spec: Mapping[str, Any] = {"vocab": tokenizer.get_vocab()}
    else:
        spec = {**json.loads(backend.to_str()), "padding": None, "truncation": None}
    template = tokenizer.chat_template if has_template(tokenizer) else ""
    return Cutting(_hash(spec), _hash(template) if template else "", max_tokens)


def token_names(examples: Sequence[Example], items: Sequence[Item]) -> list[Named]:
    """Examples of a text student: a row for each target, for exactly these token ids."""
    found = []
    for example, item in zip(examples, items, strict=True):
        labels = np.asarray(item["labels"], dtype="<i8")
        tokens = digest(np.asarray(item["input_ids"], dtype="<i8").tobytes(), labels.tobytes())
        rows = int((labels[1:] != IGNORE_INDEX).sum())
        found.append(Named(_id(example), tokens, rows))
    return found


def class_names(examples: Sequence[Example], task: ClassificationTask) -> list[Named]:
    """Examples of a classifier: one row, for this chat, these labels in this order, this belief."""
    labels = json.dumps(task.labels, ensure_ascii=False).encode()
    return [
        Named(
            _id(example),
            digest(
                labels,
                message_key(example.prompt).encode(),
                json.dumps(example.label_probabilities).encode(),
            ),
            1,
        )
        for example in examples
    ]


def check_unique(examples: Sequence[Example], where: Path) -> None:
    """A cache finds rows by example id.

    Raises:
        UserError: two examples have one id.
    """
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise UserError(
                str(where),
                "two examples have one id, and a signal cache goes by ids",
                value=example.id,
                action="run the dataset stage again",
            )
        seen.add(example.id)


def known_revision(source: str) -> str | None:
    """The teacher's revision where its weights are on this machine, without downloading; else
    `None`: training from a cache does not need them."""
    wanted = source.removeprefix("hf:")
    try:
        if source == "embedded" or Path(wanted).expanduser().exists():
            return locate(source).revision
        repo, _, revision = wanted.partition("@")
        return Path(snapshot_download(repo, revision=revision or None, local_files_only=True)).name
    except (MissingExtraError, LocalEntryNotFoundError, HFValidationError):
        return None


def answering_revisions(examples: Sequence[Example]) -> str:
    """The revisions that answered, as one word: what an API's signals are keyed by."""
    return ",".join(sorted({e.teacher_revision.removesuffix("-plain") for e in examples}))


def _id(example: Example) -> bytes:
    return digest(example.id.encode("utf-8", "surrogatepass"))


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
