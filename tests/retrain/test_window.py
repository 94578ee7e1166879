"""What of a log becomes a window: clocks that err, rows without use, a pool that is bounded."""

from __future__ import annotations

import pytest

from retrain_doubles import DAY, START, TASK, Rows, day_of_rows, row
from stillhouse.core.errors import UserError
from stillhouse.core.live import LiveAnswer
from stillhouse.core.records import Message
from stillhouse.retrain.window import Span, Window, read_window, span_of


def read(rows: list, span: Span, pool: int = 1000, **changes: object) -> Window:  # type: ignore[type-arg]
    return read_window(Rows(rows), "mood", TASK, span, pool=pool, seed=0, **changes)  # type: ignore[arg-type]


def test_windows_follow_each_other_and_are_no_longer_than_allowed() -> None:
    assert span_of(100.0, 30.0, None) == (70.0, 100.0, None)
    assert span_of(100.0, 30.0, 90.0) == (90.0, 100.0, 90.0)
    assert span_of(100.0, 30.0, 10.0) == (70.0, 100.0, 10.0)
    with pytest.raises(UserError, match="clock: stands 0 s before"):
        span_of(90.0, 30.0, 90.0)


def test_what_cannot_be_learnt_from_is_counted() -> None:
    ends = (Message(role="user", content="x"), Message(role="assistant", content="y"))
    rows = [
        row(1, START + 1),
        row(2, START + 2, messages=()),
        row(3, START + 3, status=502),
        row(4, START + 4, messages=ends),
        row(5, START + 5, text=row(1, 0).messages[0].content),
        row(6, START + 6, user="gone"),
        row(7, START + 7, text="   "),
        row(8, START + 99),
    ]
    found = read(rows, Span(START, START + 50, None), forgotten={"gone"})
    assert [r.query.id for r in found.rows] == ["r0-1"]
    assert found.counts == {
        "read": 8,
        "usable": 1,
        "without_text": 1,
        "failed": 1,
        "no_question": 2,
        "repeated": 1,
        "of_forgotten_users": 1,
        "dated_ahead": 1,
        "pool": 1,
    }


def test_a_request_stored_late_is_in_the_next_window_once() -> None:
    late = row(1, START - 50, written_at=START + 10)
    seen = row(2, START - 50, written_at=START - 49)
    found = read([late, seen, row(3, START + 5)], Span(START, START + 100, START))
    assert [r.query.id for r in found.rows] == ["r0-1", "r0-3"]
    assert found.counts["before"] == 1


def test_a_pool_is_a_draw_by_hash_whatever_the_order() -> None:
    rows = day_of_rows(0, 300)
    span = Span(START, START + DAY, None)
    found = read(rows, span, pool=50)
    assert len(found.rows) == 50
    assert found.counts["usable"] == 300
    assert [r.at for r in found.rows] == sorted(r.at for r in found.rows)
    larger = read(rows, span, pool=100)
    assert {r.query.id for r in found.rows} < {r.query.id for r in larger.rows}


def test_an_answer_that_the_task_cannot_read_is_none() -> None:
    rows = [
        row(1, START, teacher=LiveAnswer(id="t", text="Good.", latency_ms=1)),
        row(2, START, teacher=LiveAnswer(id="t", text="I cannot say", latency_ms=1)),
    ]
    found = read(rows, Span(START, START + 9, None))
    assert [r.teacher for r in found.rows] == ["Good.", None]
    assert found.rows[0].student == "good"
    assert found.rows[0].confidence == 0.6
