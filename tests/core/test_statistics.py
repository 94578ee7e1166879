"""Intervals and tests against scipy, published values, exact error rates and identities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from stillhouse.core.statistics import (
    Interval,
    bootstrap_mean,
    bootstrap_statistic,
    clustered_wilson,
    mcnemar_exact,
    non_inferiority,
    paired_difference,
    paired_ratio,
    proportion,
    tango_score,
    wilson,
)

scores = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40)
# No subnormals: half of the smallest is 0.
shares = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=30)


def binary(rng: np.random.Generator, n: int, p: float) -> np.ndarray[Any, Any]:
    return (rng.random(n) < p).astype(float)


# --- Wilson


@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_equals_scipy(n: int, share: float, confidence: float) -> None:
    k = round(share * n)
    theirs = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    ours = wilson(k, n, confidence)
    assert ours.low == pytest.approx(theirs.low, abs=1e-9)
    assert ours.high == pytest.approx(theirs.high, abs=1e-9)
    assert ours.n == n


def test_wilson_of_all_right_is_not_certain() -> None:
    interval = wilson(20, 20)
    assert interval.high == 1.0
    assert interval.low < 0.9


def test_proportion_takes_wilson_for_independent_zeros_and_ones_only() -> None:
    values = [1.0] * 30 + [0.0] * 10
    assert proportion(values) == wilson(30, 40)
    groups = [i // 4 for i in range(40)]
    assert proportion(values, groups=groups) == bootstrap_mean(values, groups=groups)
    assert proportion([0.5, *values]) == bootstrap_mean([0.5, *values])


# --- Bootstrap


def test_bca_mean_equals_scipy_within_resampling_noise() -> None:
    x = np.random.default_rng(5).exponential(size=60)
    theirs = stats.bootstrap(
        (x,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap_mean(x, resamples=20_000, seed=2)
    # Sd of a 2.5% quantile of R draws: sqrt(0.025 * 0.975 / R) / density, density ~ 0.058 / sd.
    sd = x.std() / math.sqrt(len(x))
    noise = 5 * math.sqrt(2 * 0.025 * 0.975 / 20_000) / (0.058 / sd)
    assert ours.low == pytest.approx(theirs.low, abs=noise)
    assert ours.high == pytest.approx(theirs.high, abs=noise)


def test_bca_ratio_equals_scipy_within_resampling_noise() -> None:
    rng = np.random.default_rng(8)
    teacher = binary(rng, 300, 0.8)
    student = np.where(rng.random(300) < 0.9, teacher, 1 - teacher)

    def ratio(a: Any, b: Any, axis: int = -1) -> Any:
        return a.mean(axis=axis) / b.mean(axis=axis)

    theirs = stats.bootstrap(
        (student, teacher),
        ratio,
        paired=True,
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = paired_ratio(student, teacher, resamples=20_000, seed=3)
    assert ours.low == pytest.approx(theirs.low, abs=0.003)
    assert ours.high == pytest.approx(theirs.high, abs=0.003)


def test_a_seed_fixes_the_interval() -> None:
    x = np.random.default_rng(0).random(50)
    assert bootstrap_mean(x, seed=4) == bootstrap_mean(x, seed=4)
    assert bootstrap_mean(x, seed=4) != bootstrap_mean(x, seed=5)


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).random(50)
    whole = bootstrap_mean(x, resamples=500)
    monkeypatch.setattr("stillhouse.core.bootstrap.DRAWS_AT_ONCE", 50 * 7)
    assert bootstrap_mean(x, resamples=500) == whole


def covers(make: Callable[[np.random.Generator], Interval], truth: float, trials: int) -> float:
    rng = np.random.default_rng(20)
    hits = 0
    for _ in range(trials):
        interval = make(rng)
        hits += interval.low <= truth <= interval.high
    return hits / trials


def coverage_slack(trials: int) -> float:
    """Five standard errors of a coverage of 0.95 over so many trials."""
    return 5 * math.sqrt(0.95 * 0.05 / trials)


def test_coverage_of_the_mean_and_the_difference() -> None:
    trials = 400
    mean = covers(lambda r: bootstrap_mean(r.beta(2, 3, 80), resamples=400), 0.4, trials)
    assert mean > 0.95 - coverage_slack(trials) - 0.01  # n = 80 skewed: BCa is second order

    def difference(rng: np.random.Generator) -> Interval:
        teacher = binary(rng, 100, 0.8)
        student = np.where(rng.random(100) < 0.8, teacher, binary(rng, 100, 0.6))
        return paired_difference(student, teacher)

    assert covers(difference, 0.2 * (0.6 - 0.8), 1500) > 0.95 - coverage_slack(1500)


def test_coverage_of_retention() -> None:
    def retention(rng: np.random.Generator) -> Interval:
        teacher = binary(rng, 200, 0.8)
        student = np.where(rng.random(200) < 0.85, teacher, binary(rng, 200, 0.5))
        return paired_ratio(student, teacher, resamples=400)

    truth = (0.85 * 0.8 + 0.15 * 0.5) / 0.8
    assert covers(retention, truth, 400) > 0.95 - coverage_slack(400) - 0.01


def test_groups_widen_the_interval_and_keep_its_coverage() -> None:
    """10 copies of 40 independent values: samples lie about n, groups do not."""

    def clustered(rng: np.random.Generator, grouped: bool) -> Interval:
        values = np.repeat(binary(rng, 40, 0.6), 10)
        groups = [i // 10 for i in range(400)] if grouped else None
        return bootstrap_mean(values, resamples=400, groups=groups)

    trials = 300
    with_groups = covers(lambda r: clustered(r, True), 0.6, trials)
    without = covers(lambda r: clustered(r, False), 0.6, trials)
    assert with_groups > 0.95 - coverage_slack(trials) - 0.02  # 40 groups only
    assert without < 0.6


def test_bootstrap_statistic_of_the_mean_is_the_percentile_bootstrap() -> None:
    x = np.random.default_rng(3).random(200)
    generic = bootstrap_statistic(lambda i: float(x[i].mean()), 200, resamples=4000)
    assert generic.estimate == pytest.approx(x.mean())
    assert generic.low == pytest.approx(bootstrap_mean(x, resamples=4000).low, abs=0.01)
    pivot = bootstrap_statistic(lambda i: float(x[i].mean()), 200, resamples=4000, pivot=True)
    assert pivot.low == pytest.approx(2 * generic.estimate - generic.high)


def test_bootstrap_statistic_draws_whole_groups() -> None:
    seen: list[set[int]] = []

    def statistic(index: np.ndarray[Any, Any]) -> float:
        counts = np.bincount(index, minlength=6)
        seen.append({int(counts[0] == counts[3]), int(counts[1] == counts[4])})
        return float(counts[0])

    bootstrap_statistic(statistic, 6, resamples=100, groups=["a", "b", "c", "a", "b", "c"])
    assert all(equal == {1} for equal in seen)


# --- Paired comparisons


def test_tango_interval_of_the_airway_study() -> None:
    """Fagerland, Lydersen and Laake (2014), table 1: 1, 1, 7, 12 of 21."""
    before = [1, 1] + [0] * 7 + [0] * 12
    after = [1, 0] + [1] * 7 + [0] * 12
    interval = paired_difference(before, after)
    assert interval.estimate == pytest.approx(-6 / 21)
    assert interval.low == pytest.approx(-0.517, abs=5e-4)
    assert interval.high == pytest.approx(-0.026, abs=5e-4)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 30), st.floats(-0.6, 0.6))
@settings(max_examples=60)
def test_tango_score_uses_the_constrained_maximum(b: int, c: int, more: int, d: float) -> None:
    """q by brute force over the multinomial likelihood, independent of the closed form."""
    n = b + c + more
    q = np.linspace(max(0.0, -d) + 1e-9, (1 - d) / 2 - 1e-9, 40_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = b * np.log(q + d) + c * np.log(q) + more * np.log1p(-2 * q - d)
    best = q[np.nanargmax(likelihood)]
    variance = n * (2 * best + d * (1 - d))
    if variance > 1e-3:
        expected = (b - c - n * d) / math.sqrt(variance)
        assert tango_score(b, c, n, d) == pytest.approx(expected, abs=0.02 + 0.01 * abs(expected))


@given(scores, st.data())
def test_difference_is_antisymmetric_and_zero_for_equals(a: list[float], data: Any) -> None:
    b = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(a), max_size=len(a)))
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert forward.low == pytest.approx(-backward.high, abs=1e-9)
    assert forward.estimate == pytest.approx(np.mean(a) - np.mean(b))
    same = paired_difference(a, a)
    assert same.estimate == 0
    assert same.low < 0 < same.high, "n samples without a difference do not prove equality"


@given(shares)
def test_ratio_identities(values: list[float]) -> None:
    if sum(values) <= 0:
        with pytest.raises(ValueError, match="no ratio exists"):
            paired_ratio(values, values)
        return
    same = paired_ratio(values, values, resamples=50)
    assert (same.low, same.estimate, same.high) == (1.0, 1.0, 1.0)
    half = paired_ratio([v / 2 for v in values], values, resamples=50)
    assert half.estimate == pytest.approx(0.5)
    assert half.high - half.low < 1e-9


@given(shares, st.data())
def test_intervals_hold_their_estimate_and_stay_in_range(values: list[float], data: Any) -> None:
    interval = bootstrap_mean(values, resamples=60, seed=data.draw(st.integers(0, 9)))
    assert interval.low <= interval.estimate <= interval.high
    assert interval.estimate == pytest.approx(np.mean(values))
    assert interval.low >= min(values) - 1e-9
    assert interval.high <= max(values) + 1e-9


def test_mcnemar_known_value() -> None:
    a = [1] * 8 + [0] * 1 + [1] * 20
    b = [0] * 8 + [1] * 1 + [1] * 20
    test = mcnemar_exact(a, b)
    assert (test.only_a, test.only_b, test.n) == (8, 1, 29)
    assert test.p_value == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar_exact([1, 0], [1, 0]).p_value == 1.0


# --- Non-inferiority


def exact_type_one_error(n: int, only_student: float, only_teacher: float, margin: float) -> float:
    """P(verdict is non-inferior), summed over all outcomes of the multinomial."""
    z = stats.norm.ppf(0.95)
    total = 0.0
    for b in range(n + 1):
        p_b = stats.binom.pmf(b, n, only_student)
        if p_b < 1e-12:
            continue
        rest = n - b
        c = np.arange(rest + 1)
        p_c = stats.binom.pmf(c, rest, only_teacher / (1 - only_student))
        passes = np.array(
            [
                tango_score(b, int(k), n, -margin) > z if p > 1e-12 else False
                for k, p in zip(c, p_c, strict=True)
            ]
        )
        total += p_b * p_c[passes].sum()
    return total


@pytest.mark.parametrize("discordant", [0.05, 0.10, 0.25])
@pytest.mark.parametrize("n", [60, 200])
def test_exact_type_one_error_at_the_margin(n: int, discordant: float) -> None:
    """A student exactly 5 points worse passes in 5% of samples, give or take discreteness."""
    margin = 0.05
    error = exact_type_one_error(n, (discordant - margin) / 2, (discordant + margin) / 2, margin)
    assert error < 0.055


def test_simulated_type_one_error_is_the_exact_one() -> None:
    n, margin, trials = 200, 0.05, 4000
    only_student, only_teacher = 0.05, 0.10
    exact = exact_type_one_error(n, only_student, only_teacher, margin)
    rng = np.random.default_rng(11)
    passed = 0
    for _ in range(trials):
        draw = rng.random(n)
        student = draw >= only_teacher
        teacher = (draw < only_teacher) | (draw >= only_teacher + only_student)
        passed += non_inferiority(student, teacher, margin).non_inferior
    assert passed / trials == pytest.approx(
        exact, abs=4.5 * math.sqrt(exact * (1 - exact) / trials)
    )


def test_bootstrap_non_inferiority_keeps_its_error_rate() -> None:
    """Graded scores (ROUGE-like), student exactly at the margin."""
    margin, trials = 0.05, 600
    rng = np.random.default_rng(12)
    passed = 0
    for _ in range(trials):
        teacher = rng.beta(4, 4, 150)
        student = teacher - margin + rng.normal(0, 0.1, 150)
        passed += non_inferiority(student, teacher, margin, resamples=300).non_inferior
    assert passed / trials < 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials) + 0.005


def test_grouped_non_inferiority_keeps_its_error_rate_at_high_agreement() -> None:
    """60 groups of 1 to 3 equal samples, a student exactly at the margin: docs/statistics.md."""
    margin, trials = 0.05, 600
    rng = np.random.default_rng(5)
    alone = both = 0
    for _ in range(trials):
        sizes = rng.integers(1, 4, 60)
        groups = [int(g) for g in np.repeat(np.arange(60), sizes)]
        student = np.repeat(binary(rng, 60, 1 - margin), sizes)
        teacher = np.ones_like(student)
        both += non_inferiority(student, teacher, margin, resamples=200, groups=groups).non_inferior
        bound = paired_difference(student, teacher, 0.9, resamples=200, groups=groups).low
        alone += bound > -margin
    assert alone / trials > 0.06
    assert both / trials < 0.05


@given(scores.filter(lambda s: len(s) > 1), st.data())
@settings(max_examples=50, deadline=None)
def test_groups_never_give_a_higher_bound_than_their_tango_bound(a: list[float], data: Any) -> None:
    b = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(a), max_size=len(a)))
    own = non_inferiority(a, b, 0.05).difference
    grouped = non_inferiority(a, b, 0.05, resamples=100, groups=list(range(len(a)))).difference
    assert grouped.low <= own.low + 1e-9
    assert grouped.estimate == pytest.approx(own.estimate)


def test_the_lower_bound_decides() -> None:
    teacher = [1.0] * 80 + [0.0] * 20
    result = non_inferiority(teacher, teacher, 0.05)
    assert result.non_inferior
    assert result.method == "tango"
    two_sided = paired_difference(teacher, teacher, 0.90)
    assert result.difference == two_sided
    worse = [0.0] * 10 + teacher[10:]
    assert not non_inferiority(worse, teacher, 0.05).non_inferior
    assert non_inferiority(worse, teacher, 0.2).non_inferior
    assert not non_inferiority([1.0] * 3, [1.0] * 3, 0.05).non_inferior, "three prove nothing"


@given(scores, st.data(), st.sampled_from([0.02, 0.05, 0.1]))
@settings(max_examples=50)
def test_a_wider_margin_never_turns_pass_into_fail(
    a: list[float], data: Any, margin: float
) -> None:
    b = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(a), max_size=len(a)))
    if non_inferiority(a, b, margin).non_inferior:
        assert non_inferiority(a, b, margin + 0.05).non_inferior


# --- Bad input


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(0, 0),
        lambda: wilson(3, 2),
        lambda: wilson(1, 2, 1.0),
        lambda: bootstrap_mean([]),
        lambda: bootstrap_mean([1.0, math.nan]),
        lambda: bootstrap_mean([1.0, math.inf]),
        lambda: bootstrap_mean([1.0, 2.0], groups=["a"]),
        lambda: bootstrap_mean([1.0, 2.0], groups=["a", "a"]),
        lambda: paired_difference([1.0], [1.0, 0.0]),
        lambda: paired_ratio([], []),
        lambda: paired_ratio([1.0], [0.0]),
        lambda: paired_ratio([1.0, 1.0], [2.0, -1.0]),
        lambda: mcnemar_exact([0.5], [1.0]),
        lambda: mcnemar_exact([], []),
        lambda: bootstrap_statistic(lambda _: 0.0, 0),
        lambda: bootstrap_statistic(lambda _: math.nan, 3),
        lambda: non_inferiority([1.0], [1.0], 0.0),
        lambda: non_inferiority([1.0], [1.0], 5.0),
        lambda: non_inferiority([1.0], [1.0], 0.05, 0.4),
        lambda: non_inferiority([], [], 0.05),
    ],
)
def test_bad_input_raises(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()


def test_an_interval_is_ordered_frozen_and_plain_json() -> None:
    interval = Interval(estimate=0.5, low=0.4, high=0.6, n=10)
    assert interval.to_json() == {"estimate": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    with pytest.raises(ValidationError):
        Interval(estimate=0.5, low=0.6, high=0.7, n=10)
    with pytest.raises(ValidationError):
        Interval(estimate=math.nan, low=0.6, high=0.7, n=10)
    with pytest.raises(ValidationError):
        interval.low = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("groups", "size", "a", "b"),
    [(100, 5, 3.0, 1.0), (60, 5, 0.5, 0.1), (200, 8, 0.3, 0.3), (100, 4, 1e6, 1e6)],
)
def test_the_clustered_interval_covers_where_members_are_alike(
    groups: int, size: int, a: float, b: float
) -> None:
    rng = np.random.default_rng(7)
    runs, held, plain = 1000, 0, 0
    for _ in range(runs):
        counts = rng.binomial(size, rng.beta(a, b, groups)).tolist()
        found = clustered_wilson(counts, [size] * groups)
        held += found.low <= a / (a + b) <= found.high
        other = wilson(sum(counts), size * groups)
        plain += other.low <= a / (a + b) <= other.high
    # Four standard errors of 95% in so many runs, and one point for the estimated design effect.
    assert held / runs >= 0.95 - 0.01 - 4 * (0.95 * 0.05 / runs) ** 0.5
    if b < 10:
        assert plain / runs < 0.9, "the members are alike enough to tell the two apart"


def test_the_clustered_interval_at_its_edges() -> None:
    assert clustered_wilson([1, 0, 1], [1, 1, 1]) == wilson(2, 3)
    assert clustered_wilson([1, 0], [1, 0]) == wilson(1, 1)
    # All right: as many groups as there are, not members.
    found, groups = clustered_wilson([5] * 10, [5] * 10), wilson(10, 10)
    assert (found.low, found.high, found.n) == (pytest.approx(groups.low), 1.0, 50)
    # Members of a group all equal: the groups count.
    found, groups = clustered_wilson([4, 0] * 10, [4] * 20), wilson(10, 20)
    assert groups.low - 0.02 < found.low < groups.low + 0.02
    for bad in (([], []), ([2], [1]), ([-1], [2]), ([1, 1], [2])):
        with pytest.raises(ValueError, match="every group"):
            clustered_wilson(*bad)
