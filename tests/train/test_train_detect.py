"""Tests on a training's course: how often they speak of nothing, and that they see what is there.

A rate of false alarms is judged by its binomial: more than its 99.9% point in RUNS is no chance.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from stillhouse.train.detect import Blocks, copied, fewest, gap, grew, informed, rises

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


def test_a_trend_needs_as_many_values_as_can_tell_it_from_chance() -> None:
    least = fewest(0.01)
    assert least == 6
    assert rises([float(k) for k in range(least)]) <= 0.01
    assert rises([float(k) for k in range(least - 1)]) > 0.01


def _answers(
    draw: np.random.Generator, count: int, majority: float, right: float, classes: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """A teacher whose first answer has the share `majority`, and a student that gives each of its
    answers with probability `right`, else another."""
    rest = (1 - majority) / (classes - 1)
    teacher = draw.choice(classes, count, p=[majority, *[rest] * (classes - 1)])
    other = (teacher + draw.integers(1, classes, count)) % classes
    return np.where(draw.random(count) < right, teacher, other), teacher


@pytest.mark.parametrize("majority", [0.5, 0.8, 0.9, 0.98])
@pytest.mark.parametrize("count", [50, 200, 1000])
def test_bounds_of_what_was_learned_hold_under_imbalance(majority: float, count: int) -> None:
    """Of a student that learned nothing (its answers are drawn without a look at the item), and of
    one that gives 80% of each answer."""
    draw = np.random.default_rng(17)
    above = below = 0
    for _ in range(RUNS):
        _, teacher = _answers(draw, count, majority, 1.0)
        nothing = informed(_answers(draw, count, majority, 1.0)[1], teacher, LEVEL)
        good = informed(*_answers(draw, count, majority, 0.8), LEVEL)
        above += nothing is not None and nothing.low > 0
        below += good is not None and good.high < 0.6
    assert above <= MOST
    assert below <= MOST


def test_what_was_learned_is_told_class_by_class() -> None:
    teacher = np.array([0] * 97 + [1] * 3)
    one = informed(np.zeros(100, dtype=np.int64), teacher, 0.01)
    same = informed(teacher, teacher, 0.01)
    assert one is not None
    assert same is not None
    assert one.difference == pytest.approx(0.0)
    assert same.difference == pytest.approx(1.0)
    assert informed(teacher, np.where(teacher == 1, -1, 0), 0.01) is None
