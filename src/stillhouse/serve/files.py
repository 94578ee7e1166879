"""Clients' files in the gateway's database: parts of a mebibyte, each tenant's own.

A file is there once its last part is (`ready`); what a crash left half written is swept away. Knows
no HTTP and not what a file holds. Everything here blocks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from stillhouse.serve.batch_records import UNFINISHED
from stillhouse.serve.tables import BATCHES, FILE_PARTS, FILES, cut_log

PART_BYTES: Final = 1 << 20
# An upload or a result that is being written for longer than this was left behind by a crash.
STALE_S: Final = 86_400.0


class FileInUseError(Exception):
    """A batch that is not done reads the file."""


class UnknownCursorError(Exception):
    """`after` names nothing in the list."""


class FileInfo(NamedTuple):
    """A file without its content; times in Unix seconds."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_at: float
    expires_at: float

    def shown(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created_at),
            "expires_at": int(self.expires_at),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


def new_file_id() -> str:
    """A file's id."""
    return "file-" + os.urandom(12).hex()


_COLUMNS: Final = tuple(FILES.c[name] for name in FileInfo._fields)


class StoredFiles:
    """Files over a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, info: FileInfo) -> None:
        """A new file that is not there yet; its size counts against its tenant already."""
        with self._engine.begin() as connection:
            connection.execute(sa.insert(FILES).values(**info._asdict(), ready=False))

    def append(self, identity: str, seq: int, data: bytes) -> None:
        """Write a part; `seq` counts from 0. In a transaction of its own: a long upload holds up no
        other writer."""
        with self._engine.begin() as connection:
            row = {"file": identity, "seq": seq, "data": data}
            connection.execute(sa.insert(FILE_PARTS).values(**row))

    def finish(self, info: FileInfo) -> None:
        """The last part is written: the file is there, as it is told now."""
        with self._engine.begin() as connection:
            done = sa.update(FILES).where(FILES.c.id == info.id)
            connection.execute(done.values(**info._asdict(), ready=True))

    def drop(self, identity: str) -> None:
        """Delete a file whoever's it is, its parts with it."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(FILES).where(FILES.c.id == identity))

    def get(self, tenant: str, identity: str, now: float) -> FileInfo | None:
        """A tenant's file; `None`: it has none of this id, or none any more."""
        query = sa.select(*_COLUMNS).where(FILES.c.id == identity, *_there(tenant, now))
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else FileInfo(*row)

    def listed(
        self,
        tenant: str,
        now: float,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        newest_first: bool = True,
    ) -> tuple[list[FileInfo], bool]:
        """A tenant's files, and whether there are more behind them.

        Raises:
            UnknownCursorError: there is no file `after`.
        """
        query = sa.select(*_COLUMNS).where(*_there(tenant, now))
        if purpose is not None:
            query = query.where(FILES.c.purpose == purpose)
        rows = page(
            self._engine, query, FILES, tenant, after=after, limit=limit, newest_first=newest_first
        )
        return [FileInfo(*row) for row in rows[:limit]], len(rows) > limit

    def used(self, tenant: str) -> int:
        """Bytes of all of a tenant's files, those that are being written too."""
        query = sa.select(sa.func.coalesce(sa.func.sum(FILES.c.bytes), 0))
        with self._engine.connect() as connection:
            return int(connection.execute(query.where(FILES.c.tenant == tenant)).scalar_one())

    def delete(self, tenant: str, identity: str, now: float) -> bool:
        """Delete a tenant's file and overwrite its content; False: there is no such file.

        Raises:
            FileInUseError: a batch that is not done reads it.
        """
        mine = (FILES.c.id == identity, *_there(tenant, now))
        with self._engine.begin() as connection:
            gone = connection.execute(sa.delete(FILES).where(*mine, ~_in_use())).rowcount
            left = not gone and connection.execute(sa.select(FILES.c.id).where(*mine)).first()
        if left:
            raise FileInUseError
        if gone:
            cut_log(self._engine)
        return bool(gone)

    def part(self, identity: str, seq: int) -> bytes | None:
        """A part of a file; `None`: there are no more."""
        query = sa.select(FILE_PARTS.c.data).where(
            FILE_PARTS.c.file == identity, FILE_PARTS.c.seq == seq
        )
        with self._engine.connect() as connection:
            found = connection.execute(query).scalar_one_or_none()
        return None if found is None else bytes(found)

    def parts(self, identity: str) -> Iterator[bytes]:
        """The content, part by part; no transaction stays open in between."""
        seq = 0
        while (data := self.part(identity, seq)) is not None:
            yield data
            seq += 1

    def sweep(self, now: float) -> int:
        """Delete what has expired and what was never finished; how many files. Those that a batch
        reads stay until it is done."""
        old = sa.or_(
            FILES.c.expires_at <= now,
            sa.and_(~FILES.c.ready, FILES.c.created_at < now - STALE_S),
        )
        with self._engine.begin() as connection:
            gone = connection.execute(sa.delete(FILES).where(old, ~_in_use())).rowcount
        if gone:
            cut_log(self._engine)
        return gone


def _there(tenant: str, now: float) -> tuple[sa.ColumnElement[bool], ...]:
    return FILES.c.tenant == tenant, FILES.c.ready, FILES.c.expires_at > now


def _in_use() -> sa.ColumnElement[bool]:
    return sa.exists().where(
        BATCHES.c.input_file == FILES.c.id, BATCHES.c.status.in_(sorted(UNFINISHED))
    )


def page(
    engine: Engine,
    query: sa.Select[Any],
    table: sa.Table,
    tenant: str,
    *,
    after: str | None,
    limit: int,
    newest_first: bool,
) -> list[Any]:
    """A page of a tenant's rows in the order in which they were made, and one row more where there
    is one.

    Raises:
        UnknownCursorError: the tenant has no row `after`.
    """
    at, identity = table.c.created_at, table.c.id
    with engine.connect() as connection:
        if after is not None:
            place = sa.select(at, identity).where(identity == after, table.c.tenant == tenant)
            last = connection.execute(place).one_or_none()
            if last is None:
                raise UnknownCursorError
            here, there = sa.tuple_(at, identity), sa.tuple_(*map(sa.literal, last))
            query = query.where(here < there if newest_first else here > there)
        order = (at.desc(), identity.desc()) if newest_first else (at, identity)
        return list(connection.execute(query.order_by(*order).limit(limit + 1)).all())
