"""Where evidence is read: what is new of one task since the last time, from database or memory.

Knows no statistics. Rows of the database become visible when their transaction commits, which may
be later than their times say, and hosts' clocks differ: so each read looks back by `OVERLAP_S`, and
what was read before is left out by its id. A row that is no record is passed over
(`stored_records`).
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from stillhouse.serve.records import Outcome, Scored, Served
from stillhouse.serve.stored_records import RecordReader, Unreadable
from stillhouse.serve.tables import CALLS, OUTCOMES

OVERLAP_S: Final = 30.0
PAGE: Final = 5000


class Batch(NamedTuple):
    """What is new. `more`: there is more than fits in one batch."""

    served: list[Served]
    scored: list[Scored]
    more: bool


class Feed(Protocol):
    """One reader's place in one task's rows."""

    def read(self) -> Batch:
        """What came since the last call, oldest first; may block."""


class StoredFeed:
    """Rows of a database.

    Args:
        since: Unix seconds: nothing before that is read.
        unreadable: counts the rows that are passed over.
    """

    def __init__(
        self, engine: Engine, task: str, since: float, unreadable: Unreadable | None = None
    ) -> None:
        self._engine, self._task = engine, task
        self._reader = RecordReader(unreadable)
        self._calls = _Place(since)
        self._outcomes = _Place(since)

    def read(self) -> Batch:
        """See `Feed`."""
        calls = (
            sa.select(CALLS.c.written_at, CALLS.c.id, CALLS.c.served)
            .where(CALLS.c.task == self._task, CALLS.c.written_at >= self._calls.begin)
            .order_by(CALLS.c.written_at, CALLS.c.id)
        )
        outcomes = (
            sa.select(OUTCOMES.c.at, OUTCOMES.c.seq, CALLS.c.served, OUTCOMES.c.body, CALLS.c.id)
            .join(CALLS, CALLS.c.id == OUTCOMES.c.request)
            .where(CALLS.c.task == self._task, OUTCOMES.c.at >= self._outcomes.begin)
            .order_by(OUTCOMES.c.at, OUTCOMES.c.seq)
        )
        with self._engine.connect() as connection:
            new_calls = self._calls.take(connection, calls)
            new_outcomes = self._outcomes.take(connection, outcomes)
        read, task = self._reader.record, self._task
        served = [read(Served, row[2], task, f"request {row[1]}") for row in new_calls]
        scored = []
        for _, seq, body, outcome, identity in new_outcomes:
            # The request's own row is named once, beside however many outcomes it has.
            request = read(Served, body, task, f"request {identity}")
            found = read(Outcome, outcome, task, f"outcome {seq} of request {identity}")
            if request is not None and found is not None:
                scored.append(Scored(request, found))
        self._reader.told()
        return Batch(
            [one for one in served if one is not None],
            scored,
            max(len(new_calls), len(new_outcomes)) >= PAGE,
        )


class _Place:
    """How far rows ordered by (time, id) were read."""

    def __init__(self, since: float) -> None:
        self.begin = since
        self._known: dict[object, float] = {}

    def take(self, connection: Connection, query: sa.Select[Any]) -> list[Any]:
        # As many again as are known of the time that is looked at twice.
        rows: list[Any] = list(connection.execute(query.limit(PAGE + len(self._known))))
        new = [row for row in rows if row[1] not in self._known][:PAGE]
        for row in new:
            self._known[row[1]] = row[0]
        if new:
            self.begin = max(self.begin, new[-1][0] - OVERLAP_S)
            self._known = {key: at for key, at in self._known.items() if at >= self.begin}
        return new


class MemoryFeed:
    """Rows that `Watched` logs hand on. More than `kept` that wait are forgotten, oldest first."""

    def __init__(self, kept: int = 100_000) -> None:
        self._served: deque[Served] = deque(maxlen=kept)
        self._outcomes: deque[Outcome] = deque(maxlen=kept)
        self._by_id: dict[str, Served] = {}
        self._kept = kept

    def serve(self, served: Served) -> None:
        """A request was answered."""
        self._served.append(served)

    def score(self, outcome: Outcome) -> None:
        """Something came of one."""
        self._outcomes.append(outcome)

    def read(self) -> Batch:
        """See `Feed`."""
        # The outcomes first: their requests were answered before.
        outcomes = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
        served = [self._served.popleft() for _ in range(len(self._served))]
        for one in served:
            self._by_id[one.id] = one
        found = [Scored(self._by_id[o.request], o) for o in outcomes if o.request in self._by_id]
        while len(self._by_id) > self._kept:
            del self._by_id[next(iter(self._by_id))]
        return Batch(served, found, more=False)
