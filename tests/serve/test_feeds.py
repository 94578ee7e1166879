"""Where evidence is read: every row once, whenever and with whatever time it comes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from gateway_stores import new_database, postgres_server, served_of
from stillhouse.serve import feeds
from stillhouse.serve.feeds import OVERLAP_S, StoredFeed
from stillhouse.serve.records import Outcome
from stillhouse.serve.tables import CALLS, OUTCOMES, open_database

NOW = 1_800_000_000.0


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        found = open_database(f"sqlite:///{tmp_path}/g.db")
    else:
        found = open_database(new_database(request.getfixturevalue("server")))
    yield found
    found.dispose()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    yield from postgres_server()


def put(engine: Engine, numbers: list[int], written_at: float, task: str = "reviews") -> None:
    """One transaction of requests, as a gateway's log writes them."""
    rows = [
        {
            "id": f"r{number}",
            "at": NOW,
            "task": task,
            "tenant": "shop",
            "unit": "u",
            "variant": "teacher",
            "served": served_of(number, task=task).model_dump_json(),
            "written_at": written_at,
        }
        for number in numbers
    ]
    with engine.begin() as connection:
        connection.execute(sa.insert(CALLS), rows)


def score(engine: Engine, number: int, at: float) -> None:
    said = Outcome(request=f"r{number}", kind="scorer", score=1, at=at)
    row = {"request": said.request, "kind": said.kind, "score": 1.0, "at": at}
    with engine.begin() as connection:
        connection.execute(sa.insert(OUTCOMES).values(**row, body=said.model_dump_json()))


def read_all(feed: StoredFeed) -> tuple[list[str], list[str]]:
    """Ids of new requests, and of those with a new outcome, page by page to the end."""
    served: list[str] = []
    scored: list[str] = []
    while True:
        batch = feed.read()
        served += [one.id for one in batch.served]
        scored += [one.outcome.request for one in batch.scored]
        if not batch.more:
            return served, scored


@pytest.mark.parametrize("page", [3, 50])
@pytest.mark.parametrize("seed", range(4))
def test_every_row_is_given_once_whatever_its_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, seed: int, page: int
) -> None:
    """Against a plain count: two writers, whose clocks differ and whose commits come late, often
    with the same time; requests are deleted between; pages are full in the middle of a time."""
    monkeypatch.setattr(feeds, "PAGE", page)
    draw = random.Random(seed)
    feed = StoredFeed(engine, "reviews", NOW)
    put(engine, [9000], NOW - 1)  # before it begins
    given: list[str] = []
    scored: list[str] = []
    wanted: list[str] = []
    judged: list[str] = []
    times: dict[str, float] = {}
    number, now = 0, NOW + OVERLAP_S
    for _ in range(15):
        fresh: list[int] = []
        for _ in range(draw.randrange(4)):
            numbers = list(range(number, number + draw.randrange(1, 9)))
            number += len(numbers)
            at = now - draw.randrange(int(OVERLAP_S))
            put(engine, numbers, at)
            put(engine, [10_000 + numbers[0]], now, "another")
            times |= {f"r{one}": at for one in numbers}
            fresh += numbers
        for one in draw.sample(fresh, len(fresh) // 3):
            score(engine, one, now - draw.randrange(int(OVERLAP_S)))
            judged.append(f"r{one}")
        wanted += [f"r{one}" for one in fresh]
        served, outcomes = read_all(feed)
        given += served
        scored += outcomes
        left = [one for one in given if times[one] < now - OVERLAP_S + 1]
        if left and draw.random() < 0.5:
            gone = draw.choice(left)  # at a time at which nothing more will be written
            with engine.begin() as connection:
                connection.execute(sa.delete(OUTCOMES).where(OUTCOMES.c.request == gone))
                connection.execute(sa.delete(CALLS).where(CALLS.c.id == gone))
        now += draw.choice((0, 5))
    assert len(wanted) > 60
    assert sorted(given) == sorted(wanted)
    assert sorted(scored) == sorted(judged)
    assert read_all(feed) == ([], [])


def test_rows_come_in_the_order_of_their_times(engine: Engine) -> None:
    feed = StoredFeed(engine, "reviews", NOW)
    put(engine, [5, 6], NOW + 2)
    put(engine, [7, 3], NOW + 1)
    score(engine, 7, NOW + 4)
    score(engine, 5, NOW + 3)
    assert read_all(feed) == (["r3", "r7", "r5", "r6"], ["r5", "r7"])
    put(engine, [1], NOW + 1)  # another gateway's, of the same time, later
    assert read_all(feed) == (["r1"], [])


def test_what_was_read_is_not_read_again(engine: Engine) -> None:
    """Rows of the time that is looked at twice come out of the database once: a busy gateway has
    thousands there at each look."""
    fetched: list[int] = []

    @sa.event.listens_for(engine, "after_cursor_execute")
    def count(_: Any, cursor: Any, statement: str, *__: object) -> None:
        if "served" in statement:
            fetched.append(1)

    feed = StoredFeed(engine, "reviews", NOW)
    for batch in range(20):
        put(engine, list(range(10 * batch, 10 * batch + 10)), NOW + batch)
        score(engine, 10 * batch, NOW + batch)
    assert len(read_all(feed)[0]) == 200
    fetched.clear()
    assert read_all(feed) == ([], [])
    assert not fetched
    put(engine, [500], NOW + 30)
    with engine.begin() as connection:  # old texts are not even looked at
        connection.execute(sa.update(CALLS).where(CALLS.c.id != "r500").values(served="no JSON"))
    assert read_all(feed) == (["r500"], [])
