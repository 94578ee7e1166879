"""Macro F1 and confusion counts against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from stillhouse.evaluate.metrics import (
    Resampling,
    confusion,
    label_indices,
    macro_f1,
    macro_f1_of,
)

HOW = Resampling(0.95, 100, 0)
pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@given(pairs)
def test_macro_f1_equals_scikit_learn(items: list[tuple[int, int]]) -> None:
    truth, said = (np.array(column) for column in zip(*items, strict=True))
    theirs = f1_score(truth, said, average="macro", zero_division=0)
    assert macro_f1_of(confusion(truth, said, 4)) == pytest.approx(theirs)


def test_an_answer_without_a_label_is_a_miss_and_no_false_alarm() -> None:
    truth, said = np.array([0, 0, 1]), np.array([0, -1, 1])
    table = confusion(truth, said, 2)
    assert table.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert macro_f1_of(table) == pytest.approx((2 / 3 + 1) / 2)


def test_macro_f1_has_an_interval_around_it() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 200)
    said = np.where(rng.random(200) < 0.8, truth, rng.integers(0, 3, 200))
    interval = macro_f1(truth, said, 3, HOW)
    assert interval.n == 200
    assert 0.7 < interval.low < interval.estimate < interval.high < 0.95
    perfect = macro_f1(truth, truth, 3, HOW)
    assert (perfect.low, perfect.estimate) == (1.0, 1.0)


def test_labels_become_indices() -> None:
    assert label_indices(("a", "b"), ["b", None, "a", "c"]).tolist() == [1, -1, 0, -1]


def test_bad_input_raises() -> None:
    empty = np.array([], dtype=np.int64)
    with pytest.raises(ValueError, match="at least 1"):
        macro_f1(empty, empty, 2, HOW)
    with pytest.raises(ValueError, match="one length"):
        confusion(np.array([0]), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="one of the labels"):
        confusion(np.array([-1]), np.array([0]), 2)
