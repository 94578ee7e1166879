"""Holm by its definition, paired tests by enumeration, the family's error rate by simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.multiplicity import holm, paired_test
from stillhouse.core.statistics import mcnemar_exact


@given(st.lists(st.floats(0, 1), max_size=8), st.sampled_from([0.01, 0.05, 0.2, 0.5]))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float], alpha: float) -> None:
    rejected: set[int] = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - step) * p_values[index] > alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_holm_of_a_known_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    with pytest.raises(ValueError, match="p-values"):
        holm([1.2])


def test_binary_scores_take_mcnemars_exact_test() -> None:
    a, b = [1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]
    found = paired_test(a, b)
    assert found == (mcnemar_exact(a, b).p_value, "mcnemar")


def test_the_sign_flip_test_is_the_enumeration() -> None:
    a = np.array([0.9, 0.4, 0.7, 0.6, 0.8, 0.1, 0.5, 0.3])
    b = np.array([0.5, 0.5, 0.2, 0.3, 0.3, 0.2, 0.1, 0.3])
    d = (a - b)[a != b]
    sums = [abs(float(np.dot(signs, d))) for signs in product((-1, 1), repeat=len(d))]
    exact = float(np.mean([s >= abs(d.sum()) - 1e-12 for s in sums]))
    found = paired_test(a, b)
    assert found.method == "sign_flip"
    # 9,999 draws: four standard errors of the share.
    assert found.p_value == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 9999) ** 0.5 + 1e-4)


def test_groups_are_flipped_whole() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, 12)
    a, b = np.repeat(base, 10), np.repeat(1 - base, 10)
    groups = np.repeat(np.arange(12), 10).tolist()
    assert paired_test(a, b, groups=groups).p_value > 0.05
    assert paired_test(a, a, groups=groups).p_value == 1.0


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        paired_test([1.0], [])
    with pytest.raises(ValueError, match="finite"):
        paired_test([float("nan")], [0.5])


def test_the_family_of_equal_teachers_is_rarely_told_apart() -> None:
    """Four equal teachers, correlated errors: a false verdict among all six pairs in at most 5%.

    Of 400 families, at most 5% + 3 standard errors = 8.3% may hold one.
    """
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(400):
        hard = rng.random(150) < 0.3
        scores = [np.where(hard, rng.random(150) < 0.5, rng.random(150) < 0.95) for _ in range(4)]
        pairs = [(i, j) for i in range(4) for j in range(i)]
        p_values = [paired_test(scores[i], scores[j]).p_value for i, j in pairs]
        false += min(holm(p_values)) <= 0.05
    assert false / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
