"""A corpus student of fewer pieces: its teacher over these alone, and what that leaves out.

The teacher loses the rows of all other pieces, in memory, after it was asked what it believed of
them: p(v | v is kept) is what teaches, and what the student is compared with token by token. The
whole teacher is scored beside it, on the texts as its own tokenizer cuts them. Knows models, rows
and tokenizers; knows no trainer and no file.

Shapes: P texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from stillhouse.core.statistics import bootstrap_statistic
from stillhouse.models.restricted import Kept
from stillhouse.train.batches import Rows
from stillhouse.train.corpus_models import CorpusStudent, Read
from stillhouse.train.corpus_report import Asked
from stillhouse.train.corpus_scores import Counted
from stillhouse.train.kept import SAMPLE, mean_mass, restrict
from stillhouse.train.kinds import Kind, way_of
from stillhouse.train.pieces import cut_otherwise, renumbered
from stillhouse.train.teachers import LiveTeacher
from stillhouse.train.token_rows import TokenCollator

WHOLE = "whole_teacher"


class Left(NamedTuple):
    """What a trimmed vocabulary leaves out."""

    mass: float  # mean probability of the kept pieces, over targets of the watched texts
    cut_otherwise: dict[str, int]  # texts of each part that the student's tokenizer cuts otherwise

    def line(self) -> str:
        """The same for people."""
        parts = ", ".join(f"{count:,} {name}" for name, count in self.cut_otherwise.items())
        return (
            f"the teacher puts {self.mass:.2%} of its belief on the pieces that were kept; cut "
            f"into other pieces than by the whole tokenizer: {parts} texts"
        )


def left_out(
    teacher: Read,
    student: CorpusStudent,
    kind: Kind,
    rows: Rows,
    parts: Mapping[str, Sequence[str]],
) -> Left:
    """What is lost of a teacher that still has all of its rows.

    Args:
        teacher: as it was read.
        student: with `kept`.
        kind: of both models.
        rows: watched ones, under the student's numbers.
        parts: texts, by the name of their part.
    """
    assert student.kept is not None
    model: Any = teacher.model
    model.eval()
    ids = torch.tensor(student.kept)
    some = Rows(renumbered([rows[n] for n in range(min(len(rows), SAMPLE))], ids))
    pad: Any = teacher.tokenizer.pad_token_id
    mass = mean_mass(
        LiveTeacher(model, way_of(kind).reader),
        some,
        Kept(ids),
        model.device,
        TokenCollator(int(pad)),
    )
    counts = {}
    for name, texts in parts.items():
        own, other = (
            one(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
            for one in (student.tokenizer, teacher.tokenizer)
        )
        counts[name] = len(cut_otherwise(own, other, ids))
    return Left(mass, counts)


def believe_in_kept(teacher: Read, student: CorpusStudent, rows: Rows) -> Read:
    """The teacher with the student's pieces alone, changed in place, and the student's tokenizer.

    Raises:
        UserError: a family that reads token ids elsewhere than in its embedding.
    """
    if student.kept is None:
        return teacher
    restrict(teacher.model, torch.tensor(student.kept), rows[0]["input_ids"], "the teacher")
    return teacher._replace(tokenizer=student.tokenizer)


def of_whole(
    own: Counted, whole: Counted, groups: Sequence[str], asked: Asked, student: str
) -> dict[str, Any] | None:
    """A student's accuracy over that of the whole teacher, each on texts as its tokenizer cuts
    them, with a percentile interval over groups.

    Args:
        own: the student's counts, of P texts.
        whole: the whole teacher's, of the same texts.
        groups: of the texts [P].
        asked: how the interval is made.
        student: its name in `own`.

    Returns:
        `None` where the teacher has nothing right; without an interval where there is one group.
    """
    (teacher,) = whole.models.values()
    sums = np.stack(
        [own.models[student].right, own.targets, teacher.right, whole.targets], axis=1
    )  # [P, 4]
    if not teacher.right.sum():
        return None

    def ratio(index: Any) -> float:
        right, targets, top, count = sums[index].sum(axis=0)
        return float((right / max(targets, 1)) / max(top / max(count, 1), 1e-12))

    every = np.arange(len(sums))
    if len(set(groups)) < 2:
        return {"estimate": ratio(every), "n": len(sums)}
    return bootstrap_statistic(
        ratio,
        len(sums),
        asked.confidence,
        resamples=asked.resamples,
        seed=asked.seed,
        groups=list(groups),
    ).to_json()
