"""Damaged rows of the log are named, counted and passed over by all that read it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from rollout_world import SCORER
from sqlalchemy.engine import Engine

from gateway_stores import call_of, served_of
from stillhouse.core.live_pages import Asked
from stillhouse.monitor.striking import gone
from stillhouse.serve.corrected import CorrectedScoring
from stillhouse.serve.evidence_sections import EvidenceSection
from stillhouse.serve.feeds import StoredFeed
from stillhouse.serve.hours import newest_latencies
from stillhouse.serve.in_memory import MemoryLog
from stillhouse.serve.live_labels import live_labels
from stillhouse.serve.live_rows import StoredRows
from stillhouse.serve.log_pages import LogPages
from stillhouse.serve.logged_pairs import _pairs_of
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Outcome, Scored
from stillhouse.serve.stored_calls import outcomes_since, pairs_since, served_since
from stillhouse.serve.stored_records import Unreadable
from stillhouse.serve.tables import CALLS, OUTCOMES, open_database
from stillhouse.serve.traffic_log import TrafficLog

PAIRS = 8
BAD: dict[str, bytes] = {
    "no UTF-8": b'{"id": "r1", "request": {}, "user": "a\xff"}',
    "no JSON": b'{"id": "cut o',
    "no object": b"[1]",
    "another shape": b'{"id": "r1", "request": 3, "response": {"choices": 1}, "later": 1}',
    "deep": b"[" * 5000,
    "half of a surrogate pair": rb'{"response": {"choices": [{"text": "\ud800"}]}, "id": "\ud800"}',
}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Pairs r0 and r1, r2 and r3, ...: a teacher's answer and the student's beside it."""
    engine = open_database(f"sqlite:///{tmp_path}/g.db")
    log = TrafficLog(engine, redact=None, pseudonyms=Pseudonyms(b"0123456789abcdef"))
    for number in range(0, 2 * PAIRS, 2):
        beside: dict[str, Any] = {"variant": "student", "arm": "shadow", "features": {"logit": 1.0}}
        log.offer(call_of(number), served_of(number))
        shadow = served_of(number + 1, shadow_of=f"r{number}", **beside)
        log.offer(call_of(number + 1), shadow)
        assert log.flush(10)
        for one in (number, number + 1):
            log.outcome(Outcome(request=f"r{one}", kind="judge", score=1.0, at=one))
    log.close()
    yield engine
    engine.dispose()


def poison(engine: Engine, column: sa.Column[Any], request: str, value: bytes) -> None:
    key = "id" if column.table is CALLS else "request"
    # Past SQLAlchemy and the driver, which write no such text.
    text = f"UPDATE {column.table.name} SET {column.name} = CAST(? AS TEXT) WHERE {key} = ?"
    with engine.begin() as connection:
        assert connection.exec_driver_sql(text, (value, request)).rowcount == 1


def whole(engine: Engine) -> list[str]:
    return [row.id for row in StoredRows(engine).rows("reviews")]


