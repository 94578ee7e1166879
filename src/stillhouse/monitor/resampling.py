"""Bootstrap over units of figures that are made of sums, and intervals of quantiles.

Whole units are drawn with replacement, for the requests of one user are alike. A figure of sums
(counts by label, gaps by bin) is computed from the drawn units' sums, all resamples at once. Knows
arrays; not what they are of.

Shapes: N samples, G units, M sums of a unit, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from stillhouse.core.bootstrap import DRAWS_AT_ONCE, group_ids
from stillhouse.core.statistics import Interval

Floats = npt.NDArray[np.float64]
CONFIDENCE: Final = 0.95
RESAMPLES: Final = 1000
SEED: Final = 0


def sums_by_unit(values: Floats, units: Sequence[str]) -> Floats:
    """Sums of the rows [N, M] of each unit: [G, M]."""
    ids = group_ids(list(units), len(values))
    found = np.zeros((int(ids.max()) + 1, values.shape[1]))
    np.add.at(found, ids, values)
    return found


def drawn_sums(parts: Floats, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """Sums over G units drawn with replacement, [R, M], from the sums of each, [G, M]."""
    units = len(parts)
    rng = np.random.default_rng(seed)
    chunk = max(1, DRAWS_AT_ONCE // units)
    found = []
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        index = rng.integers(0, units, size=(count, units))
        index += np.arange(count)[:, None] * units
        times = np.bincount(index.ravel(), minlength=count * units).reshape(count, units)
        found.append(times @ parts)
    return np.concatenate(found)


def interval_of_sums(
    statistic: Callable[[Floats], Floats], parts: Floats, n: int, *, least: float | None = None
) -> Interval:
    """The basic bootstrap of a statistic of sums (Davison and Hinkley 1997, 5.2.1).

    It reflects the percentiles about the estimate, which takes off the bias that resampling adds to
    a distance.

    Args:
        statistic: of rows of sums, [R, M] to [R].
        least: lowest value that there is; the interval is cut there.
    """
    estimate = float(statistic(parts.sum(axis=0, keepdims=True))[0])
    draws = statistic(drawn_sums(parts))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    ends = 2 * estimate - float(high), 2 * estimate - float(low)
    if least is not None:
        ends = max(least, ends[0]), max(least, ends[1])
    return Interval(estimate=estimate, low=min(ends[0], estimate), high=max(ends[1], estimate), n=n)


def quantile_interval(values: Floats, units: Sequence[str], q: float) -> Interval:
    """A quantile with Woodruff's interval (1952): that of the share below it, read off the values.

    The share's variance is over units, by linearisation of the indicator of being at or below.
    """
    n, ordered = len(values), np.sort(values)
    estimate = float(np.quantile(ordered, q))
    ids = group_ids(list(units), n)
    sizes = np.bincount(ids).astype(np.float64)
    below = (values <= estimate).astype(np.float64)
    gaps = np.bincount(ids, below) - sizes * below.mean()
    groups = len(sizes)
    spread = float((gaps**2).sum()) * groups / max(1, groups - 1) / n**2
    half = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt(max(spread, q * (1 - q) / n))
    low, high = (float(np.quantile(ordered, min(1.0, max(0.0, q + end)))) for end in (-half, half))
    return Interval(estimate=estimate, low=min(low, estimate), high=max(high, estimate), n=n)
