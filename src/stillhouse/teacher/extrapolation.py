"""From a sample to the rest: totals with prediction intervals.

A total over queries not asked yet is the sample's ratio to something known of every query (its
bytes, or 1) times what the rest holds of that (the ratio estimator: Cochran, Sampling Techniques,
1977, chapter 6). Its interval is the bootstrap's, widened for small samples by expanded percentiles
(Hesterberg, The American Statistician 69, 2015), with the spread of the rest itself on top. How
many of the rest will be accepted is beta-binomial. Knows numbers, not what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.special import ndtr
from scipy.stats import betabinom, t

from stillhouse.teacher.estimate import Estimate, Rest

RESAMPLES: Final = 4000
MOST_DRAWS: Final = 1 << 22


def total_of_rest(
    values: Sequence[float],
    sizes: Sequence[float],
    rest: Rest,
    *,
    confidence: float,
    seed: int,
) -> Estimate:
    """The sum of `values` over the rest, and the interval in which it will lie.

    Args:
        values: of the sampled queries, one each, not negative.
        sizes: what is known of every query beforehand, positive, in the same order.
        rest: the queries not asked yet.
        confidence: of the interval.
        seed: of the resampling.

    Raises:
        ValueError: fewer than two values, or lists of unlike length.
    """
    n = len(values)
    if n < 2 or len(sizes) != n:
        raise ValueError(f"values: at least two, with a size each (got {n} and {len(sizes)})")
    y, x = np.asarray(values, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    ratio = float(y.sum() / x.sum())
    estimate = ratio * rest.size
    if rest.queries == 0:
        return Estimate(estimate=0.0, low=0.0, high=0.0, basis="sample", n=n)
    residual = y - ratio * x  # [n]
    spread = math.sqrt(rest.queries) * float(residual.std(ddof=1))
    rng = np.random.default_rng(seed)
    parts = []
    chunk = max(1, MOST_DRAWS // n)
    for start in range(0, RESAMPLES, chunk):
        index = rng.integers(0, n, size=(min(chunk, RESAMPLES - start), n))  # [r, n]
        parts.append(y[index].sum(axis=1) / x[index].sum(axis=1))
    draws = np.concatenate(parts) * rest.size + spread * rng.standard_normal(RESAMPLES)
    tail = _expanded_tail(n, confidence)
    low, high = (float(q) for q in np.quantile(draws, [tail, 1 - tail]))
    return Estimate(
        estimate=estimate,
        low=max(0.0, min(low, estimate)),
        high=max(high, estimate),
        basis="sample",
        n=n,
    )


def _expanded_tail(n: int, confidence: float) -> float:
    """The percentile to read, such that the bootstrap of a mean is as wide as Student's t."""
    quantile = float(t.ppf((1 - confidence) / 2, n - 1))
    return float(ndtr(math.sqrt(n / (n - 1)) * quantile))


def accepted_of_rest(accepted: int, n: int, rest: int, *, confidence: float) -> Estimate:
    """How many of the rest will be accepted, where `accepted` of `n` sampled were.

    Beta-binomial with Jeffreys' prior: the share's uncertainty and the rest's own chance.

    Raises:
        ValueError: no sample.
    """
    if n < 1:
        raise ValueError("n: at least one sampled query")
    if rest == 0:
        return Estimate(estimate=0.0, low=0.0, high=0.0, basis="sample", n=n)
    law = betabinom(rest, accepted + 0.5, n - accepted + 0.5)
    tail = (1 - confidence) / 2
    estimate = rest * accepted / n
    return Estimate(
        estimate=estimate,
        low=min(float(law.ppf(tail)), estimate),
        high=max(float(law.ppf(1 - tail)), estimate),
        basis="sample",
        n=n,
    )
