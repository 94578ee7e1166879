"""What more answers are worth, which student is taken, and the chart: from figures alone."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.learning_curve import CurveFit, fit_curve
from stillhouse.core.statistics import Interval
from stillhouse.evaluate.frontier_choice import choose, corrected, efficient, verdict_of
from stillhouse.evaluate.frontier_page import frontier_lines, render_frontier
from stillhouse.evaluate.size_curve import size_fit, size_words
from stillhouse.evaluate.studies import AnswerCost, FrontierStudy, Reach, SizedStudent, Training
from stillhouse.evaluate.study_chart import Axes, Bend, Dot, Level, study_chart
from stillhouse.evaluate.worth import reach_of, steps_from, worth_most
from stillhouse.evaluate.worth import verdict_of as worth_verdict

COST = AnswerCost(usd_per_answer=0.01, answers_per_example=1.25, source="the test")
NOW = 8000


def law(ceiling: float, amount: float, exponent: float) -> CurveFit:
    """A fit to scores that lie on the curve, but for alternating ten-thousandths."""
    sizes = [500, 1000, 2000, 4000, NOW]
    scores = [
        ceiling - amount * n**-exponent + (1e-4 if i % 2 else -1e-4) for i, n in enumerate(sizes)
    ]
    return fit_curve(sizes, scores)


def test_steps_say_what_the_curve_says() -> None:
    fit = law(0.95, 5.0, 0.5)
    steps = {step.examples: step for step in steps_from(fit, NOW, COST)}
    double = steps[2 * NOW]
    truth = 100 * 5.0 * (NOW**-0.5 - (2 * NOW) ** -0.5)
    assert double.gain == pytest.approx(truth, abs=0.1)
    assert double.gain_low <= double.gain <= double.gain_high
    assert double.answers == 10_000  # 8,000 more examples at 1.25 answers
    assert double.usd == pytest.approx(100.0)
    assert double.usd_per_point == pytest.approx(100.0 / double.gain)


def test_reach_counts_the_answers_that_are_missing() -> None:
    fit = law(0.95, 5.0, 0.5)
    found = reach_of(fit, NOW, 0.92, COST)
    assert found.examples == pytest.approx((5.0 / 0.03) ** 2, rel=0.05)
    assert found.soonest is not None
    assert found.examples is not None
    assert found.soonest <= found.examples
    assert found.answers == pytest.approx((found.examples - NOW) * 1.25, abs=2)
    assert reach_of(fit, NOW, 0.97, COST).examples is None
    here = reach_of(fit, NOW, 0.80, COST)
    assert here.answers == 0
    assert here.usd == 0


def test_the_step_that_is_worth_most_is_where_a_point_costs_what_it_is_worth() -> None:
    """V s(n) - p n is greatest where V s'(n) = p; with s = c - a n^-b, n^(1 + b) = V a b / p."""
    fit = law(0.95, 5.0, 0.5)
    price = 0.01 * 1.25
    for value in (5.0, 20.0):
        best = worth_most(fit, NOW, COST, value)
        by_hand = (100 * value * fit.amount * fit.exponent / price) ** (1 / (1 + fit.exponent))
        if by_hand <= NOW:
            assert best is None
        else:
            assert best is not None
            assert best.examples == pytest.approx(min(by_hand, 10 * NOW), rel=0.07)
    assert worth_most(fit, NOW, COST, 0.01) is None
    unknown = COST.model_copy(update={"usd_per_answer": None})
    assert worth_most(fit, NOW, unknown, 1e9) is None


@pytest.mark.parametrize(
    ("curve", "teacher", "value", "said"),
    [
        ((0.95, 5.0, 0.5), 0.96, None, "more answers .* are worth paying for: they bring"),
        ((0.80, 40.0, 1.0), 0.96, None, "no more answers .* take a bigger student"),
        ((0.95, 5.0, 0.5), 0.96, 0.01, "no more answers are worth paying for: even the next"),
        ((0.95, 5.0, 0.5), 0.96, 50.0, "more answers are worth paying for"),
        ((0.90, 5.0, 0.5), 0.99, None, "bigger student"),
    ],
)
def test_the_answer_in_words(
    curve: tuple[float, float, float], teacher: float, value: float | None, said: str
) -> None:
    fit = law(*curve)
    steps = steps_from(fit, NOW, COST)
    reach = reach_of(fit, NOW, teacher - 0.03, COST)
    worth = None if value is None else worth_most(fit, NOW, COST, value)
    lines = worth_verdict(NOW, fit, steps, reach, teacher, value, worth)
    assert len(lines) >= 4
    assert all("\n" not in line for line in lines)
    assert re.search(said, lines[0]), lines[0]


