"""Forgetting and transfer against a naive reading of the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from stillhouse.retrain.forgetting import best_before, transfer


def naive(matrix: np.ndarray) -> tuple[float, float]:
    """F_t and BWT of a full lower-triangular matrix, straight from the papers."""
    t = len(matrix) - 1
    forgetting = [max(matrix[i][j] for i in range(j, t)) - matrix[t][j] for j in range(t)]
    backward = [matrix[t][j] - matrix[j][j] for j in range(t)]
    return float(np.mean(forgetting)), float(np.mean(backward))


@pytest.mark.parametrize("size", [2, 3, 7, 10])
def test_both_measures_are_those_of_the_papers(size: int) -> None:
    matrix = np.random.default_rng(size).uniform(0.5, 1.0, (size, size))
    names = [f"{n:04d}" for n in range(size)]
    rows = [{names[j]: float(matrix[i][j]) for j in range(i + 1)} for i in range(size)]
    found = transfer(names, rows)
    forgetting, backward = naive(matrix)
    assert found.average_forgetting == pytest.approx(forgetting)
    assert found.backward_transfer == pytest.approx(backward)
    assert found.worst is not None
    assert found.worst[1] >= forgetting


def test_one_window_has_no_past() -> None:
    assert transfer(["0001"], [{"0001": 0.9}]) == (None, None, None)


def test_a_student_that_stays_forgets_nothing() -> None:
    rows = [{"a": 0.9}, {"a": 0.9, "b": 0.8}, {"a": 0.9, "b": 0.8, "c": 0.7}]
    found = transfer(["a", "b", "c"], rows)
    assert found.average_forgetting == 0
    assert found.backward_transfer == 0


def test_what_was_not_measured_is_left_out() -> None:
    rows = [{}, {"b": 0.9}, {"a": 0.5, "b": 0.7, "c": 0.7}]
    found = transfer(["a", "b", "c"], rows)
    assert found.average_forgetting == pytest.approx(0.2)
    assert found.worst == ("b", pytest.approx(0.2))
    with pytest.raises(ValueError, match="one each"):
        transfer(["a"], [])


def test_the_best_row_of_a_window_is_the_latest_of_equals() -> None:
    rows = [{"a": 0.9}, {"a": 0.9, "b": 0.1}, {"a": 0.8}]
    assert best_before("a", rows) == 1
    assert best_before("b", rows) == 1
    assert best_before("c", rows) is None
