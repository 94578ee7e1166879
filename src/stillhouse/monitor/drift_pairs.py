"""Whether student and teacher agree less on inputs like the reference's.

Rows are compared within strata of the domain classifier's score, so that a change of the mix of
inputs is no change of agreement (subclassification on the propensity score, Rosenbaum and Rubin
1984). Strata that hold mostly new inputs are left out: there is nothing to compare them with.
Knows numbers only.

Shapes: N reference pairs, M window pairs, S strata, R resamples or permutations.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.monitor.drift_kernel import RESAMPLES, Floats, Measured, around, permutation_p

STRATA: Final = 10
# A stratum is of new inputs where the window has this many times its share of rows, ...
EXCESS: Final = 1.5
# ... by this many standard errors.
SURE: Final = 2.0


class Compared(NamedTuple):
    """The test, or `None` where too few pairs are comparable, and how many of either were."""

    measured: Measured | None
    n_reference: int
    n_window: int
    kept: npt.NDArray[np.bool_]  # [M], window pairs that were compared


class Strata(NamedTuple):
    """Cuts of the domain score, and which strata are comparable."""

    edges: Floats  # [S - 1]
    open: npt.NDArray[np.bool_]  # [S]

    def of(self, scores: Floats) -> npt.NDArray[np.intp]:
        """The stratum of each score."""
        return np.searchsorted(self.edges, scores, side="right")


def strata_of(reference: Floats, window: Floats) -> Strata:
    """Tenths of the pooled scores; closed where the window has far more than its share."""
    pooled = np.concatenate([reference, window])
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, STRATA + 1)[1:-1]))
    first = np.bincount(np.searchsorted(edges, reference, side="right"), minlength=len(edges) + 1)
    second = np.bincount(np.searchsorted(edges, window, side="right"), minlength=len(edges) + 1)
    total = first + second
    share = len(window) / len(pooled)
    wanted = total * share
    sure = second > wanted + SURE * np.sqrt(wanted * (1 - share))
    return Strata(edges, ~((second > EXCESS * wanted) & sure))


def compared(
    x: Floats,
    y: Floats,
    x_strata: npt.NDArray[np.intp],
    y_strata: npt.NDArray[np.intp],
    is_open: npt.NDArray[np.bool_],
    *,
    fewest: int,
    permutations: int,
    rng: np.random.Generator,
) -> Compared:
    """Fall of the mean: sum_s w_s (mean x_s - mean y_s) / sum_s w_s, w_s = n_s m_s / (n_s + m_s)
    (Cochran 1954), one-sided by permutation within strata, with a bootstrap interval within strata.

    Args:
        x: values of reference pairs [N].
        y: of window pairs [M].
        x_strata: the stratum of each [N].
        y_strata: likewise [M].
        is_open: whether a stratum is compared [S].
        fewest: pairs needed on either side.
    """
    kept = is_open[y_strata]
    pieces = []
    for stratum in np.flatnonzero(is_open):
        first, second = x[x_strata == stratum], y[y_strata == stratum]
        if len(first) and len(second):
            pieces.append((first, second))
    n, m = sum(len(a) for a, _ in pieces), sum(len(b) for _, b in pieces)
    if min(n, m) < fewest:
        return Compared(None, n, m, kept)
    weights = np.array([len(a) * len(b) / (len(a) + len(b)) for a, b in pieces])
    weights /= weights.sum()
    seen = float(sum(w * (a.mean() - b.mean()) for w, (a, b) in zip(weights, pieces, strict=True)))
    drawn, boot = np.zeros(permutations), np.zeros(RESAMPLES)
    for weight, (a, b) in zip(weights, pieces, strict=True):
        both = rng.permuted(np.tile(np.concatenate([a, b]), (permutations, 1)), axis=1)
        drawn += weight * (both[:, : len(a)].mean(axis=1) - both[:, len(a) :].mean(axis=1))
        boot += weight * (
            rng.choice(a, (RESAMPLES, len(a))).mean(axis=1)
            - rng.choice(b, (RESAMPLES, len(b))).mean(axis=1)
        )
    low, high = around(seen, boot, -np.inf, np.inf)
    measured = Measured(seen, permutation_p(seen, drawn), seen, low, high)
    return Compared(measured, n, m, kept)
