"""How often the findings on a whole course speak of nothing, and that they see what was planted.

A healthy student is one without any of the known causes. Each finding is there by chance with
probability LEVEL at most (its own test's level, or the one-sided level of its bound), so of the six
that chance can bring (the temperature's is none of a sample) any is with 6 LEVEL at most
(Bonferroni). More false findings than the binomial's 99.9% point in RUNS courses are no chance.

A planted cause is so large that its test's normal approximation gives a power above 99%; seen less
often than the 0.1% point of the binomial at 95%, it would be missed by more than chance. It is
named by the verdict where none of the findings before it, of which false ones are as rare as above,
is there: 95% less 3 LEVEL.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from stillhouse.train.convergence import Convergence, judge_course
from stillhouse.train.detect import Blocks
from stillhouse.train.evidence import LEVEL, Evidence
from stillhouse.train.history import CurveRow
from stillhouse.train.looks import Look

RUNS, PLANTED = 200, 80
LOOKS, HELD_OUT, LESSON, WATCHED = 8, 200, 500, 200
STEPS = [30 * k for k in range(1, LOOKS + 1)]
BY_CHANCE = 6  # findings that rest on a sample
MOST_OF_ONE = binom.ppf(0.999, RUNS, LEVEL)
MOST_OF_ANY = binom.ppf(0.999, RUNS, BY_CHANCE * LEVEL)
LEAST_SEEN = binom.ppf(0.001, PLANTED, 0.95)
LEAST_NAMED = binom.ppf(0.001, PLANTED, 0.95 - 3 * LEVEL)
SETTLES = [1 + 5 * 0.25**k for k in range(1, LOOKS + 1)]  # times its last divergence, look by look


def answered(
    draw: np.random.Generator, teacher: np.ndarray, share: float | np.ndarray
) -> np.ndarray:
    """Answers of two classes that are the teacher's with some probability."""
    return np.where(draw.random(len(teacher)) < share, teacher, 1 - teacher)


def course(
    draw: np.random.Generator,
    *,
    losses: np.ndarray | None = None,
    divergence: list[float] | None = None,
    held_out: float = 0.97,
    lesson: float = 0.97,
    watched: tuple[tuple[float, float], tuple[float, float]] = ((0.95, 0.5), (0.95, 0.5)),
    items: int = HELD_OUT,
) -> Convergence:
    """A course of eight looks, drawn; without arguments a healthy one.

    Args:
        draw: of all that follows.
        losses: of training; a fall that settles, with noise.
        divergence: of the items at each look, relative; each item has a share of its own and, at
            each look, noise of its own.
        held_out: how often an answer is the teacher's.
        lesson: the same on training examples.
        watched: how often the truth is given where the teacher is right, and its answer where it is
            wrong: before the last look, and at it.
        items: held out.
    """
    if losses is None:
        losses = 0.2 + 0.7 ** np.arange(24) + draw.normal(0, 0.01, 24)
    teacher = (draw.random(items) < 0.3) * 1
    truth = draw.integers(0, 2, WATCHED)
    wrong = draw.random(WATCHED) < 0.2
    said = np.where(wrong, 1 - truth, truth)
    each, ones = draw.gamma(2.0, 0.05, items), np.ones(items)
    looks = []
    for number, (step, size) in enumerate(zip(STEPS, divergence or SETTLES, strict=True)):
        choices = answered(draw, teacher, held_out)
        right, copies = watched[number == LOOKS - 1]
        looks.append(
            Look(
                step,
                Blocks(each * size * draw.gamma(9.0, 1 / 9, items), ones),
                Blocks((choices == teacher) * 1.0, ones),
                choices,
                answered(draw, said, np.where(wrong, copies, right)),
            )
        )
    kept = min(looks, key=lambda look: look.divergence.mean)
    learned = Blocks((draw.random(LESSON) < lesson) * 1.0, np.ones(LESSON))
    return judge_course(
        Evidence(
            rows=[CurveRow(10 * k, k, float(v), None, None, None) for k, v in enumerate(losses)],
            looks=looks,
            kept=kept,
            lesson=Look(kept.step, learned, learned, None),
            best_step=kept.step,
            learning_rate=1e-3,
            distillation_temperature=2.0,
            classes=2,
            teacher=teacher,
            watched=(said, truth),
            entropy=0.3,
        )
    )


