"""The controller: whole plans by themselves, on memory and databases, once whoever looks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from rollout_world import FEEDBACK, SCORER, World, file_of
from sqlalchemy.engine import Engine

from gateway_stores import call_of, served_of
from stillhouse.serve.controller import Controller, Sources
from stillhouse.serve.courses import Lease, MemoryCourses, StoredCourses
from stillhouse.serve.feeds import MemoryFeed, StoredFeed
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.in_memory import MemoryLog, MemoryStates
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.migration import changed, first_state
from stillhouse.serve.policy import Blocked, JudgeTrust
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Scored, Served
from stillhouse.serve.seams import Log
from stillhouse.serve.states import StoredStates
from stillhouse.serve.stored_parts import begin
from stillhouse.serve.stored_records import MOST_NAMED, Unreadable
from stillhouse.serve.tables import CALLS, OUTCOMES, open_database
from stillhouse.serve.traffic_log import TrafficLog
from stillhouse.serve.watching import feeds_of, watch_memory

NAMES = Pseudonyms(b"0123456789abcdef")
Urls = Callable[[], str]


def memory(file: GatewayFile) -> tuple[MemoryStates, MemoryLog, Controller]:
    task = file.tasks["reviews"]
    first = first_state("reviews", task.experiment.stages, 0.0, student=True, threshold=None)
    states, feeds = MemoryStates([first]), feeds_of(file)
    log = MemoryLog(0, feeds)
    return states, log, watch_memory(file, states, log, feeds).controller


def written(log: Log, rows: tuple[list[Served], list[Scored]]) -> None:
    for served in rows[0]:
        assert log.offer(call_of(0, id=served.id), served)
    assert log.scores([scored.outcome for scored in rows[1]]) == len(rows[1])


def lived(states: Any, log: Log, controller: Controller, world: World, most: int) -> None:
    """Requests until the experiment is full, or held, or so many; looked at after every 100."""
    for _ in range(0, most, 100):
        state = states.get("reviews")
        if state.kind == "full" or state.held:
            return
        written(log, world.requests(state, 100))
        if isinstance(log, TrafficLog):
            assert log.flush(10)
        controller.tick(world.now)


def test_a_good_student_takes_over_by_itself_and_the_audit_log_says_on_what() -> None:
    file = file_of()
    states, log, controller = memory(file)
    lived(states, log, controller, World(file, 0.92, 0.9), 9000)
    assert states.get("reviews").kind == "full"
    assert [(d.action, d.from_stage, d.to_stage) for d in states.decisions] == [
        ("advance", 0, 1),
        ("advance", 1, 2),
        ("advance", 2, 3),
    ]
    for decision in states.decisions:
        assert decision.numbers["better"] is True
        assert decision.numbers["p_better"] <= 0.05  # type: ignore[operator]
        assert decision.numbers["requests"] >= 100  # type: ignore[operator]
    # evidence is of a stage: it began with nothing each time
    values = [decision.numbers["values"] for decision in states.decisions]
    assert all(value < 3000 for value in values)  # type: ignore[operator]


def test_a_bad_student_is_rolled_back_and_held() -> None:
    file = file_of()
    states, log, controller = memory(file)
    world = World(file, 0.6, 0.9)
    lived(states, log, controller, world, 4000)
    [decision] = states.decisions
    assert (decision.action, decision.to_stage) == ("roll_back", 0)
    assert "worse than allowed" in decision.reason
    assert states.get("reviews").held
    for _ in range(3):
        written(log, world.requests(states.get("reviews"), 100))
        controller.tick(world.now)
    assert len(states.decisions) == 1


def test_a_student_that_turns_bad_at_canary_is_rolled_back() -> None:
    file = file_of(evidence={**FEEDBACK, "outcomes": ["feedback"]})
    states, log, controller = memory(file)
    world = World(file, 0.95, 0.9, kind="feedback")
    lived(states, log, controller, world, 200)
    assert states.get("reviews").stage == 1
    world.student = 0.2
    lived(states, log, controller, world, 6000)
    assert [one.action for one in states.decisions] == ["advance", "roll_back"]
    assert states.get("reviews").stage == 0


def test_a_slow_student_is_rolled_back_without_any_scores() -> None:
    file = file_of(evidence=None)
    states, log, controller = memory(file)
    state = states.get("reviews")
    for _ in range(2):
        state, decision = changed(
            state, file.tasks["reviews"].experiment.stages, "approve", "", 1.0
        )
        assert states.swap(state.version - 1, state, decision)
    world = World(file, 0.9, 0.9, slow=8.0)
    world.now = 2.0
    lived(states, log, controller, world, 1500)
    last = states.decisions[-1]
    assert (last.action, last.to_stage) == ("roll_back", 0)
    assert "too slow" in last.reason
    tripped = [one for one in last.numbers["guardrails"] if one["tripped"]]  # type: ignore[union-attr,index,call-overload]
    assert [one["name"] for one in tripped] == ["latency_ratio"]  # type: ignore[index,call-overload]


def test_what_an_admin_sees() -> None:
    file = file_of()
    states, log, controller = memory(file)
    fresh = controller.view("reviews")
    assert fresh["numbers"] is None
    world = World(file, 0.85, 0.9)
    lived(states, log, controller, world, 400)
    shown = controller.view("reviews")
    assert shown["state"]["kind"] == "shadow"
    assert shown["numbers"]["requests"] == 400
    assert "pairs" in shown["words"]
    assert next(point["requests"] for point in shown["course"]) == 100
    assert shown["plan"]["margin"] == 0.05
    lived(states, log, controller, World(file, 0.95, 0.9, number=10_000, now=world.now), 3000)
    later = controller.view("reviews")
    requests = [point["requests"] for point in later["course"] if point["stage"] == 0]
    assert requests == sorted(requests)
    assert len(requests) > 3
    lows = [p["low"] for p in later["course"] if p["stage"] == 0 and p["low"] is not None]
    assert lows == sorted(lows)
    assert later["decisions"][0]["action"] == "advance"


def test_it_looks_every_few_seconds_and_not_more_often() -> None:
    file = file_of()
    states, log, controller = memory(file)
    world = World(file, 0.3, 0.9)
    controller.tick(world.now)
    written(log, world.requests(states.get("reviews"), 400))
    assert controller.tick(1.0) == []
    assert len(controller.tick(world.now)) == 1


def test_rows_that_cannot_be_read_stop_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    file = file_of()
    first = first_state(
        "reviews", file.tasks["reviews"].experiment.stages, 0.0, student=True, threshold=None
    )

    class Broken(MemoryFeed):
        def read(self) -> Any:
            raise ValueError("a row of another version")

    sources = Sources(MemoryStates([first]), MemoryCourses(), lambda *_: Broken(), lambda _: [])
    controller = Controller(file.tasks, sources)
    assert controller.tick(100.0) == []
    assert controller.tick(200.0) == []
    assert "reviews: its evidence cannot be looked at" in caplog.text


def test_a_judge_that_cannot_be_trusted_advances_nothing() -> None:
    judge = {"source": "judge", "task": SCORER["task"], "judge": {"upstream": "big"}}
    file = file_of(evidence={**judge, "unit_hours": 0})
    task = file.tasks["reviews"]
    first = first_state("reviews", task.experiment.stages, 0.0, student=True, threshold=None)
    states, feed, courses = MemoryStates([first]), MemoryFeed(), MemoryCourses()
    trust: list[JudgeTrust | Blocked] = [Blocked("no better than chance")]
    controller = Controller(
        file.tasks,
        Sources(states, courses, lambda *_: feed, lambda _: [], trust=lambda _: trust[0]),
    )
    log = MemoryLog(0, {"reviews": feed})
    world = World(file, 1.0, 1.0, kind="judge")
    for _ in range(6):
        written(log, world.requests(first, 100))
        controller.tick(world.now)
    assert states.decisions == []
    assert "no better than chance" in controller.view("reviews")["words"]
    trust[0] = JudgeTrust(0.8, tested=True)
    for _ in range(6):
        written(log, world.requests(states.get("reviews"), 100))
        controller.tick(world.now)
    assert states.decisions[0].action == "advance"


def stored(engine: Engine, file: GatewayFile, *, alone: bool) -> tuple[StoredStates, Controller]:
    states = StoredStates(engine)
    leads = (lambda now: True) if alone else Lease(engine, "evidence").held
    sources = Sources(
        states=states,
        courses=StoredCourses(engine),
        feed=lambda task, since: StoredFeed(engine, task, since),
        audit=lambda task: [one.decision for one in states.audit(task)],
        leads=leads,
    )
    return states, Controller(file.tasks, sources)


def test_two_gateways_on_one_database_never_promote_twice(urls: Urls) -> None:
    """Both look at the same rows at the same moment, and both would promote: one does."""
    url, file = urls(), file_of()
    engines = [open_database(url) for _ in range(2)]
    begin(StoredStates(engines[0]), file, 0.0)
    both = [stored(engine, file, alone=True) for engine in engines]
    log = TrafficLog(engines[0], NAMES, redact=None)
    # pairs without a failure: a hundred are enough
    world, promoted = World(file, 1.0, 1.0), 0
    with ThreadPoolExecutor(2) as pool:
        for _ in range(8):
            for states, _ in both:
                states.refresh()
            seen = {states.get("reviews").version for states, _ in both}
            assert len(seen) == 1
            written(log, world.requests(both[0][0].get("reviews"), 60))
            assert log.flush(10)
            found = list(pool.map(lambda one: one[1].tick(world.now), both))
            assert sum(map(len, found)) <= 1
            promoted += sum(map(len, found))
            if both[0][0].get("reviews").stage >= 2:
                break
    assert promoted >= 2
    audit = both[1][0].audit("reviews")
    assert [line.version for line in audit] == list(range(1, promoted + 2))
    assert [line.decision.to_stage for line in audit] == list(range(promoted + 1))
    log.close()
    for engine in engines:
        engine.dispose()


def test_one_gateway_works_at_a_time_and_another_goes_on_when_it_is_gone(urls: Urls) -> None:
    url, file = urls(), file_of()
    engines = [open_database(url) for _ in range(2)]
    begin(StoredStates(engines[0]), file, 0.0)
    (states, first), (others, second) = [stored(one, file, alone=False) for one in engines]
    log = TrafficLog(engines[0], NAMES, redact=None)
    world = World(file, 1.0, 1.0, step=0.01)
    first.tick(world.now)
    written(log, world.requests(states.get("reviews"), 200))
    assert log.flush(10)
    # the first holds the lease
    world.now += 10
    assert second.tick(world.now) == []
    assert second.view("reviews")["course"] == first.view("reviews")["course"]
    # the first is gone: the second takes over with all that is stored, and decides as it would have
    world.now += 60
    [decision] = second.tick(world.now)
    assert decision.action == "advance"
    assert decision.numbers["requests"] == 200
    states.refresh()
    assert states.get("reviews") == others.get("reviews")
    log.close()
    for engine in engines:
        engine.dispose()


def test_a_feed_gives_every_row_once_also_those_that_come_late(urls: Urls) -> None:
    engine = open_database(urls())
    log = TrafficLog(engine, NAMES, redact=None)
    file = file_of()
    states, _ = stored(engine, file, alone=True)
    begin(states, file, 0.0)
    feed, world = StoredFeed(engine, "reviews", 0.0), World(file, 0.9, 0.9)
    seen: list[str] = []
    scores: list[tuple[str, str]] = []
    for count in (3, 0, 5, 1):
        written(log, world.requests(states.get("reviews"), count))
        assert log.flush(10)
        batch = feed.read()
        assert not batch.more
        seen += [one.id for one in batch.served]
        scores += [(one.served.id, one.outcome.request) for one in batch.scored]
    assert sorted(seen) == sorted(set(seen))
    assert len([one for one in seen if not one.endswith("-s")]) == 9
    assert len(scores) == len(set(scores)) == 2 * len([s for s in seen if s.endswith("-s")])
    assert all(a == b for a, b in scores)
    assert StoredFeed(engine, "other", 0.0).read() == ([], [], False)
    log.close()
    engine.dispose()


def poison(engine: Engine, column: sa.Column[Any], value: str, request: str) -> None:
    """Put something else into a row of a request."""
    key = CALLS.c.id if column.table is CALLS else OUTCOMES.c.request
    with engine.begin() as connection:
        query = sa.update(column.table).where(key == request).values({column.name: value})
        found = connection.execute(query)
        assert found.rowcount == 1


def test_a_row_that_is_no_record_is_named_counted_and_passed_over(
    urls: Urls, caplog: pytest.LogCaptureFixture
) -> None:
    engine, file = open_database(urls()), file_of()
    log = TrafficLog(engine, NAMES, redact=None)
    states, _ = stored(engine, file, alone=True)
    begin(states, file, 0.0)
    world, unreadable = World(file, 0.9, 0.9), Unreadable()
    written(log, world.requests(states.get("reviews"), 6))
    assert log.flush(10)
    whole = StoredFeed(engine, "reviews", 0.0).read()
    shadows = [one.served.id for one in whole.scored if one.served.shadow_of is not None]
    first, second = shadows[:2]
    poison(engine, CALLS.c.served, '{"id": "cut o', first)
    poison(engine, OUTCOMES.c.body, '{"kind": "of a later version"}', second)
    with caplog.at_level(logging.WARNING):
        feed = StoredFeed(engine, "reviews", 0.0, unreadable)
        batch = feed.read()
    assert [one.id for one in batch.served] == [s.id for s in whole.served if s.id != first]
    assert [one.served.id for one in batch.scored] == [
        one.served.id for one in whole.scored if one.served.id not in (first, second)
    ]
    # The request with its outcome is one row that cannot be read, the other's outcome another.
    assert dict(unreadable.take()) == {"reviews": 2}
    assert len(caplog.records) == 2
    assert f"reviews: the stored request {first} cannot be read: Invalid JSON" in caplog.text
    assert f"of request {second} cannot be read: request: Field required" in caplog.text
    assert feed.read() == ([], [], False)
    assert dict(unreadable.take()) == {}
    log.close()
    engine.dispose()


def test_evidence_goes_on_past_a_row_that_is_no_record(urls: Urls) -> None:
    engine, file = open_database(urls()), file_of()
    states, controller = stored(engine, file, alone=True)
    begin(states, file, 0.0)
    log, world = TrafficLog(engine, NAMES, redact=None), World(file, 1.0, 1.0)
    written(log, world.requests(states.get("reviews"), 3))
    assert log.flush(10)
    poison(engine, CALLS.c.served, "no JSON", "r1")
    written(log, world.requests(states.get("reviews"), 120))
    assert log.flush(10)
    [decision] = controller.tick(world.now)
    assert decision.action == "advance"
    assert decision.numbers["requests"] == 122
    log.close()
    engine.dispose()


def test_many_rows_that_are_no_records_are_not_all_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, unreadable = open_database(f"sqlite:///{tmp_path}/log.db"), Unreadable()
    log = TrafficLog(engine, NAMES, redact=None)
    for number in range(MOST_NAMED + 5):
        assert log.offer(call_of(number), served_of(number))
    assert log.flush(10)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE calls SET served = '{}'"))
    with caplog.at_level(logging.WARNING):
        assert StoredFeed(engine, "reviews", 0.0, unreadable).read() == ([], [], False)
    assert len(caplog.records) == MOST_NAMED + 1
    assert "reviews: 5 more stored rows cannot be read" in caplog.text
    metrics = Metrics()
    metrics.tell_unreadable(unreadable.take())
    assert b'stillhouse_evidence_unreadable_total{task="reviews"} 15.0' in metrics.page()
    log.close()
    engine.dispose()


def test_a_lease_is_held_by_one(urls: Urls) -> None:
    engine = open_database(urls())
    one, two = Lease(engine, "x"), Lease(engine, "x")
    assert one.held(0.0)
    assert not two.held(1.0)
    assert one.held(20.0)  # renewed until 50
    assert not two.held(45.0)
    assert two.held(51.0)
    assert not one.held(52.0)
    two.give_back()
    assert one.held(53.0)
    assert Lease(engine, "y").held(53.0)
    engine.dispose()
