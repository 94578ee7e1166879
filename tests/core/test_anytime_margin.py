"""The test of slack: identities of its capital, and its error rates by simulation.

Bounds of rates are derived: of R repetitions at probability p at most p R + z sqrt(p (1 - p) R) are
wrong, z = 3.3 (one in two thousand).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.anytime_margin import Floats, Margin, SlackTest, margin_of

ALPHA = 0.05


def at_most(p: float, repetitions: int) -> float:
    return p * repetitions + 3.3 * math.sqrt(p * (1 - p) * repetitions)


def test_slack_is_above_zero_where_the_margin_is_kept() -> None:
    relative, absolute = margin_of("relative", 0.05), margin_of("absolute", 0.05)
    assert relative.slack(0.855, 0.9) == pytest.approx(0)
    assert absolute.slack(0.85, 0.9) == pytest.approx(0)
    assert relative.effect(0.9) == pytest.approx(relative.slack(0.9, 0.9))
    assert absolute.effect(0.3) == pytest.approx(absolute.slack(0.7, 0.7))
    assert (relative.low, relative.high) == (-0.95, 1.0)
    for value in (0.0, 1.0, -0.1, 2.0):
        with pytest.raises(ValueError, match="margin"):
            margin_of("relative", value)


def filled(test: SlackTest, values: list[float]) -> SlackTest:
    for value in values:
        test.add(value, 0.05, 0.1)
    return test


def fresh(null: float = 0.0) -> SlackTest:
    return SlackTest(np.array([null]), ALPHA, -0.95, 1.0)


@settings(max_examples=40, deadline=None)
@given(
    before=st.lists(st.floats(-0.95, 1.0), max_size=80),
    null=st.floats(-0.5, 0.5),
)
def test_no_bet_looks_ahead_and_capital_is_fair(before: list[float], null: float) -> None:
    """What a value makes of capital is a straight line that leaves it as it was at the null: so the
    bets were fixed before, and with the null as its mean the next capital's mean is this one."""
    capital = {
        x: math.exp(float(filled(fresh(null), [*before, x]).log_capital[0]))
        for x in (-0.95, null, 0.4, 1.0)
    }
    now = math.exp(float(filled(fresh(null), before).log_capital[0]))
    assert capital[null] == pytest.approx(now, rel=1e-9)
    slope = (capital[1.0] - capital[-0.95]) / 1.95
    assert capital[0.4] == pytest.approx(capital[-0.95] + 1.35 * slope, rel=1e-7, abs=1e-9)
    assert slope >= 0
    assert min(capital.values()) > 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-0.95, 1.0), min_size=1, max_size=60))
def test_side_by_side_is_one_by_one(values: list[float]) -> None:
    nulls = [-0.2, 0.0, 0.1]
    together = filled(SlackTest(np.array(nulls), ALPHA, -0.95, 1.0), values)
    for number, null in enumerate(nulls):
        alone = filled(fresh(null), values)
        assert together.log_capital[number] == pytest.approx(float(alone.log_capital[0]), abs=1e-9)
        assert together.p_values[number] == pytest.approx(float(alone.p_values[0]), rel=1e-9)


def ever(values: Floats, margin: Margin, trust: float = 5.0) -> int:
    """How many of the courses [n, R] ever say that the slack is above 0."""
    test = SlackTest(np.zeros(values.shape[1]), ALPHA, margin.low, margin.high, trust=trust)
    for row in values:
        test.add(row, 0.05, 0.15)
    return int(test.rejected.sum())


RELATIVE = margin_of("relative", 0.05)


@pytest.mark.parametrize("kind", ["independent", "alike", "graded", "rare", "sure teacher"])
def test_wrong_in_at_most_alpha_of_all_courses(kind: str) -> None:
    """At the margin exactly, looked at after each of 1,500 values."""
    rng, size = np.random.default_rng(1), (1500, 1200)
    teacher = rng.binomial(1, 0.9, size).astype(float)
    if kind == "independent":
        student = rng.binomial(1, 0.855, size).astype(float)
    elif kind == "alike":  # the student fails where the teacher does, and in 5% of the rest
        student = teacher * rng.binomial(1, 0.95, size)
    elif kind == "graded":
        teacher, student = rng.beta(9, 1, size), 0.95 * rng.beta(9, 1, size)
    elif kind == "rare":
        teacher = rng.binomial(1, 0.999, size).astype(float)
        student = rng.binomial(1, 0.999 * 0.95, size).astype(float)
    else:
        teacher, student = np.ones(size), rng.binomial(1, 0.95, size).astype(float)
    assert ever(RELATIVE.slack(student, teacher), RELATIVE) <= at_most(ALPHA, size[1])


def test_it_says_yes_soon_to_an_equal_student() -> None:
    # The middle fixed bet of 0.7 * 0.045 / 0.17 grows by 0.0054 nats a value, sd 0.076, and has to
    # bring ln 20 out of an eighth of the capital: 5.1 of 13.5 +- 3.8 after 2,500 values.
    rng = np.random.default_rng(2)
    teacher, student = rng.binomial(1, 0.9, (2, 2500, 200)).astype(float)
    assert ever(RELATIVE.slack(student, teacher), RELATIVE) > 0.9 * 200


def test_a_yes_stays_and_its_p_value_with_it() -> None:
    test = filled(fresh(), [0.5] * 60)
    assert bool(test.rejected[0])
    filled(test, [-0.9] * 200)
    assert bool(test.rejected[0])
    assert float(test.log_capital[0]) < 0
    assert float(test.p_values[0]) <= ALPHA


@pytest.mark.parametrize("bad", [float("nan"), math.inf, 1.1, -0.96])
def test_what_is_no_slack_is_refused_and_changes_nothing(bad: float) -> None:
    test = fresh()
    with pytest.raises(ValueError, match=r"from -0\.95 to 1"):
        test.add(bad, 0.05, 0.1)
    assert (test.n, float(test.log_capital[0])) == (0, 0.0)


def test_settings_that_mean_nothing() -> None:
    with pytest.raises(ValueError, match="alpha"):
        SlackTest(np.zeros(1), 0.0, -1, 1)
    with pytest.raises(ValueError, match="nulls"):
        SlackTest(np.array([1.0]), ALPHA, -1, 1)
