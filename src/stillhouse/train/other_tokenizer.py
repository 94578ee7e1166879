"""Learn from a teacher that reads other tokens: rows with both tokenisations, and their term.

`with_other_tokens` puts beside each row the teacher's own tokens of the same chat and the pairs of
positions where both stand at the same byte of the answer; the term `UniversalLogits` has the
teacher read its tokens and compares at these pairs. Knows tokenizers, rows and models; the distance
is in `models.universal_logits`.

Legend: B batch, T tokens, P pairs, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from stillhouse.models.chat import answer_text, end_ids, prompt_text
from stillhouse.models.universal_logits import aligned, byte_starts, sorted_l1
from stillhouse.train.batches import OTHER, PAIRS, Chat, Item, Rows, encode_chats
from stillhouse.train.outputs import ALIGNED, CausalReader, Needs
from stillhouse.train.terms import TermValue, Unit, View


def with_other_tokens(
    rows: Rows,
    chats: Sequence[Chat],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    max_tokens: int,
) -> Rows:
    """The rows with the teacher's tokens (`other_input_ids`, `other_labels`) and `pairs`.

    Rows are those of `encode_chats` for the same chats, in order. An answer that either side had to
    cut is paired as far as both go.
    """
    others = encode_chats(chats, teacher, max_tokens).rows
    items: list[Item] = []
    for row, other, chat in zip(rows.items, others.items, chats, strict=True):
        sides = ((student, row), (teacher, other))
        ours, theirs = (
            _starts(tokenizer, chat, item["labels"].count(-100), len(item["labels"]))
            for tokenizer, item in sides
        )
        items.append(
            {
                **row,
                f"{OTHER}input_ids": other["input_ids"],
                f"{OTHER}labels": other["labels"],
                PAIRS: [tuple(pair) for pair in aligned(ours, theirs)],
            }
        )
    return Rows(items)


def _starts(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, prompt_tokens: int, tokens: int
) -> list[int]:
    """Bytes at which the answer's tokens begin, as many as there are targets."""
    text = prompt_text(tokenizer, chat.prompt)
    answer = answer_text(tokenizer, chat.completion)
    lead = len(answer) - len(chat.completion)
    spans = _answer_spans(tokenizer, text, answer)
    shifted = [(max(0, start - lead), max(0, end - lead)) for start, end in spans]
    starts = byte_starts(chat.completion, shifted)
    if not end_ids(tokenizer):
        starts = starts[:-1]
    return starts[: tokens - prompt_tokens]


def _answer_spans(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str
) -> list[tuple[int, int]]:
    """Characters of the answer that each of its tokens stands for; see `models.chat.answer_ids`."""
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = whole["input_ids"], whole["offset_mapping"]
    if prompt and ids[: len(before)] == before and len(ids) > len(before):
        start = len(prompt)
        return [(max(0, a - start), max(0, b - start)) for a, b in spans[len(before) :]]
    alone = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    return [(int(a), int(b)) for a, b in alone["offset_mapping"]]


@dataclass(frozen=True, slots=True)
class UniversalLogits:
    """Sum over aligned positions of the L1 distance between sorted beliefs; see
    `models.universal_logits`. The mean is over aligned positions of the whole step."""

    teacher: Any  # a causal language model with a tokenizer of its own, in eval mode
    distillation_temperature: float = 1.0

    @property
    def name(self) -> str:
        """See `Term`."""
        return "universal_logits"

    @property
    def unit(self) -> Unit:
        """See `Term`."""
        return "aligned"

    @property
    def student_needs(self) -> Needs:
        """See `Term`."""
        return Needs(logits=True)

    @property
    def teacher_needs(self) -> Needs:
        """See `Term`: it brings its own teacher."""
        return Needs()

    def __call__(self, view: View) -> TermValue:
        """See `Term`."""
        pairs = view.batch[ALIGNED]  # [P, 2]
        theirs = {
            name.removeprefix(OTHER): value
            for name, value in view.batch.items()
            if name.startswith(OTHER)
        }
        with torch.no_grad():
            read = CausalReader().read(self.teacher, theirs, Needs(logits=True))
        value = sorted_l1(
            read.class_logits()[pairs[:, 1]],
            view.student.class_logits()[pairs[:, 0]],
            self.distillation_temperature,
        )
        return TermValue(value.total, {"l1": value.total.detach()})
