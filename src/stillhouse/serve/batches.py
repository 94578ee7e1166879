"""Batches in the gateway's database, and which gateway runs one: a lease, renewed while it works.

A batch is taken by one statement (`FOR UPDATE SKIP LOCKED` on PostgreSQL), and what its runner
writes is written only while the batch is still its own. What a line was answered is committed line
by line, so that a gateway killed half way through is followed by one that asks the rest. Statuses
are changed by compare and swap. Knows no HTTP and no model. Everything here blocks.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from stillhouse.serve.batch_records import UNFINISHED, Batch, Counts, Status
from stillhouse.serve.files import StoredFiles, page
from stillhouse.serve.states import insert_new
from stillhouse.serve.tables import BATCH_LINES, BATCHES, FILES

LEASE_S: Final = 30.0
_PAGE: Final = 50  # answers may be long


class TooManyBatchesError(Exception):
    """The tenant has as many that are not done as it may have."""


class WrongStatusError(Exception):
    """The batch cannot be cancelled any more."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


class LineRow(NamedTuple):
    """What became of one line: `body` is its line in the output or the error file."""

    line: int
    ok: bool
    prompt_tokens: int
    completion_tokens: int
    body: str


class BatchWork:
    """Files and batches of one database; `changed` wakes who runs batches."""

    def __init__(self, engine: Engine) -> None:
        self.files = StoredFiles(engine)
        self.batches = StoredBatches(engine)
        self.changed = asyncio.Event()

    def sweep(self, now: float, kept_s: float) -> None:
        """Delete what has expired, and batches that were made longer ago than they are kept."""
        self.files.sweep(now)
        self.batches.sweep(now - kept_s)


