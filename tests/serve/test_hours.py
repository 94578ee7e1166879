"""Sums by the hour and pages of the log, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from gateway_stores import call_of, served_of
from stillhouse.core.live_pages import Asked, Hour, Place
from stillhouse.serve import tables, traffic_log
from stillhouse.serve.hours import HOUR_S, read_days, read_hours, read_totals, sums_of
from stillhouse.serve.live_rows import StoredRows
from stillhouse.serve.log_pages import LogPages, differ
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Served
from stillhouse.serve.stored_calls import delete_before, served_since
from stillhouse.serve.tables import CALLS, HOURS, open_database
from stillhouse.serve.traffic_log import TrafficLog

NAMES = Pseudonyms(b"0123456789abcdef")
Urls = Callable[[], str]


def traffic(count: int, seed: int = 1) -> list[Served]:
    """Requests of two tasks over three hours; of the teacher's a third with shadow answers."""
    chance = random.Random(seed)
    found = []
    for n in range(count):
        task = chance.choice(("reviews", "news"))
        variant = chance.choice(("teacher", "student"))
        one = served_of(
            n,
            task=task,
            at=1000 * HOUR_S + chance.uniform(0, 3 * HOUR_S),
            variant=variant,
            fell_back=variant == "teacher" and chance.random() < 0.2,
            status=chance.choice((200, 200, 200, 404, 429, 500, 503)),
            cost_usd=chance.random(),
            teacher_cost_usd=chance.random(),
            latency_ms=chance.uniform(1, 90),
            confidence=chance.random() if variant == "student" else None,
            user=f"user{n % 4}",
        )
        found.append(one)
        if variant == "teacher" and n % 3 == 0:
            update = {"id": f"s{n}", "variant": "student", "shadow_of": one.id, "arm": "shadow"}
            update |= {"status": 200, "fell_back": False, "confidence": chance.random()}
            found.append(one.model_copy(update=update))
    return found


def write(engine: Engine, rows: list[Served]) -> None:
    log = TrafficLog(engine, NAMES, redact=None, batch=7)
    for one in rows:
        said = "rotten" if one.id.startswith("s") and int(one.id[1:]) % 2 else "fresh"
        choice = {"choices": [{"message": {"role": "assistant", "content": said}}]}
        log.offer(call_of(0, id=one.id, user=one.user, response=choice), one)
    counts = log.close()
    assert counts.written == len(rows)


