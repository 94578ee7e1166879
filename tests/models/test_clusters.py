"""Spherical k-means: found groups, invariants, determinism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.models.clusters import Vectors, cluster, default_clusters, nearest


def bundles(sizes: list[int], dimensions: int = 24, spread: float = 0.1, seed: int = 0) -> Vectors:
    """Unit vectors around as many random directions, in the order of `sizes`."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.standard_normal((len(sizes), dimensions)), sizes, axis=0)
    found = centres + spread * rng.standard_normal(centres.shape)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_clusters_are_found_and_numbered_by_size() -> None:
    sizes = [20, 60, 40]
    found = cluster(bundles(sizes), 3)
    assert found.sizes.tolist() == [60, 40, 20]
    assert found.labels.tolist() == [2] * 20 + [0] * 60 + [1] * 40
    np.testing.assert_allclose(np.linalg.norm(found.centres, axis=1), 1, atol=1e-5)


def test_the_sampled_fit_finds_them_too() -> None:
    found = cluster(bundles([900, 600]), 2)  # more than 2 * PER_CLUSTER
    assert found.sizes.tolist() == [900, 600]


def test_equal_input_gives_equal_clusters_and_the_seed_counts() -> None:
    vectors = bundles([30] * 5, spread=1.0)
    first, second = cluster(vectors, 7, seed=3), cluster(vectors, 7, seed=3)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.centres, second.centres)
    assert not np.array_equal(first.labels, cluster(vectors, 7, seed=4).labels)


def test_fewer_distinct_vectors_than_clusters() -> None:
    vectors = np.repeat(bundles([1, 1]), 5, axis=0)
    found = cluster(vectors, 6)
    assert found.sizes.tolist() == [5, 5]
    assert len(cluster(vectors[:0], 6).centres) == 0


def test_bad_k() -> None:
    with pytest.raises(ValueError, match="k:"):
        cluster(bundles([3]), 0)
    assert [default_clusters(n) for n in (1, 50, 20_000, 100_000)] == [1, 5, 100, 224]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_each_vector_is_in_the_cluster_of_its_nearest_centre(count: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = cluster(vectors, k, seed)
    assert found.sizes.min() >= 1
    assert found.sizes.sum() == count
    assert (np.diff(found.sizes) <= 0).all()
    assert len(found.centres) <= min(k, count)
    similarity = vectors @ found.centres.T
    best = nearest(vectors, found.centres)
    np.testing.assert_allclose(best.similarity, similarity.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(best.labels, found.labels)