class StoredBatches:
    """Batches over a database.

    Args:
        owner: who runs them: one name a process.
    """

    def __init__(self, engine: Engine, owner: str | None = None) -> None:
        self._engine = engine
        self._owner = owner or os.urandom(8).hex()

    def create(self, batch: Batch, most: int) -> None:
        """Keep a new batch.

        Raises:
            TooManyBatchesError: its tenant has `most` that are not done.
        """
        count = sa.select(sa.func.count()).where(
            BATCHES.c.tenant == batch.tenant, BATCHES.c.status.in_(sorted(UNFINISHED))
        )
        with self._engine.begin() as connection:
            if connection.execute(count).scalar_one() >= most:
                raise TooManyBatchesError
            row = {"id": batch.id, "tenant": batch.tenant, "created_at": batch.created_at}
            row |= {"input_file": batch.input_file, **_values(batch)}
            connection.execute(sa.insert(BATCHES).values(**row))

    def get(self, tenant: str | None, identity: str) -> Batch | None:
        """A tenant's batch, anybody's for `None`; `None`: there is none of this id."""
        query = sa.select(BATCHES.c.body).where(BATCHES.c.id == identity)
        if tenant is not None:
            query = query.where(BATCHES.c.tenant == tenant)
        with self._engine.connect() as connection:
            body = connection.execute(query).scalar_one_or_none()
        return None if body is None else Batch.model_validate_json(body)

    def listed(
        self, tenant: str, *, after: str | None = None, limit: int = 20
    ) -> tuple[list[Batch], bool]:
        """A tenant's batches, newest first, and whether there are more behind them.

        Raises:
            UnknownCursorError: there is no batch `after`.
        """
        query = sa.select(BATCHES.c.body).where(BATCHES.c.tenant == tenant)
        rows = page(
            self._engine, query, BATCHES, tenant, after=after, limit=limit, newest_first=True
        )
        found = [Batch.model_validate_json(body) for (body,) in rows[:limit]]
        return found, len(rows) > limit

    def unfinished(self) -> list[Batch]:
        """All tenants' batches that are not done, oldest first."""
        query = (
            sa.select(BATCHES.c.body)
            .where(BATCHES.c.status.in_(sorted(UNFINISHED)))
            .order_by(BATCHES.c.created_at, BATCHES.c.id)
        )
        with self._engine.connect() as connection:
            bodies = connection.execute(query).scalars().all()
        return [Batch.model_validate_json(body) for body in bodies]

    def counts(self, batch: Batch) -> Counts:
        """Lines by what became of them so far; of a batch that is done, as it ended."""
        if batch.status not in UNFINISHED:
            return batch.counts
        columns = (
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(sa.case((BATCH_LINES.c.ok, 1), else_=0)), 0),
            sa.func.coalesce(sa.func.sum(BATCH_LINES.c.prompt_tokens), 0),
            sa.func.coalesce(sa.func.sum(BATCH_LINES.c.completion_tokens), 0),
        )
        with self._engine.connect() as connection:
            query = sa.select(*columns).where(BATCH_LINES.c.batch == batch.id)
            lines, good, read, written = map(int, connection.execute(query).one())
        return Counts(
            total=max(batch.counts.total, lines),
            completed=good,
            failed=lines - good,
            prompt_tokens=read,
            completion_tokens=written,
        )

    def cancel(self, tenant: str | None, identity: str, now: float) -> Batch | None:
        """Ask for an end: its runner stops asking and writes the files. `None`: no such batch.

        Raises:
            WrongStatusError: it is done, or its files are being written.
        """
        while (batch := self.get(tenant, identity)) is not None:
            if batch.status == "cancelling":
                return batch
            if batch.status not in ("validating", "in_progress"):
                raise WrongStatusError(batch.status)
            new = batch.at("cancelling", now)
            with self._engine.begin() as connection:
                if _swap(connection, new, BATCHES.c.status == batch.status):
                    return new
        return None

    def claim(self) -> Batch | None:
        """Take a batch that nobody runs; tenants of whom fewer are run come first, then the
        oldest. `None`: there is none."""
        now = self._clock()
        free = sa.or_(BATCHES.c.lease_until.is_(None), BATCHES.c.lease_until < now)
        waits = sa.and_(BATCHES.c.status.in_(sorted(UNFINISHED)), free)
        others = BATCHES.alias("others")
        busy = (
            sa.select(sa.func.count())
            .where(others.c.tenant == BATCHES.c.tenant, others.c.lease_until >= now)
            .correlate(BATCHES)
            .scalar_subquery()
        )
        first = (
            sa.select(BATCHES.c.id)
            .where(waits)
            .order_by(busy, BATCHES.c.created_at, BATCHES.c.id)
            .limit(1)
            .with_for_update(skip_locked=True, of=BATCHES)
            .scalar_subquery()
        )
        taken = (
            sa.update(BATCHES)
            .where(BATCHES.c.id == first, waits)
            .values(owner=self._owner, lease_until=now + LEASE_S)
            .returning(BATCHES.c.body)
        )
        with self._engine.begin() as connection:
            body = connection.execute(taken).scalar_one_or_none()
        return None if body is None else Batch.model_validate_json(body)

    def renew(self, identity: str) -> Status | None:
        """Keep a batch for another while; its status, `None`: another gateway has it."""
        with self._engine.begin() as connection:
            return self._renew(connection, identity)

    def release(self, identity: str) -> None:
        """Give a batch back before its lease ends."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(BATCHES)
                .where(BATCHES.c.id == identity, BATCHES.c.owner == self._owner)
                .values(owner=None, lease_until=None)
            )

    def answered(self, identity: str) -> set[int]:
        """Numbers of the lines that need not be asked any more."""
        query = sa.select(BATCH_LINES.c.line).where(BATCH_LINES.c.batch == identity)
        with self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def add_lines(self, identity: str, rows: Iterable[LineRow]) -> Status | None:
        """Keep what lines were answered. The batch's status; `None`: another gateway has the batch,
        and nothing was kept."""
        values = [{"batch": identity, **row._asdict()} for row in rows]
        with self._engine.begin() as connection:
            status = self._renew(connection, identity)
            if status is not None and values:
                connection.execute(insert_new(self._engine, BATCH_LINES), values)
            return status

    def advance(self, old: Status, new: Batch) -> bool:
        """Replace a batch that is run here if its status is still the old one."""
        mine = sa.and_(BATCHES.c.owner == self._owner, BATCHES.c.status == old)
        with self._engine.begin() as connection:
            return _swap(connection, new, mine)

    def end(self, old: Status, new: Batch, files: Sequence[tuple[str, int]]) -> bool:
        """Replace a batch by how it ended: in one transaction its files (id, bytes) appear, its
        lines go, and nobody runs it any more. False: another gateway has it."""
        mine = sa.and_(BATCHES.c.owner == self._owner, BATCHES.c.status == old)
        with self._engine.begin() as connection:
            if not _swap(connection, new, mine, owner=None, lease_until=None):
                return False
            for identity, size in files:
                ready = {"ready": True, "bytes": size}
                connection.execute(sa.update(FILES).where(FILES.c.id == identity).values(**ready))
            connection.execute(sa.delete(BATCH_LINES).where(BATCH_LINES.c.batch == new.id))
        return True

    def lines(self, identity: str, *, ok: bool) -> Iterator[str]:
        """The lines of the output file, or of the error file, in the order of the input."""
        last = 0
        while True:
            query = (
                sa.select(BATCH_LINES.c.line, BATCH_LINES.c.body)
                .where(
                    BATCH_LINES.c.batch == identity,
                    BATCH_LINES.c.ok.is_(ok),
                    BATCH_LINES.c.line > last,
                )
                .order_by(BATCH_LINES.c.line)
                .limit(_PAGE)
            )
            with self._engine.connect() as connection:
                rows = connection.execute(query).all()
            for number, body in rows:
                yield body
                last = number
            if len(rows) < _PAGE:
                return

    def sweep(self, before: float) -> int:
        """Delete batches that are done and were made before a time; how many."""
        with self._engine.begin() as connection:
            return connection.execute(
                sa.delete(BATCHES).where(
                    BATCHES.c.created_at < before, BATCHES.c.status.not_in(sorted(UNFINISHED))
                )
            ).rowcount

    def _renew(self, connection: Connection, identity: str) -> Status | None:
        return connection.execute(
            sa.update(BATCHES)
            .where(BATCHES.c.id == identity, BATCHES.c.owner == self._owner)
            .values(lease_until=self._clock() + LEASE_S)
            .returning(BATCHES.c.status)
        ).scalar_one_or_none()

    def _clock(self) -> Any:
        """Now, in Unix seconds: of PostgreSQL's clock where hosts share one database."""
        if self._engine.dialect.name == "postgresql":
            return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)
        return sa.literal(time.time(), sa.Double)


def _values(batch: Batch) -> dict[str, Any]:
    return {"status": batch.status, "body": batch.model_dump_json()}


def _swap(connection: Connection, new: Batch, where: sa.ColumnElement[bool], **more: Any) -> bool:
    changed = sa.update(BATCHES).where(BATCHES.c.id == new.id, where)
    return bool(connection.execute(changed.values(**_values(new), **more)).rowcount)
