"""Reading and clearing the traffic log: evidence, export to `stillhouse mine`, deletion.

Knows no policy: what is compared and how long is kept is the caller's.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from stillhouse.serve.records import Outcome, OutcomeKind, Pair, Scored, Served
from stillhouse.serve.stored_records import RecordReader
from stillhouse.serve.tables import CALLS, OUTCOMES, cut_log

_CHUNK: Final = 500
SCORING: Final[frozenset[OutcomeKind]] = frozenset(("scorer", "judge"))


class Deleted(NamedTuple):
    """How many rows went."""

    calls: int
    outcomes: int


def served_since(engine: Engine, task: str, since: float) -> list[Served]:
    """All requests of a task that came in at or after `since` (Unix seconds), oldest first; shadow
    answers among them (`shadow_of`). Rows that are no records are passed over."""
    query = (
        sa.select(CALLS.c.id, CALLS.c.served)
        .where(CALLS.c.task == task, CALLS.c.at >= since)
        .order_by(CALLS.c.at, CALLS.c.id)
    )
    reader = RecordReader()
    with engine.connect() as connection:
        rows = connection.execute(query)
        found = [reader.record(Served, body, task, f"request {key}") for key, body in rows]
    reader.told()
    return [one for one in found if one is not None]


def outcomes_since(
    engine: Engine, task: str, since: float, kinds: Collection[OutcomeKind] | None = None
) -> list[Scored]:
    """The outcomes of a task's requests that came in at or after `since`, in the order in which
    they were stored. A request may have several; shadow answers have their own. Rows that are no
    records are passed over."""
    query = (
        sa.select(CALLS.c.id, CALLS.c.served, OUTCOMES.c.seq, OUTCOMES.c.body)
        .join(OUTCOMES, OUTCOMES.c.request == CALLS.c.id)
        .where(CALLS.c.task == task, CALLS.c.at >= since)
        .order_by(OUTCOMES.c.seq)
    )
    if kinds is not None:
        query = query.where(OUTCOMES.c.kind.in_(sorted(kinds)))
    reader, found = RecordReader(), []
    with engine.connect() as connection:
        for key, body, seq, said in connection.execute(query):
            served = reader.record(Served, body, task, f"request {key}")
            outcome = reader.record(Outcome, said, task, f"outcome {seq} of request {key}")
            if served is not None and outcome is not None:
                found.append(Scored(served, outcome))
    reader.told()
    return found


def pairs_since(
    engine: Engine, task: str, since: float, kinds: Collection[OutcomeKind] = SCORING
) -> list[Pair]:
    """Teacher and student on one request, from shadow answers: oldest first.

    The score of an answer is its newest outcome of these kinds; a pair needs both. Where the shadow
    answer would have fallen back (`Served.fell_back`), the student arm scores what the teacher did,
    and `bare` what the student alone did.
    """
    newest = {
        served.id: Scored(served, outcome)
        for served, outcome in outcomes_since(engine, task, since, kinds)
    }
    pairs = []
    for shadow, said in newest.values():
        shown = None if shadow.shadow_of is None else newest.get(shadow.shadow_of)
        if shown is None or (shadow.variant, shown.served.variant) != ("student", "teacher"):
            continue
        teacher = shown.outcome.score
        pairs.append(
            Pair(
                request=shown.served.id,
                unit=shown.served.unit,
                at=shown.served.at,
                teacher=teacher,
                student=teacher if shadow.fell_back else said.score,
                bare=said.score,
            )
        )
    return sorted(pairs, key=lambda pair: (pair.at, pair.request))


def export_calls(
    engine: Engine, path: Path, *, task: str | None = None, since: float | None = None
) -> int:
    """Write what clients asked and were answered as `core.gateway_log` JSONL; how many lines.

    Shadow answers are left out (their requests would count twice), and requests without texts. The
    file appears whole or not at all.
    """
    partial = path.with_name(f"{path.name}.partial")
    count = 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for body in call_lines(engine, task, since):
                file.write(body + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def call_lines(
    engine: Engine, task: str | None = None, since: float | None = None
) -> Iterator[str]:
    """The lines of `export_calls`, as they are read."""
    columns = sa.tuple_(CALLS.c.at, CALLS.c.id)
    query = sa.select(CALLS.c.at, CALLS.c.id, CALLS.c.call).where(
        CALLS.c.call.is_not(None), CALLS.c.shadow_of.is_(None)
    )
    if task is not None:
        query = query.where(CALLS.c.task == task)
    if since is not None:
        query = query.where(CALLS.c.at >= since)
    query = query.order_by(CALLS.c.at, CALLS.c.id).limit(_CHUNK)
    last: tuple[float, str] | None = None
    while True:
        # A page a connection: no transaction stays open while a long export runs.
        page = query if last is None else query.where(columns > sa.tuple_(*map(sa.literal, last)))
        with engine.connect() as connection:
            rows = connection.execute(page).all()
        for at, identity, body in rows:
            yield body
            last = (at, identity)
        if len(rows) < _CHUNK:
            return


def delete_user(engine: Engine, user: str) -> Deleted:
    """Delete all of one user: requests, answers, shadow answers and outcomes.

    Args:
        user: the pseudonym (`private.Pseudonyms.of`).

    What still waits in a gateway's queue is not in the database yet: flush the logs first.
    """
    own = sa.select(CALLS.c.id).where(CALLS.c.user == user)
    which = sa.or_(CALLS.c.user == user, CALLS.c.shadow_of.in_(own))
    return _delete(engine, which, skip_locked=False)


def delete_before(engine: Engine, before: float) -> Deleted:
    """Retention: delete requests that came in before a time, with their outcomes. Several gateways
    may do so at once: rows that another holds are left to it."""
    return _delete(engine, CALLS.c.at < before, skip_locked=True)


def _delete(engine: Engine, which: sa.ColumnElement[bool], *, skip_locked: bool) -> Deleted:
    # Shadows first: they are found by the requests that they were asked beside.
    query = (
        sa.select(CALLS.c.id)
        .where(which)
        .order_by(CALLS.c.shadow_of.is_(None))
        .limit(_CHUNK)
        .with_for_update(skip_locked=skip_locked)
    )
    calls = outcomes = 0
    while True:
        with engine.begin() as connection:
            ids = _ids(connection, query)
            gone = connection.execute(sa.delete(OUTCOMES).where(OUTCOMES.c.request.in_(ids)))
            outcomes += gone.rowcount
            calls += connection.execute(sa.delete(CALLS).where(CALLS.c.id.in_(ids))).rowcount
        if len(ids) < _CHUNK:
            break
    cut_log(engine)
    return Deleted(calls, outcomes)


def _ids(connection: Connection, query: sa.Select[Any]) -> list[str]:
    return list(connection.execute(query).scalars())