EVEN = [f"r{number}" for number in range(0, 2 * PAIRS, 2)]


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("column", [CALLS.c.served, CALLS.c.call], ids=lambda one: one.name)
def test_live_rows_go_on_past_a_damaged_request(
    engine: Engine,
    column: sa.Column[Any],
    value: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("stillhouse.serve.live_rows._PAGE", 3)
    # A whole page of them, and the last of another.
    for request in ("r6", "r8", "r10", "r4"):
        poison(engine, column, request, value)
    unreadable = Unreadable()
    rows = StoredRows(engine, unreadable)
    left = [one for one in EVEN if one not in ("r4", "r6", "r8", "r10")]
    with caplog.at_level(logging.WARNING):
        assert [row.id for row in rows.rows("reviews")] == left
        assert [row.id for row in rows.newest("reviews", 4)] == ["r12", "r14"]
    assert all(row.is_pair for row in rows.rows("reviews"))
    assert dict(unreadable.take()) == {"reviews": 4}
    assert sorted(str(one.args[1]) for one in caplog.records if isinstance(one.args, tuple)) == [
        f"request {one}" for one in ("r10", "r4", "r6", "r8")
    ]
    page = LogPages(engine).page(Asked(task="reviews", below=0.5))
    assert page.rows == ()
    assert [row.id for row in LogPages(engine).page(Asked(task="reviews")).rows] == left[::-1]


def test_a_damaged_request_is_not_taken_for_a_deleted_one(engine: Engine) -> None:
    poison(engine, CALLS.c.served, "r4", BAD["no UTF-8"])
    rows = StoredRows(engine)
    assert list(rows.ids("reviews")) == EVEN
    assert list(rows.ids("reviews", since=2.0, until=6.0)) == ["r2", "r4"]
    example = [{"request": "r4", "at": 4.0}, {"request": "r6", "at": 6.0}]
    alert = SimpleNamespace(id="a", examples=example)
    assert gone("reviews", rows, [alert]) == {}  # type: ignore[list-item]
    with engine.begin() as connection:
        connection.execute(sa.delete(CALLS).where(CALLS.c.id == "r6"))
    assert gone("reviews", rows, [alert]) == {"a": frozenset({"r6"})}  # type: ignore[list-item]


def test_a_damaged_shadow_answer_or_outcome_is_absent(engine: Engine) -> None:
    poison(engine, CALLS.c.served, "r1", BAD["no UTF-8"])
    poison(engine, CALLS.c.call, "r3", BAD["no UTF-8"])
    poison(engine, OUTCOMES.c.body, "r5", BAD["no UTF-8"])
    first, second, third, fourth, *_ = StoredRows(engine).rows("reviews")
    assert (first.student, second.student) == (None, None)
    assert first.teacher is not None
    assert first.teacher.score == 1.0
    assert third.is_pair
    scores = [None if one.student is None else one.student.score for one in (third, fourth)]
    assert scores == [None, 1.0]


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_outcomes_pairs_labels_and_figures_go_on_past_damaged_rows(
    engine: Engine, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    poison(engine, CALLS.c.served, "r1", value)
    poison(engine, OUTCOMES.c.body, "r3", value)
    with caplog.at_level(logging.WARNING):
        found = outcomes_since(engine, "reviews", 0.0)
    assert len(found) == 2 * PAIRS - 2
    assert {"r1", "r3"}.isdisjoint(one.served.id for one in found)
    assert [one.args[1] for one in caplog.records if isinstance(one.args, tuple)] == [
        "request r1",
        "outcome 4 of request r3",
    ]
    assert len(served_since(engine, "reviews", 0.0)) == 2 * PAIRS - 1
    assert [pair.request for pair in pairs_since(engine, "reviews", 0.0, {"judge"})] == EVEN[2:]
    assert len(live_labels(engine, "reviews", 0.0).seen) == PAIRS - 2
    assert len(newest_latencies(engine, "reviews", 99)) == PAIRS
    poison(engine, CALLS.c.served, "r0", value)
    assert len(newest_latencies(engine, "reviews", 99)) == PAIRS - 1
    # What has no score is scored anew by its texts.
    poison(engine, CALLS.c.call, "r5", BAD["no UTF-8"])
    evidence = EvidenceSection.model_validate(SCORER)
    logged = _pairs_of(engine, "reviews", evidence)
    assert [pair.request for pair in logged] == [EVEN[1], *EVEN[3:]]


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_feed_goes_on_past_damaged_rows(engine: Engine, value: bytes) -> None:
    poison(engine, CALLS.c.served, "r1", value)
    poison(engine, OUTCOMES.c.body, "r3", value)
    unreadable = Unreadable()
    batch = StoredFeed(engine, "reviews", 0.0, unreadable).read()
    assert (len(batch.served), len(batch.scored)) == (2 * PAIRS - 1, 2 * PAIRS - 2)
    assert dict(unreadable.take()) == {"reviews": 2}


@pytest.mark.parametrize("value", [*BAD.values(), b'{"id": "r1"}'], ids=[*BAD, "no response"])
def test_labels_without_readable_texts_have_no_fingerprint(engine: Engine, value: bytes) -> None:
    for number in range(1, 2 * PAIRS, 2):
        poison(engine, CALLS.c.call, f"r{number}", value)
    found = live_labels(engine, "reviews", 0.0)
    assert [author.fingerprint for author in found.authors] == [None]
    assert len(found.seen) == PAIRS


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_correction_of_damaged_texts_scores_what_can_be_read(
    engine: Engine, value: bytes
) -> None:
    poison(engine, CALLS.c.call, "r1", value)
    task = EvidenceSection.model_validate(SCORER).task
    assert task is not None
    log = MemoryLog()
    served = next(one for one in served_since(engine, "reviews", 0.0) if one.id == "r0")
    told = Outcome(request="r0", kind="corrected", score=0.0, at=9.0, corrected="fresh")
    CorrectedScoring(engine, log, task)([Scored(served, told)])
    assert [(one.request, one.score) for one in log.outcomes if one.request == "r0"] == [
        ("r0", 1.0)
    ]
