"""Fitted learning curves: against brute force, by identities, and by how often intervals hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from stillhouse.core.learning_curve import fit_curve

SIZES = [500, 1000, 2000, 5000, 10000]
N = 120


def law(n: float, c: float = 0.9, a: float = 5.0, b: float = 0.5) -> float:
    return c - a * n**-b


def test_a_curve_without_noise_is_found() -> None:
    fit = fit_curve(SIZES, [law(n) for n in SIZES])
    assert fit.ceiling.estimate == pytest.approx(0.9, abs=2e-3)
    assert fit.exponent == pytest.approx(0.5, rel=0.02)
    assert fit.at(20_000).estimate == pytest.approx(law(20_000), abs=1e-3)
    assert fit.ceiling_known
    wanted = (5 / 0.05) ** 2  # 0.9 - 5 n^-1/2 = 0.85
    assert fit.to_reach(0.85) == pytest.approx(wanted, rel=0.05)
    assert fit.to_reach(0.95) is None
    assert fit.to_reach(-10) == 1
    reach = fit.reach(0.85)
    assert reach.soonest is not None
    assert reach.latest is not None
    assert reach.size is not None
    assert reach.soonest <= reach.size * 1.002
    assert reach.size <= reach.latest * 1.002
    assert fit.extrapolates(20_000)
    assert not fit.extrapolates(700)


def test_a_falling_curve_is_a_rising_one_upside_down() -> None:
    scores = [law(n) + e for n, e in zip(SIZES, (0.01, -0.01, 0.005, 0, -0.004), strict=True)]
    up = fit_curve(SIZES, scores, best=1.0)
    down = fit_curve(SIZES, [1 - s for s in scores], best=0.0, falling=True)
    assert down.ceiling.low == pytest.approx(1 - up.ceiling.high, abs=1e-6)
    assert down.ceiling.high == pytest.approx(1 - up.ceiling.low, abs=1e-6)
    assert down.at(30_000).estimate == pytest.approx(1 - up.at(30_000).estimate, abs=1e-9)
    assert down.to_reach(0.14) == up.to_reach(0.86)


def test_no_ceiling_passes_the_best_score_and_none_falls() -> None:
    fit = fit_curve([1000, 2000, 4000, 8000], [0.80, 0.86, 0.92, 0.98])
    assert fit.ceiling.estimate <= 1
    assert fit.ceiling.high == 1
    assert not fit.ceiling_known
    sinking = fit_curve([1000, 2000, 4000, 8000], [0.9, 0.88, 0.87, 0.86])
    assert sinking.amount == 0
    assert sinking.at(100).estimate == pytest.approx(np.mean([0.9, 0.88, 0.87, 0.86]))


def test_the_interval_is_that_of_brute_force() -> None:
    """All (c, a, b) on a fine grid whose chi square is within the quantile of the least one."""
    errors = [0.02, 0.015, 0.01, 0.01, 0.01]
    noise = np.array([0.01, -0.02, 0.01, 0.0, -0.01])
    scores = np.array([law(n) for n in SIZES]) + noise
    fit = fit_curve(SIZES, scores.tolist(), errors=errors)
    c = np.linspace(0.7, 1.0, 301)[:, None, None]
    unit = 2000.0
    a = np.linspace(0.0, 0.4, 401)[:, None]  # at n = 2000
    b = np.geomspace(0.05, 4.0, 120)
    misfit = sum(
        ((s - (c - a * (n / unit) ** -b)) / e) ** 2
        for n, s, e in zip(SIZES, scores, errors, strict=True)
    )
    least = misfit.min()
    allowed = misfit <= least + chi2.ppf(0.95, 1)
    for n in (3000.0, 40_000.0, math.inf):
        values = (c - a * (n / unit) ** -b if math.isfinite(n) else c + 0 * a * b)[allowed]
        found = fit.ceiling if math.isinf(n) else fit.at(n)
        assert found.low == pytest.approx(values.min(), abs=4e-3)
        assert found.high == pytest.approx(values.max(), abs=4e-3)


@pytest.mark.parametrize(
    ("ceiling", "amount", "exponent", "noise", "known"),
    [(0.9, 5.0, 0.5, 0.01, True), (0.9, 5.0, 0.5, 0.01, False), (0.85, 0.0, 0.5, 0.01, False)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    ceiling: float, amount: float, exponent: float, noise: float, known: bool
) -> None:
    """Misses of a 95% interval in N curves: more than the binomial's 99.9% point is no chance."""
    draw = np.random.default_rng(5)
    truth = np.array([law(n, ceiling, amount, exponent) for n in SIZES])
    misses = np.zeros(2)
    for _ in range(N):
        scores = truth + draw.normal(0, noise, len(SIZES))
        fit = fit_curve(SIZES, scores.tolist(), errors=[noise] * len(SIZES) if known else None)
        for k, (found, true) in enumerate(
            ((fit.ceiling, ceiling), (fit.at(40_000), law(40_000, ceiling, amount, exponent)))
        ):
            misses[k] += not found.low <= true <= found.high
    assert misses.max() <= binom.ppf(0.999, N, 0.05)


def test_scatter_beyond_the_known_errors_widens_the_interval() -> None:
    scores = [law(n) + e for n, e in zip(SIZES, (0.05, -0.05, 0.05, -0.05, 0.05), strict=True)]
    blind = fit_curve(SIZES, scores)
    told = fit_curve(SIZES, scores, errors=[1e-3] * 5)
    assert told.at(3000).high - told.at(3000).low == pytest.approx(
        blind.at(3000).high - blind.at(3000).low, rel=1e-3
    )


