"""Agreement and divergence: golden numbers and identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.evaluate.fidelity import (
    STUDENT_FLOOR,
    agreement,
    agreement_scores,
    divergence,
    divergences,
)
from stillhouse.evaluate.metrics import Resampling

HOW = Resampling(0.95, 200, 0)
LABELS = ClassificationTask(kind="classification", labels=("a", "b"))
rows = st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=1, max_size=8)


def normal(raw: list[list[float]]) -> np.ndarray:
    x = np.array(raw)
    return x / x.sum(axis=1, keepdims=True)


def test_known_divergence_in_nats() -> None:
    per_sample = divergences(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75]] * 2))
    assert per_sample[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert per_sample[1] == pytest.approx(math.log(4))
    mean = divergence(np.array([[1.0, 0.0]] * 3), np.array([[0.25, 0.75]] * 3), HOW)
    assert mean.estimate == pytest.approx(math.log(4))
    assert mean.n == 3


@given(rows, st.data())
def test_divergence_is_scipys_and_zero_only_for_equals(
    raw: list[list[float]], data: st.DataObject
) -> None:
    p = normal(raw)
    other = data.draw(
        st.lists(
            st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
            min_size=len(raw),
            max_size=len(raw),
        )
    )
    q = normal(other)
    assert divergences(p, q) == pytest.approx(entropy(p, q, axis=1), abs=1e-6)
    assert divergences(p, p) == pytest.approx(np.zeros(len(p)), abs=1e-8)
    assert (divergences(p, q) >= 0).all()


def test_a_class_the_student_rules_out_costs_no_more_than_the_floor() -> None:
    worst = divergences(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))[0]
    assert worst == pytest.approx(-math.log(STUDENT_FLOOR), abs=1e-6)


def test_agreement_by_kind() -> None:
    assert agreement_scores(LABELS, ["a", "A.", "?"], ["a", "b", "?"]) == [1.0, 0.0, 0.0]
    extraction = ExtractionTask(
        kind="extraction", json_schema={"type": "object", "properties": {"x": {}}}
    )
    assert agreement_scores(extraction, ['{"x": 1}'], ['{"x": 1.0}']) == [1.0]
    generation = GenerationTask(kind="generation")
    assert agreement_scores(generation, ["a b c"], ["a b d"]) == [pytest.approx(2 / 3)]
    whole = agreement(LABELS, ["a"] * 9 + ["b"], ["a"] * 10, HOW)
    assert (whole.estimate, whole.n) == (0.9, 10)


def test_bad_input_raises() -> None:
    good = np.array([[0.5, 0.5]])
    with pytest.raises(ValueError):
        agreement(LABELS, [], [], HOW)
    with pytest.raises(ValueError):
        agreement_scores(LABELS, ["a"], [])
    for p, q in (
        (np.zeros((0, 2)), np.zeros((0, 2))),
        (good, np.array([[0.5, 0.5], [0.5, 0.5]])),
        (good, np.array([[0.5, 0.2]])),
        (np.array([[1.5, -0.5]]), good),
        (np.array([[np.nan, 1.0]]), good),
    ):
        with pytest.raises(ValueError):
            divergences(p, q)
