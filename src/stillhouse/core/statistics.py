"""Intervals, paired comparisons and non-inferiority: how sure a score is.

Every estimate comes as an `Interval` with the number of samples behind it. Empty and non-finite
input raises `ValueError`. Knows numbers only: not what was measured, nor on which model. Methods,
papers and their measured error rates are in docs/statistics.md.

Shapes: N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from scipy.special import bdtr, ndtri

from stillhouse.core.bootstrap import (
    Bounds,
    Floats,
    Groups,
    Indices,
    bootstrap_ratio,
    group_ids,
    resample,
    tail_of,
)

Numbers = Sequence[float] | Sequence[bool] | npt.NDArray[np.float64] | npt.NDArray[np.bool_]

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000
BISECTIONS: Final = 80


class Interval(BaseModel):
    """An estimate, its confidence interval, and the number of samples it rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimate: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    n: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if not self.low <= self.estimate <= self.high:
            raise ValueError("low <= estimate <= high must hold")
        return self

    def to_json(self) -> dict[str, float | int]:
        """`{"estimate", "low", "high", "n"}`."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high, "n": self.n}


class McNemar(NamedTuple):
    """Exact McNemar test: who was right where the other was wrong, and how surprising that is."""

    p_value: float
    only_a: int
    only_b: int
    n: int


class NonInferiority(NamedTuple):
    """Whether a student is worse than its teacher by less than a margin.

    `difference` is student minus teacher; its `low` is the one-sided bound at the wanted
    confidence, and `low` and `high` together are a two-sided interval at 2 * confidence - 1.
    """

    non_inferior: bool
    difference: Interval
    margin: float
    confidence: float
    method: str


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a proportion.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)   (Wilson 1927)

    Raises:
        ValueError: n < 1, successes outside 0..n, or confidence outside (0, 1).
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..n and n at least 1 (got {successes} of {n})")
    p = successes / n
    low, high = _wilson(p, n, _two_sided_z(confidence))
    return _interval(Bounds(p, low, high), n)


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def clustered_wilson(
    successes: Sequence[int], sizes: Sequence[int], confidence: float = CONFIDENCE
) -> Interval:
    """Score interval of a proportion over groups whose members are alike, such as the samples of
    one query: Wilson's at the effective number n / deff (Kish 1965; Franco et al. 2019).

    deff is the variance of sum(x_g) / sum(m_g) over groups g, by linearisation, over
    p (1 - p) / n; where p is 0 or 1 it cannot be seen, and members count as if all of a group
    were equal, n_eff = n^2 / sum(m_g^2). Groups of one member each: `wilson`. `n` is members.

    Raises:
        ValueError: no member, or more successes than members of a group.
    """
    x, m = np.asarray(successes, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    n = float(m.sum())
    if x.shape != m.shape or n < 1 or (x < 0).any() or (x > m).any():
        raise ValueError("every group needs successes in 0..its size, and there must be a member")
    if (m <= 1).all():
        return wilson(int(x.sum()), int(n), confidence)
    p, groups = float(x.sum()) / n, int((m > 0).sum())
    effective = n * n / float((m**2).sum())
    if 0 < p < 1 and groups > 1:
        spread = float(((x - p * m) ** 2).sum()) * groups / (groups - 1) / (n * n)
        # Below 1 the design effect is chance: members of a group do not repel each other.
        effective = min(n, p * (1 - p) / spread) if spread > 0 else n
    low, high = _wilson(p, effective, _two_sided_z(confidence))
    return _interval(Bounds(p, low, high), int(n))


def proportion(
    correct: Numbers,
    confidence: float = CONFIDENCE,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: Groups | None = None,
) -> Interval:
    """Mean of scores: Wilson where all are 0 or 1 and independent, else the BCa bootstrap."""
    values = _checked(correct, "scores")
    if groups is None and _binary(values):
        return wilson(int(values.sum()), len(values), confidence)
    return bootstrap_mean(values, confidence, resamples=resamples, seed=seed, groups=groups)


def bootstrap_mean(
    values: Numbers,
    confidence: float = CONFIDENCE,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: Groups | None = None,
) -> Interval:
    """Mean with its BCa bootstrap interval (Efron 1987); whole groups are drawn if given.

    Raises:
        ValueError: empty or non-finite values, or lengths that differ.
    """
    x = _checked(values, "values")
    bounds = bootstrap_ratio(
        x, np.ones_like(x), confidence, resamples=resamples, seed=seed, groups=groups
    )
    return _interval(bounds, len(x))


def paired_difference(
    a: Numbers,
    b: Numbers,
    confidence: float = CONFIDENCE,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: Groups | None = None,
) -> Interval:
    """mean(a) - mean(b) on the same samples.

    Independent 0/1 scores: Tango's score interval. Anything else: the BCa bootstrap over pairs.
    """
    x, y = _paired(a, b)
    if groups is None and _binary(x) and _binary(y):
        return _tango(x, y, _two_sided_z(confidence))
    bounds = bootstrap_ratio(
        x - y, np.ones_like(x), confidence, resamples=resamples, seed=seed, groups=groups
    )
    return _interval(bounds, len(x))


def paired_ratio(
    numerator: Numbers,
    denominator: Numbers,
    confidence: float = CONFIDENCE,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: Groups | None = None,
) -> Interval:
    """mean(numerator) / mean(denominator) on the same samples: BCa bootstrap over pairs.

    Retention is student over teacher. Resamples whose denominator sums to zero have no ratio and
    are left out; they occur only where almost all denominators are zero.

    Raises:
        ValueError: additionally, the denominator's mean is not above zero.
    """
    x, y = _paired(numerator, denominator)
    if (y < 0).any() or y.sum() <= 0:
        raise ValueError("denominator scores must be at least 0 and not all 0: no ratio exists")
    bounds = bootstrap_ratio(x, y, confidence, resamples=resamples, seed=seed, groups=groups)
    return _interval(bounds, len(x))


def bootstrap_statistic(
    statistic: Callable[[Indices], float],
    n: int,
    confidence: float = CONFIDENCE,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: Groups | None = None,
    pivot: bool = False,
) -> Interval:
    """Any statistic of sample indices (macro F1, calibration error) with a bootstrap interval.

    Args:
        statistic: takes indices of shape [N], repeats allowed, and returns a finite number.
        n: number of samples.
        pivot: reflect the percentiles about the estimate (the basic bootstrap, Davison and Hinkley
            1997, 5.2.1), which takes off the bias that resampling adds to a statistic such as ECE;
            without it, percentiles.
    """
    if n < 1:
        raise ValueError("no samples")
    estimate, low, high = resample(
        statistic, n, confidence, resamples=resamples, seed=seed, groups=groups
    )
    if pivot:
        low, high = 2 * estimate - high, 2 * estimate - low
    return _interval(Bounds(estimate, low, high), n)


def mcnemar_exact(a_correct: Numbers, b_correct: Numbers) -> McNemar:
    """Exact two-sided McNemar test: the discordant pairs are Binomial(1/2) if a and b are equal.

    Raises:
        ValueError: empty input, lengths that differ, or scores other than 0 and 1.
    """
    a, b = _paired(a_correct, b_correct)
    if not (_binary(a) and _binary(b)):
        raise ValueError("McNemar's test needs scores of 0 and 1")
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    total = only_a + only_b
    p_value = min(1.0, 2 * float(bdtr(min(only_a, only_b), total, 0.5))) if total else 1.0
    return McNemar(p_value, only_a, only_b, len(a))


def non_inferiority(
    student: Numbers,
    teacher: Numbers,
    margin: float,
    confidence: float = CONFIDENCE,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: Groups | None = None,
) -> NonInferiority:
    """One-sided paired test that mean(student) - mean(teacher) > -margin, in absolute points.

    Non-inferior when the lower bound at `confidence` lies above -margin: an inferior student passes
    with probability at most about 1 - confidence. Independent 0/1 scores: Tango's score bound
    (1998), which holds its error rate where a Wald bound does not, few discordant pairs included.
    Other scores or groups: the BCa bootstrap over pairs, and a second bound beside it where scores
    are 0/1 or the bootstrap has no width (`_guard`); the lower of both counts.

    Raises:
        ValueError: empty, non-finite or unpaired scores, a margin outside (0, 1), or a confidence
            of 0.5 or less.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin must be between 0 and 1, in absolute points (got {margin})")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must be between 0.5 and 1 (got {confidence})")
    x, y = _paired(student, teacher)
    score = groups is None and _binary(x) and _binary(y)
    difference = paired_difference(
        x, y, 2 * confidence - 1, resamples=resamples, seed=seed, groups=groups
    )
    if not score:
        z = float(ndtri(confidence))
        guard = _guard(x, y, z, groups, binary=_binary(x) and _binary(y), found=difference)
        difference = difference.model_copy(update={"low": min(difference.low, guard)})
    return NonInferiority(
        non_inferior=difference.low > -margin,
        difference=difference,
        margin=margin,
        confidence=confidence,
        method="tango" if score else "bootstrap" if groups is None else "cluster bootstrap",
    )


