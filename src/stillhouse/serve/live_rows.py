"""The traffic log as `core.live.LiveRow`s: requests with both models' answers and their outcomes.

Read page by page, so that a log of any length is read in bounded memory. A row that is no record is
passed over (`stored_records`): a request is left out, a shadow answer or an outcome is absent.
Knows no statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from stillhouse.core.live import LiveAnswer, LiveRow
from stillhouse.serve.records import Outcome, Served
from stillhouse.serve.stored_records import RecordReader, Texts, Unreadable
from stillhouse.serve.tables import CALLS, OUTCOMES, answering

_PAGE: Final = 500
_COLUMNS: Final = (
    CALLS.c.at,
    CALLS.c.id,
    CALLS.c.task,
    CALLS.c.served,
    CALLS.c.call,
    CALLS.c.written_at,
)


class _Stored(NamedTuple):
    """One answer."""

    served: Served
    texts: Texts
    written_at: float


class _Page(NamedTuple):
    """Requests that could be read, how many there were, and the place of the last."""

    rows: list[LiveRow]
    looked: int
    last: tuple[float, str] | None


class StoredRows:
    """The rows of a gateway's database (`core.live.LiveRows`).

    Args:
        unreadable: counts the rows that are passed over.
    """

    def __init__(self, engine: Engine, unreadable: Unreadable | None = None) -> None:
        self._engine = engine
        self._reader = RecordReader(unreadable)

    def rows(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[LiveRow]:
        """In the order of `at`, then of `id`; `since` is included, `until` is not.

        Raises:
            StoreError: the database does not answer.
        """
        key = sa.tuple_(CALLS.c.at, CALLS.c.id)
        query = _between(self._seen(task), since, until)
        query = query.order_by(CALLS.c.at, CALLS.c.id).limit(_PAGE)
        last: tuple[float, str] | None = None
        try:
            while True:
                after = (
                    query if last is None else query.where(key > sa.tuple_(*map(sa.literal, last)))
                )
                with answering(), self._engine.connect() as connection:
                    page = self._page(connection, after)
                yield from page.rows
                if page.looked < _PAGE:
                    return
                last = page.last
        finally:
            self._reader.told()

    def ids(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[str]:
        """Of all requests, of those too that cannot be read."""
        query = sa.select(CALLS.c.id).where(CALLS.c.task == task, CALLS.c.shadow_of.is_(None))
        with answering(), self._engine.connect() as connection:
            found = connection.execute(_between(query, since, until)).scalars().all()
        yield from found

    def newest(self, task: str, count: int) -> list[LiveRow]:
        """The last so many, oldest first; fewer where some cannot be read."""
        query = self._seen(task).order_by(CALLS.c.at.desc(), CALLS.c.id.desc()).limit(count)
        with answering(), self._engine.connect() as connection:
            found = self._page(connection, query).rows
        self._reader.told()
        return found[::-1]

    def of(self, connection: Connection, ids: Sequence[str]) -> list[LiveRow]:
        """Requests by their ids, in no order; those that are not there, or cannot be read, are left
        out."""
        if not ids:
            return []
        found = self._page(connection, sa.select(*_COLUMNS).where(CALLS.c.id.in_(ids))).rows
        self._reader.told()
        return found

    @staticmethod
    def _seen(task: str) -> sa.Select[Any]:
        return sa.select(*_COLUMNS).where(CALLS.c.task == task, CALLS.c.shadow_of.is_(None))

    def _page(self, connection: Connection, query: sa.Select[Any]) -> _Page:
        raw = connection.execute(query).all()
        seen = [one for row in raw if (one := self._stored(row)) is not None]
        beside: dict[str, _Stored] = {}
        ids = [one.served.id for one in seen]
        for start in range(0, len(ids), _PAGE):
            part = ids[start : start + _PAGE]
            shadows = sa.select(*_COLUMNS).where(CALLS.c.shadow_of.in_(part))
            for row in connection.execute(shadows):
                found = self._stored(row)
                if found is not None and found.served.shadow_of is not None:
                    beside[found.served.shadow_of] = found
        tasks = {one.served.id: one.served.task for one in (*seen, *beside.values())}
        outcomes = self._outcomes(connection, tasks)
        rows = [_row(one, beside.get(one.served.id), outcomes) for one in seen]
        return _Page(rows, len(raw), (raw[-1].at, raw[-1].id) if raw else None)

    def _stored(self, row: Any) -> _Stored | None:
        _, identity, task, served, call, written_at = row
        name = f"request {identity}"
        found = self._reader.record(Served, served, task, name)
        texts = self._reader.texts(call, task, name)
        if found is None or texts is None:
            return None
        return _Stored(found, texts, written_at)

    def _outcomes(
        self, connection: Connection, tasks: Mapping[str, str]
    ) -> dict[str, list[Outcome]]:
        """By request; of these, whose tasks are given."""
        found: dict[str, list[Outcome]] = {}
        ids = list(tasks)
        for start in range(0, len(ids), _PAGE):
            query = (
                sa.select(OUTCOMES.c.request, OUTCOMES.c.seq, OUTCOMES.c.body)
                .where(OUTCOMES.c.request.in_(ids[start : start + _PAGE]))
                .order_by(OUTCOMES.c.seq)
            )
            for request, seq, body in connection.execute(query):
                name = f"outcome {seq} of request {request}"
                outcome = self._reader.record(Outcome, body, tasks[request], name)
                if outcome is not None:
                    found.setdefault(outcome.request, []).append(outcome)
        return found


def _between(query: sa.Select[Any], since: float | None, until: float | None) -> sa.Select[Any]:
    if since is not None:
        query = query.where(CALLS.c.at >= since)
    return query if until is None else query.where(CALLS.c.at < until)


def _row(seen: _Stored, shadow: _Stored | None, outcomes: dict[str, list[Outcome]]) -> LiveRow:
    served, texts, written_at = seen
    own = _answer(served, texts, outcomes.get(served.id, []))
    other = None
    if shadow is not None:
        other = _answer(shadow.served, shadow.texts, outcomes.get(shadow.served.id, []))
    by = {served.variant: own}
    if shadow is not None and other is not None and shadow.served.variant != served.variant:
        by[shadow.served.variant] = other
    student = served if served.variant == "student" else None if shadow is None else shadow.served
    return LiveRow(
        id=served.id,
        at=served.at,
        written_at=written_at,
        task=served.task,
        tenant=served.tenant,
        unit=served.unit,
        user=served.user,
        messages=texts.asked,
        seen=served.variant,
        arm=served.arm,
        stage=served.stage,
        fell_back=served.fell_back,
        status=served.status,
        student_name=None if student is None else student.upstream,
        teacher=by.get("teacher"),
        student=by.get("student"),
        teacher_cost_usd=served.teacher_cost_usd,
    )


def _answer(served: Served, texts: Texts, outcomes: Sequence[Outcome]) -> LiveAnswer:
    last = outcomes[-1] if outcomes else None
    corrected = [one.corrected for one in outcomes if one.corrected is not None]
    return LiveAnswer(
        id=served.id,
        text=texts.answer,
        error=served.error,
        confidence=served.confidence,
        latency_ms=served.latency_ms,
        cost_usd=served.cost_usd,
        score=None if last is None else last.score,
        score_kind=None if last is None else last.kind,
        corrected=corrected[-1] if corrected else None,
    )