def found(said: Convergence) -> set[str]:
    return {one.name for one in said.findings if one.found}


def test_a_healthy_student_is_seldom_told_of_a_fault() -> None:
    draw = np.random.default_rng(11)
    alarms: Counter[str] = Counter()
    anything = converged = 0
    for _ in range(RUNS):
        said = course(draw)
        alarms.update(found(said))
        anything += bool(found(said))
        converged += said.verdict.state == "converged"
    assert all(count <= MOST_OF_ONE for count in alarms.values()), alarms
    assert anything <= MOST_OF_ANY
    assert converged == RUNS - anything


def test_a_student_at_the_edge_of_every_rule_is_told_of_each_no_more_often() -> None:
    """It gains a tenth in the second half, gives 95% of its lesson back and loses two points to new
    examples: what the rules still call healthy."""
    draw = np.random.default_rng(12)
    at_half = 1 / 0.9
    sizes = [2.0, 1.6, 1.3, at_half, at_half, 1.05, 1.02, 1.0]
    alarms: Counter[str] = Counter()
    for _ in range(RUNS):
        alarms.update(found(course(draw, divergence=sizes, held_out=0.93, lesson=0.95)))
    assert all(count <= MOST_OF_ONE for count in alarms.values()), alarms


# Each with its effect over its standard error, or the p-value of its mean.
CAUSES: dict[str, dict[str, Any]] = {
    # 24 rows that rise by 2 deviations a row: Kendall's tau near 1, p below 1e-9.
    "rate_too_high": {"losses": np.linspace(0.5, 2.9, 24), "noise": 0.05},
    # Of 40 wrong answers 19 are copied anew and 1 less (p below 1e-4, times 7 looks); of 200
    # answers some 42 are lost and 8 won.
    "copies_mistakes": {"watched": ((0.95, 0.5), (0.85, 0.95))},
    # Half as much again: noise of an item's change is 0.6 of it, 200 items: 12 standard errors.
    "divergence_growth": {"divergence": [*SETTLES[:-2], 1.3, 1.5]},
    # 14 points, of which 2 are free, at a standard error of 2.6.
    "too_little_data": {"held_out": 0.85, "lesson": 0.99},
    # Falls by two thirds in the second half.
    "not_finished": {"divergence": [5.0, 4.5, 4.0, 3.5, 3.0, 2.4, 1.8, 1.2]},
    # 80% of 500: 8 standard errors below 95%.
    "capacity_ceiling": {"held_out": 0.80, "lesson": 0.80},
}


@pytest.mark.parametrize("cause", sorted(CAUSES))
def test_a_planted_cause_is_seen_and_named(cause: str) -> None:
    draw = np.random.default_rng(13)
    seen = named = 0
    for _ in range(PLANTED):
        planted = dict(CAUSES[cause])
        noise = planted.pop("noise", None)
        if noise is not None:
            planted["losses"] = planted["losses"] + draw.normal(0, noise, len(planted["losses"]))
        said = course(draw, **planted)
        seen += cause in found(said)
        named += said.verdict.state == cause
    assert seen >= LEAST_SEEN
    assert named >= LEAST_NAMED


def test_a_student_that_learned_nothing_is_told_of_its_rate() -> None:
    """Its answers do not look at the item; its loss has settled. Of 1,000 items, 300 of the rarer
    answer: how far they are from chance has a standard error of 0.035, and its upper bound is below
    0.2 but for estimates 3.4 of them above 0."""
    draw = np.random.default_rng(14)
    seen = 0
    for _ in range(PLANTED):
        losses = 0.69 + draw.normal(0, 0.01, 24)
        flat = [1.0] * LOOKS
        chance = {"held_out": 0.5, "lesson": 0.5, "items": 1000}
        said = course(draw, losses=losses, divergence=flat, **chance)
        seen += said.verdict.state == "rate_too_high"
    assert seen >= LEAST_SEEN
