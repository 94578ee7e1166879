"""Rows of live traffic as observations. Knows no test; agreement is the caller's to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from stillhouse.core.live import LiveRow
from stillhouse.core.records import Message
from stillhouse.monitor.drift_records import Observation

# Parsed form of an answer's text (a label, canonical JSON), or None where it has none.
Parse = Callable[[str], str | None]
Agree = Callable[[str, str], float]


def observe(
    rows: Iterable[LiveRow],
    *,
    text: Callable[[tuple[Message, ...]], str] | None = None,
    parse: Parse | None = None,
    agree: Agree | None = None,
    language: Callable[[str], str | None] | None = None,
) -> list[Observation]:
    """The rows as they are compared, in their order.

    Args:
        text: what of a request's messages is compared; without it, the last message. A task's is
            `task.varying_text`.
        parse: answer's text to label or canonical form; without it, answers are not compared.
        agree: (student's text, teacher's text) to 0..1; without it, equal parsed forms are 1.
        language: text to a language code, such as `languages.language_guess()`.
    """
    return [_observation(row, text, parse, agree, language) for row in rows]


def _observation(
    row: LiveRow,
    text: Callable[[tuple[Message, ...]], str] | None,
    parse: Parse | None,
    agree: Agree | None,
    language: Callable[[str], str | None] | None,
) -> Observation:
    said = None
    if row.messages:
        said = row.messages[-1].content if text is None else text(row.messages)
    student = None if row.student is None else row.student.text
    teacher = None if row.teacher is None else row.teacher.text
    parsed = [None if parse is None or one is None else parse(one) for one in (student, teacher)]
    agreement = None
    # A fallback was chosen because the student was not sure: its pair stands for no other request.
    if student is not None and teacher is not None and not row.fell_back:
        if agree is not None:
            agreement = agree(student, teacher)
        elif parse is not None:
            agreement = float(parsed[0] is not None and parsed[0] == parsed[1])
    return Observation(
        id=row.id,
        at=row.at,
        text=said,
        length=None if said is None else len(said.split()),
        language=None if said is None or language is None else language(said),
        confidence=None if row.student is None else row.student.confidence,
        student_answer=parsed[0],
        teacher_answer=parsed[1],
        agreement=agreement,
        latency_ms=None if row.student is None else row.student.latency_ms,
    )
