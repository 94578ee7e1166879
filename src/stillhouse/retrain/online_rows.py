"""Live traffic as lessons: what was asked, what is right, who says so, and whose it is.

A row that the teacher answered teaches its answer; one that a user corrected, the correction.
Knows rows and tasks; no model and no buffer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from stillhouse.core.hashing import unit_hash
from stillhouse.core.live import LiveRow
from stillhouse.core.records import Message, Query, Record
from stillhouse.core.tasks import Task

Beliefs = Callable[[Sequence[Query]], Sequence[Mapping[str, float] | None]]


class Lesson(Record):
    """One row that can be learned from."""

    id: str
    at: float = Field(description="Unix seconds of the request.")
    tenant: str
    whose: str = Field(description="User's pseudonym, or the hash of conversation or request.")
    messages: tuple[Message, ...] = Field(min_length=1)
    target: str = Field(description="The right answer: a label, or a text.")
    source: Literal["teacher", "corrected"]
    teacher: str | None = Field(default=None, description="What the teacher said, where known.")
    belief: Mapping[str, float] | None = Field(
        default=None, description="Probabilities of labels, where a teacher gives them."
    )

    def query(self) -> Query:
        """What a student is asked."""
        return Query(id=self.id, messages=self.messages)


class Lessons(NamedTuple):
    """What rows came to, and why the others teach nothing."""

    kept: list[Lesson]
    skipped: Mapping[str, int]


def whose(row: LiveRow) -> str:
    """The user's pseudonym; where there is none, the unit."""
    return row.user or row.unit


def lessons_of(rows: Iterable[LiveRow], task: Task, *, corrections: bool = True) -> Lessons:
    """Lessons in the order of the rows.

    Args:
        corrections: whether a user's correction is what is right; else only the teacher's answer.
    """
    kept: list[Lesson] = []
    skipped: Counter[str] = Counter()
    for row in rows:
        found = _lesson(row, task, corrections=corrections)
        if isinstance(found, str):
            skipped[found] += 1
        else:
            kept.append(found)
    return Lessons(kept, dict(skipped))


def correction_of(row: LiveRow) -> str | None:
    """What a user says is right; a correction of the student's answer counts before one of the
    teacher's."""
    for answer in (row.student, row.teacher):
        if answer is not None and answer.corrected is not None:
            return answer.corrected
    return None


def _lesson(row: LiveRow, task: Task, *, corrections: bool) -> Lesson | str:
    if not row.messages or row.messages[-1].role == "assistant":
        return "no text kept"
    said = None if row.teacher is None or row.teacher.error else row.teacher.text
    teacher = None if said is None else _read(task, said)
    corrected = correction_of(row) if corrections else None
    if corrected is None and said is None:
        return "no teacher's answer"
    target = teacher if corrected is None else _read(task, corrected)
    if target is None:
        return "not an answer of the task"
    query = Query(id=row.id, messages=row.messages)
    if task.misfit(query) is not None:
        return "not a request of the task"
    return Lesson(
        id=row.id,
        at=row.at,
        tenant=row.tenant,
        whose=whose(row),
        messages=row.messages,
        target=target,
        source="teacher" if corrected is None else "corrected",
        teacher=teacher,
    )


def _read(task: Task, text: str) -> str | None:
    """The answer in the task's own writing, or `None` where it is none."""
    parsed = task.parse(text)
    if parsed.problem is not None:
        return None
    return parsed.value if task.kind == "classification" and isinstance(parsed.value, str) else text


def with_beliefs(lessons: Sequence[Lesson], beliefs: Beliefs | None) -> list[Lesson]:
    """Lessons of a teacher's answers with a local teacher's probabilities beside them, where its
    likeliest label is the answer that was given."""
    if beliefs is None or not lessons:
        return list(lessons)
    found = beliefs([one.query() for one in lessons])
    return [
        one.model_copy(update={"belief": dict(belief)})
        if belief and one.source == "teacher" and max(belief, key=belief.__getitem__) == one.target
        else one
        for one, belief in zip(lessons, found, strict=True)
    ]


def is_guard(lesson: Lesson, share: float, seed: int) -> bool:
    """Whether a lesson's user is one whose rows are never learned from. By user, so that no one's
    near-duplicates stand on both sides."""
    return unit_hash(f"guard:{lesson.tenant}:{lesson.whose}", seed) < share
