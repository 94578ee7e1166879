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
        self._calls = _Calls(task, since)
        self._outcomes = _Outcomes(task, since)

    def read(self) -> Batch:
        """See `Feed`."""
        with self._engine.connect() as connection:
            new_calls = self._calls.take(connection)
            new_outcomes = self._outcomes.take(connection)
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


class _Calls:
    """How far a task's requests were read.

    The rows of a transaction have one `written_at` and appear together. So of the time that is
    looked at twice only the number of rows at each time is asked for, which the index alone knows,
    and only where there are more than were read do rows come out of the database.
    """

    def __init__(self, task: str, since: float) -> None:
        self._task, self._begin = task, since
        self._known: dict[float, set[str]] = {}  # ids by time

    def take(self, connection: Connection) -> list[Any]:
        """(written_at, id, served) of new rows, in that order; a page of them at most."""
        at, own = CALLS.c.written_at, CALLS.c.task == self._task
        counts = (
            sa.select(at, sa.func.count())
            .where(own, at >= self._begin)
            .group_by(at)
            .order_by(at)
            .limit(PAGE + len(self._known))
        )
        times: list[float] = []  # with rows that are new
        missing = 0
        for time, count in connection.execute(counts).all():
            if missing < PAGE and (more := count - len(self._known.get(time, ()))) > 0:
                times.append(time)
                missing += more
        if not times:
            return []
        first, last = times[0], times[-1]
        seen = sum(len(ids) for time, ids in self._known.items() if first <= time <= last)
        query = (
            sa.select(at, CALLS.c.id, CALLS.c.served)
            .where(own, at.between(first, last))
            .order_by(at, CALLS.c.id)
            .limit(min(missing, PAGE) + seen)
        )
        new = [
            row
            for row in connection.execute(query).all()
            if row[1] not in self._known.get(row[0], ())
        ]
        for time, identity, _ in new:
            self._known.setdefault(time, set()).add(identity)
        if new:
            self._begin = max(self._begin, new[-1][0] - OVERLAP_S)
            self._known = {time: ids for time, ids in self._known.items() if time >= self._begin}
        return new


class _Outcomes:
    """How far the outcomes of a task's requests were read: each has a time of its own, so that
    their keys are looked at twice, and their texts once."""

    def __init__(self, task: str, since: float) -> None:
        self._task, self._begin = task, since
        self._known: dict[int, float] = {}

    def take(self, connection: Connection) -> list[Any]:
        """(at, seq, the request's `served`, body, the request's id) of new rows, in that order; a
        page of them at most."""
        at, seq = OUTCOMES.c.at, OUTCOMES.c.seq
        keys = self._of_task(sa.select(at, seq)).where(at >= self._begin)
        keys = keys.limit(PAGE + len(self._known))
        new = [(time, key) for time, key in connection.execute(keys) if key not in self._known]
        del new[PAGE:]
        if not new:
            return []
        query = self._of_task(sa.select(at, seq, CALLS.c.served, OUTCOMES.c.body, CALLS.c.id))
        query = query.where(at.between(new[0][0], new[-1][0]))
        wanted = {key for _, key in new}
        rows = [row for row in connection.execute(query) if row[1] in wanted]
        self._known |= {key: time for time, key in new}
        self._begin = max(self._begin, new[-1][0] - OVERLAP_S)
        self._known = {key: time for key, time in self._known.items() if time >= self._begin}
        return rows

    def _of_task(self, query: sa.Select[Any]) -> sa.Select[Any]:
        return (
            query.join_from(OUTCOMES, CALLS, CALLS.c.id == OUTCOMES.c.request)
            .where(CALLS.c.task == self._task)
            .order_by(OUTCOMES.c.at, OUTCOMES.c.seq)
        )


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
