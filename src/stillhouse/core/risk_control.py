"""A confidence threshold with a promised error: when may the student answer for itself?

The student answers where its confidence is at least t; the teacher answers the rest. Knows scores
and losses of held-out samples as arrays; does not know where they come from, and promises nothing
for traffic that is not drawn like them, nor for samples that depend on each other.

- `selective_threshold`: P(loss | confidence >= t) <= error with probability 1 - delta over the
  held-out samples: exact binomial tests of a fixed grid of thresholds (Clopper and Pearson 1934)
  in a fixed order (learn then test, Angelopoulos et al. 2021; selective classification, Geifman
  and El-Yaniv 2017), with the level shared by several starts (fallback procedure, Wiens 2003).
- `least_samples`, `foreseen_samples`: how many that takes.
- `conformal_threshold`: E[loss and confidence >= t] <= error in expectation over held-out samples
  and the next one (conformal risk control, Angelopoulos et al. 2022).
- `frontier`: cost against quality at every threshold.

Shapes: N samples, K thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, betaincinv

Floats = npt.NDArray[np.float64]
GRID: Final = 1_000
FOUR_OF_FIVE: Final = 0.8416  # quantile of the normal distribution
# Where the tests start, as (1 - t) / error: from 1 down a calibrated confidence keeps the error.
STARTS: Final = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)


class Threshold(NamedTuple):
    """A threshold and what held-out samples say of it; `value` None: no threshold keeps the error.

    `error` is the mean loss: of the accepted samples (selective) or of all (conformal); `upper` is
    its bound, at the level of the test that passed, or in expectation (conformal).
    """

    value: float | None
    coverage: float
    error: float
    upper: float
    n: int
    accepted: int


class FrontierPoint(NamedTuple):
    """What one threshold costs and gives; costs in USD per 1,000 requests."""

    threshold: float
    coverage: float
    cost_per_1000_usd: float
    quality: float
    student_error: float | None


class Costs(NamedTuple):
    """USD per 1,000 requests: the student is asked always, the teacher where it falls back."""

    student_usd: float
    teacher_usd: float


def probability_grid(points: int = GRID) -> Floats:
    """Thresholds from 1 down to 0, chosen before any sample is seen, as the tests need. [K]"""
    return np.linspace(1.0, 0.0, points + 1)


def clopper_pearson_upper(wrong: int, n: int, delta: float) -> float:
    """Upper bound of a proportion that fails with probability at most delta (exact, one-sided)."""
    if n < 1 or not 0 <= wrong <= n or not 0 < delta < 1:
        raise ValueError(
            f"needs 0 <= wrong <= n, n >= 1, 0 < delta < 1 (got {wrong}, {n}, {delta})"
        )
    return 1.0 if wrong == n else float(betaincinv(wrong + 1, n - wrong, 1 - delta))


def selective_threshold(
    confidence: Floats,
    wrong: Floats,
    error: float,
    delta: float = 0.05,
    *,
    grid: Floats | None = None,
    starts: Sequence[float] = STARTS,
) -> Threshold:
    """The lowest threshold at which the error of what the student answers is shown to be <= error.

    H_k: P(wrong | confidence >= t_k) > error. Given the number m_k accepted, the wrong ones are
    binomial, and p_k = P(Bin(m_k, error) <= wrong_k) is a valid p-value. The grid is walked from
    high to low; each of the S starts brings delta/S, and a rejected hypothesis hands its level on
    to the next. All rejections hold together with probability 1 - delta.

    Args:
        confidence: [N] in [0, 1].
        wrong: [N] of 0 and 1.
        grid: [K] thresholds, falling, chosen without these samples; `probability_grid()` if None.
        starts: the tests start at 1 - start * error, whatever the samples. One start alone fails
            where the highest thresholds accept too few.

    Raises:
        ValueError: no samples, shapes that differ, values out of range or not finite.
    """
    score, loss = _checked(confidence, wrong)
    if not np.isin(loss, (0.0, 1.0)).all():
        raise ValueError("the exact test needs losses of 0 and 1")
    _check_levels(error, delta)
    thresholds = probability_grid() if grid is None else np.asarray(grid, dtype=np.float64)
    if not len(thresholds) or (np.diff(thresholds) >= 0).any():
        raise ValueError("thresholds must fall")
    if not starts or not all(start >= 0 for start in starts):
        raise ValueError(f"starts must be at least one, and at least 0 (got {starts})")
    counts, errors = _sums(score, loss, thresholds)
    p_values = np.where(
        counts > 0, bdtr(errors, np.maximum(counts, 1).astype(np.int64), error), 1.0
    )
    fresh = np.zeros(len(thresholds))
    first = np.searchsorted(-thresholds, error * np.asarray(starts, dtype=np.float64) - 1)
    np.add.at(fresh, np.minimum(first, len(thresholds) - 1), delta / len(starts))
    best: int | None = None
    best_level = level = 0.0
    for k in range(len(thresholds)):
        level += fresh[k]
        if level > 0 and p_values[k] <= level:
            best, best_level = k, level
        else:
            level = 0.0
    if best is None:
        return Threshold(None, 0.0, 0.0, 1.0, len(score), 0)
    m, bad = int(counts[best]), int(errors[best])
    upper = clopper_pearson_upper(bad, m, best_level)
    return Threshold(float(thresholds[best]), m / len(score), bad / m, upper, len(score), m)


def least_samples(error: float, delta: float, starts: Sequence[float] = STARTS) -> int:
    """The fewest samples, all of them accepted and none wrong, by which `selective_threshold` finds
    a threshold: (1 - error)^n <= delta / S."""
    _check_levels(error, delta)
    return math.ceil(math.log(delta / len(starts)) / math.log1p(-error) - 1e-9)


def foreseen_samples(
    confidence: Floats, wrong: Floats, error: float, delta: float = 0.05
) -> int | None:
    """About how many samples like these `selective_threshold` would need; `None`: no number would
    do, since at every threshold they are wrong too often.

    At each threshold the rate (wrong + 1) / (accepted + 2) is taken for the true one, and the
    fewest accepted samples are looked for whose test, at the level of one start, passes four times
    of five then (normal approximation of the number wrong). A guess for people, no bound.

    Raises:
        ValueError: as `selective_threshold`.
    """
    score, loss = _checked(confidence, wrong)
    _check_levels(error, delta)
    counts, errors = _sums(score, loss, probability_grid())
    level, best = delta / len(STARTS), math.inf
    for m, bad in {(float(a), float(b)) for a, b in zip(counts, errors, strict=True)}:
        rate = (bad + 1) / (m + 2)
        if m == 0 or rate >= error:
            continue
        accepted = np.unique(np.geomspace(m, 1_000 * m, 400).astype(np.int64))
        most = rate * accepted + FOUR_OF_FIVE * np.sqrt(rate * (1 - rate) * accepted)
        fits = np.flatnonzero(bdtr(np.ceil(most), accepted, error) <= level)
        if len(fits):
            best = min(best, float(accepted[fits[0]]) * len(score) / m)
    return None if math.isinf(best) else math.ceil(best)


def conformal_threshold(confidence: Floats, loss: Floats, error: float) -> Threshold:
    """The lowest threshold with (sum_i loss_i [confidence_i >= t] + 1) / (N + 1) <= error.

    Losses in [0, 1]. The error is of all requests (a fallback counts as 0), and the promise is in
    expectation, not with high probability. Needs 1/error - 1 samples at least.

    Raises:
        ValueError: as `selective_threshold`, or losses outside [0, 1].
    """
    score, losses = _checked(confidence, loss)
    _check_levels(error, 0.5)
    thresholds = np.unique(score)[::-1]
    counts, sums = _sums(score, losses, thresholds)
    n = len(score)
    fits = np.flatnonzero((sums + 1) / (n + 1) <= error)
    if not len(fits):
        return Threshold(None, 0.0, 0.0, 1.0, n, 0)
    # Losses are at least 0, so the sums rise and the last that fits is the lowest threshold.
    k = int(fits[-1])
    m = int(counts[k])
    upper = float(sums[k] + 1) / (n + 1)
    return Threshold(float(thresholds[k]), m / n, float(sums[k]) / n, upper, n, m)


def frontier(
    confidence: Floats,
    student: Floats,
    teacher: Floats,
    costs: Costs,
    grid: Floats | None = None,
) -> tuple[FrontierPoint, ...]:
    """Cost and quality of the pair at each threshold, from high (teacher answers) to low.

    quality(t) = mean of student's score where confidence >= t, else the teacher's;
    cost(t) = student + (1 - coverage(t)) teacher. Estimates on these samples, without a promise.

    Args:
        confidence: [N]; student, teacher: [N] scores in [0, 1].
    """
    score, own = _checked(confidence, student)
    other = _checked(confidence, teacher)[1]
    if not (np.isfinite(costs).all() and min(costs) >= 0):
        raise ValueError(f"costs must be finite and at least 0 (got {costs})")
    points = []
    for t in probability_grid(20) if grid is None else grid:
        takes = score >= t
        coverage = float(takes.mean())
        points.append(
            FrontierPoint(
                threshold=float(t),
                coverage=coverage,
                cost_per_1000_usd=costs.student_usd + (1 - coverage) * costs.teacher_usd,
                quality=float(np.where(takes, own, other).mean()),
                student_error=float(1 - own[takes].mean()) if takes.any() else None,
            )
        )
    return tuple(points)


def _sums(score: Floats, loss: Floats, thresholds: Floats) -> tuple[Floats, Floats]:
    """Number and summed loss of samples at or above each threshold. [K], [K]"""
    order = np.argsort(score)
    totals = np.concatenate([[0.0], np.cumsum(loss[order][::-1])])
    counts = len(score) - np.searchsorted(score[order], thresholds, side="left")
    return counts.astype(np.float64), totals[counts]


def _checked(confidence: Floats, loss: Floats) -> tuple[Floats, Floats]:
    score, losses = np.asarray(confidence, np.float64), np.asarray(loss, np.float64)
    if score.ndim != 1 or score.shape != losses.shape or not len(score):
        raise ValueError("confidence and scores must be rows of one length, and not empty")
    for name, values in (("confidence", score), ("scores", losses)):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"every {name} value must be finite and in [0, 1]")
    return score, losses


def _check_levels(error: float, delta: float) -> None:
    if not (0 < error < 1 and 0 < delta < 1):
        raise ValueError(f"error and delta must be between 0 and 1 (got {error} and {delta})")
