"""Guardrails: what is broken trips them soon, what keeps its limits does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from rollout_world import World, file_of, state_of

from stillhouse.core.anytime import asymptotic_radius
from stillhouse.serve.gateway_sections import GuardrailsSection
from stillhouse.serve.guardrails import Guardrails, Reading, failed, side_of
from stillhouse.serve.policy import rules_of
from stillhouse.serve.records import Served, StageKind

FILE = file_of()
ALPHA = 0.05


def at_most(p: float, repetitions: int) -> float:
    return p * repetitions + 3.3 * math.sqrt(p * (1 - p) * repetitions)


def watched(requests: int, stage: int = 2, seed: int = 0, **world: Any) -> dict[str, Reading]:
    state = state_of(FILE, stage)
    rules = rules_of(FILE.tasks["reviews"], state)
    found = Guardrails(rules.guardrails, ALPHA, state.kind, rules.teachers_per_student)
    rows, _ = World(FILE, 0.9, 0.9, seed=seed, **world).requests(state, requests)
    for one in rows:
        found.take(one)
    return {one.name: one for one in found.readings()}


def tripped(readings: dict[str, Reading]) -> set[str]:
    return {name for name, one in readings.items() if one.tripped}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_student_within_its_limits_trips_nothing(stage: int) -> None:
    readings = watched(1500, stage)
    assert set(readings) == {"error_rate", "latency_ratio", "cost_ratio"}
    assert tripped(readings) == set()


@pytest.mark.parametrize(
    ("world", "what"),
    [
        ({"fails": 1.0}, "error_rate"),
        ({"slow": 6.0}, "latency_ratio"),
        ({"dear": 1.5}, "cost_ratio"),
    ],
)
@pytest.mark.parametrize("stage", [0, 2])
def test_what_is_broken_trips_its_guardrail_soon(stage: int, world: Any, what: str) -> None:
    assert tripped(watched(800, stage, **world)) == {what}


def test_a_few_failures_trip_nothing() -> None:
    assert tripped(watched(40, 2, fails=1.0)) == set()
    assert tripped(watched(150, 2, fails=0.1)) == set()


def test_what_it_shows_is_what_was_seen() -> None:
    readings = watched(2000, 2, fails=0.1, slow=0.5)
    errors = readings["error_rate"]
    assert errors.student == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / errors.n))
    assert errors.teacher == 0
    latency = readings["latency_ratio"]
    assert latency.student is not None
    assert latency.teacher is not None
    assert latency.student / latency.teacher == pytest.approx(0.5, abs=0.15)
    cost = readings["cost_ratio"]
    assert (cost.student, cost.teacher) == (pytest.approx(0.001), pytest.approx(0.01))


def row(number: int, side: str, **fields: Any) -> Served:
    own = side == "student"
    values = {
        "id": f"r{number}",
        "at": 1.0,
        "task": "reviews",
        "tenant": "shop",
        "unit": "a",
        "arm": "treatment" if own else "control",
        "variant": side,
        "stage": 1,
        "version": 0,
        "upstream": "x",
        "latency_ms": 1.0,
        "status": 200,
    }
    return Served.model_construct(**(values | fields))


@pytest.mark.parametrize("seed", range(5))
def test_cost_trips_at_the_request_at_which_a_bound_taken_each_time_does(seed: int) -> None:
    """Against the definition, worked out at every request, also where nothing is lost so far."""
    draw = np.random.default_rng(seed)
    section = GuardrailsSection(latency_ratio=None, error_rate=None, cost_ratio=1.0)
    watched = Guardrails(section, ALPHA, "canary", 1.0)
    left: list[float] = []
    known = False
    for number in range(600):
        # Cheaper at first, dearer later: the sum passes through 0 on its way.
        cost, full = float(draw.uniform(0, 1 + number / 150)), 1.0
        fields = {"cost_usd": cost, "teacher_cost_usd": full}
        watched.take(row(number, "student", **fields))
        left.append(full - cost)
        if len(left) >= 100:
            radius = asymptotic_radius(len(left), float(np.var(left)), ALPHA / 3, tightest_at=1000)
            known = known or bool(np.mean(left) + radius < 0)
        assert watched.readings()[0].tripped == known
    assert known


@pytest.mark.full
def test_at_their_limits_guardrails_trip_in_at_most_alpha_of_all_stages() -> None:
    """5% more failures than the teacher's, twice its latency, its cost: exactly what is allowed."""
    wrong, repetitions, requests = 0, 60, 500
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        found = Guardrails(GuardrailsSection(), ALPHA, "canary", 1.0)
        for number in range(requests):
            side = "student" if rng.random() < 0.5 else "teacher"
            own = side == "student"
            cost = float(rng.exponential(1.0))
            found.take(
                row(
                    number,
                    side,
                    status=502 if rng.random() < (0.07 if own else 0.02) else 200,
                    latency_ms=float(rng.exponential(200.0 if own else 100.0)),
                    cost_usd=cost if own else 1.0,
                    teacher_cost_usd=float(rng.exponential(1.0)),
                )
            )
        wrong += any(one.tripped for one in found.readings())
    assert wrong <= at_most(ALPHA, repetitions)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"status": 200}, False),
        ({"status": 502}, True),
        ({"status": 429}, True),
        ({"status": 400}, False),
        ({"variant": "teacher", "fell_back": True}, True),  # it did not answer
        ({"variant": "teacher", "fell_back": True, "confidence": 0.1}, False),  # it was not sure
    ],
)
def test_a_failure_is_the_sides_own(fields: Any, what: bool) -> None:
    assert failed(row(1, "student", **fields), "student") is what


def test_clients_that_left_and_what_is_watched_not() -> None:
    nothing = GuardrailsSection(latency_ratio=None, error_rate=None, cost_ratio=None)
    assert Guardrails(nothing, ALPHA, "canary", 1.0).readings() == ()
    found = Guardrails(GuardrailsSection(), ALPHA, "canary", 1.0)
    for number in range(200):
        found.take(row(number, "student", status=499, error="client left"))
        found.take(row(number, "teacher"))
    assert {one.n for one in found.readings()} == {0}


@pytest.mark.parametrize(
    ("kind", "fields", "side"),
    [
        ("shadow", {"arm": "shadow", "shadow_of": "r"}, "student"),
        ("shadow", {"arm": "shadow"}, "teacher"),
        ("shadow", {"arm": "control"}, None),
        ("canary", {"arm": "treatment", "variant": "teacher"}, "student"),
        ("canary", {"arm": "teacher_only"}, "teacher"),
        ("full", {"arm": "control", "shadow_of": "r"}, None),
    ],
)
def test_whose_arm_a_request_belongs_to(kind: StageKind, fields: Any, side: str | None) -> None:
    assert side_of(row(1, "teacher", **fields), kind) == side
