"""Canaries: frozen and asked again, at a real server; unreachable, over budget, killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from monitor_world import TASK, World

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.records import Message
from stillhouse.core.tasks import ClassificationTask
from stillhouse.monitor.canaries import Frozen, chosen, compared
from stillhouse.monitoring import check_tasks, freeze_canaries
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.stored_calls import delete_user
from stillhouse.serve.tables import CALLS
from teacher_servers import KEY, Loopback, error, openai_answer, serve

BEGIN = 1_000_000.0
PRICE = {
    "models": {"openai-compatible:big": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}}
}


class Models:
    """Teacher and student at one server: what they say depends on this."""

    def __init__(self) -> None:
        self.flips = 0  # of ten prompts, how many the teacher answers differently
        self.student = "fresh"
        self.down = False
        self.server: Loopback

    def answer(self, body: dict[str, Any], _: int) -> Any:
        if self.down:
            return error(400, "gone")
        if body["model"] == "small":
            return openai_answer(self.student)
        number = int(body["messages"][-1]["content"].split()[1])
        return openai_answer("rotten" if number % 10 < self.flips else "fresh")

    @property
    def asked(self) -> int:
        return sum(body["model"] == "big" for body in self.server.bodies)


@pytest.fixture(scope="module")
def running() -> Iterator[Models]:
    models = Models()
    with serve(models.answer) as server:
        models.server = server
        yield models


@pytest.fixture
def models(running: Models) -> Models:
    running.flips, running.student, running.down = 0, "fresh", False
    running.server.bodies.clear()
    return running


@pytest.fixture
def world(tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("MODELS_KEY", KEY)
    section = {"count": 40, "every_hours": 24, "budget_usd": 1.0}
    world = World(tmp_path, {"canaries": section})
    world.teacher = {
        "model": "openai-compatible:big",
        "base_url": f"{models.server.url}/v1",
        "api_key_env": "MODELS_KEY",
        "retries": 0,
    }
    world.prices = PRICE
    world.student_url = f"{models.server.url}/v1"
    world.key_env = "MODELS_KEY"
    world.write()
    world.pairs(60, begin=BEGIN, agree=0.9)
    yield world
    world.close()


def test_freezing_asks_the_teacher_twice_and_the_student(world: World, models: Models) -> None:
    done = freeze_canaries(world.loop, "reviews", again=False)
    assert (done.canaries, done.notes) == (40, ())
    lines = world.lines("canaries.jsonl")
    assert len(lines) == 40
    assert models.asked == 80
    assert {line["teacher"] for line in lines} == {"fresh"}
    assert all(line["teacher_again"] and line["student"] and line["request_at"] for line in lines)
    with pytest.raises(UserError, match="replace them with --again"):
        freeze_canaries(world.loop, "reviews", again=False)
    models.flips = 10
    freeze_canaries(world.loop, "reviews", again=True)
    assert {line["teacher"] for line in world.lines("canaries.jsonl")} == {"rotten"}


def test_a_teacher_that_changed_is_found(world: World, models: Models) -> None:
    world.monitor["drift"] = {}
    world.write()
    freeze_canaries(world.loop, "reviews", again=False)
    (calm,) = check_tasks(world.loop, now=BEGIN + 200)
    assert [alert.kind for alert in calm.alerts] == []
    asked = models.asked
    check_tasks(world.loop, now=BEGIN + 300)
    assert models.asked == asked  # not due
    models.flips = 4
    kinds = []
    for day in range(1, 4):
        (found,) = check_tasks(world.loop, now=BEGIN + 200 + day * 86_401)
        kinds += [alert.kind for alert in found.alerts if alert.kind != "data"]
    # On the second day, which makes two windows of three; and again after a quiet day.
    assert kinds == ["teacher_drift", "teacher_drift"]
    assert found.severity is not None


def test_a_teacher_that_is_gone_is_a_problem_of_the_data(world: World, models: Models) -> None:
    freeze_canaries(world.loop, "reviews", again=False)
    models.down = True
    world.pairs(140, begin=BEGIN + 100, agree=0.9)
    (found,) = check_tasks(world.loop, now=BEGIN + 400)
    assert [alert.cause for alert in found.alerts] == ["teacher_unreachable"]
    assert len(found.reports) == 2  # the check went on
    models.down = False
    (again,) = check_tasks(world.loop, now=BEGIN + 500)
    assert again.severity is None
    state = json.loads((world.kept / "state.json").read_text())
    assert state["canaries_number"] == 1


def test_a_budget_ends_a_replay_and_is_said(world: World, models: Models) -> None:
    freeze_canaries(world.loop, "reviews", again=False)
    world.monitor["canaries"]["budget_usd"] = (
        0.0004  # an answer may cost 0.00027, and costs 0.000012
    )
    world.write()
    asked = models.asked
    (found,) = check_tasks(world.loop, now=BEGIN + 200)
    assert [alert.cause for alert in found.alerts] == ["canaries_budget"]
    assert 0 < models.asked - asked < 40


def test_a_student_that_cannot_be_opened_is_said(world: World, models: Models) -> None:
    freeze_canaries(world.loop, "reviews", again=False)
    gateway = yaml.safe_load((world.folder / "gateway.yaml").read_text())
    gateway["upstreams"]["small"] = {"kind": "student", "path": "nowhere"}
    (world.folder / "gateway.yaml").write_text(yaml.safe_dump(gateway))
    (found,) = check_tasks(world.loop, now=BEGIN + 200)
    assert [alert.cause for alert in found.alerts] == ["student_unopened"]
    assert "there is no such folder" in found.alerts[0].summary
    (again,) = check_tasks(world.loop, now=BEGIN + 300)
    assert again.severity == "warning"  # until they are asked again


def test_canaries_leave_with_the_request_they_came_from(world: World) -> None:
    freeze_canaries(world.loop, "reviews", again=False)
    names = Pseudonyms(b"0123456789abcdef")
    for user in range(20):
        delete_user(world.engine, names.of("shop", f"user{user}"))
    world.monitor["canaries"]["every_hours"] = 1e6
    check_tasks(world.loop, now=BEGIN + 200)
    with world.engine.connect() as connection:
        held = set(connection.execute(sa.select(CALLS.c.id)).scalars())
    left = {line["id"] for line in world.lines("canaries.jsonl")}
    assert left
    assert left <= held
    assert len(left) < 40


def test_freezing_without_a_teacher_fails_and_keeps_nothing(world: World, models: Models) -> None:
    models.down = True
    with pytest.raises(StillhouseError, match="canaries"):
        freeze_canaries(world.loop, "reviews", again=False)
    assert world.lines("canaries.jsonl") == []


def test_a_killed_replay_pays_for_nothing_twice(
    world: World, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze_canaries(world.loop, "reviews", again=False)
    asked = models.asked
    with monkeypatch.context() as patch:
        patch.setattr("stillhouse.monitor_canaries.compared", _killed)
        with pytest.raises(KeyboardInterrupt):
            check_tasks(world.loop, now=BEGIN + 200)
    check_tasks(world.loop, now=BEGIN + 200)
    assert models.asked == asked + 40


def _killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_likeness_and_the_noise_floor() -> None:
    task = ClassificationTask.model_validate(TASK)
    frozen = [
        Frozen(
            id=f"c{n}",
            messages=(Message(role="user", content="x"),),
            at=0.0,
            teacher="fresh",
            teacher_again="rotten" if n == 0 else "Fresh.",
            student=None if n == 1 else "rotten",
        )
        for n in range(3)
    ]
    said = {"c0": "fresh", "c1": "rotten"}
    found = compared(task, frozen, said)
    assert [(one.id, one.likeness, one.floor) for one in found] == [
        ("c0", 1.0, 0.0),
        ("c1", 0.0, 1.0),
    ]
    assert [one.id for one in compared(task, frozen, said, student=True)] == ["c0"]


def test_more_canaries_hold_the_fewer_ones() -> None:
    queries = [one.query() for one in _many(50)]
    few, many = chosen(queries, 10, 3), chosen(queries, 30, 3)
    assert {one.id for one in few} < {one.id for one in many}


def _many(count: int) -> list[Frozen]:
    message = (Message(role="user", content="x"),)
    return [Frozen(id=f"c{n}", messages=message, at=0.0) for n in range(count)]