def _guard(
    x: Floats, y: Floats, z: float, groups: Groups | None, *, binary: bool, found: Interval
) -> float:
    """A lower bound of mean(x) - mean(y) where the bootstrap cannot see what it did not draw.

    Few or no discordant groups give a bootstrap with little or no width, however few groups there
    are. 0/1 scores: Tango's bound at the shares seen and the effective number of samples
    n^2 / sum_g n_g^2 (Kish 1965): the variance is right if samples of one group always agree, and
    else too large. Other scores: the same for a bootstrap without width, as if no pair were
    discordant.
    """
    sizes = np.bincount(group_ids(groups, len(x)))
    effective = float(len(x)) ** 2 / float((sizes.astype(np.float64) ** 2).sum())
    if binary:
        only_x, only_y = float((x > y).mean()), float((y > x).mean())
        return _tango_low(only_x * effective, only_y * effective, effective, z)
    if found.high > found.low:
        return found.low
    return max(-1.0, found.estimate + _tango_low(0.0, 0.0, effective, z))


def _tango(a: Floats, b: Floats, z: float) -> Interval:
    n, only_a, only_b = len(a), int((a > b).sum()), int((b > a).sum())
    low, high = _tango_low(only_a, only_b, n, z), -_tango_low(only_b, only_a, n, z)
    return _interval(Bounds((only_a - only_b) / n, low, high), n)


