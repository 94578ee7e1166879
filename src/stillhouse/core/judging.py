"""What a judge's verdicts are worth: its errors on a gold set, the rate they correct, its biases.

Counts in, estimates with intervals out. Knows no model, no text and no files: a verdict is a bool
(good or not) or which of two answers was preferred. Methods and papers are in docs/quality.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from scipy.special import bdtr, ndtri
from scipy.stats import hypergeom

from stillhouse.core.statistics import CONFIDENCE, Interval, paired_difference, wilson

Preference = Literal["first", "second", "tie"]
# What the two orders of a pair said together. A verdict that follows the position is a tie too,
# but one that says something of the judge.
PairOutcome = Literal["first", "second", "tie", "followed_first", "followed_second", "unreadable"]
# Laplace's rule of succession, as Lang and Reiczigel (2014) add it to both error estimates.
_ADDED: Final = 2


class GoldCounts(NamedTuple):
    """A judge on labelled answers: of `good` good ones it called `true_good` good, and so on."""

    good: int
    true_good: int
    bad: int
    true_bad: int


class JudgeQuality(NamedTuple):
    """How well a judge tells good from bad.

    `youden` is sensitivity + specificity - 1: 1 is perfect, 0 is what a coin or a constant answer
    gets. `p_value`: Fisher's exact one-sided test of "good answers are called good no more often
    than bad ones".
    """

    sensitivity: Interval
    specificity: Interval
    youden: Interval
    p_value: float


class PairQuality(NamedTuple):
    """How well a judge prefers the good one of a good and a bad answer, both orders asked.

    `right` and `wrong` are shares of all pairs; the rest are ties, verdicts that followed the
    position and unreadable ones. `net` is right - wrong: 1 is perfect, 0 a coin or a constant
    answer. `p_value`: exact one-sided sign test of "right no more often than wrong".
    """

    right: Interval
    wrong: Interval
    net: Interval
    p_value: float


class PositionBias(NamedTuple):
    """How a judge's preference follows the place an answer stands in, over pairs asked both ways.

    `followed` is the share of read pairs whose two verdicts name one place, not one answer;
    `first` is the share of those that name the first place, `None` where there is none; `p_value`
    is of the exact sign test that both places draw alike.
    """

    followed: Interval
    first: Interval | None
    p_value: float


def gold_counts(truth: Sequence[bool], verdicts: Sequence[bool]) -> GoldCounts:
    """Count verdicts against labels.

    Raises:
        ValueError: lengths differ.
    """
    pairs = list(zip(truth, verdicts, strict=True))
    return GoldCounts(
        good=sum(label for label, _ in pairs),
        true_good=sum(label and verdict for label, verdict in pairs),
        bad=sum(not label for label, _ in pairs),
        true_bad=sum(not label and not verdict for label, verdict in pairs),
    )


def judge_quality(counts: GoldCounts, confidence: float = CONFIDENCE) -> JudgeQuality:
    """Sensitivity, specificity (Wilson 1927) and Youden's J (Youden 1950) with intervals.

    J is the difference of two independent shares, P(called good | good) - P(called good | bad);
    its interval is Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, method 10):

        J - sqrt((p1 - l1)^2 + (u2 - p2)^2)  to  J + sqrt((u1 - p1)^2 + (p2 - l2)^2)

    with l and u the Wilson limits of each share.

    Raises:
        ValueError: there is no good or no bad answer.
    """
    if counts.good < 1 or counts.bad < 1:
        raise ValueError("a gold set needs good and bad answers")
    sensitivity = wilson(counts.true_good, counts.good, confidence)
    specificity = wilson(counts.true_bad, counts.bad, confidence)
    wrong = wilson(counts.bad - counts.true_bad, counts.bad, confidence)
    j = sensitivity.estimate - wrong.estimate
    down = math.hypot(sensitivity.estimate - sensitivity.low, wrong.high - wrong.estimate)
    up = math.hypot(sensitivity.high - sensitivity.estimate, wrong.estimate - wrong.low)
    youden = Interval(
        estimate=j, low=max(-1.0, j - down), high=min(1.0, j + up), n=counts.good + counts.bad
    )
    called_good = counts.true_good + counts.bad - counts.true_bad
    # P(X >= true_good), X hypergeometric: which of all gold answers are called good is chance.
    p_value = float(
        hypergeom.sf(counts.true_good - 1, counts.good + counts.bad, counts.good, called_good)
    )
    return JudgeQuality(sensitivity, specificity, youden, min(1.0, p_value))


def pair_quality(outcomes: Sequence[PairOutcome], confidence: float = CONFIDENCE) -> PairQuality:
    """Quality over pairs whose first answer is the good one.

    The interval of `net` is Tango's for paired shares (Statistics in Medicine 17, 1998).

    Raises:
        ValueError: there is no pair.
    """
    right = [outcome == "first" for outcome in outcomes]
    wrong = [outcome == "second" for outcome in outcomes]
    decided = sum(right) + sum(wrong)
    return PairQuality(
        right=wilson(sum(right), len(right), confidence),
        wrong=wilson(sum(wrong), len(wrong), confidence),
        net=paired_difference(right, wrong, confidence),
        p_value=float(bdtr(sum(wrong), decided, 0.5)) if decided else 1.0,
    )


def no_better_than_chance(
    quality: JudgeQuality | PairQuality, confidence: float = CONFIDENCE
) -> bool:
    """Whether the interval of Youden's J (or of `net`) includes 0, or the exact test does not
    exclude it.

    The exact test holds the error rate, whatever the size of the gold set: a judge whose verdict
    does not depend on the answer passes with a chance of at most (1 - confidence) / 2.
    """
    interval = quality.youden if isinstance(quality, JudgeQuality) else quality.net
    return interval.low <= 0 or quality.p_value > (1 - confidence) / 2


def corrected_rate(
    called_good: int, n: int, gold: GoldCounts, confidence: float = CONFIDENCE
) -> Interval:
    """The share of good answers behind the share that the judge calls good.

        (p + Sp - 1) / (Se + Sp - 1), cut to [0, 1]   (Rogan and Gladen 1978)

    with the interval of Lang and Reiczigel (2014), which carries the uncertainty of p, Se and Sp:
    the delta method at p' = (np + z^2/2) / (n + z^2), Se' and Sp' = (k + 1) / (m + 2), moved by
    2 z^2 (r' Se'(1 - Se')/(m_Se + 2) - (1 - r') Sp'(1 - Sp')/(m_Sp + 2)), r' the rate at those.
    The answers must be of the same kind as the gold set's, and independent of them.

    Raises:
        ValueError: no answers, no gold answers, or a judge no better than chance (J <= 0, also with
            the additions).
    """
    if n < 1 or not 0 <= called_good <= n:
        raise ValueError(f"called_good must be in 0..n and n at least 1 (got {called_good} of {n})")
    if gold.good < 1 or gold.bad < 1:
        raise ValueError("a gold set needs good and bad answers")
    p, se, sp = called_good / n, gold.true_good / gold.good, gold.true_bad / gold.bad
    if se + sp - 1 <= 0:
        raise ValueError("a judge no better than chance corrects nothing")
    estimate = min(1.0, max(0.0, (p + sp - 1) / (se + sp - 1)))
    z = float(ndtri((1 + confidence) / 2))
    n_p, n_se, n_sp = n + z * z, gold.good + _ADDED, gold.bad + _ADDED
    p = (called_good + z * z / 2) / n_p
    se, sp = (gold.true_good + _ADDED / 2) / n_se, (gold.true_bad + _ADDED / 2) / n_sp
    j = se + sp - 1
    if j <= 0:  # the additions outweigh a very small gold set
        raise ValueError("the gold set is too small to correct a rate")
    rate = (p + sp - 1) / j
    of_se, of_sp = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    shift = 2 * z * z * (rate * of_se - (1 - rate) * of_sp)
    half = z * math.sqrt(p * (1 - p) / n_p + rate**2 * of_se + (1 - rate) ** 2 * of_sp) / j
    low = min(1.0, max(0.0, rate + shift - half))
    high = min(1.0, max(0.0, rate + shift + half))
    return Interval(estimate=estimate, low=min(low, estimate), high=max(high, estimate), n=n)


def joined(shown_first: Preference | None, shown_second: Preference | None) -> PairOutcome:
    """One outcome of the two orders of a pair.

    Args:
        shown_first: the place preferred where the pair stood as it is.
        shown_second: the place preferred where the two were swapped. `None`: unreadable.
    """
    if shown_first is None or shown_second is None:
        return "unreadable"
    if shown_first == "first" and shown_second == "second":
        return "first"
    if shown_first == "second" and shown_second == "first":
        return "second"
    if shown_first == shown_second and shown_first != "tie":
        return "followed_first" if shown_first == "first" else "followed_second"
    return "tie"


def position_bias(
    outcomes: Sequence[PairOutcome], confidence: float = CONFIDENCE
) -> PositionBias | None:
    """Position bias over pairs; `None` where none was read.

    Noise makes a judge follow the first place as often as the second: their counts are
    Binomial(1/2) if it has no bias (exact sign test, two-sided).
    """
    read = sum(outcome != "unreadable" for outcome in outcomes)
    if not read:
        return None
    first = sum(outcome == "followed_first" for outcome in outcomes)
    second = sum(outcome == "followed_second" for outcome in outcomes)
    total = first + second
    p_value = min(1.0, 2 * float(bdtr(min(first, second), total, 0.5))) if total else 1.0
    return PositionBias(
        followed=wilson(total, read, confidence),
        first=wilson(first, total, confidence) if total else None,
        p_value=p_value,
    )


def noise_floor(outcomes: Sequence[PairOutcome], confidence: float = CONFIDENCE) -> Interval | None:
    """How often a judge prefers one of two answers of the same model, swap and all; `None`: unread.

    No model is better than itself: a difference between two models that is no larger says nothing.
    """
    read = [outcome for outcome in outcomes if outcome != "unreadable"]
    if not read:
        return None
    return wilson(sum(o in ("first", "second") for o in read), len(read), confidence)
