"""Tests on the course of a training: is it there, or is it chance?

Each gives a p-value under its own null hypothesis, or an interval. Where several looks are compared
with the last, the p-value is Bonferroni's, so that looking often does not find more. Error rates
are measured in the tests. Knows arrays; knows no model, no file, and no threshold.

Legend: K looks, N items, B blocks (an item of a classifier, a batch of a text student), R rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom, kendalltau
from scipy.stats import t as student_t

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Blocks(NamedTuple):
    """Sums of a measure over blocks, and the items in each: their ratio is the measure's mean."""

    sums: Floats  # [B]
    items: Floats  # [B]

    @property
    def mean(self) -> float:
        """The mean over items."""
        return float(self.sums.sum() / self.items.sum())

    @property
    def error(self) -> float:
        """Its standard error, by linearisation of the ratio (Cochran 1977, 6.3); infinite for one
        block."""
        count = len(self.sums)
        if count < 2:
            return math.inf
        rest = self.sums - self.mean * self.items
        return float(np.sqrt(count / (count - 1) * (rest**2).sum()) / self.items.sum())


class Since(NamedTuple):
    """A change from an earlier look to the last, and its p-value over all earlier looks."""

    look: int  # number of the earlier look
    change: float
    p_value: float


class Copying(NamedTuple):
    """The student from an earlier look to the last: its accuracy, and how often it gives the
    teacher's answer where that is wrong. `wrong` counts such items."""

    look: int
    accuracy: tuple[float, float]
    copied: tuple[float, float]
    wrong: int
    p_value: float


def rises(values: Sequence[float]) -> float:
    """P-value of a rise in the course of R values (one-sided Mann-Kendall; Mann 1945).

    Null: the values are exchangeable, or fall. Of the whole course and its second half the less
    likely is taken, and counted twice: 1 for fewer than 4 values.
    """
    found = [1.0]
    for part in (values, values[len(values) // 2 :]):
        finite = [value if math.isfinite(value) else math.inf for value in part]
        if len(part) >= 4 and len(set(finite)) > 1:
            ranks = np.unique(finite, return_inverse=True)[1]
            tau = kendalltau(np.arange(len(part)), ranks, alternative="greater")
            found.append(2 * float(tau.pvalue))
    return min(found)


def fewest(level: float) -> int:
    """The fewest values of which a part of `rises` can be told from chance at a level: the least
    p-value of R values is 2 / R!."""
    count = 4
    while 2 / math.factorial(count) > level:
        count += 1
    return count


def grew(looks: Sequence[Blocks]) -> Since | None:
    """Whether a measure is higher at the last look than at an earlier one: paired by block.

    Null, for each earlier look: the mean is no higher at the last. One-sided t on the ratio
    estimator of the difference; the look with the least p-value is named, its p-value times the
    number of earlier looks. `None` for fewer than 2 looks or 8 blocks.
    """
    if len(looks) < 2 or len(looks[-1].sums) < 8:
        return None
    last, found = looks[-1], []
    for number, earlier in enumerate(looks[:-1]):
        change = Blocks(last.sums - earlier.sums, last.items)
        p = _above(change.mean, change.error, len(last.sums) - 1)
        found.append(Since(number, change.mean, min(1.0, p * (len(looks) - 1))))
    return min(found, key=lambda since: since.p_value)


def copied(choices: Integers, teacher: Integers, truth: Integers) -> Copying | None:
    """Whether a student came to give the teacher's wrong answers while its accuracy fell.

    Null, for each earlier look: accuracy did not fall, or the wrong answers it shares with the
    teacher did not become more. Both are exact one-sided McNemar tests; the larger p-value counts
    (both must hold: Berger 1982), times the number of earlier looks. `None` without two looks or
    an item where the teacher is wrong.

    Args:
        choices: the student's answers [K, N].
        teacher: the teacher's [N].
        truth: the true ones [N].
    """
    wrong = teacher != truth
    if len(choices) < 2 or not wrong.any():
        return None
    right, same = choices == truth, (choices == teacher)[:, wrong]
    found = []
    for number in range(len(choices) - 1):
        fell = _more(right[-1], right[number])
        rose = _more(same[number], same[-1])
        found.append(
            Copying(
                number,
                (float(right[number].mean()), float(right[-1].mean())),
                (float(same[number].mean()), float(same[-1].mean())),
                int(wrong.sum()),
                min(1.0, max(fell, rose) * (len(choices) - 1)),
            )
        )
    return min(found, key=lambda copying: copying.p_value)


def _more(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> float:
    """P-value that `after` is not more often true than `before` (exact, one-sided)."""
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return float(binom.sf(gained - 1, gained + lost, 0.5)) if gained + lost else 1.0


class Gap(NamedTuple):
    """One figure over another: the difference, and its one-sided lower and upper bounds."""

    difference: float
    low: float
    high: float


def gap(over: Blocks, under: Blocks, level: float) -> Gap | None:
    """Mean of `over` minus mean of `under`, independent sets, with bounds each exceeded with
    probability `level` (Welch 1947). `None` for fewer than 8 blocks in either."""
    if min(len(over.sums), len(under.sums)) < 8:
        return None
    a, b = over.error**2, under.error**2
    difference = over.mean - under.mean
    if a + b == 0:
        return Gap(difference, difference, difference)
    freedom = (a + b) ** 2 / (a**2 / (len(over.sums) - 1) + b**2 / (len(under.sums) - 1))
    half = float(student_t.isf(level, freedom)) * math.sqrt(a + b)
    return Gap(difference, difference - half, difference + half)


def informed(choices: Integers, teacher: Integers, level: float) -> Gap | None:
    """How far a student's answers are from chance (0) to its teacher's (1), class by class, with
    bounds each exceeded with probability about `level`.

    (K r - 1) / (K - 1), with r the mean over the K answers that the teacher gives of the share of
    each that the student gives too: 0 for answers that have nothing to do with the teacher's, be
    one of them ever so frequent, and 1 for the teacher's (Youden's J for two). The bounds put exact
    ones of the K shares together (MOVER: Zou and Donner 2008). `None` where the teacher
    gives fewer than two answers.

    Args:
        choices: the student's answers [N].
        teacher: the teacher's, -1 where unknown [N].
        level: of each bound.
    """
    answers = np.unique(teacher[teacher >= 0])
    if len(answers) < 2:
        return None
    of = np.array([(teacher == answer).sum() for answer in answers])
    same = np.array([((choices == answer) & (teacher == answer)).sum() for answer in answers])
    count, shares = len(answers), same / of
    # Clopper and Pearson's: one example of an answer must not say more than it can.
    lows = np.where(same > 0, beta.ppf(level, np.maximum(same, 1), of - same + 1), 0.0)
    highs = np.where(same < of, beta.isf(level, same + 1, np.maximum(of - same, 1)), 1.0)
    mean = float(shares.mean())
    down = float(np.sqrt(((shares - lows) ** 2).sum())) / count
    up = float(np.sqrt(((highs - shares) ** 2).sum())) / count

    def scaled(share: float) -> float:
        return (count * share - 1) / (count - 1)

    return Gap(scaled(mean), scaled(mean - down), scaled(mean + up))


def _above(mean: float, error: float, freedom: int) -> float:
    """One-sided p-value of a mean above 0."""
    if error == 0:
        return 0.0 if mean > 0 else 1.0
    return float(student_t.sf(mean / error, freedom))
