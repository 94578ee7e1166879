"""Whether a classifier can tell window and reference apart, and which rows look most like either.

A ridge classifier's cross-fitted scores are linear in the labels, so each permutation of the labels
refits all folds by one product of matrices, and the test is exact. Knows vectors only.

Shapes: N reference rows, M window rows, P = N + M, H dimensions, R permutations.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from scipy.stats import rankdata

from stillhouse.models.embedders import Vectors
from stillhouse.monitor.drift_kernel import RESAMPLES, Floats, Measured, around, permutation_p

FOLDS: Final = 5


class Domain(NamedTuple):
    """The test, and how much each row looks like the window's: higher, more."""

    measured: Measured
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
    pool. Fold f is scored by w_f = (X'X + l I)^-1 X't over the other folds, l the mean
    eigenvalue of X'X. statistic: mean score of window rows less that of reference rows. effect:
    area under the ROC of the cross-fitted scores, with a bootstrap interval of the scores.
    """
    n, m = len(x), len(y)
    pool = np.concatenate([x, y]).astype(np.float64)
    centre = pool.mean(axis=0)
    pool -= centre
    labels = np.zeros(n + m)
    labels[n:] = 1.0
    ridge = max(float((pool**2).sum()) / pool.shape[1], 1e-9)
    smoother = _smoother(pool, ridge, rng)
    drawn = rng.permuted(np.tile(labels, (permutations, 1)), axis=1)
    all_labels = np.vstack([labels, drawn])  # [1 + R, P]
    scores = (all_labels - m / (n + m)) @ smoother.T  # [1 + R, P]
    gaps = np.einsum("rp,rp->r", scores, all_labels / m - (1 - all_labels) / n)
    seen = scores[0]
    area, low, high = _area(seen[:n], seen[n:], rng)
    whole = pool.T @ (labels - m / (n + m))
    direction = np.linalg.solve(pool.T @ pool + ridge * np.eye(pool.shape[1]), whole)
    measured = Measured(float(gaps[0]), permutation_p(float(gaps[0]), gaps[1:]), area, low, high)
    return Domain(measured, seen[:n], seen[n:], centre, direction)


def _smoother(pool: Floats, ridge: float, rng: np.random.Generator) -> Floats:
    """What turns centred labels into cross-fitted scores. [P, P]"""
    size, dimensions = pool.shape
    folds = rng.permutation(size) % FOLDS
    found = np.zeros((size, size))
    for fold in range(FOLDS):
        inside = np.flatnonzero(folds == fold)
        outside = np.flatnonzero(folds != fold)
        rest = pool[outside]
        inverse = np.linalg.solve(rest.T @ rest + ridge * np.eye(dimensions), rest.T)
        found[np.ix_(inside, outside)] = pool[inside] @ inverse
    return found


def _area(x: Floats, y: Floats, rng: np.random.Generator) -> tuple[float, float, float]:
    """P(score of a window row > that of a reference row), ties by half, and its interval."""
    n, m = len(x), len(y)
    ranks = rankdata(np.concatenate([x, y]))
    area = float(ranks[n:].sum() - m * (m + 1) / 2) / (n * m)
    wins = ((y[:, None] > x) + 0.5 * (y[:, None] == x)).astype(np.float32)  # [M, N]
    first = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float32)
    second = rng.multinomial(m, np.full(m, 1 / m), RESAMPLES).astype(np.float32)
    drawn = np.einsum("rn,rn->r", second @ wins, first, dtype=np.float64) / (n * m)
    return (area, *around(area, drawn, 0.0, 1.0))
