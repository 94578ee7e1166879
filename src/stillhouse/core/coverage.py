"""How well a chosen set covers the traffic, beside random sets of the same size.

The distance of a query is 1 - cos to the nearest chosen one: 0 for a chosen or equal text, 1 for
one that shares nothing with any. Random sets are drawn several times, so that their luck is part of
the interval. Knows vectors, not how the set was chosen.

N vectors, H dimensions, M measured ones, R random sets.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.selection import Indices, Vectors, best_similarity
from stillhouse.core.statistics import Interval

DRAWS: Final = 20
# Distances are measured on so many of the vectors, drawn at random, where there are more.
MEASURED: Final = 2000
RESAMPLES: Final = 500
P95: Final = 95

Distances = npt.NDArray[np.float64]


class Spread(NamedTuple):
    """Mean, 95th percentile and largest distance to the nearest chosen, as 1 - cos."""

    mean: float
    p95: float
    largest: float

    def as_json(self) -> dict[str, float]:
        """Rounded for people and files."""
        return {name: round(value, 6) for name, value in self._asdict().items()}


class Coverage(NamedTuple):
    """A chosen set beside random ones.

    `gain_mean` and `gain_p95` are random minus chosen, as a share of random: above 0 the chosen set
    is nearer to the traffic. `n` of theirs is `measured`.
    """

    chosen: Spread
    random: Spread
    gain_mean: Interval
    gain_p95: Interval
    n: int
    measured: int
    draws: int

    def as_json(self) -> dict[str, object]:
        """For coverage.json."""
        return {
            "n": self.n,
            "measured": self.measured,
            "draws": self.draws,
            "chosen": self.chosen.as_json(),
            "random": self.random.as_json(),
            "gain_mean": self.gain_mean.to_json(),
            "gain_p95": self.gain_p95.to_json(),
        }


def distances(vectors: Vectors, chosen: Vectors) -> Distances:
    """1 - cos of each of the vectors [N, H] to the nearest chosen one [S, H]: [N]."""
    near = best_similarity(vectors, chosen).astype(np.float64)
    return np.clip(1.0 - near, 0.0, 2.0)


def spread(found: Distances) -> Spread:
    """Summary of distances.

    Raises:
        ValueError: there is none.
    """
    if not len(found):
        raise ValueError("distances: there are none")
    return Spread(float(found.mean()), float(np.percentile(found, P95)), float(found.max()))


def coverage(
    vectors: Vectors,
    chosen: Indices,
    *,
    start: Vectors | None = None,
    draws: int = DRAWS,
    measured: int = MEASURED,
    confidence: float = 0.95,
    seed: int = 0,
) -> Coverage:
    """Measure a chosen set against random ones.

    The intervals resample the measured vectors and the random sets, both with replacement: a gain
    is then not one lucky draw's, nor that of the vectors that happened to be measured.

    Args:
        vectors: [N, H], rows of length 1; the traffic.
        chosen: indices of the chosen set.
        start: [S, H], there in any case: part of the chosen and of the random sets.
        draws: R, random sets.
        measured: M at most.
        confidence: of the intervals, two-sided.
        seed: of the draws.

    Raises:
        ValueError: there is no vector, or nothing is chosen.
    """
    count, size = len(vectors), len(chosen)
    if not count or not size:
        raise ValueError("chosen: nothing is chosen")
    rng = np.random.default_rng(seed)
    where = np.arange(count)
    if count > measured:
        where = np.sort(rng.choice(count, measured, replace=False))
    asked = vectors[where]
    given = np.full(len(asked), np.inf)
    if start is not None and len(start):
        given = distances(asked, start)
    ours = np.minimum(given, distances(asked, vectors[chosen]))  # [M]
    theirs = np.stack(
        [
            np.minimum(
                given, distances(asked, vectors[rng.choice(count, size=size, replace=False)])
            )
            for _ in range(draws)
        ]
    )  # [R, M]
    randoms = [spread(row) for row in theirs]
    gains = np.array(
        [_gains(ours, theirs, rng) for _ in range(RESAMPLES)] if len(where) > 1 else [[0.0, 0.0]]
    )
    tail = 50 * (1 - confidence)
    estimates = _gain(ours, theirs)
    intervals = []
    for index, estimate in enumerate(estimates):
        low, high = np.percentile(gains[:, index], [tail, 100 - tail])
        intervals.append(
            Interval(
                estimate=estimate,
                low=min(float(low), estimate),
                high=max(float(high), estimate),
                n=len(where),
            )
        )
    return Coverage(
        chosen=spread(ours),
        random=Spread(*(float(np.mean(column)) for column in zip(*randoms, strict=True))),
        gain_mean=intervals[0],
        gain_p95=intervals[1],
        n=size,
        measured=len(where),
        draws=draws,
    )


def _gains(ours: Distances, theirs: Distances, rng: np.random.Generator) -> tuple[float, float]:
    """The gains of one resample."""
    columns = rng.integers(0, len(ours), size=len(ours))
    rows = rng.integers(0, len(theirs), size=len(theirs))
    return _gain(ours[columns], theirs[rows][:, columns])


def _gain(ours: Distances, theirs: Distances) -> tuple[float, float]:
    """1 - chosen / random, of means and of 95th percentiles; 0 where random leaves no distance."""
    mean, p95 = float(theirs.mean()), float(np.percentile(theirs, P95, axis=1).mean())
    return (
        1.0 - float(ours.mean()) / mean if mean > 0 else 0.0,
        1.0 - float(np.percentile(ours, P95)) / p95 if p95 > 0 else 0.0,
    )
