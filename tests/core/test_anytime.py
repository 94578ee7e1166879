"""Tests and bounds that may be looked at always: identities, and error rates by simulation.

Bounds of the rates are derived: of R repetitions at probability p at most p R + z sqrt(p (1 - p) R)
are wrong, z = 3.3 (one in two thousand).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.anytime import (
    BettingTest,
    Floats,
    asymptotic_radius,
    bets_against,
    betting_lower,
)

ALPHA = 0.05


def at_most(p: float, repetitions: int) -> float:
    return p * repetitions + 3.3 * math.sqrt(p * (1 - p) * repetitions)


def crossed(values: Floats, mean: float) -> Floats:
    """For each row of values [R, n], the first look at which the test says yes; n + 1: never."""
    bets = bets_against(mean)
    log = np.zeros((len(values), len(bets)))
    found = np.full(len(values), values.shape[1] + 1.0)
    for n in range(values.shape[1]):
        log += np.log1p(np.multiply.outer(values[:, n] - mean, bets))
        top = log.max(axis=1)
        capital = top + np.log(np.exp(log - top[:, None]).mean(axis=1))
        found = np.where((found > n + 1) & (capital >= -math.log(ALPHA)), n + 1, found)
    return found


def test_capital_is_the_mean_of_products() -> None:
    values = [0.2, 0.9, 0.7, 0.0, 1.0]
    test = BettingTest(0.4, ALPHA)
    test.add(values)
    products = [math.prod(1 + bet * (x - 0.4) for x in values) for bet in bets_against(0.4)]
    assert test.log_capital == pytest.approx(math.log(sum(products) / len(products)), abs=1e-12)
    assert test.n == 5


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=40),
    mean=st.floats(0.05, 0.95),
    cut=st.integers(0, 40),
)
def test_pieces_give_what_the_whole_gives(values: list[float], mean: float, cut: int) -> None:
    whole, pieces = BettingTest(mean, ALPHA), BettingTest(mean, ALPHA)
    whole.add(values)
    pieces.add(values[:cut])
    pieces.add(values[cut:])
    assert pieces.p_value == pytest.approx(whole.p_value, rel=1e-9)
    assert pieces.log_capital == pytest.approx(whole.log_capital, abs=1e-9)


def test_a_yes_stays_and_is_that_of_the_simulation() -> None:
    values = np.random.default_rng(1).binomial(1, 0.8, 300).astype(float)
    test, looks = BettingTest(0.5, ALPHA), []
    for value in values:
        test.add([value])
        looks.append(test.rejected)
    assert looks.index(True) + 1 == crossed(values[None], 0.5)[0]
    assert all(looks[looks.index(True) :])
    test.add(np.zeros(500))
    assert test.rejected
    assert test.log_capital < 0
    assert test.p_value <= ALPHA


@pytest.mark.parametrize("kind", ["coin", "rare", "uniform", "nearly still"])
def test_wrong_in_at_most_alpha_of_all_courses_however_often_one_looks(kind: str) -> None:
    rng, size = np.random.default_rng(2), (2000, 1000)
    values, mean = {
        "coin": (rng.binomial(1, 0.5, size).astype(float), 0.5),
        "rare": (rng.binomial(1, 0.95, size).astype(float), 0.95),
        "uniform": (rng.uniform(0, 1, size), 0.5),
        "nearly still": (rng.choice([0.0, 0.5, 1.0], size, p=[0.03, 0.94, 0.03]), 0.5),
    }[kind]
    wrong = int((crossed(values, mean) <= size[1]).sum())
    assert wrong <= at_most(ALPHA, size[0])


def test_a_z_test_that_is_repeated_is_wrong_far_more_often() -> None:
    """What the promise is worth: the same courses, looked at after every 100 of 20,000."""
    rng = np.random.default_rng(3)
    sums = rng.binomial(100, 0.5, (2000, 200)).cumsum(axis=1)
    n = 100 * np.arange(1, 201)
    mean = sums / n
    z = (mean - 0.5) / np.sqrt(np.maximum(mean * (1 - mean), 1e-9) / n)
    wrong = int((z > 1.6449).any(axis=1).sum())
    assert wrong > 0.22 * 2000


def test_it_decides_soon_where_there_is_something_to_see() -> None:
    rng = np.random.default_rng(4)
    found = crossed(rng.binomial(1, 0.6, (500, 1500)).astype(float), 0.5)
    # the best of all fixed bets grows by KL(0.6 || 0.5) = 0.0201 nats a value, and ln 20 = 3.0;
    # the mixture pays at most ln 24 for not knowing it
    assert np.median(found) <= (math.log(20) + math.log(24)) / 0.0201 * 1.1


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_the_lower_bound_is_where_the_test_turns(values: list[float]) -> None:
    bound = betting_lower(values, ALPHA)
    for mean in np.linspace(0.02, 0.98, 25):
        if abs(mean - bound) > 1e-6:
            test = BettingTest(float(mean), ALPHA)
            test.add(values)
            assert test.rejected == (mean < bound)


def test_the_lower_bound_covers() -> None:
    rng = np.random.default_rng(5)
    wrong = sum(betting_lower(rng.beta(2, 1, 200), ALPHA, steps=20) > 2 / 3 for _ in range(300))
    assert wrong <= at_most(ALPHA, 300)


@pytest.mark.parametrize("one_sided", [True, False])
def test_the_asymptotic_sequence_covers_after_its_burn_in(one_sided: bool) -> None:
    rng, n = np.random.default_rng(6), np.arange(1, 2001)
    values = rng.exponential(1, (1500, 2000))
    mean = values.cumsum(axis=1) / n
    variance = (values**2).cumsum(axis=1) / n - mean**2
    radius = asymptotic_radius(n, variance, ALPHA, tightest_at=500, one_sided=one_sided)
    out = mean - radius > 1 if one_sided else np.abs(mean - 1) > radius
    assert int(out[:, 100:].any(axis=1).sum()) <= at_most(ALPHA, 1500)


def test_the_radius_shrinks_and_is_nearly_least_where_it_is_wanted() -> None:
    n = np.array([10, 100, 1000, 10000])
    assert np.all(np.diff(asymptotic_radius(n, 1.0, ALPHA, tightest_at=300)) < 0)
    at = [float(asymptotic_radius(300, 1.0, ALPHA, tightest_at=t)) for t in (30, 300, 3000)]
    assert at[1] == min(at)
    fixed = 1.6449 / math.sqrt(300)
    assert fixed < at[1] < 2 * fixed


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1, math.inf])
def test_what_is_no_score_is_refused_and_changes_nothing(bad: float) -> None:
    test = BettingTest(0.5, ALPHA)
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\]"):
        test.add([0.5, bad])
    assert (test.n, test.log_capital) == (0, 0.0)


def test_settings_that_mean_nothing() -> None:
    for mean in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="mean"):
            BettingTest(mean, ALPHA)
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match="alpha"):
            BettingTest(0.5, alpha)
        with pytest.raises(ValueError, match="alpha"):
            asymptotic_radius(5, 1.0, alpha, tightest_at=5)
    with pytest.raises(ValueError, match="none"):
        betting_lower([], ALPHA)
    with pytest.raises(ValueError, match="at least"):
        asymptotic_radius(0, 1.0, ALPHA, tightest_at=5)
