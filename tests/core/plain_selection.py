"""Farthest point and facility location written straight from their definitions, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

Matrix = npt.NDArray[np.float32]


@st.composite
def exact_vectors(draw: st.DrawFn, least: int = 1, most: int = 30) -> Matrix:
    """Unit vectors whose cosines float32 holds exactly: entries +-1/4, 16 of them. Ties abound."""
    count = draw(st.integers(least, most))
    bits = draw(st.lists(st.integers(0, 2**16 - 1), min_size=count, max_size=count))
    signs = (np.array(bits)[:, None] >> np.arange(16)) & 1
    return ((2 * signs - 1) / 4).astype(np.float32)


def unit_vectors(count: int, dimensions: int, seed: int) -> Matrix:
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((count, dimensions))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def farthest_points(
    vectors: Matrix,
    n: int,
    first: int,
    start: Matrix | None = None,
    *,
    groups: Sequence[int] | None = None,
    quotas: Sequence[int] | None = None,
) -> list[int]:
    """Gonzalez: each next one has the least similarity to its nearest chosen one."""
    x = vectors.astype(np.float64)
    given = [] if start is None else list(start.astype(np.float64))
    chosen: list[int] = []
    if not given and n:
        chosen.append(first)
    while len(chosen) < n:
        centres = given + [x[c] for c in chosen]
        best: tuple[float, int] | None = None
        for i in range(len(x)):
            if i in chosen or (
                groups is not None
                and quotas is not None
                and sum(groups[c] == groups[i] for c in chosen) >= quotas[groups[i]]
            ):
                continue
            nearest = max(float(x[i] @ c) for c in centres)
            if best is None or nearest < best[0]:
                best = (nearest, i)
        assert best is not None
        chosen.append(best[1])
    return chosen


def served(vectors: Matrix, chosen: Sequence[int], start: Matrix | None = None) -> float:
    """F(S) of facility location."""
    x = vectors.astype(np.float64)
    centres = [x[c] for c in chosen] + ([] if start is None else list(start.astype(np.float64)))
    return sum(max((max(float(row @ c), 0.0) for c in centres), default=0.0) for row in x)


def greedy_facility(
    vectors: Matrix,
    n: int,
    start: Matrix | None = None,
    *,
    groups: Sequence[int] | None = None,
    quotas: Sequence[int] | None = None,
) -> list[int]:
    """Each next one makes F grow most; the lowest index of equals."""
    chosen: list[int] = []
    while len(chosen) < n:
        best: tuple[float, int] | None = None
        for i in range(len(vectors)):
            if i in chosen or (
                groups is not None
                and quotas is not None
                and sum(groups[c] == groups[i] for c in chosen) >= quotas[groups[i]]
            ):
                continue
            value = served(vectors, [*chosen, i], start)
            if best is None or value > best[0]:
                best = (value, i)
        assert best is not None
        chosen.append(best[1])
    return chosen


def radius(vectors: Matrix, chosen: Sequence[int]) -> float:
    """Largest distance to the nearest chosen one."""
    x = vectors.astype(np.float64)
    return max(min(float(np.linalg.norm(row - x[c])) for c in chosen) for row in x)


def best_radius(vectors: Matrix, n: int) -> float:
    """The least radius of any n of them."""
    return min(radius(vectors, s) for s in itertools.combinations(range(len(vectors)), n))


def best_served(vectors: Matrix, n: int) -> float:
    """The largest F of any n of them."""
    return max(served(vectors, s) for s in itertools.combinations(range(len(vectors)), n))