def test_doubt_grows_with_the_distance() -> None:
    scores = [law(n) + e for n, e in zip(SIZES, (0.01, -0.01, 0.01, -0.005, 0), strict=True)]
    fit = fit_curve(SIZES, scores, errors=[0.01] * 5)
    widths = [i.high - i.low for i in (fit.at(10_000), fit.at(100_000), fit.ceiling)]
    assert widths == sorted(widths)


def test_a_backtest_tells_a_broken_form_from_a_kept_one() -> None:
    kept = fit_curve(SIZES, [law(n) for n in SIZES], errors=[0.005] * 5).backtest()
    assert kept is not None
    assert kept.held
    assert kept.size == 10_000
    scores = [law(n) for n in SIZES]
    broken = fit_curve(SIZES, [*scores[:-1], 0.5], errors=[0.005] * 5).backtest()
    assert broken is not None
    assert not broken.held
    assert fit_curve(SIZES[:4], scores[:4]).backtest() is None


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=4, max_size=7),
    st.floats(1, 1e7),
    st.booleans(),
)
def test_whatever_the_scores_intervals_are_in_order(
    scores: list[float], n: float, falling: bool
) -> None:
    sizes = [100 * 2**k for k in range(len(scores))]
    fit = fit_curve(sizes, scores, best=0.0 if falling else 1.0, falling=falling)
    for found in (fit.ceiling, fit.at(n)):
        assert found.low <= found.estimate <= found.high
        assert found.low >= -1e-9 if falling else found.high <= 1 + 1e-9
    sign = -1 if falling else 1
    assert sign * (fit.at(2 * n).estimate - fit.at(n).estimate) >= -1e-12


@pytest.mark.parametrize(
    ("sizes", "scores", "more"),
    [
        ([1, 2], [0.1, 0.2], {}),
        ([1, 1, 2, 2], [0.1, 0.1, 0.2, 0.2], {}),
        ([1, 2, 3], [0.1, 0.2, 0.3], {}),
        ([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4], {}),
        ([1, 2, 3, 4], [0.1, 0.2, 0.3, math.nan], {}),
        ([1, 2, 3, 4], [0.1, 0.2, 0.3], {}),
        ([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], {"errors": [0.1, 0.1, 0.1, 0]}),
        ([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], {"confidence": 1.0}),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    sizes: list[float], scores: list[float], more: dict
) -> None:
    with pytest.raises(ValueError, match=r"(size|score|number|confidence)"):
        fit_curve(sizes, scores, **more)


@pytest.mark.parametrize(
    ("amount", "noise", "repeats", "known"),
    [(5.0, 0.003, 1, True), (5.0, 0.01, 3, False), (0.0, 0.003, 1, True), (0.0, 0.003, 3, False)],
)
def test_the_interval_of_a_gain_holds_it_as_often_as_it_says(
    amount: float, noise: float, repeats: int, known: bool
) -> None:
    """Of a doubling; on a flat curve its upper bound is below a point nearly always."""
    draw = np.random.default_rng(11)
    sizes = SIZES * repeats
    at = np.array([law(n, 0.9, amount) for n in sizes])
    truth = law(20_000, 0.9, amount) - law(10_000, 0.9, amount)
    missed = flat = 0
    for _ in range(40):
        scores = (at + draw.normal(0, noise, len(sizes))).tolist()
        errors = [noise] * len(sizes) if known else None
        gain = fit_curve(sizes, scores, errors=errors).gain(10_000, 20_000)
        missed += not gain.low - 1e-12 <= truth <= gain.high
        assert 0 <= gain.low <= gain.estimate <= gain.high
        flat += gain.high < 0.01
    assert missed <= binom.ppf(0.999, 40, 0.05)
    if amount == 0:
        assert flat >= 36


def test_a_gain_is_the_difference_of_one_curve() -> None:
    """Against all (c, a, b) of a fine grid that fit, as `at` is."""
    errors = [0.02, 0.015, 0.01, 0.01, 0.01]
    noise = np.array([0.01, -0.02, 0.01, 0.0, -0.01])
    scores = np.array([law(n) for n in SIZES]) + noise
    gain = fit_curve(SIZES, scores.tolist(), errors=errors).gain(10_000, 20_000)
    c = np.linspace(0.7, 1.0, 301)[:, None, None]
    a = np.linspace(0.0, 0.4, 401)[:, None]  # at n = 2000
    b = np.geomspace(0.05, 4.0, 120)
    misfit = sum(
        ((s - (c - a * (n / 2000.0) ** -b)) / e) ** 2
        for n, s, e in zip(SIZES, scores, errors, strict=True)
    )
    allowed = misfit <= misfit.min() + chi2.ppf(0.95, 1)
    gains = np.broadcast_to(a * (5.0**-b - 10.0**-b), allowed.shape)[allowed]
    assert gain.low == pytest.approx(gains.min(), abs=1e-3)
    assert gain.high == pytest.approx(gains.max(), abs=2e-3)
    falling = fit_curve(SIZES, (1 - scores).tolist(), errors=errors, best=0.0, falling=True)
    assert falling.gain(10_000, 20_000).high == pytest.approx(gain.high)
    with pytest.raises(ValueError, match="from a size"):
        falling.gain(2, 1)
