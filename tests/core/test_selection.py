"""Farthest points: exactly the plain greedy choice, within its bound, quotas kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_selection import best_radius, exact_vectors, farthest_points, radius, unit_vectors

import stillhouse.core.selection as module
from stillhouse.core.selection import Strata, best_similarity, k_center, quotas

SHARED = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("block", [1, 3, 1024])
@SHARED
@given(data=st.data())
def test_lazy_is_exactly_plain(block: int, data: st.DataObject) -> None:
    vectors = data.draw(exact_vectors())
    start = data.draw(st.none() | exact_vectors(most=3))
    n = data.draw(st.integers(0, len(vectors)))
    kept, module.BLOCK = module.BLOCK, block
    try:
        found = k_center(vectors, n, start=start, seed=data.draw(st.integers(0, 3)))
    finally:
        module.BLOCK = kept
    first = int(found.chosen[0]) if n else 0
    assert found.chosen.tolist() == farthest_points(vectors, n, first, start)
    assert len(set(found.chosen.tolist())) == n
    assert (np.diff(found.gains[1:]) <= 0).all()


@pytest.mark.parametrize("block", [1, 3, 1024])
@SHARED
@given(data=st.data())
def test_with_quotas_it_is_exactly_plain_too(block: int, data: st.DataObject) -> None:
    vectors = data.draw(exact_vectors())
    count = len(vectors)
    groups = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), dtype=np.int32
    )
    sizes = np.bincount(groups, minlength=4)
    floor = data.draw(st.integers(0, 2))
    n = data.draw(st.integers(int(np.minimum(sizes, floor).sum()), count))
    wanted = quotas(sizes, n, floor)
    kept, module.BLOCK = module.BLOCK, block
    try:
        found = k_center(vectors, n, strata=Strata(groups, wanted), seed=1)
    finally:
        module.BLOCK = kept
    first = int(found.chosen[0]) if n else 0
    plain = farthest_points(vectors, n, first, groups=groups.tolist(), quotas=wanted.tolist())
    assert found.chosen.tolist() == plain
    assert np.bincount(groups[found.chosen], minlength=4).tolist() == wanted.tolist()


def test_gains_are_the_distances_and_the_next_one_is_the_radius() -> None:
    vectors = unit_vectors(60, 8, 0)
    chosen, gains = k_center(vectors, 20)
    assert gains[0] == np.inf
    for step in range(1, 20):
        assert gains[step] == pytest.approx(radius(vectors, chosen[:step].tolist()), abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(3, 8))
def test_the_radius_is_at_most_twice_the_best(seed: int, n: int, count: int) -> None:
    vectors = unit_vectors(count, 3, seed)
    chosen = k_center(vectors, n, seed=seed).chosen.tolist()
    assert radius(vectors, chosen) <= 2 * best_radius(vectors, n) + 1e-5


def test_the_seed_draws_the_first_and_equal_seeds_choose_alike() -> None:
    vectors = unit_vectors(200, 8, 1)
    firsts = {int(k_center(vectors, 5, seed=seed).chosen[0]) for seed in range(10)}
    assert len(firsts) > 3
    np.testing.assert_array_equal(
        k_center(vectors, 50, seed=2).chosen, k_center(vectors, 50, seed=2).chosen
    )


def test_pyversity_chooses_the_same_points() -> None:
    # With no relevance, maximal marginal relevance takes the point least like its nearest chosen.
    # It counts cosines below 0 as 0, so there are none here.
    pyversity = pytest.importorskip("pyversity", reason="needs pyversity, of the dev extra")
    vectors = np.abs(unit_vectors(300, 16, 2))
    ours = k_center(vectors, 60, start=vectors[:1])
    theirs = pyversity.diversify(
        vectors, np.zeros(300), 61, strategy=pyversity.Strategy.MMR, diversity=1.0
    )
    assert theirs.indices[0] == 0
    assert ours.chosen.tolist() == theirs.indices[1:].tolist()


@SHARED
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 6), st.integers(0, 300)
)
def test_quotas_add_up_and_keep_the_floor(sizes: list[int], floor: int, wanted: int) -> None:
    held = np.array(sizes, dtype=np.int64)
    least = np.minimum(held, floor)
    n = min(max(wanted, int(least.sum())), int(held.sum()))
    found = quotas(held, n, floor)
    assert found.sum() == n
    assert (found <= held).all()
    assert (found >= least).all()
    above = found > least  # these are in proportion, to within the rounding
    if above.any():
        low = ((found[above] - 1) / held[above]).max()
        high = ((found[above] + 1) / held[above]).min()
        assert low <= high + 1e-9  # one rate fits all of them


def test_quotas_without_a_floor_are_proportional() -> None:
    assert quotas(np.array([600, 300, 100]), 10).tolist() == [6, 3, 1]
    assert quotas(np.array([980, 15, 5]), 20, floor=2).tolist() == [16, 2, 2]
    with pytest.raises(ValueError, match="floor: 3"):
        quotas(np.array([9, 9, 9]), 8, floor=3)
    with pytest.raises(ValueError, match="n: 4"):
        quotas(np.array([3]), 4)


def test_wrong_sizes_are_refused() -> None:
    vectors = unit_vectors(4, 3, 0)
    with pytest.raises(ValueError, match="n:"):
        k_center(vectors, 5)
    strata = Strata(np.zeros(4, dtype=np.int32), np.array([1], dtype=np.int64))
    with pytest.raises(ValueError, match="quotas:"):
        k_center(vectors, 2, strata=strata)


def test_best_similarity_over_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", 7)
    vectors, others = unit_vectors(20, 5, 0), unit_vectors(30, 5, 1)
    np.testing.assert_allclose(
        best_similarity(vectors, others), (vectors @ others.T).max(axis=1), atol=1e-6
    )
