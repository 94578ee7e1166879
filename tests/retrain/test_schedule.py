"""When cycles are due, which alerts start one, and the process that runs on."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from retrain_doubles import DAY, START, Clock, FakeGateway, FakeWorkshop, Rows, day_of_rows, loop_of
from stillhouse.core.errors import UserError
from stillhouse.core.loop_retrain import RetrainSection, duration_s
from stillhouse.core.progress import Silent
from stillhouse.retrain.cycle_records import CycleLine
from stillhouse.retrain.daemon import watch
from stillhouse.retrain.loop import Loop
from stillhouse.retrain.schedule import Alarm, due, read_alarms

pytestmark = pytest.mark.usefixtures("quick")


def line(at: float) -> CycleLine:
    return CycleLine(
        number=1,
        task="mood",
        reason="once",
        started_at=at,
        ended_at=at,
        since=0,
        until=at,
        outcome="nothing",
        verdict="",
    )


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds
    assert duration_s("7d") == 7 * DAY == duration_s("1w")


@pytest.mark.parametrize("text", ["7", "d", "-3d", "0h", "7 days", "7D", ""])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number above 0 and a unit"):
        duration_s(text)
    with pytest.raises(ValueError, match="must be a number above 0 and a unit"):
        RetrainSection(window=text)


def test_the_least_interval_cannot_be_longer_than_the_usual() -> None:
    with pytest.raises(ValueError, match="shorter than min_interval"):
        RetrainSection(every="1d", min_interval="2d")


def test_the_first_cycle_is_due_at_once_and_the_next_when_its_time_has_come() -> None:
    assert due([], [], now=50, every_s=10, min_interval_s=5) == (50, "every")
    assert due([line(50)], [], now=52, every_s=10, min_interval_s=5) == (60, "every")
    assert due([line(50)], [], now=99, every_s=10, min_interval_s=5) == (99, "every")
    assert due([line(50)], [], now=52, every_s=None, min_interval_s=5).at is None


def test_an_alert_is_heard_once_and_not_before_the_least_interval() -> None:
    old, new = Alarm("a1", 40, "accuracy", ""), Alarm("a2", 51, "input_shift", "")
    assert due([line(50)], [old], now=52, every_s=None, min_interval_s=5).at is None
    storm = [old, *[new] * 500]
    found = due([line(50)], storm, now=52, every_s=None, min_interval_s=5)
    assert found == (55, "alert a2 (input_shift)")


def test_a_drifting_teacher_starts_nothing(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"id": "1", "at": 3, "kind": "teacher_drift"},
        {"id": "2", "at": 2, "kind": "fidelity", "summary": "s"},
        {"id": "3", "at": 1, "kind": "accuracy"},
        {"id": "4"},
        [],
        {"id": "5", "at": "x", "kind": "accuracy"},
    ]
    text = "".join(json.dumps(raw) + "\n" for raw in rows) + '{"id": "6", "at": 9, "ki'
    (tmp_path / "alerts.jsonl").write_text(text, encoding="utf-8")
    assert [alarm.id for alarm in read_alarms(tmp_path)] == ["3", "2"]
    assert read_alarms(tmp_path / "none") == []


def test_an_alert_of_the_future_starts_nothing_until_then() -> None:
    ahead = Alarm("a9", 1000, "accuracy", "")
    assert due([line(50)], [ahead], now=999, every_s=None, min_interval_s=5).at is None
    assert due([line(50)], [ahead], now=999, every_s=10, min_interval_s=5).reason == "every"
    assert due([line(50)], [ahead], now=1000, every_s=None, min_interval_s=5) == (
        1000,
        "alert a9 (accuracy)",
    )
    # A cycle that began before the alert's time does not settle it, one that begins after does.
    assert due([line(1001)], [ahead], now=2000, every_s=None, min_interval_s=5).at is None


class Waiting:
    """Moves the clock a minute at a time, and stops at an hour that the test names."""

    def __init__(self, clock: Clock, until: float) -> None:
        self.clock, self.until = clock, until

    def __call__(self, seconds: float) -> bool:
        self.clock.now += max(seconds, DAY / 8)
        return self.clock.now >= self.until


def test_it_runs_cycles_as_they_become_due(tmp_path: Path) -> None:
    rows = Rows([r for day in range(4) for r in day_of_rows(day)])
    clock = Clock(START + DAY)
    loop = loop_of(tmp_path, rows, clock, min_interval="12h")
    watch([loop], every_s=DAY, on_alert=False, wait=Waiting(clock, START + 4.5 * DAY))
    lines = loop.files.journal()
    assert [one.reason for one in lines] == ["every"] * 4
    assert [one.outcome for one in lines] == ["promoted"] * 4
    assert all(b.started_at - a.started_at >= DAY for a, b in pairwise(lines))


def test_it_waits_out_a_teacher_that_is_down_and_a_climb(tmp_path: Path) -> None:
    clock, gateway = Clock(START + DAY), FakeGateway()
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), clock, gateway=gateway)
    workshop = loop.workshop
    assert isinstance(workshop, FakeWorkshop)
    workshop.down = True
    looks: list[str] = []

    def wait(_: float) -> bool:
        clock.now += 700
        state = loop.files.unfinished()
        looks.append("done" if state is None else state.step)
        workshop.down = len(looks) < 2
        if len(looks) == 4:
            gateway.now = gateway.now._replace(standing="full")
        return len(looks) >= 6

    watch([loop], every_s=7 * DAY, on_alert=False, wait=wait)
    assert looks == ["ask", "ask", "decide", "decide", "done", "done"]
    assert loop.files.journal()[0].outcome == "promoted"


def test_by_alerts_alone_it_starts_with_an_alert(tmp_path: Path) -> None:
    clock = Clock(START + DAY)
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), clock)
    looks = 0

    def wait(_: float) -> bool:
        nonlocal looks
        looks += 1
        clock.now += 60
        if looks == 2:
            alert = {"id": "a7", "at": clock.now, "kind": "input_shift", "summary": "new words"}
            (loop.files.root / "alerts.jsonl").write_text(json.dumps(alert) + "\n")
        assert looks < 3 or loop.files.journal()
        return looks == 4

    watch([loop], every_s=None, on_alert=True, wait=wait)
    (one,) = loop.files.journal()
    assert one.reason == "alert a7 (input_shift)"


def test_the_month_and_a_clock_that_is_behind_are_waited_for(tmp_path: Path) -> None:
    rows = Rows([r for day in range(40) for r in day_of_rows(day, 100)])
    clock = Clock(START + DAY)
    loop = loop_of(tmp_path, rows, clock, monthly_usd=0.6, min_interval="1d")
    watch([loop], every_s=DAY, on_alert=False, wait=Waiting(clock, START + 29 * DAY))
    assert len(loop.files.journal()) == 1
    clock.now = START - DAY
    watch([loop], every_s=DAY, on_alert=True, wait=Waiting(clock, START))
    assert len(loop.files.journal()) == 1


class Told(Silent):
    """Keeps what is said."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def say(self, text: str) -> None:
        self.said.append(text)


