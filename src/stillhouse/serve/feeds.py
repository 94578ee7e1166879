"""Where evidence is read: what is new of one task since the last time, from database or memory.

Knows no statistics. Rows of the database become visible when their transaction commits, which may
be later than their times say, and hosts' clocks differ: so each read looks back by `OVERLAP_S`, and
what was read before is left out by its id. A row that is no record (of another version, or damaged)
is counted, named in the process' log and passed over: it is no evidence, and keeps none away.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection, Engine

from stillhouse.core.records import Record
from stillhouse.serve.records import Outcome, Scored, Served
from stillhouse.serve.tables import CALLS, OUTCOMES

R = TypeVar("R", bound=Record)

OVERLAP_S: Final = 30.0
PAGE: Final = 5000
MOST_NAMED: Final = 10  # unreadable rows a read
_LOG: Final = logging.getLogger("stillhouse.serve")


class Batch(NamedTuple):
    """What is new. `more`: there is more than fits in one batch."""

    served: list[Served]
    scored: list[Scored]
    more: bool


class Feed(Protocol):
    """One reader's place in one task's rows."""

    def read(self) -> Batch:
        """What came since the last call, oldest first; may block."""


class Unreadable:
    """Rows that could not be read, by task, until somebody takes the counts. For any thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, task: str, count: int) -> None:
        """So many more."""
        with self._lock:
            self._counts[task] += count

    def take(self) -> Mapping[str, int]:
        """What was added since the last call."""
        with self._lock:
            found, self._counts = self._counts, Counter()
        return found


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
        self._unreadable = unreadable or Unreadable()
        self._calls = _Place(since)
        self._outcomes = _Place(since)
        self._named: set[str] = set()  # unreadable rows that were counted

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
        bad: dict[str, str] = {}
        served = [_read(Served, row[2], f"request {row[1]}", bad) for row in new_calls]
        scored = []
        for _, seq, body, outcome, identity in new_outcomes:
            # The request's own row is named once, beside however many outcomes it has.
            request = _read(Served, body, f"request {identity}", bad)
            found = _read(Outcome, outcome, f"outcome {seq} of request {identity}", bad)
            if request is not None and found is not None:
                scored.append(Scored(request, found))
        self._pass_over(bad)
        return Batch(
            [one for one in served if one is not None],
            scored,
            max(len(new_calls), len(new_outcomes)) >= PAGE,
        )

    def _pass_over(self, bad: Mapping[str, str]) -> None:
        new = {row: why for row, why in bad.items() if row not in self._named}
        if not new:
            return
        self._named.update(new)
        self._unreadable.add(self._task, len(new))
        for row, why in list(new.items())[:MOST_NAMED]:
            _LOG.warning("%s: the stored %s cannot be read: %s", self._task, row, why)
        if len(new) > MOST_NAMED:
            more = len(new) - MOST_NAMED
            _LOG.warning("%s: %d more stored rows cannot be read", self._task, more)


def _read(record: type[R], text: Any, row: str, bad: dict[str, str]) -> R | None:
    """The record; `None` where it is none, which is then said of the row in `bad`."""
    try:
        return record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        bad[row] = f"{where}: {first['msg']}" if where else first["msg"]
    return None


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
