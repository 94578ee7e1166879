"""Bootstrap resampling: the arithmetic under `statistics`.

Draws samples, or whole groups, with replacement and reads percentiles. Knows arrays only: what they
mean, and how an interval is shown, is said in `statistics`.

Shapes: N samples, G groups (clusters; without groups each sample is its own), R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

Groups = Sequence[Hashable]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

DRAWS_AT_ONCE: Final = 1 << 22  # bootstrap draws held in memory: 32 MiB of indices


class Bounds(NamedTuple):
    """An estimate with the ends of its interval."""

    estimate: float
    low: float
    high: float


def bootstrap_ratio(
    top: Floats,
    bottom: Floats,
    confidence: float,
    *,
    resamples: int,
    seed: int,
    groups: Groups | None,
) -> Bounds:
    """sum(top) / sum(bottom) with its BCa interval; means, differences and ratios are of this form.

    Groups are summed first, so that the unit drawn is the group. Memory does not grow with R. A
    single sample, or samples that all have the same ratio, give an interval of no width.

    Raises:
        ValueError: all samples are of one group, or no resample has a ratio.
    """
    tail = tail_of(confidence)
    if groups is not None:
        ids = group_ids(groups, len(top))
        top = np.bincount(ids, top).astype(np.float64)
        bottom = np.bincount(ids, bottom).astype(np.float64)
        if len(top) < 2:
            raise ValueError("all samples are of one group: nothing says how groups differ")
    units = len(top)
    estimate = float(top.sum() / bottom.sum())
    if units == 1 or not np.any(top - estimate * bottom):
        return Bounds(estimate, estimate, estimate)
    rng = np.random.default_rng(seed)
    chunk = max(1, DRAWS_AT_ONCE // units)
    parts: list[Floats] = []
    for start in range(0, resamples, chunk):
        index = rng.integers(0, units, size=(min(chunk, resamples - start), units))  # [r, G]
        sums = bottom[index].sum(axis=1)
        parts.append(top[index].sum(axis=1)[sums > 0] / sums[sums > 0])
    draws = np.concatenate(parts)
    if not len(draws):
        raise ValueError("denominator scores are almost all 0: no ratio exists")
    low, high = _bca(draws, estimate, top, bottom, tail)
    return Bounds(estimate, low, high)


def _bca(
    draws: Floats, estimate: float, top: Floats, bottom: Floats, tail: float
) -> tuple[float, float]:
    """Bias-corrected and accelerated percentiles (Efron 1987); acceleration from the jackknife."""
    tolerance = 1e-12 * float(np.abs(draws).max())  # equal sums in another order are ties
    below = (draws < estimate - tolerance).mean()
    ties = (np.abs(draws - estimate) <= tolerance).mean()
    edge = 0.5 / len(draws)
    z0 = float(ndtri(min(max(below + ties / 2, edge), 1 - edge)))
    rest = bottom.sum() - bottom  # [G]
    usable = rest > 0
    jackknife = (top.sum() - top)[usable] / rest[usable]
    centred = jackknife.mean() - jackknife if len(jackknife) else np.zeros(1)
    scale = float(np.abs(centred).max())
    acceleration = 0.0
    if scale > 0:
        d = centred / scale
        acceleration = float((d**3).sum()) / (6 * float((d**2).sum()) ** 1.5)
    z = np.array([ndtri(tail), ndtri(1 - tail)])
    room = np.maximum(1 - acceleration * (z0 + z), 1e-9)  # reached only at extreme confidence
    shifted = z0 + (z0 + z) / room
    low, high = (float(q) for q in np.quantile(draws, ndtr(shifted)))
    return low, high


def resample(
    statistic: Callable[[Indices], float],
    n: int,
    confidence: float,
    *,
    resamples: int,
    seed: int,
    groups: Groups | None,
) -> Bounds:
    """A statistic of sample indices on all samples, and its percentiles over R resamples.

    Raises:
        ValueError: the statistic is not finite on some resample.
    """
    tail = tail_of(confidence)
    estimate = float(statistic(np.arange(n, dtype=np.int64)))
    rng = np.random.default_rng(seed)
    members: list[Indices] | None = None
    if groups is not None:
        ids = group_ids(groups, n)
        members = [np.flatnonzero(ids == g) for g in range(int(ids.max()) + 1)]
    draws = np.empty(resamples)  # [R]
    for r in range(resamples):
        if members is None:
            index = rng.integers(0, n, size=n)
        else:
            chosen = rng.integers(0, len(members), size=len(members))
            index = np.concatenate([members[g] for g in chosen])
        draws[r] = statistic(index)
    if not (np.isfinite(draws).all() and math.isfinite(estimate)):
        raise ValueError("the statistic is not finite on every resample")
    low, high = (float(q) for q in np.quantile(draws, [tail, 1 - tail]))
    return Bounds(estimate, low, high)


def tail_of(confidence: float) -> float:
    """Probability left out on each side of a two-sided interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1 (got {confidence})")
    return (1 - confidence) / 2


def group_ids(groups: Groups | None, n: int) -> Indices:
    """Groups numbered from 0 in the order they appear; without groups each sample is its own."""
    if groups is None:
        return np.arange(n, dtype=np.int64)
    if len(groups) != n:
        raise ValueError(f"groups must name one group a sample (got {len(groups)} for {n})")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(g, len(numbers)) for g in groups], dtype=np.int64)
