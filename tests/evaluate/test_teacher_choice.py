"""Which teacher is recommended, and what it is said to cost: planted scores and prices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stillhouse.core.recipe_teacher import PricesSection
from stillhouse.core.records import Completion
from stillhouse.core.tasks import ClassificationTask
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.results import CandidateSpeed
from stillhouse.evaluate.speed import Speed
from stillhouse.evaluate.teacher_choice import judged_by, recommend
from stillhouse.evaluate.teacher_speed import api_speed, ensemble_speed, local_speed
from stillhouse.evaluate.teacher_statistics import beats_the_majority, differences, mean
from stillhouse.evaluate.teachers import ProbeResult, Recommendation, TeacherResult

HOW = Resampling(0.95, 100, 0)
N = 400
Scores = dict[str, list[float]]


def right(share: float, shift: int = 0) -> list[float]:
    """`share` of N right, the first ones after `shift`."""
    scores = np.zeros(N)
    scores[(np.arange(round(share * N)) + shift) % N] = 1.0
    return scores.tolist()


def result(scores: list[float], usd: float | None, **more: Any) -> TeacherResult:
    return TeacherResult(
        model="m",
        revision="1",
        score=mean(scores, HOW),
        metrics={},
        no_answer=0,
        unreadable=0,
        calibration_error=None,
        brier=None,
        speed=CandidateSpeed(usd_per_1k=usd, source="test"),
        **more,
    )


def choose(
    scores: Scores,
    usd: dict[str, float | None],
    margin: float = 0.05,
    members: dict[str, tuple[str, ...]] | None = None,
) -> Recommendation:
    teachers = {
        name: result(s, usd[name], members=(members or {}).get(name, ()))
        for name, s in scores.items()
    }
    return recommend(
        teachers,
        differences(scores, HOW),
        {name: {"model": name} for name in scores},
        by="teacher",
        margin=margin,
    )


def test_the_cheapest_of_those_that_cannot_be_told_apart() -> None:
    scores = {"large": right(0.90), "small": right(0.89), "tiny": right(0.70)}
    found = choose(scores, {"large": 10.0, "small": 1.0, "tiny": 0.1})
    assert (found.teacher, found.best) == ("small", "large")
    assert found.not_worse == ("large", "small")
    assert found.firm
    assert found.section == {"model": "small"}
    assert any("large scores highest" in reason for reason in found.reasons)
    assert any("costs $1.00 per 1,000 answers, large $10.00" in r for r in found.reasons)


def test_the_best_where_all_cheaper_ones_are_worse() -> None:
    found = choose({"large": right(0.90), "small": right(0.80)}, {"large": 10.0, "small": 1.0})
    assert found.teacher == found.best == "large"
    assert "no other teacher is as good" in found.reasons[1]


def test_an_ensemble_only_where_its_gain_is_significant() -> None:
    usd = {"a": 1.0, "b": 1.0, "both": 2.0}
    members = {"both": ("a", "b")}
    won = choose({"a": right(0.80), "b": right(0.80, 40), "both": right(0.9)}, usd, 0.05, members)
    assert won.teacher == "both"
    assert any(
        "ensemble both against its best member" in r and "significant" in r for r in won.reasons
    )
    level = choose(
        {"a": right(0.80), "b": right(0.80, 40), "both": right(0.81)}, usd, 0.05, members
    )
    assert level.teacher in ("a", "b")
    assert any("not significant" in r for r in level.reasons)
    worse = choose({"a": right(0.80), "b": right(0.60), "both": right(0.70)}, usd, 0.05, members)
    assert worse.teacher == "a"
    assert any("significantly worse" in r for r in worse.reasons)


def test_few_samples_make_a_choice_that_is_not_firm() -> None:
    few = {"large": right(0.9)[::-10], "small": (right(0.84)[::-10])}
    found = choose(few, {"large": 10.0, "small": 1.0})
    assert found.teacher == "small"
    assert not found.firm
    assert any("more labelled queries would make it firm" in reason for reason in found.reasons)


def test_an_unknown_price_counts_as_most() -> None:
    scores = {"dark": right(0.90), "small": right(0.89)}
    found = choose(scores, {"dark": None, "small": 5.0})
    assert found.teacher == "small"
    assert any("dark costs is not known" in reason for reason in found.reasons)


def test_one_teacher_alone_is_recommended_and_said_to_be_alone() -> None:
    found = choose({"x": right(0.5)}, {"x": 1.0})
    assert (found.teacher, found.firm) == ("x", True)
    assert "only teacher that could be compared" in found.reasons[1]


def test_the_probe_decides_where_there_is_one() -> None:
    """The teacher with better answers makes the worse student: the student decides."""
    good, poor = right(0.85), right(0.70)
    probe = {"large": poor, "small": good}
    teachers = {
        "large": result(right(0.95), 10.0),
        "small": result(right(0.90), 1.0),
        "mute": result(right(0.99), 0.1),
    }
    for name, scores in probe.items():
        probes = {"recipe": ProbeResult(score=mean(scores, HOW), trained_on=100)}
        teachers[name] = teachers[name].model_copy(update={"probes": probes})
    assert judged_by(teachers, ["tfidf", "recipe"]) == "recipe"
    assert judged_by(teachers, ["tfidf"]) == "teacher", "probes that learnt nothing do not decide"
    own = differences({"large": right(0.95), "small": right(0.90), "mute": right(0.99)}, HOW)
    found = recommend(
        teachers,
        differences(probe, HOW),
        {name: {} for name in teachers},
        by="recipe",
        margin=0.05,
        own=own,
    )
    assert (found.teacher, found.best, found.by) == ("small", "small", "recipe")
    assert any("no student could be made of the answers of mute" in r for r in found.reasons)


def test_where_students_are_level_the_teachers_own_answers_decide() -> None:
    students = {"cheap": right(0.71), "mid": right(0.70), "large": right(0.70)}
    answers = {"cheap": right(0.60), "mid": right(0.89), "large": right(0.90)}
    teachers = {
        name: result(answers[name], usd).model_copy(
            update={
                "probes": {"tfidf": ProbeResult(score=mean(students[name], HOW), trained_on=100)}
            }
        )
        for name, usd in (("cheap", 0.1), ("mid", 1.0), ("large", 10.0))
    }
    found = recommend(
        teachers,
        differences(students, HOW),
        {name: {} for name in teachers},
        by="tfidf",
        margin=0.05,
        own=differences(answers, HOW),
    )
    assert (found.teacher, found.best) == ("mid", "cheap")
    assert any("own answers are significantly worse" in reason for reason in found.reasons)


def test_a_probe_that_learnt_the_majority_tells_nothing() -> None:
    task = ClassificationTask(kind="classification", labels=("a", "b"))
    truth = ["a"] * 240 + ["b"] * 160
    always = [1.0] * 240 + [0.0] * 160
    better = [1.0] * 300 + [0.0] * 100
    assert not beats_the_majority(task, {"x": always, "y": always}, truth, HOW)
    assert beats_the_majority(task, {"x": always, "y": better}, truth, HOW)
    assert not beats_the_majority(task, {"x": [1 - s for s in better]}, truth, HOW)


def test_equal_teachers_are_rarely_chosen_against_on_quality() -> None:
    """Three equal teachers, 200 samples: the cheapest is taken in at least 95% - 3 errors = 90.4%.

    It is passed over only where a pair is falsely told apart, which Holm keeps to 5% of samples.
    """
    rng = np.random.default_rng(0)
    taken = 0
    for _ in range(200):
        hard = rng.random(200) < 0.3
        scores: Scores = {
            name: np.where(hard, rng.random(200) < 0.5, rng.random(200) < 0.95)
            .astype(float)
            .tolist()
            for name in ("a", "b", "c")
        }
        taken += choose(scores, {"a": 3.0, "b": 2.0, "c": 1.0}).teacher == "c"
    assert taken / 200 >= 0.95 - 3 * (0.95 * 0.05 / 200) ** 0.5


def answer(tokens: int | None, sample: int = 0, **more: Any) -> Completion:
    return Completion(
        query_id="q",
        text="x",
        model="m",
        revision="1",
        sample=sample,
        prompt_tokens=tokens,
        completion_tokens=tokens,
        **more,
    )


PRICES = PricesSection.model_validate(
    {
        "models": {"m": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 3.0}},
        "machine_usd_per_hour": 3.6,
    }
)


def test_an_api_teachers_cost_is_all_samples_of_a_query() -> None:
    said = [
        [answer(10), answer(10, 1)],
        [answer(30, latency_ms=5.0), answer(30, 1, latency_ms=15.0)],
    ]
    found = api_speed("m", said, asked=2, seconds=4.0, prices=PRICES)
    assert found.usd_per_1k == pytest.approx(1000 * (2 * 40e-6 + 2 * 120e-6) / 2)
    assert found.qps == 0.5
    assert found.latency_p50_ms == 10.0
    unknown = api_speed("x", said, asked=0, seconds=0.0, prices=PRICES)
    assert (unknown.usd_per_1k, unknown.qps) == (None, None)
    paid = api_speed("x", [[answer(1, cost_usd=0.5)]], asked=0, seconds=0.0, prices=PRICES)
    assert paid.usd_per_1k == 500.0


def test_an_ensemble_costs_the_sum_of_its_members() -> None:
    local = local_speed(Speed(2.0, (2.0,), 400.0, 500.0, 10), PRICES)
    assert local.usd_per_1k == pytest.approx(1000 * 0.001 / 2)
    api = CandidateSpeed(
        qps=4.0, latency_p50_ms=300.0, latency_p95_ms=900.0, usd_per_1k=2.0, source=""
    )
    both = ensemble_speed([local, api, local], [True, False, True])
    assert both.usd_per_1k == pytest.approx(3.0)
    assert both.qps == pytest.approx(0.8)
    assert (both.latency_p50_ms, both.latency_p95_ms) == (800.0, 1000.0)
    dark = ensemble_speed([local, api.model_copy(update={"usd_per_1k": None})], [True, False])
    assert dark.usd_per_1k is None
    assert dark.qps is not None
