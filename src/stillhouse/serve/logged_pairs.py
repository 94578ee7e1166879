"""Pairs of a traffic log: what teacher and student said to one request, in scores, costs and times.

Read from the gateway's database, where unscored pairs are scored by the policy's own scorer, or
from JSONL that was written from one. Knows no plan and no statistics.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa
from pydantic import Field, ValidationError
from sqlalchemy.engine import Engine

from stillhouse.core.errors import DataError, UserError
from stillhouse.core.jsonl import read_objects, write_records
from stillhouse.core.records import Record
from stillhouse.core.scorers import scorers_for
from stillhouse.serve.evidence_sections import EvidenceSection
from stillhouse.serve.records import OutcomeKind, Served
from stillhouse.serve.stored_calls import outcomes_since
from stillhouse.serve.stored_records import RecordReader
from stillhouse.serve.tables import CALLS, open_database

_SQLITE: Final = b"SQLite format 3\x00"


class LoggedPair(Record):
    """One request that both answered. Scores in [0, 1]; costs in USD, times in ms."""

    log: Literal["stillhouse-pairs"] = "stillhouse-pairs"
    task: str
    request: str
    unit: str = Field(min_length=1, description="User, conversation or request.")
    at: float = Field(description="Unix seconds.")
    teacher: float = Field(ge=0, le=1)
    student: float = Field(ge=0, le=1, description="Of the student alone.")
    failed: bool = Field(default=False, description="The student gave no answer.")
    confidence: float | None = None
    teacher_usd: float = Field(default=0, ge=0)
    student_usd: float = Field(default=0, ge=0)
    teacher_ms: float = Field(default=0, ge=0)
    student_ms: float = Field(default=0, ge=0)


def read_pairs(log: str, task: str, evidence: EvidenceSection) -> list[LoggedPair]:
    """The pairs of a task, oldest first.

    Args:
        log: a database's URL or file, or a JSONL file of pairs.
        evidence: of the policy: whose scores count, and the scorer of pairs that have none.

    Raises:
        UserError: there is no such log, or it has no pairs that can be used.
    """
    if "://" in log:
        return _stored(log, log, task, evidence)
    path = Path(log)
    if not path.is_file():
        raise UserError("log", "there is no such file or database", value=log)
    with path.open("rb") as file:
        if file.read(len(_SQLITE)) == _SQLITE:
            return _stored(f"sqlite:///{path}", log, task, evidence)
    pairs = [pair for pair in _lines(path) if pair.task == task]
    if not pairs:
        raise UserError("log", f"has no pairs of the task {task}", value=log)
    return sorted(pairs, key=lambda pair: (pair.at, pair.request))


def write_pairs(path: Path, pairs: Iterable[LoggedPair]) -> int:
    """Write them as JSONL, without any text; how many."""
    return write_records(path, pairs)


def _lines(path: Path) -> Iterable[LoggedPair]:
    for number, raw in read_objects(path):
        if raw.get("log") == "stillhouse":
            raise UserError(
                "log",
                "holds requests, not pairs of answers",
                value=str(path),
                action="name the gateway's database, or pairs written from it with --export",
            )
        try:
            yield LoggedPair.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{path} line {number}", f"{field}: {first['msg']}") from None


def _stored(url: str, shown: str, task: str, evidence: EvidenceSection) -> list[LoggedPair]:
    engine = open_database(url)
    try:
        pairs = _pairs_of(engine, task, evidence)
        if not pairs:
            raise _no_pairs(engine, shown, task, evidence)
    finally:
        engine.dispose()
    return pairs


def _pairs_of(engine: Engine, task: str, evidence: EvidenceSection) -> list[LoggedPair]:
    scores = _scores(engine, task, evidence)
    scorer = None
    if evidence.source == "scorer" and evidence.reference == "teacher" and evidence.task:
        scorer = scorers_for(evidence.task)[0].score
    reader, found = RecordReader(), []
    with engine.connect() as connection:
        for raw in connection.execute(_both(task)):
            names = f"request {raw.seen_id}", f"request {raw.shadow_id}"
            teacher = reader.record(Served, raw.seen_served, task, names[0])
            student = reader.record(Served, raw.shadow_served, task, names[1])
            if teacher is None or student is None:
                continue
            if teacher.fell_back:  # what a running student was not sure of is no sample of requests
                continue
            pair = scores.get(teacher.id), scores.get(student.id)
            if None in pair and scorer is not None:
                texts = reader.texts(raw.seen_call, task, names[0])
                beside = reader.texts(raw.shadow_call, task, names[1])
                if texts is not None and beside is not None and texts.answer is not None:
                    said, own = texts.answer, None if student.error else beside.answer
                    pair = scorer(said, said), 0.0 if own is None else scorer(own, said)
            if pair[0] is None or pair[1] is None:
                continue
            found.append(
                LoggedPair(
                    task=task,
                    request=teacher.id,
                    unit=teacher.unit,
                    at=teacher.at,
                    teacher=pair[0],
                    student=pair[1],
                    failed=student.error is not None,
                    confidence=student.confidence,
                    teacher_usd=teacher.cost_usd,
                    student_usd=student.cost_usd,
                    teacher_ms=teacher.latency_ms,
                    student_ms=student.latency_ms,
                )
            )
    reader.told()
    return found


def _both(task: str) -> sa.Select[Any]:
    """The teacher's answers of a task, each with a shadow answer."""
    seen, shadow = CALLS.alias("seen"), CALLS.alias("shadow")
    columns = [
        table.c[name].label(f"{table.name}_{name}")
        for table in (seen, shadow)
        for name in ("id", "served", "call")
    ]
    return (
        sa.select(*columns)
        .join_from(seen, shadow, shadow.c.shadow_of == seen.c.id)
        .where(seen.c.task == task, seen.c.variant == "teacher")
        .order_by(seen.c.at, seen.c.id)
    )


def _scores(engine: Engine, task: str, evidence: EvidenceSection) -> dict[str, float]:
    """The newest score of each request, of the kind that the policy counts. Feedback is of seen
    answers alone, so its plan is tried on the scores that pairs have."""
    kinds: set[OutcomeKind] = {"scorer", "judge"}
    if evidence.source != "feedback":
        kinds = {evidence.source}
    rows = outcomes_since(engine, task, 0.0, kinds)
    return {row.served.id: row.outcome.score for row in rows}


def _no_pairs(engine: Engine, shown: str, task: str, evidence: EvidenceSection) -> UserError:
    count = sa.select(sa.func.count()).select_from(CALLS).where(CALLS.c.task == task)
    with engine.connect() as connection:
        requests = connection.execute(count.where(CALLS.c.shadow_of.is_(None))).scalar_one()
        shadows = connection.execute(count.where(CALLS.c.shadow_of.is_not(None))).scalar_one()
    if not requests:
        return UserError("log", f"has no requests of the task {task}", value=shown)
    if not shadows:
        return UserError(
            "log",
            f"has {requests:,} requests of {task} but no pairs: the student was never asked beside",
            value=shown,
            action="let the gateway run with a stage of kind: shadow first",
        )
    return UserError(
        "log",
        f"has {shadows:,} shadow answers of {task}, but no scores of them ({evidence.source})",
        value=shown,
        action="let the gateway run with this evidence section, or use source: scorer",
    )
