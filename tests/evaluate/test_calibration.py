"""Expected calibration error against the definition, and its coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.evaluate.calibration import expected_calibration_error, reliability_curve
from stillhouse.evaluate.metrics import Resampling

HOW = Resampling(0.95, 200, 0)


def binary(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two classes, class 0 predicted with the given confidence."""
    return np.column_stack([confidence, 1 - confidence]), np.where(right, 0, 1)


def naive_ece(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    total = 0.0
    for k in range(bins):
        inside = [
            i for i, c in enumerate(confidence) if k / bins + 1e-12 < c <= (k + 1) / bins + 1e-12
        ]
        if inside:
            gap = np.mean([right[i] for i in inside]) - np.mean([confidence[i] for i in inside])
            total += len(inside) / len(confidence) * abs(gap)
    return total


@given(st.lists(st.tuples(st.floats(0.51, 1.0), st.booleans()), min_size=1, max_size=50))
def test_ece_equals_the_definition(items: list[tuple[float, bool]]) -> None:
    confidence, right = (np.array(column) for column in zip(*items, strict=True))
    p, truth = binary(confidence, right)
    interval = expected_calibration_error(p, truth, HOW._replace(resamples=100))
    assert interval.estimate == pytest.approx(naive_ece(confidence, right, 15), abs=1e-9)
    assert 0 <= interval.low <= interval.estimate <= interval.high


def test_known_values() -> None:
    p, truth = binary(np.full(10, 0.9), np.array([True] * 9 + [False]))
    assert expected_calibration_error(p, truth, HOW).estimate == pytest.approx(0.0)
    p, truth = binary(np.full(10, 0.9), np.array([True] * 5 + [False] * 5))
    assert expected_calibration_error(p, truth, HOW).estimate == pytest.approx(0.4)


def test_coverage_of_a_miscalibrated_model() -> None:
    """Says 0.9, is right 75%: ECE 0.15, and the interval holds it as often as it says."""
    rng = np.random.default_rng(2)
    trials, hits = 200, 0
    for _ in range(trials):
        p, truth = binary(np.full(300, 0.9), rng.random(300) < 0.75)
        interval = expected_calibration_error(p, truth, HOW)
        hits += interval.low <= 0.15 <= interval.high
    assert hits / trials > 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials) - 0.01


def test_the_curve_holds_every_sample_once() -> None:
    rng = np.random.default_rng(1)
    p, truth = binary(rng.uniform(0.5, 1, 400), rng.random(400) < 0.8)
    curve = reliability_curve(p, truth)
    assert sum(b.n for b in curve) == 400
    assert all(b.low < b.confidence <= b.high for b in curve)
    ece = sum(b.n / 400 * abs(b.accuracy - b.confidence) for b in curve)
    assert ece == pytest.approx(expected_calibration_error(p, truth, HOW).estimate)


@pytest.mark.parametrize(
    "p", [np.zeros((0, 2)), np.array([[0.5, 0.2]]), np.array([[np.nan, 1]]), np.array([0.5])]
)
def test_bad_input_raises(p: np.ndarray) -> None:
    with pytest.raises(ValueError):
        expected_calibration_error(p, np.zeros(len(p), dtype=np.int64), HOW)
