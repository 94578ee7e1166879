"""The gateway's tables, on SQLite or PostgreSQL by URL, and how a database is opened and migrated.

Records are kept whole as JSON text beside the columns that queries need. Knows no request and no
policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.optional import require

METADATA: Final = sa.MetaData()
BUSY_SECONDS: Final = 30
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
# One number for all gateways: only one of them migrates a PostgreSQL database at a time.
_MIGRATION_LOCK: Final = 7_233_017

# A server behind a network that swallows packets is not waited for as long as TCP would.
_PATIENCE: Final = {"connect_timeout": 10, "tcp_user_timeout": 20_000}

STATES: Final = sa.Table(
    "states",
    METADATA,
    sa.Column("task", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
DECISIONS: Final = sa.Table(
    "decisions",
    METADATA,
    sa.Column("task", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
CALLS: Final = sa.Table(
    "calls",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("user", sa.Text),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("shadow_of", sa.Text),
    sa.Column("served", sa.Text, nullable=False),
    sa.Column("call", sa.Text),
    # When it was written, by the writer's clock: what was read up to then is read on from there.
    sa.Column("written_at", sa.Double, nullable=False, server_default="0"),
    sa.Index("calls_task_at", "task", "at"),
    sa.Index("calls_task_written_at", "task", "written_at"),
    sa.Index("calls_at", "at"),
    sa.Index("calls_user_at", "user", "at"),
    sa.Index("calls_shadow_of", "shadow_of"),
)
OUTCOMES: Final = sa.Table(
    "outcomes",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column(
        "request",
        sa.Text,
        sa.ForeignKey("calls.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("outcomes_at", "at"),
)
# Sums of calls by the hour (Unix seconds over 3,600). Of several writers each has its `slot`.
HOURS: Final = sa.Table(
    "hours",
    METADATA,
    sa.Column("task", sa.Text, primary_key=True),
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("variant", sa.Text, primary_key=True),
    sa.Column("shadow", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("fell_back", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("cost_usd", sa.Double, nullable=False),
    sa.Column("teacher_cost_usd", sa.Double, nullable=False),
    sa.Column("latency_ms", sa.Double, nullable=False),
)
# What was known of a stage (began `since`) at a time: the course that is drawn.
COURSES: Final = sa.Table(
    "courses",
    METADATA,
    sa.Column("task", sa.Text, primary_key=True),
    sa.Column("since", sa.Double, primary_key=True),
    sa.Column("at", sa.Double, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)
LEASES: Final = sa.Table(
    "leases",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
)
KEYS: Final = sa.Table(
    "keys",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("made_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
)
# Sessions of the dashboard that were signed out of, by their SHA-256, until they would have ended.
SIGNED_OUT: Final = sa.Table(
    "signed_out",
    METADATA,
    sa.Column("session", sa.Text, primary_key=True),
    sa.Column("until", sa.Double, nullable=False),
)
FILES: Final = sa.Table(
    "files",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("ready", sa.Boolean, nullable=False),
    sa.Index("files_tenant", "tenant", "created_at", "id"),
)
FILE_PARTS: Final = sa.Table(
    "file_parts",
    METADATA,
    sa.Column("file", sa.Text, sa.ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
BATCHES: Final = sa.Table(
    "batches",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("input_file", sa.Text, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Double),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("batches_tenant", "tenant", "created_at", "id"),
    sa.Index("batches_status", "status"),
)
BATCH_LINES: Final = sa.Table(
    "batch_lines",
    METADATA,
    sa.Column("batch", sa.Text, sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("ok", sa.Boolean, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)


class StoreError(StillhouseError):
    """The database did not do what it was asked: down, full, locked, or not allowed."""


@contextmanager
def answering() -> Iterator[None]:
    """A database that does not do what it is asked is an error of ours, without what was asked.

    Raises:
        StoreError: for every error of the database in the block.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreError(f"the database does not answer ({type(error).__name__})") from None


def open_database(url: str) -> Engine:
    """Connect, and bring the tables up to date.

    Args:
        url: `sqlite:///path/to/file.db` or `postgresql://user:password@host/name`.

    Raises:
        UserError: not such a URL, or a database that a newer version made.
        MissingExtraError: PostgreSQL without psycopg.
        StoreError: the database cannot be reached. No message holds the password.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UserError("log.url", "is not the URL of a database", action=_ACTION) from None
    kind = parsed.get_backend_name()
    if kind == "postgresql":
        require("psycopg", "postgres", "a PostgreSQL database")
        engine = sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args={key: v for key, v in _PATIENCE.items() if key not in parsed.query},
            pool_pre_ping=True,
            hide_parameters=True,
        )
    elif kind == "sqlite" and parsed.database and parsed.database != ":memory:":
        engine = sa.create_engine(
            parsed.set(drivername="sqlite"),
            connect_args={"timeout": BUSY_SECONDS},
            hide_parameters=True,
        )
        sa.event.listen(engine, "connect", _sqlite_settings)
    else:
        raise UserError("log.url", f"names {kind} without a file", action=_ACTION)
    try:
        with engine.connect() as connection:
            _migrate(connection)
    except OperationalError as error:
        engine.dispose()
        shown = parsed.render_as_string(hide_password=True)
        raise StoreError(f"{shown}: {str(error.orig).splitlines()[0]}") from None
    except CommandError as error:
        engine.dispose()
        raise UserError(
            "log.url",
            f"is a database of another version of Stillhouse ({error})",
            action="upgrade Stillhouse, or name another database",
        ) from None
    return engine


_ACTION: Final = "write sqlite:///gateway.db or postgresql://user:password@host/name"


def _sqlite_settings(connection: Any, _record: object) -> None:
    connection.text_factory = _text
    cursor = connection.cursor()
    # WAL: readers never wait for the writer. FULL: a commit outlives a power cut as well as a
    # kill. secure_delete: what is deleted for a user is overwritten in the file.
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _text(raw: bytes) -> str:
    # Bytes that are no UTF-8 would fail the whole query; so they are no JSON, in their row alone.
    return raw.decode("utf-8", "backslashreplace")


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")
    connection.commit()


def cut_log(engine: Engine) -> None:
    """On SQLite, cut the write-ahead log: what was deleted is overwritten in the file at once, but
    stands in the log until then. Elsewhere nothing."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