def student(name: str, score: float, usd: float | None, verdict: Literal["pass", "fail"]) -> Any:
    def around(value: float) -> Interval:
        return Interval(estimate=value, low=value - 0.02, high=value + 0.02, n=500)

    return SizedStudent(
        name=name,
        folder=name,
        parameters=None if usd is None else int(1e6 * usd),
        share=None,
        size_bytes=None,
        score=around(score),
        retention=None,
        agreement=around(score),
        verdict=verdict,
        difference=around(score - 0.95),
        corrected_low=score - 0.98,
        passes_corrected=verdict == "pass",
        qps=None,
        speedup=None,
        latency_p50_ms=None,
        latency_p95_ms=None,
        usd_per_1k=usd,
        train_seconds=1.0,
        train_usd=0.0,
        break_even_queries=None,
        efficient=True,
    )


def test_the_cheapest_that_passes_is_taken() -> None:
    three = [
        student("heavy", 0.95, 4.0, "pass"),
        student("medium", 0.94, 2.0, "pass"),
        student("light", 0.80, 1.0, "fail"),
    ]
    chosen = choose(three)
    assert chosen is not None
    assert chosen.name == "medium"
    teacher = Interval(estimate=0.95, low=0.93, high=0.97, n=500)
    lines = verdict_of(three, chosen, teacher, 0.95, 0.05)
    assert lines[0].startswith("take medium")
    assert "98.3%" in lines[2]
    assert choose(three[2:]) is None
    none = verdict_of(three[2:], None, teacher, 0.95, 0.05)
    assert "take none" in none[0]
    assert "outside the margin" in none[2]


def _trained(name: str, score: float, own: float, first: Literal["pass", "fail"]) -> Any:
    """A student of two trainings whose mean is `score` and whose first has `own`."""
    verdicts = (first, "pass")
    return student(name, score, 1.0, first).model_copy(
        update={
            "trainings": tuple(
                Training(
                    seed=seed,
                    folder=f"{name}-seed{seed}" if seed else name,
                    score=Interval(estimate=at, low=at - 0.02, high=at + 0.02, n=500),
                    verdict=verdict,
                    train_seconds=1.0,
                )
                for seed, (at, verdict) in enumerate(
                    zip((own, 2 * score - own), verdicts, strict=True)
                )
            ),
            "deviation": abs(score - own) * 2**0.5,
        }
    )


def test_the_student_to_take_is_the_first_training_and_passes_by_itself() -> None:
    teacher = Interval(estimate=0.95, low=0.93, high=0.97, n=500)
    good = _trained("a", 0.94, 0.935, "pass")
    lines = verdict_of([good], choose([good]), teacher, 0.95, 0.05)
    assert any("mean of 2 trainings" in line and "93.5%" in line for line in lines)
    poor = _trained("a", 0.94, 0.91, "fail")
    assert choose([poor]) is None
    (line,) = verdict_of([poor], None, teacher, 0.95, 0.05)
    assert "only in the mean of its 2 trainings" in line
    assert "91.0%" in line


def test_the_curve_over_size_goes_through_every_training() -> None:
    students = [_trained(str(k), 0.8 + 0.02 * k, 0.79 + 0.02 * k, "pass") for k in range(3)]
    students = [
        one.model_copy(update={"parameters": 10**6 * 2**k}) for k, one in enumerate(students)
    ]
    fit = size_fit(students, None, 0.95)
    assert fit is not None
    assert fit.sizes == tuple(10**6 * 2**k for k in (0, 0, 1, 1, 2, 2))
    calm = [one.model_copy(update={"trainings": ()}) for one in students]
    assert (plain := size_fit(calm, None, 0.95)) is not None
    assert plain.sizes == tuple(10**6 * 2**k for k in range(3))


def test_a_student_that_costs_more_for_less_is_not_on_the_frontier() -> None:
    found = efficient(
        [
            student("a", 0.95, 4.0, "pass"),
            student("b", 0.90, 2.0, "pass"),
            student("c", 0.92, 1.0, "pass"),
        ]
    )
    assert [one.efficient for one in found] == [True, False, True]


@given(st.floats(0.51, 0.999), st.integers(1, 50))
def test_corrected_bounds_hold_together(confidence: float, students: int) -> None:
    each = corrected(confidence, students)
    assert confidence <= each + 1e-12
    assert students * (1 - each) == pytest.approx(1 - confidence)