def test_alerts_of_the_future_are_said_once_and_not_obeyed(tmp_path: Path) -> None:
    clock, said = Clock(START + DAY), list[str]()
    rows = Rows([r for day in range(4) for r in day_of_rows(day)])
    loop = replace(loop_of(tmp_path, rows, clock, min_interval="1h"), progress=Told(said))
    alerts = [
        {"id": "a1", "at": START + 300 * DAY, "kind": "input_shift"},
        {"id": "a2", "at": START + 301 * DAY, "kind": "accuracy"},
    ]
    path = loop.files.root / "alerts.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in alerts))
    watch([loop], every_s=None, on_alert=True, wait=Waiting(clock, START + 2 * DAY))
    assert loop.files.journal() == []
    (told,) = [one for one in said if "dated later" in one]
    assert "2 alerts are dated later than now (a2 by 7,200.0 hours)" in told
    with path.open("a") as file:
        file.write(json.dumps({"id": "a3", "at": clock.now, "kind": "accuracy"}) + "\n")
    watch([loop], every_s=None, on_alert=True, wait=lambda _: True)
    assert [one.reason for one in loop.files.journal()] == ["alert a3 (accuracy)"]


def tampered(loop: Loop) -> None:
    (entry,) = loop.registry.entries()
    path = loop.registry.root / "objects" / entry.digest / "words.json"
    path.chmod(0o644)
    path.write_text("{}", encoding="utf-8")


