"""The traffic log: a bounded queue, and one thread that redacts and writes in transactions.

Loss policy: `offer` never waits. When the queue is full the newest request is dropped and counted;
while the database is down or the disk full the queue holds what came and the writer tries again. A
record is complete when its transaction is committed (`written`), and then outlives SIGKILL; a kill
loses what still waited, `close` writes it. What cannot be stored at all is counted as refused.
Knows no request format: the redactor is passed in.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from stillhouse.core.gateway_log import GatewayCall
from stillhouse.serve.hours import SLOTS, add, sums_of
from stillhouse.serve.private import Pseudonyms, Redact, private_call, redacted
from stillhouse.serve.private import weight as weight_of
from stillhouse.serve.quick_json import json_bytes, read_json
from stillhouse.serve.records import Outcome, Served
from stillhouse.serve.states import insert_new
from stillhouse.serve.tables import CALLS, OUTCOMES, StoreError

_RETRY_S: Final = (0.05, 2.0)
OUTCOME_WAIT_S: Final = 5.0
GATHER_S: Final = 0.05
_COLUMNS: Final = tuple(column.name for column in CALLS.columns)


class UnknownRequestError(StoreError):
    """An outcome of a request that the log does not hold, or that another tenant made."""


class LogCounts(NamedTuple):
    """What became of the requests that were offered: all but `waiting` have ended.

    offered = written + dropped + refused + lost + waiting. `bodiless`: of those written, how many
    without their texts, because they were not sampled or the redactor failed.
    """

    offered: int
    written: int
    dropped: int
    refused: int
    lost: int
    waiting: int
    bodiless: int
    redactor_failed: int
    retries: int


class _Waiting(NamedTuple):
    call: GatewayCall
    served: Served
    bytes: int


class TrafficLog:
    """`seams.Log` over a database.

    Args:
        redact: what is done to every text before it is stored; it runs in the writer's thread.
            Where it raises, the request is stored without its texts. `None`: stored as they came.
        sample: share of units whose texts are kept; the figures are kept of all, so that sampling
            does not bend the evidence. By hash of the unit: a user is kept whole or not at all.
        capacity: most requests that wait; `capacity_bytes`: about how much memory they may take.
        batch: most requests in one transaction.
        gather_s: how long a request waits for others to be written with: a transaction costs much
            more than a row. Who waits for a request to be written does not wait for this.
    """

    def __init__(
        self,
        engine: Engine,
        pseudonyms: Pseudonyms,
        *,
        redact: Redact | None,
        sample: float = 1.0,
        capacity: int = 10_000,
        capacity_bytes: int = 256_000_000,
        batch: int = 200,
        gather_s: float = GATHER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._pseudonyms = pseudonyms
        self._redact = redact
        self._sample = sample
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._batch = batch
        self._gather_s = gather_s
        self._awaited = 0  # how many wait for something to be written
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._tenants: dict[str, str] = {}  # of the requests that wait or are being written
        self._bytes = 0
        self._counts = dict.fromkeys(LogCounts._fields, 0)
        self._slot = os.getpid() % SLOTS
        self._closed = False
        self._give_up_at = float("inf")
        self._writer = threading.Thread(target=self._run, name="traffic-log", daemon=True)
        self._writer.start()

    def offer(self, call: GatewayCall, served: Served, weight: int | None = None) -> bool:
        """Take a request; False: it was dropped, and counted. Never waits for the database."""
        if weight is None:
            weight = weight_of(call.request) + weight_of(call.response)
        item = _Waiting(call, served, weight)
        with self._changed:
            self._counts["offered"] += 1
            full = len(self._tenants) >= self._capacity
            if self._closed or full or self._bytes + item.bytes > self._capacity_bytes:
                self._counts["dropped"] += 1
                return False
            self._queue.append(item)
            self._tenants[served.id] = served.tenant
            self._bytes += item.bytes
            if len(self._queue) in (1, self._batch):
                self._changed.notify_all()
        return True

    def owner(self, request: str) -> str | None:
        """The tenant of a request, `None` for one that is not known; may block."""
        with self._changed:
            waiting = self._tenants.get(request)
        if waiting is not None:
            return waiting
        if not _storable(request):
            return None
        with self._engine.connect() as connection:
            found = connection.execute(sa.select(CALLS.c.tenant).where(CALLS.c.id == request))
            return found.scalar_one_or_none()

    def outcome(self, outcome: Outcome, tenant: str | None = None) -> None:
        """Store what came of a request; blocks, also until the request itself is written.

        Args:
            tenant: who says so; `None`: the gateway itself (a scorer, a judge).

        Raises:
            UnknownRequestError: no such request, or another tenant's: the same to the caller.
        """
        self._wait_for(lambda: outcome.request not in self._tenants, OUTCOME_WAIT_S)
        owner = self.owner(outcome.request)
        if owner is None or (tenant is not None and owner != tenant):
            raise UnknownRequestError(f"request {outcome.request!r:.120} is not known")
        body = outcome.model_dump(warnings=False)
        if self._redact is not None:
            body["detail"] = redacted(body["detail"], self._redact)
            if outcome.corrected is not None:
                body["corrected"] = self._redact(outcome.corrected)
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(OUTCOMES).values(**_outcome_row(outcome, body)))
        except sa.exc.IntegrityError:  # deleted since, or still waiting for its database
            raise UnknownRequestError(f"request {outcome.request!r:.120} is not known") from None

    def scores(self, outcomes: Sequence[Outcome]) -> int:
        """See `Log`: one transaction, for a commit each would take a disk's time for each score."""
        wanted = {outcome.request for outcome in outcomes}
        with self._changed:
            self._changed.wait_for(lambda: wanted.isdisjoint(self._tenants), OUTCOME_WAIT_S)
        while True:
            try:
                return self._write_scores(outcomes, wanted)
            except sa.exc.IntegrityError:  # a request was deleted between the two statements
                continue

    def _write_scores(self, outcomes: Sequence[Outcome], requests: set[str]) -> int:
        with self._engine.begin() as connection:
            query = sa.select(CALLS.c.id).where(CALLS.c.id.in_(requests))
            known = set(connection.execute(query).scalars())
            rows = [
                _outcome_row(one, one.model_dump(warnings=False))
                for one in outcomes
                if one.request in known
            ]
            if rows:
                connection.execute(sa.insert(OUTCOMES), rows)
        return len(rows)

    def counts(self) -> LogCounts:
        """What became of the requests so far."""
        with self._changed:
            return LogCounts(**{**self._counts, "waiting": len(self._tenants)})

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was offered is written; False: it took too long."""
        return self._wait_for(lambda: not self._tenants, timeout_s)

    def _wait_for(self, done: Callable[[], bool], timeout_s: float) -> bool:
        with self._changed:
            self._awaited += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(done, timeout_s)
            finally:
                self._awaited -= 1

    def close(self, timeout_s: float = 10.0) -> LogCounts:
        """Take no more, write what waits, stop. What cannot be written in time counts as lost."""
        with self._changed:
            self._closed = True
            self._give_up_at = self._clock() + timeout_s
            self._changed.notify_all()
        # A statement that hangs in the database is not waited for beyond this.
        self._writer.join(timeout_s + 1)
        with self._changed:
            self._counts["lost"] += len(self._tenants)
            self._tenants.clear()
        return self.counts()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                self._changed.wait_for(self._gathered, self._gather_s)
                if not self._queue:
                    return
                taken = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
            rows, refused = [], 0
            for item in taken:
                try:
                    rows.append(self._row(item))
                except (ValueError, TypeError, RecursionError):
                    refused += 1
            if not self._write_until_done(rows):
                return
            with self._changed:
                self._counts["refused"] += refused
                for item in taken:
                    self._tenants.pop(item.served.id, None)
                    self._bytes -= item.bytes
                self._changed.notify_all()

    def _gathered(self) -> bool:
        return len(self._queue) >= self._batch or self._closed or self._awaited > 0

    def _write_until_done(self, rows: list[dict[str, Any]]) -> bool:
        """False: closing, and time is up."""
        wait, longest = _RETRY_S
        while rows:
            try:
                self._write(rows)
                return True
            except (OperationalError, InterfaceError) as error:
                if not _passes(error):
                    return self._one_by_one(rows)
            except SQLAlchemyError:
                return self._one_by_one(rows)
            self._count("retries")
            with self._changed:
                if self._clock() >= self._give_up_at:
                    return False
                if self._closed:
                    wait = min(wait, 0.2)
                self._changed.wait_for(lambda: self._closed, wait)
            if self._closed:
                time.sleep(0.02)
            wait = min(wait * 2, longest)
        return True

    def _one_by_one(self, rows: list[dict[str, Any]]) -> bool:
        """One row is at fault: it is refused, the others are written."""
        if len(rows) == 1:
            with self._changed:
                self._counts["refused"] += 1
                self._tenants.pop(rows[0]["id"], None)
            return True
        return all(self._write_until_done([row]) for row in rows)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        # A commit whose answer was lost is tried again: rows that are there already are left alone.
        now = time.time()
        for row in rows:
            row["written_at"] = now
        with self._engine.begin() as connection:
            stored = [{name: row[name] for name in _COLUMNS} for row in rows]
            new = connection.execute(
                insert_new(self._engine, CALLS),
                stored,
                execution_options={"preserve_rowcount": True},
            ).rowcount
            counted = rows if new == len(rows) else _written(connection, rows, now)
            add(connection, sums_of(counted, self._slot))
        with self._changed:
            self._counts["written"] += len(rows)
            self._counts["bodiless"] += sum(row["call"] is None for row in rows)
            for row in rows:
                self._tenants.pop(row["id"], None)
            self._changed.notify_all()

    def _row(self, item: _Waiting) -> dict[str, Any]:
        call, served = item.call, item.served
        named = call.user if call.user is not None else served.user
        user = None if named is None else self._pseudonyms.of(served.tenant, named)
        told = vars(served) | {"user": user}
        body: str | None = None
        if sampled(served.unit, self._sample):
            try:
                body = _json(private_call(call, user, self._redact))
            except Exception:  # the redactor is the user's own: its fault must not leak a text
                self._count("redactor_failed")
        if self._redact is not None and told["error"] is not None:
            # An upstream's message may quote the request; the redacted one is with the texts.
            told["error"] = f"status {served.status}"
        columns = ("id", "at", "task", "tenant", "unit", "user", "variant", "shadow_of")
        row = {name: told[name] for name in columns}
        if not all(_storable(value) for value in row.values() if isinstance(value, str)):
            raise ValueError("a text that no database takes")
        return row | {"served": _json(told), "call": body, "figures": told}

    def _count(self, name: str) -> None:
        with self._changed:
            self._counts[name] += 1


def _written(
    connection: Connection, rows: Sequence[dict[str, Any]], now: float
) -> list[dict[str, Any]]:
    """Those that this transaction wrote: others were there, of a commit whose answer was lost."""
    query = sa.select(CALLS.c.id).where(
        CALLS.c.id.in_([row["id"] for row in rows]), CALLS.c.written_at == now
    )
    ids = set(connection.execute(query).scalars())
    return [row for row in rows if row["id"] in ids]


def _outcome_row(outcome: Outcome, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "request": outcome.request,
        "kind": outcome.kind,
        "score": outcome.score,
        "at": outcome.at,
        "body": _json(body),
    }


def sampled(unit: str, share: float) -> bool:
    """Whether a unit's texts are kept: the same answer on every gateway."""
    digest = blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, person=b"sample")
    return int.from_bytes(digest.digest(), "big") < share * 2**64


def _passes(error: DBAPIError) -> bool:
    """Whether an error is of the database's state (down, full, locked) and not of the row."""
    return "too big" not in str(error.orig)


def _storable(text: str) -> bool:
    # PostgreSQL takes no NUL, UTF-8 no lone surrogate.
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json(value: Any) -> str:
    """In ASCII, which a database of any encoding takes."""
    raw = json_bytes(value)
    return raw.decode() if raw.isascii() else json.dumps(read_json(raw), separators=(",", ":"))
