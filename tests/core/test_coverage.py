"""Coverage against its definition; the error rate of its intervals by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from plain_selection import Matrix, unit_vectors
from scipy.stats import binom

from stillhouse.core.coverage import coverage, distances, spread
from stillhouse.core.selection import k_center


def skewed(count: int, seed: int = 0) -> Matrix:
    """Four in five around one direction, the rest spread over thirty: traffic with a long tail."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((31, 16))
    label = np.where(rng.random(count) < 0.8, 0, rng.integers(1, 31, size=count))
    found = centres[label] + 0.4 * rng.standard_normal((count, 16))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_distances_and_their_spread() -> None:
    vectors = unit_vectors(40, 5, 0)
    chosen = vectors[:7]
    x = vectors.astype(np.float64)
    plain = [min(1 - float(row @ c) for c in x[:7]) for row in x]
    found = distances(vectors, chosen)
    np.testing.assert_allclose(found, np.maximum(plain, 0), atol=1e-6)
    assert spread(found).mean == pytest.approx(np.mean(plain), abs=1e-6)
    assert spread(found).largest == pytest.approx(max(plain), abs=1e-6)
    with pytest.raises(ValueError, match="none"):
        spread(found[:0])


def test_farthest_points_cover_a_long_tail_better_than_random() -> None:
    vectors = skewed(1500)
    found = coverage(vectors, k_center(vectors, 100).chosen, measured=500)
    assert found.gain_p95.low > 0.25
    assert found.chosen.largest < found.random.largest
    assert (found.n, found.measured, found.draws) == (100, 500, 20)
    assert found.as_json()["gain_p95"] == found.gain_p95.to_json()


def test_the_whole_traffic_is_covered_whole() -> None:
    vectors = unit_vectors(30, 4, 0)
    found = coverage(vectors, np.arange(30))
    assert found.chosen.mean == pytest.approx(0, abs=1e-6)
    assert abs(found.gain_mean.estimate) <= 1
    with pytest.raises(ValueError, match="chosen"):
        coverage(vectors, np.arange(0))


def test_what_is_there_in_any_case_counts_for_both() -> None:
    vectors = unit_vectors(50, 4, 0)
    found = coverage(vectors, np.arange(3), start=vectors)
    assert found.chosen.mean == pytest.approx(0, abs=1e-6)
    assert found.random.mean == pytest.approx(0, abs=1e-6)


@pytest.mark.full
def test_the_intervals_miss_the_true_gain_no_more_than_twice_as_often_as_they_say() -> None:
    # The truth: every vector measured, a thousand random sets. A percentile bootstrap over twenty
    # sets is a little short of its level; with a miss rate of 2 * 5% at most, more than `bound`
    # misses of 40 have a chance below 1e-4.
    vectors = skewed(400)
    chosen = k_center(vectors, 40).chosen
    truth = coverage(vectors, chosen, measured=400, draws=1000, seed=999).gain_mean.estimate
    misses = 0
    for seed in range(40):
        gain = coverage(vectors, chosen, measured=150, seed=seed).gain_mean
        misses += not gain.low <= truth <= gain.high
    assert misses <= binom.isf(1e-4, 40, 0.10)
