"""The gate: what passes, what fails, in which words; and its error rates by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from stillhouse.evaluate.metrics import Resampling
from stillhouse.retrain.verdict import Check, Compared, Margins, gate, in_words

HOW = Resampling(0.95, 200, 0)
MARGINS = Margins(teacher=0.05, incumbent=0.02, most_forgotten=0.02)


def scores(right: int, n: int) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


def checked(
    candidate: list[float], incumbent: list[float], *earlier: tuple[list[float], list[float]]
) -> dict[str, Check]:
    found = gate(
        Compared("0009", candidate, [1.0] * len(candidate)),
        Compared("0009", candidate, incumbent),
        [Compared(f"{n:04d}", a, b) for n, (a, b) in enumerate(earlier, start=1)],
        MARGINS,
        HOW,
    )
    return {check.against + check.window: check for check in found}


def test_a_better_student_passes_all() -> None:
    found = checked(scores(196, 200), scores(160, 200), (scores(198, 200), scores(195, 200)))
    assert all(check.passed for check in found.values())
    assert in_words(tuple(found.values())).startswith("passed: teacher, window 0009: student minus")


def test_a_student_too_far_from_the_teacher_is_told_so() -> None:
    found = checked(scores(180, 200), scores(150, 200))
    assert not found["teacher0009"].passed
    assert found["incumbent0009"].passed
    assert "-10.0 points" in in_words(tuple(found.values()))
    assert "is not above the margin of -5" in in_words(tuple(found.values()))


def test_a_student_worse_than_the_live_one_is_told_so() -> None:
    found = checked(scores(190, 200), scores(199, 200))
    assert not found["incumbent0009"].passed
    assert "candidate minus live is -4.5 points" in found["incumbent0009"].said


def test_forgetting_needs_a_loss_that_is_no_chance() -> None:
    little = (scores(196, 200), scores(200, 200))  # 2 points: within
    lost = (scores(170, 200), scores(198, 200))  # 14 points
    noise = [1.0, 0.0] * 3 + [1.0] * 34, [0.0, 1.0] * 2 + [1.0] * 36  # 2.5 points of 40: chance
    found = checked(scores(199, 200), scores(199, 200), little, lost, noise)
    assert found["window0001"].passed
    assert not found["window0002"].passed
    assert "it has forgotten more than 2 points" in found["window0002"].said
    assert found["window0003"].passed
    assert "but within chance" in found["window0003"].said
    words = in_words(tuple(found.values()))
    assert words.startswith("refused: earlier window 0002: -14.0 points")


def test_without_an_incumbent_only_the_teacher_is_asked() -> None:
    found = gate(Compared("0001", scores(99, 100), [1.0] * 100), None, [], MARGINS, HOW)
    assert [check.against for check in found] == ["teacher"]


def _refused_for_forgetting(
    rng: np.random.Generator, before: float, after: float, *, overlap: float
) -> bool:
    """Whether a student of accuracy `after` is refused beside one of `before`, on any of nine
    windows of 200. A share of the samples is answered alike by both.
    """
    pairs, n = [], 200
    for window in range(9):
        old = (rng.random(n) < before).astype(float)
        fresh = (rng.random(n) < after).astype(float)
        new = np.where(rng.random(n) < overlap, old, fresh) if after == before else fresh
        pairs.append(Compared(f"{window:04d}", new.tolist(), old.tolist()))
    whole = scores(n, n)
    found = gate(Compared("x", whole, whole), None, pairs, MARGINS, HOW)
    return any(not check.passed for check in found)


@pytest.mark.parametrize("overlap", [0.0, 0.8])
def test_a_student_that_forgot_nothing_is_seldom_refused_for_it(overlap: float) -> None:
    """At most 5% over nine windows together; 1% more is the score interval's own looseness."""
    rng = np.random.default_rng(4)
    tries = 120
    refused = sum(_refused_for_forgetting(rng, 0.9, 0.9, overlap=overlap) for _ in range(tries))
    assert refused <= binom.ppf(0.999, tries, 0.06)


def test_a_loss_of_ten_points_is_seen() -> None:
    """On 200 samples at 90%, a loss of 10 points is 2.9 standard errors above a bound at 2.54 (9
    windows): that fails in about a third of the cases on one window, so all nine are let lose."""
    rng = np.random.default_rng(5)
    refused = sum(_refused_for_forgetting(rng, 0.92, 0.82, overlap=0.0) for _ in range(60))
    assert refused >= 57
