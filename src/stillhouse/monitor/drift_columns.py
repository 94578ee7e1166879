"""Whether one column changed: numbers by PSI and Kolmogorov-Smirnov, categories by a G-test.

Each knows two samples of one column. A column that is constant in both gives p = 1 and effect 0.

Shapes: N reference values, M window values, K bins or categories, R resamples or permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from stillhouse.monitor.drift_kernel import (
    NOTHING,
    RESAMPLES,
    Floats,
    Measured,
    around,
    permutation_p,
)

BINS: Final = 10
MOST_CATEGORIES: Final = 100
_HALF: Final = 0.5  # added to each bin's count, so that no share is 0
Counts = npt.NDArray[np.int64]


def psi(x: Floats, y: Floats, *, permutations: int, rng: np.random.Generator) -> Measured:
    """Population stability index, sum_k (q_k - p_k) ln(q_k / p_k), in nats (symmetrised
    Kullback-Leibler divergence of the binned shares; Jeffreys 1946).

    Bins hold a tenth of the pooled sample each, so that they are the same under permutation; 1/2
    is added to each count. effect: less (K - 1) (1/N + 1/M), what chance alone gives on average
    (Yurdakul and Naranjo 2020), at least 0. p: permutations, which only redraw the counts.
    """
    pooled = np.concatenate([x, y])
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, BINS + 1)[1:-1]))
    # Left of an edge and on it: a value that many rows share is in one bin.
    cells = np.searchsorted(edges, pooled, side="left")
    both, second = _counts(cells, len(x))
    if len(both) < 2:
        return NOTHING
    n, m = len(x), len(y)
    seen = float(_psi((both - second)[None], second[None])[0])
    drawn = rng.multivariate_hypergeometric(both, m, size=permutations, method="marginals")
    chance = (len(both) - 1) * (1 / n + 1 / m)
    effect = max(0.0, seen - chance)
    boot = _psi(*_resampled(both - second, second, rng))
    low, high = around(effect, boot, 0.0, np.inf)
    return Measured(seen, permutation_p(seen, _psi(both - drawn, drawn)), effect, low, high)


def ks(x: Floats, y: Floats, *, rng: np.random.Generator) -> Measured:
    """Two-sample Kolmogorov-Smirnov: D = max_v |F_x(v) - F_y(v)|, its asymptotic p-value (which is
    too large where values are tied), and a bootstrap interval."""
    values, cells = np.unique(np.concatenate([x, y]), return_inverse=True)
    if len(values) < 2:
        return NOTHING
    found = ks_2samp(x, y, method="asymp")
    seen = float(found.statistic)
    both, second = _counts(cells, len(x))
    first_drawn, second_drawn = _resampled(both - second, second, rng)
    gaps = first_drawn.cumsum(axis=1) / len(x) - second_drawn.cumsum(axis=1) / len(y)
    low, high = around(seen, np.abs(gaps).max(axis=1), 0.0, 1.0)
    return Measured(seen, float(found.pvalue), seen, low, high)


def categories(
    x: Sequence[str], y: Sequence[str], *, permutations: int, rng: np.random.Generator
) -> Measured | None:
    """G-test of the shares of categories, G = 2 sum O ln(O / E), by permutation (exact for rare
    ones too). effect: total variation, the least share of rows that would have to change.

    `None` where values are no categories: more than a hundred, or as many as half of the rows.
    """
    names, cells = np.unique(np.asarray([*x, *y], dtype=object).astype(str), return_inverse=True)
    if len(names) > min(MOST_CATEGORIES, (len(x) + len(y)) / 2):
        return None
    if len(names) < 2:
        return NOTHING
    both, second = _counts(cells, len(x))
    first = both - second
    seen = float(_g(first[None], second[None])[0])
    drawn = rng.multivariate_hypergeometric(both, len(y), size=permutations, method="marginals")
    effect = float(_variation(first[None], second[None])[0])
    low, high = around(effect, _variation(*_resampled(first, second, rng)), 0.0, 1.0)
    return Measured(seen, permutation_p(seen, _g(both - drawn, drawn)), effect, low, high)


def _counts(cells: npt.NDArray[np.intp], n: int) -> tuple[Counts, Counts]:
    """Counts of each cell that is not empty: of both samples, and of the window. [K], [K]"""
    size = int(cells.max()) + 1
    both = np.bincount(cells, minlength=size).astype(np.int64)
    second = np.bincount(cells[n:], minlength=size).astype(np.int64)
    return both[both > 0], second[both > 0]


def _resampled(first: Counts, second: Counts, rng: np.random.Generator) -> tuple[Counts, Counts]:
    """Counts of bootstrap samples of either. [R, K] twice"""
    drawn = [
        rng.multinomial(int(one.sum()), one / one.sum(), RESAMPLES).astype(np.int64)
        for one in (first, second)
    ]
    return drawn[0], drawn[1]


def _psi(first: Counts, second: Counts) -> Floats:
    """[R, K] counts to [R]."""
    k = first.shape[1]
    p = (first + _HALF) / (first.sum(axis=1, keepdims=True) + _HALF * k)
    q = (second + _HALF) / (second.sum(axis=1, keepdims=True) + _HALF * k)
    return np.asarray(((q - p) * np.log(q / p)).sum(axis=1), dtype=np.float64)


def _g(first: Counts, second: Counts) -> Floats:
    """[R, K] counts to [R]. A count of 0 adds nothing."""
    total = np.zeros(len(first))
    both = first + second
    for one in (first, second):
        expected = both * (one.sum(axis=1, keepdims=True) / both.sum(axis=1, keepdims=True))
        ratio = np.where(one > 0, one / np.where(expected > 0, expected, 1.0), 1.0)
        total += 2 * (one * np.log(ratio)).sum(axis=1)
    return total


def _variation(first: Counts, second: Counts) -> Floats:
    p = first / first.sum(axis=1, keepdims=True)
    q = second / second.sum(axis=1, keepdims=True)
    return np.asarray(np.abs(p - q).sum(axis=1) / 2, dtype=np.float64)
