"""What a window's requests say about the student: pairs with the teacher, and judged answers.

Whose an answer is and how it came to be decides its population (`monitor.records`). Knows rows and
the task; no statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from stillhouse.core.live import LiveAnswer, LiveRow
from stillhouse.core.records import Query
from stillhouse.core.scorers import exact_object, label_match, scorers_for
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, Task
from stillhouse.monitor.records import Population

# Kinds of outcomes that come from outside: what a scorer or a judge says is no truth.
TRUTHS: Final = frozenset(("feedback", "corrected", "delayed"))


class Pair(NamedTuple):
    """Student and teacher on one request.

    `agreement` is 1 or 0 of labels and objects, the scorer's similarity of free texts; `labels` are
    the student's and the teacher's, where both can be read.
    """

    row: LiveRow
    population: Population
    agreement: float
    similarity: float
    labels: tuple[str, str] | None
    right: float
    confidence: float | None

    @property
    def unit(self) -> str:
        """Whose request it is."""
        return self.row.unit


class Judged(NamedTuple):
    """An answer that somebody judged: a score in [0, 1]."""

    row: LiveRow
    score: float
    right: float
    confidence: float | None

    @property
    def unit(self) -> str:
        """Whose request it is."""
        return self.row.unit


class Samples(NamedTuple):
    """All that a window's rows give."""

    pairs: tuple[Pair, ...]
    student: tuple[Judged, ...]
    teacher: tuple[Judged, ...]
    textless: int  # pairs without a text: not comparable


def main_student(rows: Iterable[LiveRow]) -> tuple[str | None, dict[str, int]]:
    """The student of most requests, and the requests of each."""
    counts = Counter(row.student_name for row in rows if row.student_name is not None)
    if not counts:
        return None, {}
    return max(counts, key=lambda name: (counts[name], name)), dict(counts)


def samples_of(
    rows: Sequence[LiveRow], task: Task, student: str | None, acceptable: float
) -> Samples:
    """Pairs and judged answers of one student.

    Args:
        student: whose answers count; `None`: of any.
        acceptable: score from which a free text is right.
    """
    pairs: list[Pair] = []
    judged: list[Judged] = []
    taught: list[Judged] = []
    textless = 0
    for row in rows:
        if row.teacher is not None:
            found = _judged(row, row.teacher, task, acceptable)
            if found is not None:
                taught.append(found)
        if row.student is None or (student is not None and row.student_name != student):
            continue
        found = _judged(row, row.student, task, acceptable)
        if found is not None:
            judged.append(found)
        if row.is_pair:
            pairs.append(_pair(row, task, acceptable))
        elif row.teacher is not None and not (row.teacher.error or row.student.error):
            textless += 1
    return Samples(tuple(pairs), tuple(judged), tuple(taught), textless)


def population_of(row: LiveRow) -> Population:
    """Whose sample a pair belongs to."""
    if row.fell_back or row.arm == "treatment":
        return "fallback"
    return "teacher_only" if row.arm == "teacher_only" else "shadow"


def input_text(task: Task, row: LiveRow) -> str:
    """What varies between requests: what a label student reads."""
    if not row.messages or row.messages[-1].role == "assistant":
        return ""
    return task.varying_text(Query(id=row.id, messages=row.messages))


def _pair(row: LiveRow, task: Task, acceptable: float) -> Pair:
    assert row.teacher is not None
    assert row.student is not None
    said, wanted = row.student.text or "", row.teacher.text or ""
    similarity = scorers_for(task)[0].score(said, wanted)
    labels: tuple[str, str] | None = None
    if isinstance(task, ClassificationTask):
        agreement = label_match(task, said, wanted)
        own, other = task.parse(said).value, task.parse(wanted).value
        if own is not None and other is not None:
            labels = str(own), str(other)
    elif isinstance(task, ExtractionTask):
        agreement = exact_object(task, said, wanted)
    else:
        agreement = similarity
    return Pair(
        row=row,
        population=population_of(row),
        agreement=agreement,
        similarity=similarity,
        labels=labels,
        right=_right(task, agreement, acceptable),
        confidence=row.student.confidence,
    )


def _judged(row: LiveRow, answer: LiveAnswer, task: Task, acceptable: float) -> Judged | None:
    """Against the right answer where one was given, to whichever answer; else as it was scored."""
    corrected = answer.corrected
    for other in (row.student, row.teacher):
        if corrected is None and other is not None:
            corrected = other.corrected
    if corrected is not None and answer.text is not None:
        if isinstance(task, ExtractionTask):
            score = exact_object(task, answer.text, corrected)
        else:
            score = scorers_for(task)[0].score(answer.text, corrected)
        return Judged(row, score, _right(task, score, acceptable), answer.confidence)
    if answer.score is not None and answer.score_kind in TRUTHS:
        right = float(answer.score >= acceptable)
        return Judged(row, answer.score, right, answer.confidence)
    return None


def _right(task: Task, score: float, acceptable: float) -> float:
    level = acceptable if task.kind == "generation" else 1.0
    return float(score >= level)
