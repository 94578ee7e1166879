"""Prediction intervals: their coverage by simulation, and the arithmetic by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.teacher.estimate import Estimate, Rest
from stillhouse.teacher.extrapolation import accepted_of_rest, total_of_rest

TRIALS = 300


def least_hits(trials: int, coverage: float) -> float:
    """So many hits at least, but in one of 10,000 test runs (normal bound on a binomial)."""
    return trials * coverage - 3.72 * math.sqrt(trials * coverage * (1 - coverage))


@pytest.mark.parametrize(
    ("n", "total", "nominal"),
    [
        (20, 2000, 0.95),
        (50, 100, 0.95),  # the rest is as large as the sample: its own spread counts
        (100, 5000, 0.95),
        (20, 2000, 0.80),
    ],
)
def test_the_total_of_the_rest_lies_in_its_interval(n: int, total: int, nominal: float) -> None:
    """Token counts in proportion to bytes with noise: gamma, a coefficient of variation of 0.5."""
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(TRIALS):
        sizes = rng.gamma(4.0, 100.0, size=total) + 1
        values = sizes / 4 * rng.gamma(16.0, 1 / 16, size=total) + rng.gamma(4.0, 5.0, size=total)
        found = total_of_rest(
            values[:n],
            sizes[:n],
            Rest(total - n, float(sizes[n:].sum())),
            confidence=nominal,
            seed=trial,
        )
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= values[n:].sum() <= found.high
    # 2 points below nominal are granted: the bootstrap of a skewed sample is a little short.
    assert hits >= least_hits(TRIALS, nominal - 0.02)
    assert hits <= TRIALS * nominal + 3.72 * math.sqrt(TRIALS * nominal * (1 - nominal)) + 6


LARGE = ((0.9, 30, 1000), (0.99, 50, 500))


@pytest.mark.parametrize(
    ("share", "n", "rest"),
    [(0.5, 20, 20), *(pytest.param(*one, marks=pytest.mark.full) for one in LARGE)],
)
def test_the_accepted_of_the_rest_lie_in_their_interval(share: float, n: int, rest: int) -> None:
    rng = np.random.default_rng(3)
    trials = 800
    hits = 0
    for _ in range(trials):
        accepted = int(rng.binomial(n, share))
        found = accepted_of_rest(accepted, n, rest, confidence=0.95)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= rng.binomial(rest, share) <= found.high
    # Jeffreys' interval dips below nominal near 0 and 1 (Brown, Cai, DasGupta 2001): 4 points.
    assert hits >= least_hits(trials, 0.91)


def test_a_known_ratio_has_no_width() -> None:
    found = total_of_rest(
        [1.0, 2.0, 3.0], [4.0, 8.0, 12.0], Rest(10, 400.0), confidence=0.9, seed=0
    )
    assert (found.estimate, found.low, found.high) == pytest.approx((100.0, 100.0, 100.0))
    assert found.n == 3


def test_nothing_left_costs_nothing() -> None:
    none = total_of_rest([1.0, 2.0], [1.0, 1.0], Rest(0, 0.0), confidence=0.9, seed=0)
    assert (none.estimate, none.low, none.high) == (0, 0, 0)
    assert accepted_of_rest(1, 2, 0, confidence=0.9).high == 0


@pytest.mark.parametrize("values", [[], [1.0]])
def test_too_small_a_sample_is_an_error(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        total_of_rest(values, values, Rest(1, 1.0), confidence=0.9, seed=0)
    with pytest.raises(ValueError, match="at least one"):
        accepted_of_rest(0, 0, 1, confidence=0.9)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(1, 1e6)), min_size=2, max_size=12),
    st.integers(0, 10_000),
)
def test_ends_are_in_order_and_not_negative(pairs: list[tuple[float, float]], rest: int) -> None:
    found = total_of_rest(
        [v for v, _ in pairs], [s for _, s in pairs], Rest(rest, rest * 7.0), confidence=0.9, seed=1
    )
    assert found.low is not None
    assert found.estimate is not None
    assert found.high is not None
    assert 0 <= found.low <= found.estimate <= found.high


def test_another_unit() -> None:
    hours = Estimate(estimate=7200.0, high=10_800.0, basis="bound").times(1 / 3600)
    assert (hours.estimate, hours.low, hours.high) == (2.0, None, 3.0)