def _tango_low(only_a: float, only_b: float, n: float, z: float) -> float:
    estimate = (only_a - only_b) / n
    return _bisect(lambda d: tango_score(only_a, only_b, n, d) <= z, -1.0, estimate)


def tango_score(only_a: float, only_b: float, n: float, difference: float) -> float:
    """Score statistic of H0: P(a) - P(b) = difference, for paired 0/1 samples (Tango 1998).

    (x - y - n d) / sqrt(n (2 q + d (1 - d)))   with x, y the discordant counts and q the
    probability of "only b", maximum likelihood under H0. Standard normal under H0; falls with d.
    """
    d = difference
    b_term = -only_a - only_b + (2 * n - only_a + only_b) * d
    c_term = -only_b * d * (1 - d)
    root = math.sqrt(max(0.0, b_term * b_term - 8 * n * c_term))
    q = max(0.0, -d, (root - b_term) / (4 * n))
    top = only_a - only_b - n * d
    variance = n * (2 * q + d * (1 - d))
    if variance <= 0:
        return 0.0 if top == 0 else math.copysign(math.inf, top)
    return top / math.sqrt(variance)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Smallest point of [low, high] at which `holds` is true, given that it stays true above."""
    if holds(low):
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _interval(bounds: Bounds, n: int) -> Interval:
    """An interval widened, where rounding or bias puts the estimate outside, to hold it."""
    estimate, low, high = bounds
    return Interval(estimate=estimate, low=min(low, estimate), high=max(high, estimate), n=n)


def _two_sided_z(confidence: float) -> float:
    return float(ndtri(1 - tail_of(confidence)))


def _binary(values: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _checked(values: Numbers, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name}: at least one number is needed")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: every number must be finite")
    return array


def _paired(a: Numbers, b: Numbers) -> tuple[Floats, Floats]:
    x, y = _checked(a, "first scores"), _checked(b, "second scores")
    if len(x) != len(y):
        raise ValueError(f"paired scores must be of one length (got {len(x)} and {len(y)})")
    return x, y
