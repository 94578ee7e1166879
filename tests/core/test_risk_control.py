"""Thresholds keep the error that they promise; the frontier counts what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from stillhouse.core.risk_control import (
    Costs,
    clopper_pearson_upper,
    conformal_threshold,
    foreseen_samples,
    frontier,
    least_samples,
    probability_grid,
    selective_threshold,
)

REPETITIONS = 1_000


def _broken(kind, t):
    """True P(wrong | confidence >= t), confidence uniform on [0, 1]."""
    if kind == "calibrated":  # P(wrong | s) = 1 - s
        return (1 - t) / 2
    if kind == "useless":  # P(wrong | s) = 0.101: nothing may be promised at 0.1
        return 0.101
    s = np.linspace(t, 1, 20_001)  # "u-shaped": the most confident are wrong again
    return float(_wrong("u-shaped", s).mean())


def _wrong(kind, s):
    if kind == "calibrated":
        return 1 - s
    if kind == "useless":
        return np.full_like(s, 0.101)
    return np.clip(0.25 * (1 - s) + 0.4 * (s > 0.95), 0, 1)


@pytest.mark.parametrize("kind", ["calibrated", "useless", "u-shaped"])
@pytest.mark.parametrize("n", [200, 2_000])
def test_promised_error_held_in_95_of_100(kind, n):
    rng = np.random.default_rng(7)
    broken = 0
    for _ in range(REPETITIONS):
        s = rng.random(n)
        wrong = (rng.random(n) < _wrong(kind, s)).astype(float)
        found = selective_threshold(s, wrong, 0.1, 0.05).value
        broken += found is not None and _broken(kind, found) > 0.1
    # A procedure at exactly 5% breaks more often than this in one run of 1,000.
    assert broken <= binom.ppf(0.999, REPETITIONS, 0.05)
    assert broken <= 0.05 * REPETITIONS


def test_threshold_without_a_bound_breaks_the_promise():
    rng = np.random.default_rng(7)
    broken = 0
    for _ in range(200):
        s = rng.random(500)
        wrong = (rng.random(500) < 1 - s).astype(float)
        naive = min(
            t for t in probability_grid(100)[1:] if wrong[s >= t].sum() <= 0.1 * (s >= t).sum()
        )
        broken += _broken("calibrated", naive) > 0.1
    assert broken > 0.3 * 200


def test_threshold_is_near_the_best_with_many_samples():
    rng = np.random.default_rng(1)
    s = rng.random(20_000)
    wrong = (rng.random(20_000) < 1 - s).astype(float)
    found = selective_threshold(s, wrong, 0.1)
    assert 0.8 <= found.value <= 0.83
    assert found.error <= found.upper <= 0.1


def test_conformal_error_in_expectation():
    """Mean of true risks <= error: within 4 standard errors of the mean over repetitions."""
    rng = np.random.default_rng(3)
    risks = []
    for _ in range(REPETITIONS):
        s = rng.random(100)
        wrong = (rng.random(100) < 1 - s).astype(float)
        t = conformal_threshold(s, wrong, 0.05).value
        risks.append(0.0 if t is None else (1 - t) ** 2 / 2)
    mean, spread = np.mean(risks), np.std(risks) / np.sqrt(REPETITIONS)
    assert mean <= 0.05 + 4 * spread
    assert mean > 0.03  # not by never answering


@given(st.integers(1, 60), st.data(), st.floats(0.01, 0.5))
def test_clopper_pearson_is_the_root_of_its_definition(n, data, delta):
    wrong = data.draw(st.integers(0, n - 1))
    assert binom.cdf(wrong, n, clopper_pearson_upper(wrong, n, delta)) == pytest.approx(delta)


def test_bound_of_all_wrong_is_one():
    assert clopper_pearson_upper(5, 5, 0.05) == 1.0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_conformal_against_the_definition(rows):
    s, wrong = np.array([r[0] for r in rows]), np.array([float(r[1]) for r in rows])
    fits = [t for t in s if (wrong[s >= t].sum() + 1) / (len(s) + 1) <= 0.2]
    assert conformal_threshold(s, wrong, 0.2).value == (min(fits) if fits else None)


def test_too_few_samples_promise_nothing():
    assert selective_threshold(np.ones(5), np.zeros(5), 0.05).value is None
    assert conformal_threshold(np.ones(5), np.zeros(5), 0.05).value is None


def test_frontier_ends_at_teacher_and_student():
    s = np.array([0.1, 0.4, 0.6, 0.9])
    points = frontier(
        s, np.array([0, 0, 1, 1.0]), np.ones(4), Costs(student_usd=1, teacher_usd=100)
    )
    assert (points[0].coverage, points[0].cost_per_1000_usd, points[0].quality) == (0, 101, 1)
    assert points[0].student_error is None
    assert (points[-1].coverage, points[-1].cost_per_1000_usd, points[-1].quality) == (1, 1, 0.5)
    costs = [p.cost_per_1000_usd for p in points]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("bad", [[np.nan], [-0.1], [1.1], [np.inf], []])
def test_bad_confidence_is_refused(bad):
    s = np.array(bad)
    with pytest.raises(ValueError, match="confidence"):
        selective_threshold(s, np.zeros(len(s)), 0.1)
    with pytest.raises(ValueError, match="confidence"):
        conformal_threshold(s, np.zeros(len(s)), 0.1)


def test_bad_levels_and_losses_are_refused():
    s = np.array([0.5])
    with pytest.raises(ValueError, match="0 and 1"):
        selective_threshold(s, np.array([0.5]), 0.1)
    with pytest.raises(ValueError, match="error"):
        selective_threshold(s, np.zeros(1), 0.0)
    with pytest.raises(ValueError, match="fall"):
        selective_threshold(s, np.zeros(1), 0.1, grid=np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="costs"):
        frontier(s, s, s, Costs(float("nan"), 1))


@pytest.mark.parametrize(("error", "delta"), [(0.05, 0.05), (0.1, 0.1), (0.02, 0.2), (0.3, 0.01)])
def test_the_fewest_samples_are_just_enough(error, delta):
    n = least_samples(error, delta)
    for count, found in ((n, True), (n - 1, False)):
        sure = np.full(count, 1.0)
        threshold = selective_threshold(sure, np.zeros(count), error, delta).value
        assert (threshold is not None) == found
    with pytest.raises(ValueError, match="between 0 and 1"):
        least_samples(0, 0.05)


def test_the_samples_that_are_foreseen_do():
    """As many as are foreseen of a small sample find a threshold more often than not; a tenth of
    them does not."""
    rng = np.random.default_rng(3)

    def drawn(n):
        s = rng.random(n)
        return s, (rng.random(n) < 0.3 * (1 - s)).astype(float)

    small = drawn(150)
    assert selective_threshold(*small, 0.05).value is None
    wanted = foreseen_samples(*small, 0.05)
    assert wanted is not None
    assert 150 < wanted < 5_000
    enough = sum(selective_threshold(*drawn(wanted), 0.05).value is not None for _ in range(100))
    few = sum(selective_threshold(*drawn(wanted // 10), 0.05).value is not None for _ in range(100))
    assert enough > 50 > few
    # Wrong however sure: no number is foreseen.
    s = rng.random(400)
    assert foreseen_samples(s, (rng.random(400) < 0.4).astype(float), 0.05) is None
