"""Comparisons as they go: blocks of arms, bounds, and what is needed yet."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.anytime_compare import Comparison, Level, block_sizes, course_nulls
from stillhouse.core.anytime_margin import margin_of

RELATIVE = margin_of("relative", 0.05)


def at_most(p: float, repetitions: int) -> float:
    return p * repetitions + 3.3 * math.sqrt(p * (1 - p) * repetitions)


def pairs(number: int, student: float, teacher: float, seed: int = 0) -> Comparison:
    rng = np.random.default_rng(seed)
    found = Comparison(RELATIVE, "pairs", 0.05, 0.0125)
    for _ in range(number):
        found.pair(float(rng.random() < student), float(rng.random() < teacher))
    return found


def test_nothing_is_known_before_there_is_anything() -> None:
    empty = Comparison(RELATIVE, "pairs", 0.05, 0.0125)
    assert (empty.n, empty.slack, empty.mean("student"), empty.needed().values) == (0,) + (
        None,
    ) * 3
    assert empty.bounds() == (None, None)
    assert not empty.better
    assert not empty.worse


def test_an_equal_student_is_good_enough_and_a_bad_one_is_not() -> None:
    equal, bad = pairs(2500, 0.9, 0.9), pairs(600, 0.6, 0.9)
    assert equal.better
    assert not equal.worse
    assert equal.p_better <= 0.05
    assert bad.worse
    assert not bad.better
    low, high = bad.bounds()
    assert high is not None
    assert high < 0
    assert low is None or low < high
    assert bad.mean("student") == pytest.approx(0.6, abs=4 * math.sqrt(0.24 / 600))


def test_the_course_covers_what_is_true_at_every_look() -> None:
    wrong, repetitions = 0, 60
    truth = RELATIVE.slack(0.88, 0.9)
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        found = Comparison(RELATIVE, "pairs", 0.05, 0.0125)
        for number in range(200):
            teacher = float(rng.random() < 0.9)
            found.pair(teacher * float(rng.random() < 0.88 / 0.9), teacher)
            if number % 30 == 29:
                low, high = found.bounds()
                if (low is not None and low > truth) or (high is not None and high < truth):
                    wrong += 1
                    break
    assert wrong <= at_most(0.0625, repetitions)


@settings(max_examples=50, deadline=None)
@given(
    students=st.integers(0, 10**6),
    teachers=st.integers(0, 10**6),
    planned=st.floats(1e-3, 1e3),
)
def test_a_block_has_one_of_the_fewer(students: int, teachers: int, planned: float) -> None:
    one, other = block_sizes(np.array([students]), np.array([teachers]), planned)
    sizes = int(one[0]), int(other[0])
    assert min(sizes) == 1
    ratio = (teachers + 20 * planned) / (students + 20)
    # never more of a side than come, so that no unit waits for ever
    assert sizes[1] / sizes[0] <= ratio + 1e-6 or sizes[1] == 1
    assert sizes[0] / sizes[1] <= 1 / ratio + 1e-6 or sizes[0] == 1


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.98])
def test_every_unit_of_the_arms_is_used_once(share: float) -> None:
    rng = np.random.default_rng(1)
    found = Comparison(RELATIVE, "arms", 0.05, 0.0125, (1 - share) / share)
    for _ in range(4000):
        treated = rng.random() < share
        found.unit("student" if treated else "teacher", 0.5)
    fewer = min(found.count("student"), found.count("teacher"))
    assert found.count("student") + found.count("teacher") == 4000
    assert 0.9 * fewer - 2 <= found.n <= fewer
    assert found.slack == pytest.approx(RELATIVE.slack(0.5, 0.5))


def test_what_is_needed_is_what_it_takes() -> None:
    """Foreseen after 200 pairs is, as a median, what it then takes within a factor of three: some
    600 more for an equal student."""
    foreseen = [pairs(200, 0.9, 0.9, seed).needed() for seed in range(25)]
    values = [one.values for one in foreseen if one.values is not None and one.verdict == "better"]
    assert len(values) > 12
    assert 600 / 3 < float(np.median(values)) < 600 * 3
    worse = pairs(200, 0.7, 0.9).needed()
    assert worse.verdict == "worse"


def test_a_level_is_that_of_its_scores_in_the_end() -> None:
    rng = np.random.default_rng(2)
    scores = rng.beta(3, 1, 20_000)
    level = Level()
    level.add(len(scores), float(scores.sum()), float((scores**2).sum()))
    assert float(level.mean) == pytest.approx(scores.mean(), abs=1e-3)
    assert float(level.variance) == pytest.approx(scores.var(), abs=1e-3)


@pytest.mark.parametrize("margin", [0.01, 0.05, 0.3, 0.9])
def test_the_course_tries_the_margin_itself(margin: float) -> None:
    for kind in ("relative", "absolute"):
        found = margin_of(kind, margin)  # type: ignore[arg-type]
        nulls = course_nulls(found)
        assert 0.0 in nulls
        assert found.low < nulls.min() < 0 < nulls.max() < found.high
