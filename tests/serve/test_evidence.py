"""Evidence of one stage: who counts, how often, in which arm, and that pieces give the whole."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_world import FEEDBACK, SCORER, World, file_of, state_of

from stillhouse.serve.evidence import StageEvidence
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.numbers import StageNumbers
from stillhouse.serve.policy import rules_of
from stillhouse.serve.records import ExperimentState, Outcome, Scored, Served

FILE = file_of()
HOURLY = file_of(evidence={**SCORER, "unit_hours": 1})
AB = file_of(evidence=FEEDBACK)


def evidence(file: GatewayFile, state: ExperimentState) -> StageEvidence:
    return StageEvidence(rules_of(file.tasks["reviews"], state), state)


def served(identity: str, unit: str = "a", **fields: Any) -> Served:
    values = {
        "id": identity,
        "at": 1.0,
        "task": "reviews",
        "tenant": "shop",
        "unit": unit,
        "arm": "shadow",
        "variant": "teacher",
        "stage": 0,
        "version": 0,
        "upstream": "big",
        "latency_ms": 1.0,
        "status": 200,
    }
    return Served(**(values | fields))


def said(one: Served, score: float, at: float = 1.0, kind: Any = "scorer") -> Scored:
    return Scored(one, Outcome(request=one.id, kind=kind, score=score, at=at))


def pair(
    name: str, teacher: float, student: float, unit: str = "a", at: float = 1.0, **shadow: Any
) -> list[Scored]:
    own = {"variant": "student", "shadow_of": name, "upstream": "small", **shadow}
    return [
        said(served(name, unit), teacher, at),
        said(served(f"{name}-s", unit, **own), student, at),
    ]


def test_a_unit_counts_once_with_the_mean_of_its_first_hour() -> None:
    found = evidence(HOURLY, state_of(HOURLY))
    found.score(pair("r1", 1, 1, at=10))
    found.score(pair("r2", 1, 0, at=3000))
    found.score(pair("r3", 1, 0, at=10 + 3601))
    found.close(3000)
    assert found.numbers().open_units == 1
    found.close(3611)
    found.score(pair("r4", 1, 0, at=8000))
    found.close(20_000)
    numbers = found.numbers()
    assert (numbers.values, numbers.student, numbers.teacher) == (1, 0.5, 1.0)
    assert numbers.open_units == 0


def test_without_a_time_the_first_score_counts() -> None:
    found = evidence(FILE, state_of(FILE))
    found.score(pair("r1", 1, 1, at=10) + pair("r2", 1, 0, at=11))
    found.close(12)
    assert (found.numbers().values, found.numbers().student) == (1, 1.0)


def test_what_was_said_last_counts_until_the_unit_is_closed() -> None:
    found = evidence(HOURLY, state_of(HOURLY))
    rows = pair("r1", 1, 1, at=10)
    found.score(rows)
    found.score([said(rows[1].served, 0.25, at=20)])
    found.close(9000)
    assert found.numbers().student == 0.25


def test_fallback_answers_count_in_the_students_arm_and_the_bare_student_stands_beside() -> None:
    found = evidence(FILE, state_of(FILE))
    found.score(pair("r1", 1, 0, "a", fell_back=True))
    found.score(pair("r2", 1, 0, "b", error="down", status=502))
    found.score(pair("r3", 1, 1, "c"))
    found.close(5)
    numbers = found.numbers()
    assert (numbers.student, numbers.teacher) == (1.0, 1.0)
    assert numbers.bare == pytest.approx(1 / 3)


def test_the_arms_are_those_that_were_assigned() -> None:
    state = state_of(AB, 1, share=0.5)
    found = evidence(AB, state)

    def seen(name: str, arm: str, variant: str, score: float, **more: Any) -> Scored:
        one = served(name, name, arm=arm, variant=variant, stage=1, **more)
        return said(one, score, kind="feedback")

    found.score(
        [
            seen("r1", "treatment", "student", 0),
            seen("r2", "treatment", "teacher", 1, fell_back=True, confidence=0.2),
            seen("r3", "control", "teacher", 1),
            seen("r4", "teacher_only", "teacher", 1),
            seen("r5", "control", "student", 0, fell_back=True),
        ]
    )
    found.close(5)
    numbers = found.numbers()
    assert (numbers.students, numbers.teachers) == (2, 3)
    assert (numbers.student, numbers.bare) == (0.5, 0.0)
    assert numbers.teacher == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "fields",
    [{"stage": 1}, {"version": 2}, {"at": 4.0}, {"task": "other"}],
    ids=["stage", "version", "time", "task"],
)
def test_requests_of_another_stage_version_time_or_task_do_not_count(fields: Any) -> None:
    state = state_of(FILE).model_copy(update={"counts_from": 3, "since": 5.0, "version": 3})
    found = evidence(FILE, state)
    right = {"version": 3, "at": 6.0}
    for one in (right, right | fields):
        rows = [served("r1", **one), served("r1-s", shadow_of="r1", variant="student", **one)]
        found.serve(rows)
        found.score([said(row, 1) for row in rows])
    found.close(50)
    assert (found.numbers().requests, found.numbers().values) == (1, 1)


def test_outcomes_of_another_kind_do_not_count() -> None:
    found = evidence(FILE, state_of(FILE))
    rows = pair("r1", 1, 1)
    found.score([said(row.served, 0.0, kind="feedback") for row in rows])
    found.close(9)
    assert found.numbers().values == 0


def test_feedback_says_nothing_of_unseen_answers() -> None:
    found = evidence(AB, state_of(AB))
    assert found.numbers().design is None
    found.score([said(served("r1"), 1.0, kind="feedback")])
    found.close(9)
    assert found.numbers().values == 0


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 120), max_size=4))
def test_pieces_give_what_the_whole_gives(cuts: list[int]) -> None:
    state = state_of(HOURLY)
    world = World(HOURLY, student=0.8, teacher=0.9, users=25)
    rows, scored = world.requests(state, 60)
    whole, pieces = evidence(HOURLY, state), evidence(HOURLY, state)
    whole.serve(rows)
    whole.score(scored)
    whole.close(10_000)
    places = [0, *sorted(cuts), len(scored)]
    pieces.serve(rows)
    for begin, end in pairwise(places):
        pieces.score(scored[begin:end])
        pieces.close(0)
    pieces.close(10_000)
    assert pieces.numbers() == whole.numbers()
    assert 0 < whole.numbers().values <= 25


def decided(file: GatewayFile, world: World, state: ExperimentState, most: int) -> StageNumbers:
    """The first numbers that decide, looked at after every 100 requests; else the last."""
    found = evidence(file, state)
    for _ in range(0, most, 100):
        rows, scored = world.requests(state, 100)
        found.serve(rows)
        found.score(scored)
        found.close(world.now)
        numbers = found.numbers()
        if numbers.better or numbers.worse:
            break
    return numbers


def test_a_stage_decides_on_a_good_and_on_a_bad_student() -> None:
    state = state_of(FILE)
    good = decided(FILE, World(FILE, 0.9, 0.9), state, 3000)
    assert good.better
    assert good.requests <= 3000
    bad = decided(FILE, World(FILE, 0.6, 0.9), state, 3000)
    assert bad.worse
    # at canary, beside the 95% that the teacher answers
    canary = decided(FILE, World(FILE, 0.9, 0.9, seed=1), state_of(FILE, 1), 4000)
    assert canary.better
    # at full, beside the slice that is always the teacher's
    slice_ = decided(FILE, World(FILE, 0.3, 0.9, seed=1), state_of(FILE, 3), 6000)
    assert slice_.worse


def test_seen_answers_decide_by_arms() -> None:
    world = World(AB, 0.5, 0.9, kind="feedback")
    numbers = decided(AB, world, state_of(AB, 2), 3000)
    assert numbers.design == "arms"
    assert numbers.worse
    assert numbers.students < numbers.teachers