def test_a_mistake_in_one_task_is_no_other_tasks(tmp_path: Path) -> None:
    rows, clock = Rows([r for day in range(4) for r in day_of_rows(day)]), Clock(START + DAY)
    said: list[str] = []
    loops = [loop_of(tmp_path / name, rows, clock) for name in ("bad", "good")]
    loops = [replace(one, progress=Told(said)) for one in loops]
    watch(loops, every_s=DAY, on_alert=False, wait=lambda _: True)
    tampered(loops[0])
    watch(loops, every_s=DAY, on_alert=False, wait=Waiting(clock, START + 3.5 * DAY))
    assert [len(one.files.journal()) for one in loops] == [1, 3]
    lines = [one for one in said if "other files than were added" in one]
    assert len(lines) == 1  # not with every try
    assert "this task is set aside" in lines[0]
    assert "\n" not in lines[0]
    (loops[1].files.root / "cycles.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(UserError):
        watch(loops, every_s=DAY, on_alert=False, wait=Waiting(clock, START + 9 * DAY))
    assert clock.now < START + 5 * DAY


def test_a_mistake_of_the_users_ends_it(tmp_path: Path) -> None:
    rows, clock = Rows([*day_of_rows(0), *day_of_rows(1)]), Clock(START + DAY)
    loop = loop_of(tmp_path, rows, clock)
    watch([loop], every_s=DAY, on_alert=False, wait=lambda _: True)
    (entry,) = loop.registry.entries()
    path = loop.registry.root / "objects" / entry.digest / "words.json"
    path.chmod(0o644)
    path.write_text("{}", encoding="utf-8")
    clock.now += DAY
    with pytest.raises(UserError, match="other files than were added"):
        watch([loop], every_s=DAY, on_alert=False, wait=lambda _: True)


def test_a_clock_that_is_set_back_makes_no_wait_longer(tmp_path: Path) -> None:
    clock, looks = Clock(START + 2 * DAY), 0
    loop = loop_of(tmp_path, Rows([*day_of_rows(0), *day_of_rows(1)]), clock)
    workshop = loop.workshop
    assert isinstance(workshop, FakeWorkshop)
    workshop.down = True

    def wait(_: float) -> bool:
        nonlocal looks
        looks += 1
        clock.now += 60
        if looks == 1:
            workshop.down = False
            clock.now -= DAY
        return looks == 3

    watch([loop], every_s=7 * DAY, on_alert=False, wait=wait)
    assert [one.outcome for one in loop.files.journal()] == ["promoted"]


def test_a_file_that_cannot_be_read_is_no_other_tasks_end(tmp_path: Path) -> None:
    rows, clock = Rows([*day_of_rows(0), *day_of_rows(1)]), Clock(START + DAY)
    said: list[str] = []
    loops = [loop_of(tmp_path / name, rows, clock) for name in ("bad", "good")]
    loops = [replace(one, progress=Told(said)) for one in loops]
    (loops[0].files.root / "alerts.jsonl").mkdir(parents=True)
    watch(loops, every_s=DAY, on_alert=True, wait=lambda _: True)
    assert len(loops[1].files.journal()) == 1
    assert any("alerts.jsonl" in one and "tried again in 10 minutes" in one for one in said)
