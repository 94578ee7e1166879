"""Canaries: prompts whose answers were kept, to be asked again. Canaries.jsonl of a task's folder.

The teacher answered each twice when they were frozen: what differs between these is noise. Knows
prompts and answers; asks nobody, and leaves it to `drift` what a change means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import Field

from stillhouse.core.hashing import unit_hash
from stillhouse.core.jsonl import read_records, write_records
from stillhouse.core.records import Message, Query, Record
from stillhouse.core.tasks import Task
from stillhouse.evaluate.fidelity import agreement_scores
from stillhouse.monitor.drift_records import Canary

CANARIES: Final = "canaries.jsonl"
PROMPT_CHARS: Final = 400


class Frozen(Record):
    """One line of canaries.jsonl."""

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    at: float = Field(description="Unix seconds at which it was frozen.")
    teacher: str | None = Field(default=None, description="What the teacher said.")
    teacher_again: str | None = Field(default=None, description="What it said the second time.")
    teacher_model: str = ""
    teacher_revision: str = ""
    student: str | None = None
    student_again: str | None = None
    student_name: str | None = None
    request: str | None = Field(
        default=None, description="The logged request it was taken from; None: of the run's data."
    )
    request_at: float | None = None

    def query(self) -> Query:
        """The prompt, to be asked."""
        return Query(id=self.id, messages=self.messages)


class Replay(NamedTuple):
    """What came of asking again. `problems`: (cause, what happened)."""

    teacher: tuple[Canary, ...]
    student: tuple[Canary, ...]
    usd: float
    problems: tuple[tuple[str, str], ...]


def chosen(queries: Sequence[Query], count: int, seed: int) -> list[Query]:
    """So many prompts, by hash: more of them hold the fewer ones."""
    usable = {query.id: query for query in queries if query.messages}
    order = sorted(usable.values(), key=lambda one: (unit_hash(f"canary:{one.id}", seed), one.id))
    return order[:count]


def write_canaries(folder: Path, lines: Sequence[Frozen]) -> None:
    """Replace the file."""
    write_records(folder / CANARIES, lines)


def read_canaries(folder: Path) -> list[Frozen]:
    """The canaries that there are; none where they were never frozen."""
    path = folder / CANARIES
    return list(read_records(path, Frozen)) if path.exists() else []


def compared(
    task: Task, frozen: Sequence[Frozen], now: Mapping[str, str], *, student: bool = False
) -> tuple[Canary, ...]:
    """Each canary that was answered both times, with how alike the answers are.

    Labels and objects: 1 or 0. Free texts: ROUGE-L, as agreement with the teacher is measured.

    Args:
        now: answers by canary.
        student: of the student's answers, not of the teacher's.
    """
    found = []
    for one in frozen:
        before, again = (
            (one.student, one.student_again) if student else (one.teacher, one.teacher_again)
        )
        text = now.get(one.id)
        if before is None or text is None:
            continue
        floor = None if again is None else agreement_scores(task, [again], [before])[0]
        found.append(
            Canary(
                id=one.id,
                prompt=one.messages[-1].content[:PROMPT_CHARS],
                frozen=before,
                now=text,
                likeness=agreement_scores(task, [text], [before])[0],
                floor=floor,
            )
        )
    return tuple(found)
