"""Tests on a training's course: how often they speak of nothing, and that they see what is there.

A rate of false alarms is judged by its binomial: more than its 99.9% point in RUNS is no chance.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from stillhouse.train.detect import Blocks, copied, gap, grew, rises

LEVEL = 0.05
RUNS = 300
MOST = binom.ppf(0.999, RUNS, LEVEL)


def blocks(values: np.ndarray) -> Blocks:
    return Blocks(values, np.ones(len(values)))


def test_a_ratio_has_the_error_of_its_mean_where_blocks_are_items() -> None:
    values = np.random.default_rng(0).exponential(1.0, 50)
    found = blocks(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / np.sqrt(50))


@pytest.mark.parametrize("rows", [8, 15, 40])
def test_a_loss_that_has_settled_is_seldom_said_to_rise(rows: int) -> None:
    draw = np.random.default_rng(1)
    alarms = sum(rises(draw.gamma(4.0, 1.0, rows).tolist()) <= LEVEL for _ in range(RUNS))
    assert alarms <= MOST


def test_a_loss_that_falls_never_rises_and_one_that_rises_late_does() -> None:
    draw = np.random.default_rng(2)
    fall = 2 / np.arange(1, 31) + draw.normal(0, 0.01, 30)
    assert rises(fall.tolist()) > LEVEL
    torn = np.concatenate([np.linspace(1, 0.2, 15), np.linspace(0.2, 3, 15)])
    assert rises((torn + draw.normal(0, 0.02, 30)).tolist()) <= 0.01
    assert rises([1.0, 2.0]) == 1.0
    assert rises([1.0] * 10) == 1.0


def test_a_divergence_that_stands_still_is_seldom_said_to_grow() -> None:
    """Six looks at 80 items of exponential divergence, shared and own noise; then a growth."""
    draw = np.random.default_rng(3)
    alarms = seen = 0
    for _ in range(RUNS):
        items = draw.exponential(0.3, 80)
        looks = [items * draw.gamma(9.0, 1 / 9, 80) for _ in range(6)]
        found = grew([blocks(look) for look in looks])
        assert found is not None
        alarms += found.p_value <= LEVEL
        looks[-1] = looks[-1] + 0.1
        grown = grew([blocks(look) for look in looks])
        assert grown is not None
        seen += grown.p_value <= LEVEL
    assert alarms <= MOST
    assert seen > 0.9 * RUNS
    assert grew([blocks(np.ones(80))]) is None
    assert grew([blocks(np.ones(7))] * 2) is None


def answers(
    draw: np.random.Generator, right: float, copy: float, truth: np.ndarray, wrong: np.ndarray
) -> np.ndarray:
    """Answers of a student to items of 2 classes: right with one chance where the teacher is right,
    and its wrong answer with another where it is wrong."""
    chance = np.where(wrong, 1 - copy, right)
    return np.where(draw.random(len(truth)) < chance, truth, 1 - truth)


@pytest.mark.parametrize(
    ("right", "copy"),
    [((0.9, 0.9), (0.5, 0.5)), ((0.95, 0.85), (0.5, 0.5)), ((0.85, 0.93), (0.3, 0.6))],
    ids=["nothing moves", "only accuracy falls", "only copying rises"],
)
def test_copying_is_seldom_seen_where_it_is_not(
    right: tuple[float, float], copy: tuple[float, float]
) -> None:
    draw = np.random.default_rng(4)
    alarms = 0
    for _ in range(RUNS):
        truth = draw.integers(0, 2, 300)
        wrong = draw.random(300) < 0.2
        teacher = np.where(wrong, 1 - truth, truth)
        first = [answers(draw, right[0], copy[0], truth, wrong) for _ in range(4)]
        last = answers(draw, right[1], copy[1], truth, wrong)
        found = copied(np.array([*first, last]), teacher, truth)
        assert found is not None
        alarms += found.p_value <= LEVEL
    assert alarms <= MOST


def test_copying_is_seen_where_it_is() -> None:
    draw = np.random.default_rng(5)
    truth = draw.integers(0, 2, 400)
    wrong = draw.random(400) < 0.3
    teacher = np.where(wrong, 1 - truth, truth)
    looks = [answers(draw, 0.9, copy, truth, wrong) for copy in (0.5, 0.3, 0.6, 0.95)]
    found = copied(np.array(looks), teacher, truth)
    assert found is not None
    assert (found.look, found.wrong) == (1, int(wrong.sum()))
    assert found.accuracy[1] < found.accuracy[0]
    assert found.copied[1] > found.copied[0]
    assert found.p_value < 1e-4
    assert copied(np.array(looks), truth, truth) is None


def test_mcnemar_is_scipys() -> None:
    before = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    after = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0])
    truth, teacher = np.zeros(12, dtype=int), np.ones(12, dtype=int)
    found = copied(np.array([before, after]), teacher, truth)
    assert found is not None
    assert found.p_value == pytest.approx(binomtest(5, 6, 0.5, alternative="greater").pvalue)


def test_a_gap_is_seldom_seen_between_equal_sets() -> None:
    draw = np.random.default_rng(6)
    alarms = seen = 0
    for _ in range(RUNS):
        one, other = (draw.random(size) < 0.85 for size in (300, 150))
        found = gap(blocks(one * 1.0), blocks(other * 1.0), LEVEL)
        assert found is not None
        alarms += found.low > 0
        wide = gap(blocks((draw.random(300) < 0.99) * 1.0), blocks(other * 1.0), LEVEL)
        assert wide is not None
        seen += wide.low > 0
    assert alarms <= MOST
    assert seen > 0.95 * RUNS
    assert gap(blocks(np.ones(7)), blocks(np.ones(20)), LEVEL) is None
    equal = gap(blocks(np.ones(20)), blocks(np.ones(20)), LEVEL)
    assert equal is not None
    assert equal.low == equal.high == 0
