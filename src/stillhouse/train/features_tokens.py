"""Whether student and teacher read the same tokens, which comparing their insides rests on.

A student whose vocabulary was trimmed has other numbers for the same pieces: they are mapped back,
and every training text must be cut as the teacher would cut it. Knows tokenizers and rows; knows
no term.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stillhouse.core.errors import UserError
from stillhouse.models.loading import Loaded
from stillhouse.train.batches import Rows
from stillhouse.train.pieces import cut_otherwise, ids_in
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
        ids = ids_in(student.tokenizer, teacher.tokenizer)
        if ids is None or student.head == "text":
            raise UserError(
                "train.terms",
                "insides are compared token by token, and the student's tokenizer is not its "
                f"teacher's ({len(own):,} pieces against {len(other):,})",
                action="give both one tokenizer (student.from: teacher, say), or remove the terms",
            )
    if texts:
        _check_cut(student, teacher, rows, texts, ids)
    return ids


def _check_cut(
    student: Student, teacher: Loaded, rows: Rows, texts: Sequence[str], ids: Tensor | None
) -> None:
    cut = teacher.tokenizer(
        list(texts), truncation=True, max_length=student.plan.max_tokens, padding=False
    )["input_ids"]
    differ = len(cut_otherwise([item["input_ids"] for item in rows.items], cut, ids))
    if differ:
        raise UserError(
            "student.vocabulary",
            f"insides are compared token by token, and {differ:,} of {len(texts):,} training texts "
            "are cut into other pieces than the teacher's",
            action="use vocabulary: task or full, or remove train.terms",
        )
