"""The traffic log as `core.live.LiveRow`s: requests with both models' answers and their outcomes.

Read page by page, so that a log of any length is read in bounded memory. Knows no statistics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from stillhouse.core.live import LiveAnswer, LiveRow
from stillhouse.core.records import Message
from stillhouse.serve.answer_text import answer_text, asked
from stillhouse.serve.records import Outcome, Served
from stillhouse.serve.tables import CALLS, OUTCOMES

_PAGE: Final = 500
_Stored = tuple[Served, str | None, float]


class StoredRows:
    """The rows of a gateway's database (`core.live.LiveRows`)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rows(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[LiveRow]:
        """In the order of `at`, then of `id`; `since` is included, `until` is not."""
        key = sa.tuple_(CALLS.c.at, CALLS.c.id)
        query = self._seen(task).order_by(CALLS.c.at, CALLS.c.id).limit(_PAGE)
        if since is not None:
            query = query.where(CALLS.c.at >= since)
        if until is not None:
            query = query.where(CALLS.c.at < until)
        last: tuple[float, str] | None = None
        while True:
            page = query if last is None else query.where(key > sa.tuple_(*map(sa.literal, last)))
            with self._engine.connect() as connection:
                found = self._page(connection, page)
            yield from found
            if len(found) < _PAGE:
                return
            last = (found[-1].at, found[-1].id)

    def newest(self, task: str, count: int) -> list[LiveRow]:
        """The last so many, oldest first."""
        query = self._seen(task).order_by(CALLS.c.at.desc(), CALLS.c.id.desc()).limit(count)
        with self._engine.connect() as connection:
            return self._page(connection, query)[::-1]

    def of(self, connection: Connection, ids: Sequence[str]) -> list[LiveRow]:
        """Requests by their ids, in no order; those that are not there are left out."""
        if not ids:
            return []
        query = sa.select(CALLS.c.served, CALLS.c.call, CALLS.c.written_at)
        return self._page(connection, query.where(CALLS.c.id.in_(ids)))

    @staticmethod
    def _seen(task: str) -> sa.Select[Any]:
        return sa.select(CALLS.c.served, CALLS.c.call, CALLS.c.written_at).where(
            CALLS.c.task == task, CALLS.c.shadow_of.is_(None)
        )

    def _page(self, connection: Connection, query: sa.Select[Any]) -> list[LiveRow]:
        seen = [_stored(row) for row in connection.execute(query)]
        beside: dict[str, _Stored] = {}
        ids = [served.id for served, _, _ in seen]
        for start in range(0, len(ids), _PAGE):
            shadows = sa.select(CALLS.c.served, CALLS.c.call, CALLS.c.written_at).where(
                CALLS.c.shadow_of.in_(ids[start : start + _PAGE])
            )
            for row in connection.execute(shadows):
                found = _stored(row)
                if found[0].shadow_of is not None:
                    beside[found[0].shadow_of] = found
        all_ids = [*ids, *(served.id for served, _, _ in beside.values())]
        outcomes = _outcomes(connection, all_ids)
        return [_row(one, beside.get(one[0].id), outcomes) for one in seen]


def _stored(row: Any) -> _Stored:
    served, call, written_at = row
    return Served.model_validate_json(served), call, written_at


def _outcomes(connection: Connection, ids: Sequence[str]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for start in range(0, len(ids), _PAGE):
        query = (
            sa.select(OUTCOMES.c.body)
            .where(OUTCOMES.c.request.in_(ids[start : start + _PAGE]))
            .order_by(OUTCOMES.c.seq)
        )
        for body in connection.execute(query).scalars():
            outcome = Outcome.model_validate_json(body)
            found.setdefault(outcome.request, []).append(outcome)
    return found


def _row(seen: _Stored, shadow: _Stored | None, outcomes: dict[str, list[Outcome]]) -> LiveRow:
    served, call, written_at = seen
    own = _answer(served, call, outcomes.get(served.id, []))
    other = None
    if shadow is not None:
        other = _answer(shadow[0], shadow[1], outcomes.get(shadow[0].id, []))
    by = {served.variant: own}
    if shadow is not None and other is not None and shadow[0].variant != served.variant:
        by[shadow[0].variant] = other
    student = served if served.variant == "student" else None if shadow is None else shadow[0]
    return LiveRow(
        id=served.id,
        at=served.at,
        written_at=written_at,
        task=served.task,
        tenant=served.tenant,
        unit=served.unit,
        user=served.user,
        messages=_messages(call),
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


def _answer(served: Served, call: str | None, outcomes: Sequence[Outcome]) -> LiveAnswer:
    text = None if call is None else answer_text(json.loads(call).get("response"))
    last = outcomes[-1] if outcomes else None
    corrected = [one.corrected for one in outcomes if one.corrected is not None]
    return LiveAnswer(
        id=served.id,
        text=text,
        error=served.error,
        confidence=served.confidence,
        latency_ms=served.latency_ms,
        cost_usd=served.cost_usd,
        score=None if last is None else last.score,
        score_kind=None if last is None else last.kind,
        corrected=corrected[-1] if corrected else None,
    )


def _messages(call: str | None) -> tuple[Message, ...]:
    return () if call is None else asked(json.loads(call).get("request") or {})
