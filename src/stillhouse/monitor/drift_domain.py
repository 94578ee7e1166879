"""Whether a classifier can tell window and reference apart, and which rows look most like either.

A ridge classifier's cross-fitted scores are linear in the labels, so each permutation of the labels
refits all folds by one product of matrices, and the test is exact. Knows vectors only.

Shapes: N reference rows, M window rows, P = N + M, H dimensions, R permutations.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import rankdata

from stillhouse.models.embedders import Vectors
from stillhouse.monitor.drift_kernel import (
    RESAMPLES,
    Floats,
    Measured,
    Singles,
    around,
    permutation_p,
)

FOLDS: Final = 5
RIDGE: Final = 3.0  # times the mean eigenvalue: chosen on newsgroups (docs/drift.md)
_TIE: Final = 1e-9  # scores of equal texts differ by rounding


class Domain(NamedTuple):
    """The test, and how much each row looks like the window's: higher, more."""

    measured: Measured
    share: float  # of window rows that are of another kind, as far as the scores show
    reference_scores: Floats  # [N], cross-fitted
    window_scores: Floats  # [M], cross-fitted
    centre: Floats  # [H]
    direction: Floats  # [H], the classifier of all rows

    def scores(self, vectors: Vectors) -> Floats:
        """Of rows that were not fitted on. [n, H] to [n]"""
        return np.asarray((vectors - self.centre) @ self.direction, dtype=np.float64)


def domain(x: Vectors, y: Vectors, *, permutations: int, rng: np.random.Generator) -> Domain:
    """Classifier two-sample test (Lopez-Paz and Oquab 2017; Kim et al. 2021) by ridge regression.

    Labels t are M/P less for reference rows' 0 and window rows' 1; features are centred on the
    pool. Fold f is scored by w_f = (X'X + l I)^-1 X't over the other folds, l three times the mean
    eigenvalue of X'X. statistic: mean score of window rows less that of reference rows. effect:
    area under the ROC of the cross-fitted scores, with a bootstrap interval of the scores.
    """
    n, m = len(x), len(y)
    pool = np.concatenate([x, y]).astype(np.float64)
    centre = pool.mean(axis=0)
    pool -= centre
    labels = np.zeros(n + m)
    labels[n:] = 1.0
    ridge = max(RIDGE * float((pool**2).sum()) / pool.shape[1], 1e-9)
    smoother = _smoother(pool, ridge, rng)
    drawn = rng.permuted(np.tile(labels, (permutations, 1)), axis=1)
    all_labels = np.vstack([labels, drawn])  # [1 + R, P]
    scores = (all_labels - m / (n + m)) @ smoother.T  # [1 + R, P]
    gaps = np.einsum("rp,rp->r", scores, all_labels / m - (1 - all_labels) / n)
    seen = scores[0]
    first = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float32)
    second = rng.multinomial(m, np.full(m, 1 / m), RESAMPLES).astype(np.float32)
    area, low, high = _area(seen[:n], seen[n:], first, second)
    whole = pool.T @ (labels - m / (n + m))
    direction = np.linalg.solve(pool.T @ pool + ridge * np.eye(pool.shape[1]), whole)
    measured = Measured(float(gaps[0]), permutation_p(float(gaps[0]), gaps[1:]), area, low, high)
    return Domain(measured, share_of(seen[:n], seen[n:]), seen[:n], seen[n:], centre, direction)


def _smoother(pool: Floats, ridge: float, rng: np.random.Generator) -> Floats:
    """What turns centred labels into cross-fitted scores. [P, P]"""
    size, dimensions = pool.shape
    folds = rng.permutation(size) % FOLDS
    found = np.zeros((size, size))
    whole = pool.T @ pool + ridge * np.eye(dimensions)
    for fold in range(FOLDS):
        inside = np.flatnonzero(folds == fold)
        outside = np.flatnonzero(folds != fold)
        own = pool[inside]
        half = cho_solve(cho_factor(whole - own.T @ own), own.T)
        found[np.ix_(inside, outside)] = half.T @ pool[outside].T
    return found


def share_of(x: Floats, y: Floats) -> float:
    """max_v F_x(v) - F_y(v) (one-sided Kolmogorov-Smirnov) of scores [N] and [M], less what chance
    alone gives on average, sqrt(pi / 8) sqrt(1/N + 1/M) (Smirnov 1939), at least 0.

    Where a share of the window's rows is new and the others are as before, the gap is that share
    times what of the new scores above v less what of the known does: never more than the share.
    """
    values = np.sort(np.concatenate([x, y]))
    # Scores of equal texts differ by rounding: they are one value.
    ends = values[np.append(np.diff(values) > _TIE * np.abs(values).max(), True)]
    below = [np.searchsorted(np.sort(one), ends, side="right") / len(one) for one in (x, y)]
    chance = math.sqrt(math.pi / 8 * (1 / len(x) + 1 / len(y)))
    return max(0.0, float((below[0] - below[1]).max()) - chance)


def _area(x: Floats, y: Floats, first: Singles, second: Singles) -> tuple[float, float, float]:
    """P(score of a window row > that of a reference row), ties by half, and its interval.

    Args:
        first: how often each reference row was drawn, by resample [R, N].
        second: likewise of window rows [R, M].
    """
    n, m = len(x), len(y)
    ranks = rankdata(np.concatenate([x, y]))
    area = float(ranks[n:].sum() - m * (m + 1) / 2) / (n * m)
    wins = ((y[:, None] > x) + 0.5 * (y[:, None] == x)).astype(np.float32)  # [M, N]
    drawn = np.einsum("rn,rn->r", second @ wins, first, dtype=np.float64) / (n * m)
    return (area, *around(area, drawn, 0.0, 1.0))
