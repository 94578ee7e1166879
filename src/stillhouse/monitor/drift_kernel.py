"""Whether two samples of embeddings have one distribution: MMD with a permutation test.

Knows vectors only. Methods and papers are in docs/drift.md.

Shapes: N reference rows, M window rows, H dimensions, R resamples or permutations.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.models.embedders import Vectors

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

RESAMPLES: Final = 499
_TAIL: Final = 2.5  # per cent
_TIE: Final = 1e-9  # sums of the same numbers in another order are one value


class Measured(NamedTuple):
    """A statistic, its p-value, and the effect with its 95% interval."""

    statistic: float
    p: float
    effect: float
    low: float
    high: float


NOTHING: Final = Measured(0.0, 1.0, 0.0, 0.0, 0.0)


def permutation_p(seen: float, drawn: Floats) -> float:
    """(1 + #{drawn >= seen}) / (1 + R): holds its level for any R (Phipson and Smyth 2010)."""
    return float(1 + (drawn >= seen - _TIE * max(1.0, abs(seen))).sum()) / (1 + len(drawn))


def around(estimate: float, drawn: Floats, least: float, most: float) -> tuple[float, float]:
    """95% interval: percentiles of a bootstrap moved to have its mean at the estimate, within the
    range that the quantity has. Distances are biased upwards by resampling; the move takes it off.
    """
    low, high = np.percentile(drawn - drawn.mean() + estimate, [_TAIL, 100 - _TAIL])
    low, high = (min(most, max(least, float(one))) for one in (low, high))
    return min(low, estimate), max(high, estimate)


def kernel_matrix(pooled: Vectors) -> npt.NDArray[np.float32]:
    """exp(-|x - y|^2 / (2 s^2)), s the median distance of distinct rows of the pooled sample; the
    diagonal is 0. Unit vectors [N + M, H] to [N + M, N + M]."""
    squares = 2.0 - 2.0 * np.clip(pooled @ pooled.T, -1.0, 1.0)
    above = squares[np.triu_indices(len(pooled), 1)]
    middle = float(np.median(above)) or float(above.mean()) or 1.0
    found = np.exp(-squares / (2.0 * middle), dtype=np.float32)
    np.fill_diagonal(found, 0.0)
    return np.asarray(found, dtype=np.float32)


def mmd(x: Vectors, y: Vectors, *, permutations: int, rng: np.random.Generator) -> Measured:
    """The unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, lemma 6):

    MMD^2 = sum_{i != j} k(x_i, x_j) / (N (N - 1)) + sum_{i != j} k(y_i, y_j) / (M (M - 1))
            - 2 sum_{ij} k(x_i, y_j) / (N M)

    p: permutations of the pooled rows. effect: sqrt(max(0, MMD^2) / (1 - mean k(x_i, x_j))), the
    distance of the two mean embeddings in standard deviations of the reference, as Cohen's d.

    Args:
        x: reference, unit vectors [N, H].
        y: window, unit vectors [M, H].
    """
    n, m = len(x), len(y)
    kernel = kernel_matrix(np.concatenate([x, y]))
    spread = 1.0 - float(kernel[:n, :n].sum(dtype=np.float64)) / (n * (n - 1))
    if spread <= _TIE and float(kernel[:n, n:].min()) >= 1.0 - _TIE:
        return NOTHING  # every text is the same
    is_window = np.zeros(n + m, dtype=np.float32)
    is_window[n:] = 1.0
    drawn = _permuted(is_window, permutations, rng)
    centred = _centred(kernel)
    values = _of_splits(centred, np.vstack([is_window, drawn]))
    seen = float(values[0])
    scale = max(spread, _TIE)
    first = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float32)
    second = rng.multinomial(m, np.full(m, 1 / m), RESAMPLES).astype(np.float32)
    boot = _of_resamples(centred, first, second)
    low, high = around(max(0.0, seen), boot, 0.0, np.inf)
    effect, low, high = (float(np.sqrt(max(0.0, one) / scale)) for one in (seen, low, high))
    return Measured(seen, permutation_p(seen, values[1:]), effect, low, high)


def _permuted(
    flags: npt.NDArray[np.float32], count: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    return rng.permuted(np.tile(flags, (count, 1)), axis=1)


def _centred(kernel: Singles) -> Singles:
    """Less the kernel's mean, which cancels, so that single precision suffices; pairs of a row with
    itself stay 0. [P, P]"""
    size = len(kernel)
    found = kernel - np.float32(kernel.sum(dtype=np.float64) / (size * (size - 1)))
    np.fill_diagonal(found, 0.0)
    return found


def _of_splits(centred: Singles, in_window: Singles) -> Floats:
    """MMD^2 where the pool's rows with 1 are the window and all others the reference. [R, P] to [R]

    Sums over the reference follow from those over the pool, so that one product serves all.
    """
    rows = centred.sum(axis=1, dtype=np.float64)
    with_window = in_window @ centred
    bb = np.einsum("rp,rp->r", with_window, in_window, dtype=np.float64)
    ab = in_window @ rows - bb
    aa = float(rows.sum()) - 2 * ab - bb
    m = in_window.sum(axis=1, dtype=np.float64)
    n = len(centred) - m
    return np.asarray(aa / (n * (n - 1)) + bb / (m * (m - 1)) - 2 * ab / (n * m), dtype=np.float64)


def _of_resamples(centred: Singles, a: Singles, b: Singles) -> Floats:
    """MMD^2 between samples that hold reference row i a_i times [R, N], window row j b_j times
    [R, M]. Pairs of a row with itself are left out, also where it was drawn twice. [R]"""
    n, m = a.shape[1], b.shape[1]
    aa = np.einsum("rn,rn->r", a @ centred[:n, :n], a, dtype=np.float64)
    ab = np.einsum("rm,rm->r", a @ centred[:n, n:], b, dtype=np.float64)
    bb = np.einsum("rm,rm->r", b @ centred[n:, n:], b, dtype=np.float64)
    pairs_a = n**2 - (a.astype(np.float64) ** 2).sum(axis=1)
    pairs_b = m**2 - (b.astype(np.float64) ** 2).sum(axis=1)
    return np.asarray(aa / pairs_a + bb / pairs_b - 2 * ab / (n * m), dtype=np.float64)
