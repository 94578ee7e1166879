"""Calibration: whether a model that says 80% is right 80% of the time.

Knows probabilities and references as arrays; does not know where they come from. Against the
teacher's answers as reference it measures confidence in agreement, not in truth: callers say which.

Shapes: N samples, C classes, K bins.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.bootstrap import Indices
from stillhouse.core.statistics import Interval, bootstrap_statistic
from stillhouse.evaluate.metrics import Ints, Resampling

Floats = npt.NDArray[np.float64]
BINS: Final = 15


class ReliabilityBin(NamedTuple):
    """Samples whose confidence lies in (low, high]."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def expected_calibration_error(
    probabilities: Floats, truth: Ints, how: Resampling, bins: int = BINS
) -> Interval:
    """ECE = sum_k (n_k / N) |accuracy_k - confidence_k|, K equal-width bins (Guo et al. 2017).

    Confidence is the highest class probability. The interval is the basic bootstrap, because
    resampling adds to |accuracy - confidence| in every bin; its low end is cut at 0.

    Raises:
        ValueError: no samples, shapes that differ, or rows that are no probabilities.
    """
    confidence, correct = _confidence(probabilities, truth)

    def statistic(index: Indices) -> float:
        return _ece(confidence[index], correct[index], bins)

    raw = bootstrap_statistic(
        statistic,
        len(truth),
        how.confidence,
        resamples=how.resamples,
        seed=how.seed,
        groups=how.groups,
        pivot=True,
    )
    return raw.model_copy(update={"low": max(0.0, raw.low)})


def reliability_curve(
    probabilities: Floats, truth: Ints, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Mean confidence and accuracy of each bin that has samples."""
    confidence, correct = _confidence(probabilities, truth)
    which = _bin_of(confidence, bins)
    curve: list[ReliabilityBin] = []
    for k in range(bins):
        inside = which == k
        if inside.any():
            curve.append(
                ReliabilityBin(
                    low=k / bins,
                    high=(k + 1) / bins,
                    n=int(inside.sum()),
                    confidence=float(confidence[inside].mean()),
                    accuracy=float(correct[inside].mean()),
                )
            )
    return tuple(curve)


def _confidence(probabilities: Floats, truth: Ints) -> tuple[Floats, Floats]:
    """Confidence and correctness of the most probable class, each [N]."""
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not len(p) or len(p) != len(truth):
        raise ValueError("probabilities must be of shape [N, C], one row a truth, at least one")
    if not np.isfinite(p).all() or (p < 0).any() or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise ValueError("every row of probabilities must sum to 1")
    return np.minimum(p.max(axis=1), 1.0), (p.argmax(axis=1) == truth).astype(np.float64)


def _bin_of(confidence: Floats, bins: int) -> Ints:
    return np.clip(np.ceil(confidence * bins - 1e-9).astype(np.int64) - 1, 0, bins - 1)


def _ece(confidence: Floats, correct: Floats, bins: int) -> float:
    gaps = np.bincount(_bin_of(confidence, bins), weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
