"""The traffic log as a person pages through it: newest first, filtered, in bounded time.

A filter that no index knows (who was unsure, who differs) is looked for among a bounded number of
requests at a time; the page then says how far it looked and where to go on. Knows no page's look.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from stillhouse.core.live import LiveRow
from stillhouse.core.live_pages import Asked, Place, RowsPage
from stillhouse.serve.live_rows import StoredRows
from stillhouse.serve.stored_records import NO_CALL
from stillhouse.serve.tables import CALLS

STEP: Final = 500
MOST: Final = 5000  # requests looked at for one page
LONGEST_S: Final = 0.08


class _Head(NamedTuple):
    """What a filter sees of a request before its texts are read."""

    id: str
    at: float
    variant: str
    shadow: bool
    confidence: float | None


class LogPages:
    """Pages of a gateway's database.

    Args:
        clock: of the time that one page may take; seconds.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine, self._clock = engine, clock
        self._rows = StoredRows(engine)

    def page(self, asked: Asked, after: Place | None = None, count: int = 25) -> RowsPage:
        """Requests that are wanted, newest first; blocks.

        Args:
            after: only what is older than this place.
            count: at most so many.
        """
        with self._engine.connect() as connection:
            if asked.id is not None:
                found = self._one(connection, asked.id)
                return RowsPage(tuple(found), None, len(found))
            return self._search(connection, asked, after, count)

    def _search(
        self, connection: Connection, asked: Asked, after: Place | None, count: int
    ) -> RowsPage:
        ends = self._clock() + LONGEST_S
        rows: list[LiveRow] = []
        looked = 0
        narrow = asked.variant is not None or asked.below is not None or asked.differing
        step = STEP if narrow else 2 * (count + 1)
        while True:
            heads = _heads(connection, asked, after, step)
            left: dict[str, float | None] = {}
            if asked.below is not None or asked.differing:
                left = _shadows(connection, [one.id for one in heads if not one.shadow])
            for start in range(0, len(heads), count):
                part = heads[start : start + count]
                wanted = [one for one in part if _fits(one, asked, left)]
                read = {one.id: one for one in self._rows.of(connection, [w.id for w in wanted])}
                for one in part:
                    row = read.get(one.id)
                    if row is not None and (not asked.differing or differ(row)):
                        if len(rows) == count:
                            # This one begins the next page.
                            return RowsPage(tuple(rows), after, looked)
                        rows.append(row)
                    looked += not one.shadow
                    after = Place(one.at, one.id)
                if narrow and (looked >= MOST or self._clock() > ends):
                    return RowsPage(tuple(rows), after, looked)
            if len(heads) < step:
                return RowsPage(tuple(rows), None, looked)

    def _one(self, connection: Connection, identity: str) -> list[LiveRow]:
        query = sa.select(CALLS.c.shadow_of).where(CALLS.c.id == identity)
        beside = connection.execute(query).scalar_one_or_none()
        return self._rows.of(connection, [beside or identity])


def differ(row: LiveRow) -> bool:
    """Whether teacher and student both answered, and said different things (spaces apart)."""
    if row.teacher is None or row.student is None:
        return False
    if row.teacher.text is None or row.student.text is None:
        return False
    return row.teacher.text.split() != row.student.text.split()


def _heads(connection: Connection, asked: Asked, after: Place | None, count: int) -> list[_Head]:
    # Shadow answers too, to be left out later: a condition on them would have SQLite read the index
    # of those, and sort a million requests.
    query = (
        sa.select(CALLS.c.id, CALLS.c.at, CALLS.c.variant, CALLS.c.shadow_of, CALLS.c.served)
        .order_by(CALLS.c.at.desc(), CALLS.c.id.desc())
        .limit(count)
    )
    if asked.task is not None:
        query = query.where(CALLS.c.task == asked.task)
    if asked.user is not None:
        query = query.where(CALLS.c.user == asked.user)
    if after is not None:
        place = sa.tuple_(sa.literal(after.at), sa.literal(after.id))
        # The first alone would do; the second is what an index is found by.
        query = query.where(sa.tuple_(CALLS.c.at, CALLS.c.id) < place, CALLS.c.at <= after.at)
    return [
        _Head(identity, at, variant, beside is not None, _confidence(served))
        for identity, at, variant, beside, served in connection.execute(query)
    ]


def _shadows(connection: Connection, ids: list[str]) -> dict[str, float | None]:
    """Confidence of the answers asked beside some requests, by request."""
    query = sa.select(CALLS.c.shadow_of, CALLS.c.served).where(CALLS.c.shadow_of.in_(ids))
    rows: Any = connection.execute(query)
    return {beside: _confidence(served) for beside, served in rows}


def _confidence(served: str) -> float | None:
    try:
        found = json.loads(served).get("confidence")
    except NO_CALL:  # no record: it is left out when it is read
        return None
    return found if isinstance(found, int | float) else None


def _fits(head: _Head, asked: Asked, beside: dict[str, float | None]) -> bool:
    if head.shadow:
        return False
    if asked.variant is not None and head.variant != asked.variant:
        return False
    if asked.differing and head.id not in beside:
        return False
    if asked.below is None:
        return True
    known = [one for one in (head.confidence, beside.get(head.id)) if one is not None]
    return any(one < asked.below for one in known)
