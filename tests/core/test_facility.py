"""Facility location: exactly the plain greedy choice on the whole graph, within its bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_selection import (
    Matrix,
    best_served,
    exact_vectors,
    greedy_facility,
    served,
    unit_vectors,
)
from scipy import sparse

from stillhouse.core.facility import facility_location, neighbour_graph
from stillhouse.core.selection import Strata, quotas


def whole_graph(vectors: Matrix) -> sparse.csr_matrix:
    labels = np.zeros(len(vectors), dtype=np.int32)
    return neighbour_graph(vectors, labels, vectors[:1], neighbours=len(vectors))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_lazy_is_exactly_plain(data: st.DataObject) -> None:
    vectors = data.draw(exact_vectors(most=14))
    start = data.draw(st.none() | exact_vectors(most=2))
    n = data.draw(st.integers(0, len(vectors)))
    found = facility_location(vectors, n, whole_graph(vectors), start=start)
    assert found.chosen.tolist() == greedy_facility(vectors, n, start)
    assert (np.diff(found.gains) <= 0).all()
    before = 0.0 if start is None else served(vectors, [], start)
    assert found.gains.sum() + before == served(vectors, found.chosen.tolist(), start)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_with_quotas_it_is_exactly_plain_too(data: st.DataObject) -> None:
    vectors = data.draw(exact_vectors(most=12))
    count = len(vectors)
    groups = np.array(
        data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), dtype=np.int32
    )
    n = data.draw(st.integers(0, count))
    wanted = quotas(np.bincount(groups, minlength=3), n)
    found = facility_location(vectors, n, whole_graph(vectors), strata=Strata(groups, wanted))
    plain = greedy_facility(vectors, n, groups=groups.tolist(), quotas=wanted.tolist())
    assert found.chosen.tolist() == plain


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(3, 8))
def test_greedy_serves_at_least_63_percent_of_the_best(seed: int, n: int, count: int) -> None:
    vectors = unit_vectors(count, 3, seed)
    chosen = facility_location(vectors, n, whole_graph(vectors)).chosen.tolist()
    assert served(vectors, chosen) >= (1 - 1 / math.e) * best_served(vectors, n) - 1e-5


def test_the_graph_holds_the_nearest_of_the_clusters_searched() -> None:
    vectors = unit_vectors(90, 6, 0)
    labels = (np.arange(90) % 3).astype(np.int32)
    centres = unit_vectors(3, 6, 1)
    graph = neighbour_graph(vectors, labels, centres, neighbours=5, probes=2).toarray()
    near = np.argsort(-(centres @ centres.T), axis=1, kind="stable")[:, :2]
    for i in range(90):
        searched = np.flatnonzero(np.isin(labels, [labels[i], *near[labels[i]]]))
        cosines = vectors[searched] @ vectors[i]
        best = searched[np.argsort(-cosines, kind="stable")[:5]]
        expected = {int(j) for j in best if vectors[j] @ vectors[i] > 0}
        assert set(np.flatnonzero(graph[i]).tolist()) == expected
        assert graph[i, i] == 1.0


def test_a_sparse_graph_serves_nearly_as_well_as_the_whole() -> None:
    vectors = unit_vectors(300, 6, 3)
    labels = np.zeros(300, dtype=np.int32)
    sparse_graph = neighbour_graph(vectors, labels, vectors[:1], neighbours=32)
    whole = facility_location(vectors, 30, whole_graph(vectors)).chosen.tolist()
    thin = facility_location(vectors, 30, sparse_graph).chosen.tolist()
    assert served(vectors, thin) >= 0.97 * served(vectors, whole)


def test_wrong_sizes_are_refused() -> None:
    vectors = unit_vectors(4, 3, 0)
    with pytest.raises(ValueError, match="n:"):
        facility_location(vectors, 5, whole_graph(vectors))
