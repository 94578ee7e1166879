"""Whether student and teacher read the same tokens, which comparing their insides rests on.

A student whose vocabulary was trimmed has other numbers for the same pieces: they are mapped back,
and every training text must be cut as the teacher would cut it. Knows tokenizers and rows; knows
no term.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stillhouse.core.errors import UserError
from stillhouse.models.loading import Loaded
from stillhouse.train.batches import Rows
from stillhouse.train.students import Student


def same_tokens(
    student: Student, teacher: Loaded, rows: Rows, texts: Sequence[str]
) -> Tensor | None:
    """The teacher's id of each of the student's pieces [V] int64, or `None` where they are equal.

    Args:
        student: its tokenizer made `rows`.
        teacher: model and tokenizer.
        rows: the training set.
        texts: of a label student, what `rows` are the tokens of; of a text student, none: its
            tokenizer must be the teacher's.

    Raises:
        UserError: other pieces, a text that is cut otherwise, or one that is too long.
    """
    own, other = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    room = getattr(teacher.model.config, "max_position_embeddings", None)
    if room is not None and max(rows.lengths) > room:
        raise UserError(
            "student.max_tokens",
            f"the teacher reads at most {room} tokens",
            value=student.plan.max_tokens,
            action=f"use at most {room}",
        )
    ids = None
    if own != other:
        unknown = [piece for piece in own if piece not in other]
        if unknown or student.head == "text":
            raise UserError(
                "train.terms",
                "insides are compared token by token, and the student's tokenizer is not its "
                f"teacher's ({len(own):,} pieces against {len(other):,})",
                action="give both one tokenizer (student.from: teacher, say), or remove the terms",
            )
        ids = torch.zeros(max(own.values()) + 1, dtype=torch.int64)
        for piece, number in own.items():
            ids[number] = other[piece]
    if texts:
        _check_cut(student, teacher, rows, texts, ids)
    return ids


def _check_cut(
    student: Student, teacher: Loaded, rows: Rows, texts: Sequence[str], ids: Tensor | None
) -> None:
    cut = teacher.tokenizer(
        list(texts), truncation=True, max_length=student.plan.max_tokens, padding=False
    )["input_ids"]
    known = None if ids is None else ids.tolist()
    differ = sum(
        theirs != (item["input_ids"] if known is None else [known[i] for i in item["input_ids"]])
        for item, theirs in zip(rows.items, cut, strict=True)
    )
    if differ:
        raise UserError(
            "student.vocabulary",
            f"insides are compared token by token, and {differ:,} of {len(texts):,} training texts "
            "are cut into other pieces than the teacher's",
            action="use vocabulary: task or full, or remove train.terms",
        )
