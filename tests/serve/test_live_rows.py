"""The traffic log as rows: pairs, outcomes, pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from gateway_stores import call_of, served_of
from stillhouse.serve.live_rows import StoredRows
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Outcome
from stillhouse.serve.tables import StoreError, open_database
from stillhouse.serve.traffic_log import TrafficLog


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path}/g.db")
    yield engine
    engine.dispose()


def _log(engine: Engine) -> TrafficLog:
    return TrafficLog(engine, redact=lambda text: text, pseudonyms=Pseudonyms(b"0123456789abcdef"))


def test_a_request_and_its_shadow_answer_are_one_row(engine: Engine) -> None:
    log = _log(engine)
    log.offer(call_of(1), served_of(1))
    said = {"choices": [{"message": {"role": "assistant", "content": "rotten"}}]}
    shadow = served_of(2, variant="student", arm="shadow", shadow_of="r1", confidence=0.4)
    log.offer(call_of(2, response=said), shadow)
    log.offer(call_of(3), served_of(3, variant="student", arm="treatment", task="reviews"))
    log.flush(10)
    log.outcome(Outcome(request="r2", kind="corrected", score=0, at=9, corrected="fresh"))
    log.close()
    pair, alone = StoredRows(engine).rows("reviews")
    assert pair.is_pair
    assert (pair.teacher.text, pair.student.text) == ("fresh", "rotten")
    assert (pair.student.score, pair.student.corrected, pair.student.confidence) == (
        0,
        "fresh",
        0.4,
    )
    assert pair.messages[-1].content.startswith("Review 1")
    assert not alone.is_pair
    assert alone.teacher is None
    assert (alone.seen, alone.student.text) == ("student", "fresh")


def test_pages_windows_and_the_newest(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.serve.live_rows._PAGE", 3)
    log = _log(engine)
    for number in range(10):
        log.offer(call_of(number), served_of(number))
    log.close()
    rows = StoredRows(engine)
    assert [row.at for row in rows.rows("reviews")] == [float(n) for n in range(10)]
    assert [row.at for row in rows.rows("reviews", since=2, until=5)] == [2, 3, 4]
    assert [row.at for row in rows.newest("reviews", 4)] == [6, 7, 8, 9]
    assert not list(rows.rows("another"))


def test_a_database_that_does_not_answer_is_an_error_of_ours(engine: Engine) -> None:
    rows = StoredRows(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE outcomes")
        connection.exec_driver_sql("DROP TABLE calls")
    for ask in (rows.rows, rows.ids):
        with pytest.raises(
            StoreError, match=r"^the database does not answer \(OperationalError\)$"
        ):
            list(ask("reviews"))
    with pytest.raises(StoreError, match="does not answer"):
        rows.newest("reviews", 3)