@given(
    st.lists(
        st.tuples(st.floats(1e-6, 1e9), st.floats(0, 1), st.floats(0, 0.5)), min_size=1, max_size=6
    ),
    st.text(alphabet='<>&"ab', max_size=8),
)
def test_a_chart_is_well_formed_and_stands_alone(
    rows: list[tuple[float, float, float]], name: str
) -> None:
    dots = [Dot(x, y, max(0.0, y - w), min(1.0, y + w), name) for x, y, w in rows]
    line = [Bend(x, 0.5, 0.1, 0.9, beyond=k > 1) for k, x in enumerate((1.0, 2.0, 4.0, 8.0))]
    text = study_chart(
        name,
        dots,
        Axes(name, "score", lambda x: f"{x:g}"),
        line=line,
        levels=[Level(name, 0.5, "gate")],
    )
    root = ET.fromstring(str(text))
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == len(dots)
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= 720
        assert 0 <= float(circle.attrib["cy"]) <= 420
    assert "nan" not in str(text)


def test_no_dots_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        study_chart("t", [], Axes("x", "y", str))


def test_a_flat_curve_says_that_no_more_answers_are_worth_it() -> None:
    """Scores of one height but for 0.3 points of noise: a gain is never below 0, and most of the
    time it is known to be below a point."""
    draw = np.random.default_rng(29)
    sizes, stopped = [500, 1000, 2000, 4000, NOW] * 2, 0
    reach = Reach(target=0.9, examples=None, soonest=None, latest=None, answers=None, usd=None)
    for _ in range(12):
        scores = (0.8 + draw.normal(0, 0.003, len(sizes))).tolist()
        fit = fit_curve(sizes, scores)
        more = steps_from(fit, NOW, COST)
        assert all(0 <= step.gain_low <= step.gain <= step.gain_high for step in more)
        stopped += worth_verdict(NOW, fit, more, reach, 0.92, None, None)[0].startswith(
            "no more answers are worth paying for"
        )
    assert stopped >= 10


def _of_size(scores: dict[float, float]) -> list[SizedStudent]:
    """Students of so many million parameters."""
    return [student(str(size), score, size, "pass") for size, score in scores.items()]


def _law(ceiling: float, amount: float, exponent: float) -> dict[float, float]:
    """Five sizes on a curve, but for alternating ten-thousandths."""
    return {
        size: ceiling - amount * size**-exponent + (1e-4 if number % 2 else -1e-4)
        for number, size in enumerate((1.0, 2.0, 4.0, 8.0, 16.0))
    }


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (_law(0.97, 0.30, 0.5), "a bigger student would still gain: at 32M parameters, from 16M"),
        (_law(0.90, 0.20, 2.0), "a bigger student would gain little"),
        ({1.0: 0.7, 2.0: 0.8, 4.0: 0.74}, "do not tell whether a bigger student would gain"),
        ({1.0: 0.7, 2.0: 0.8}, "is not known: a curve over size needs 3 .* there are 2"),
    ],
)
def test_whether_a_bigger_student_would_gain(scores: dict[float, float], said: str) -> None:
    students = _of_size(scores)
    fit = size_fit(students, None, 0.95)
    assert (fit is None) == (len(scores) < 3)
    assert re.search(said, size_words(fit, len(scores)))


def test_the_curve_over_size_says_what_the_law_says_and_no_more_than_the_teacher() -> None:
    fit = size_fit(_of_size(_law(0.97, 0.30, 0.5)), None, 0.95)
    assert fit is not None
    truth = 100 * 0.30 * (16**-0.5 - 32**-0.5)
    assert fit.gain == pytest.approx(truth, abs=0.1)
    assert fit.gain_low < truth < fit.gain_high
    assert [p.beyond for p in fit.drawn] == [p.parameters > 16e6 for p in fit.drawn]
    assert fit.drawn[-1].parameters == fit.bigger == 32e6
    near = size_fit(_of_size(_law(0.97, 0.30, 0.5)), 20_000_000, 0.95)
    assert near is not None
    assert near.bigger == 20_000_000
    assert near.gain < fit.gain


def test_the_page_draws_the_curve_over_size() -> None:
    students = _of_size(_law(0.97, 0.30, 0.5))
    study = FrontierStudy(
        name="x",
        task="x",
        kind="classification",
        created="2026-01-01T00:00:00",
        metric="accuracy",
        reference="golden",
        n=500,
        confidence=0.95,
        margin=0.03,
        teacher=Interval(estimate=0.95, low=0.93, high=0.97, n=500),
        teacher_name="t",
        versions={},
        teacher_parameters=None,
        teacher_qps=None,
        teacher_usd_per_1k=None,
        answers_usd=1.0,
        machine_usd_per_hour=1.0,
        students=tuple(students),
        steps=(),
        fit=(fit := size_fit(students, None, 0.95)),
        bigger=size_words(fit, 5),
        chosen=None,
        firm=False,
        verdict=("none",),
    )
    page = render_frontier(study)
    assert page.count("<svg") == 2
    assert "A bigger student would still gain" in page
    assert 'class="fit' in page
    assert any(line.startswith("a bigger student") for line in frontier_lines(study))
    assert FrontierStudy.model_validate_json(study.model_dump_json()) == study
