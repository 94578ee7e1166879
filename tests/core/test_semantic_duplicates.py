"""SemDeDup: against a plain double loop; what is left out has a near one that stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_selection import exact_vectors, unit_vectors

import stillhouse.core.semantic_duplicates as module
from stillhouse.core.semantic_duplicates import Keep, semantic_duplicates


@pytest.mark.parametrize("block", [1, 4, 2048])
@pytest.mark.parametrize("keep", ["atypical", "typical", "first"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_it_agrees_with_a_plain_double_loop(block: int, keep: Keep, data: st.DataObject) -> None:
    vectors = data.draw(exact_vectors())
    count = len(vectors)
    labels = np.array(
        data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), dtype=np.int32
    )
    centres = vectors[[0] * 3]
    threshold = data.draw(st.sampled_from([0.25, 0.5, 0.75, 1.0]))
    kept, module.BLOCK = module.BLOCK, block
    try:
        found = semantic_duplicates(vectors, labels, centres, threshold, keep)
    finally:
        module.BLOCK = kept
    expected: dict[int, set[int]] = {}
    for label in range(3):
        members = [i for i in range(count) if labels[i] == label]
        sign = {"atypical": 1, "typical": -1, "first": 0}[keep]
        members.sort(key=lambda i: sign * float(vectors[i] @ centres[label]))
        staying: list[int] = []
        for i in members:
            near = {j for j in staying if float(vectors[i] @ vectors[j]) >= threshold}
            if near:
                expected[i] = near
            else:
                staying.append(i)
    assert set(found) == set(expected)
    assert all(found[i] in near for i, near in expected.items())


def test_the_rule_says_which_of_a_pair_stays() -> None:
    centre = unit_vectors(1, 8, 0)
    rng = np.random.default_rng(0)
    near = centre + 0.01 * rng.standard_normal((1, 8))
    far = centre + 0.2 * rng.standard_normal((1, 8))
    vectors = np.concatenate([near, far]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.zeros(2, dtype=np.int32)
    assert semantic_duplicates(vectors, labels, centre, 0.5) == {0: 1}
    assert semantic_duplicates(vectors, labels, centre, 0.5, "typical") == {1: 0}
    assert semantic_duplicates(vectors, labels, centre, 0.5, "first") == {1: 0}
    assert semantic_duplicates(vectors, labels, centre, 1.01) == {}