def counted(rows: list[Served]) -> dict[tuple[Any, ...], list[float]]:
    """The sums, straight from their definition."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for one in rows:
        key = (one.task, int(one.at // HOUR_S), one.variant, one.shadow_of is not None)
        sums = found.setdefault(key, [0, 0, 0, 0.0, 0.0, 0.0])
        more = (1, one.fell_back, one.status >= 500 or one.status == 429)
        for k, value in enumerate((*more, one.cost_usd, one.teacher_cost_usd, one.latency_ms)):
            sums[k] += value
    return found


def as_sums(hours: list[Hour]) -> dict[tuple[Any, ...], Any]:
    return {
        (h.task, h.hour, h.variant, h.shadow): pytest.approx(
            [h.requests, h.fell_back, h.failed, h.cost_usd, h.teacher_cost_usd, h.latency_ms]
        )
        for h in hours
    }


def test_hours_are_the_sums_of_the_log(engine: Engine) -> None:
    rows = traffic(120)
    write(engine, rows)
    assert counted(rows) == as_sums(read_hours(engine))
    assert sum(one.requests for one in read_totals(engine, None, None)) == len(rows)
    parts = [*read_totals(engine, None, 1001), *read_totals(engine, 1001, None)]
    assert sum(one.requests for one in parts) == len(rows)
    (day,) = {one.hour for one in read_days(engine, 1001)}
    assert day == 1000 - 1000 % 24
    assert sum(one.requests for one in read_days(engine, 1001)) == len(rows)
    late = [one for one in rows if one.at // HOUR_S >= 1001 and one.task == "news"]
    assert counted(late) == as_sums(read_hours(engine, "news", 1001))
    delete_before(engine, 2000 * HOUR_S)
    assert not served_since(engine, "news", 0)
    assert counted(rows) == as_sums(read_hours(engine))  # what was saved is still known


def test_a_batch_that_was_written_before_is_not_counted_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A commit whose answer was lost: the writer tries the same rows again.
    rows = traffic(30)
    write(engine, rows[:20])
    write(engine, rows)
    assert counted(rows) == as_sums(read_hours(engine))


def test_writers_that_write_at_once_lose_nothing(engine: Engine) -> None:
    rows = traffic(200)
    logs = [TrafficLog(engine, NAMES, redact=None, batch=5) for _ in range(4)]
    for number, log in enumerate(logs):
        log._slot = number % 2
    for number, one in enumerate(rows):
        logs[number % 4].offer(call_of(0, id=one.id), one)
    assert sum(log.close().written for log in logs) == len(rows)
    assert counted(rows) == as_sums(read_hours(engine))


def test_a_log_of_before_is_counted_when_it_is_migrated(
    urls: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = traffic(60)
    url = urls()

    def to(revision: str) -> Engine:
        def upgrade(config: Config, _head: str) -> None:
            command_upgrade(config, revision)

        monkeypatch.setattr(tables.command, "upgrade", upgrade)
        return open_database(url)

    command_upgrade = command.upgrade
    old = to("0003")
    with old.begin() as connection:
        names = [column.name for column in CALLS.columns]
        for one in rows:
            row = {**one.model_dump(), "served": one.model_dump_json(), "call": None}
            row["written_at"] = one.at
            connection.execute(sa.insert(CALLS).values({name: row[name] for name in names}))
    old.dispose()
    new = to("head")
    assert counted(rows) == as_sums(read_hours(new))
    new.dispose()


ROWS = [{**vars(one), "figures": vars(one)} for one in traffic(60)]


@given(st.lists(st.sampled_from(ROWS), max_size=40), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_sums_are_the_same_however_rows_are_cut(rows: list[Any], size: int) -> None:
    whole, cut = Counter[tuple[Any, ...]](), Counter[tuple[Any, ...]]()
    parts = [rows[k : k + size] for k in range(0, len(rows), size)]
    for sums, pieces in ((whole, [rows]), (cut, parts)):
        for piece in pieces:
            for one in sums_of(piece, 0):
                sums[one["task"], one["hour"], one["variant"], one["shadow"]] += one["requests"]
    assert whole == cut
    assert sum(whole.values()) == len(rows)


ASKED = (
    Asked(),
    Asked(task="news"),
    Asked(variant="student"),
    Asked(task="reviews", variant="teacher"),
    Asked(below=0.3),
    Asked(differing=True),
    Asked(task="news", below=0.5, differing=True),
    Asked(user=NAMES.of("shop", "user2")),
)


def wanted(engine: Engine, asked: Asked) -> list[str]:
    """What a filter should find, from all rows."""
    rows = [row for task in ("news", "reviews") for row in StoredRows(engine).rows(task)]

    def fits(row: Any) -> bool:
        sure = [one.confidence for one in (row.teacher, row.student) if one is not None]
        low = asked.below is None or any(c is not None and c < asked.below for c in sure)
        return (
            asked.task in (None, row.task)
            and asked.variant in (None, row.seen)
            and asked.user in (None, row.user)
            and low
            and (not asked.differing or differ(row))
        )

    return [
        row.id for row in sorted(rows, key=lambda row: (row.at, row.id), reverse=True) if fits(row)
    ]


@pytest.mark.parametrize("step", [3, 500])
def test_pages_hold_every_request_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr("stillhouse.serve.log_pages.STEP", step)
    monkeypatch.setattr("stillhouse.serve.log_pages.MOST", 3 * step)
    rows = traffic(90)
    # Several at the same time: the id then decides.
    rows = [one.model_copy(update={"at": float(int(one.at) // 900 * 900)}) for one in rows]
    write(engine, rows)
    pages = LogPages(engine, clock=lambda: 0.0)
    for asked in ASKED:
        found: list[str] = []
        place: Place | None = None
        for _ in range(200):
            page = pages.page(asked, place, 7)
            assert len(page.rows) <= 7
            found += [row.id for row in page.rows]
            place = page.next
            if place is None:
                break
        assert found == wanted(engine, asked), asked


def test_a_page_looks_no_longer_than_it_may(engine: Engine) -> None:
    write(engine, traffic(60))
    times = iter(range(100))
    page = LogPages(engine, clock=lambda: float(next(times))).page(Asked(below=0.0))
    assert page.rows == ()
    assert page.looked_at < 60
    assert page.next is not None


def test_one_request_is_found_by_its_id_or_its_shadow_answer(engine: Engine) -> None:
    write(engine, traffic(10))
    shadow = next(one for one in traffic(10) if one.shadow_of is not None)
    pages = LogPages(engine)
    for identity in (shadow.id, shadow.shadow_of):
        (row,) = pages.page(Asked(id=identity)).rows
        assert (row.id, row.student is not None) == (shadow.shadow_of, True)
    assert pages.page(Asked(id="none")).rows == ()


def test_a_failed_write_counts_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic_log, "add", _full)
    log = TrafficLog(engine, NAMES, redact=None)
    log.offer(call_of(1), served_of(1))
    assert not log.flush(0.3)
    with engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(CALLS)).scalar() == 0
    monkeypatch.undo()
    assert log.close().written == 1
    assert [one.requests for one in read_hours(engine)] == [1]
    with engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(HOURS)).scalar() == 1


def _full(*_: object) -> None:
    raise sa.exc.OperationalError("INSERT", {}, Exception("database or disk is full"))
