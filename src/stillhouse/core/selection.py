"""Choose n of N vectors that lie far apart: k-centre by farthest points, with quotas by group.

Farthest point takes, again and again, the vector whose nearest chosen one is farthest away; the
largest distance left is then at most twice the best possible (Gonzalez, Theoretical Computer
Science 38, 1985). Distances are |x - y| = sqrt(2 - 2 cos) of unit vectors, so that their order is
that of cosines. Knows vectors: not what they stand for, nor how groups came about.

N vectors, H dimensions, S start vectors, K groups, B block.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]  # [N, H], rows of length 1
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

BLOCK: Final = 1024  # points brought up to date at a time
CHUNK: Final = 128  # of those, compared at a time, sorted by how far they are behind
TILE: Final = 8192  # rows of a matrix of cosines held at a time


class Selection(NamedTuple):
    """What was chosen, in that order.

    `gains` [n] says what each brought: k-centre, its distance to the nearest chosen before it
    (infinite for the first of all); facility location, its growth of the sum. Neither ever grows.
    """

    chosen: Indices
    gains: npt.NDArray[np.float64]


class Strata(NamedTuple):
    """A group for each vector [N], and how many may be chosen of each group [K]."""

    groups: npt.NDArray[np.int32]
    quotas: Indices


def quotas(sizes: Indices, n: int, floor: int = 0) -> Indices:
    """How many to choose of each group: in proportion to size, but `floor` (or all) at least.

    max(min(size, floor), r * size) with the one r at which they add up to n, rounded by largest
    remainders.

    Args:
        sizes: [K], of the groups.
        n: to choose in all, at most sum(sizes).
        floor: least number of each group.

    Raises:
        ValueError: the floors alone are more than n, or n is more than there are.
    """
    least = np.minimum(sizes, floor)
    if n > sizes.sum():
        raise ValueError(f"n: {n} is more than the {sizes.sum()} there are")
    if least.sum() > n:
        raise ValueError(
            f"floor: {floor} of each of {len(sizes)} groups are {least.sum()}, more than n ({n})"
        )
    if n == 0:
        return np.zeros(len(sizes), dtype=np.int64)
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        if np.maximum(least, middle * sizes).sum() > n:
            high = middle
        else:
            low = middle
    wanted = np.maximum(least, low * sizes)
    whole = np.minimum(np.floor(wanted + 1e-9).astype(np.int64), sizes)
    rest = wanted - whole
    rest[whole >= sizes] = -1.0
    for index in np.lexsort((np.arange(len(sizes)), -rest))[: n - int(whole.sum())]:
        whole[index] += 1
    return np.asarray(whole, dtype=np.int64)


def k_center(
    vectors: Vectors,
    n: int,
    *,
    start: Vectors | None = None,
    strata: Strata | None = None,
    seed: int = 0,
) -> Selection:
    """Choose n vectors by farthest point; with equal distances the lowest index.

    Exactly the greedy choice, reached lazily: a point's known similarity to the chosen can only
    grow, so what was known earlier bounds it from below. The B least similar are brought up to date
    with the chosen of meanwhile by one matrix product, and chosen from while the best of them beats
    all that is known of the others.

    Args:
        vectors: [N, H], rows of length 1.
        n: how many; at most N.
        start: [S, H], chosen already: what is near them is not needed.
        strata: groups whose quotas must not be crossed; the farthest point of a group that is not
            full is taken. Distances count across groups. Without strata the bound of two holds.
        seed: draws the first one, where there is no `start`.

    Raises:
        ValueError: n is more than there are, or the quotas do not add up to n.
    """
    check_sizes(len(vectors), n, strata)
    near = np.full(len(vectors), -np.inf, dtype=np.float32)  # [N] known similarity to the chosen
    if start is not None and len(start):
        near = best_similarity(vectors, start)
    left = None if strata is None else strata.quotas.astype(np.int64)  # [K]
    if strata is not None and left is not None:
        near[(left == 0)[strata.groups]] = np.inf
    run = _Run(vectors, near, strata, left, n)
    if n and near.min() == -np.inf:
        allowed = np.flatnonzero(near == -np.inf)
        run.take(int(allowed[np.random.default_rng(seed).integers(len(allowed))]), -np.inf)
    while run.done < n:
        run.round()
    with np.errstate(invalid="ignore"):
        gains = np.sqrt(np.maximum(2.0 - 2.0 * run.at.astype(np.float64), 0.0))
    return Selection(run.chosen, gains)


class _Run:
    """State of one `k_center`. `near` is up to date with the first `seen` chosen of each point."""

    def __init__(
        self,
        vectors: Vectors,
        near: Floats,
        strata: Strata | None,
        left: Indices | None,
        n: int,
    ) -> None:
        self.vectors = vectors
        self.near = near  # [N]; infinite for a point that is chosen or must not be
        self.seen = np.zeros(len(vectors), dtype=np.int64)
        self.strata = strata
        self.left = left
        self.chosen = np.empty(n, dtype=np.int64)
        self.at = np.empty(n, dtype=np.float32)  # similarity at which each was chosen
        self.centres = np.empty((n, vectors.shape[1]), dtype=np.float32)
        self.done = 0

    def take(self, index: int, similarity: float) -> bool:
        """Choose a point; whether its group is full now."""
        self.chosen[self.done] = index
        self.at[self.done] = similarity
        self.centres[self.done] = self.vectors[index]
        self.near[index] = np.inf
        self.done += 1
        if self.strata is None or self.left is None:
            return False
        group = self.strata.groups[index]
        self.left[group] -= 1
        if self.left[group]:
            return False
        self.near[self.strata.groups == group] = np.inf
        return True

    def round(self) -> None:
        """Bring the least similar points up to date, and choose from them while that is safe."""
        block, limit, limit_index = _least(self.near)
        self._update(block)
        rows = self.vectors[block]  # [B, H]
        near = self.near[block]
        total = len(self.chosen)
        while self.done < total:
            best = int(near.argmin())
            if near[best] == np.inf or (near[best], block[best]) > (limit, limit_index):
                break
            full = self.take(int(block[best]), float(near[best]))
            np.maximum(near, rows @ rows[best], out=near)
            near[best] = np.inf
            if full:
                near[self.near[block] == np.inf] = np.inf
                break  # the group's other points were part of the limit
        open_points = near != np.inf
        self.near[block[open_points]] = near[open_points]
        self.seen[block] = self.done

    def _update(self, block: Indices) -> None:
        order = block[np.argsort(self.seen[block], kind="stable")]
        for first in range(0, len(order), CHUNK):
            part = order[first : first + CHUNK]
            behind = int(self.seen[part[0]])
            if behind == self.done:
                break
            found = best_similarity(self.vectors[part], self.centres[behind : self.done])
            self.near[part] = np.maximum(self.near[part], found)
        self.seen[block] = self.done


class _Block(NamedTuple):
    """The points with the least values, and the least value and index among all others."""

    block: Indices
    limit: float
    limit_index: int


def _least(near: Floats) -> _Block:
    """Equal values are told apart by index, so that ties fall as in the plain algorithm."""
    if len(near) <= BLOCK:
        return _Block(np.flatnonzero(near < np.inf), np.inf, len(near))
    edge = np.partition(near, BLOCK - 1)[BLOCK - 1]
    below = np.flatnonzero(near < edge)
    ties = np.flatnonzero(near == edge)
    taken = ties[: BLOCK - len(below)]
    block = np.union1d(below, taken)
    block = block[near[block] < np.inf]
    if len(taken) < len(ties):
        return _Block(block, float(edge), int(ties[len(taken)]))
    others = near > edge
    if not others.any():
        return _Block(block, np.inf, len(near))
    limit = near[others].min()
    return _Block(block, float(limit), int(np.flatnonzero(near == limit)[0]))


def best_similarity(vectors: Vectors, others: Vectors) -> Floats:
    """Cosine similarity of each of the vectors [N, H] to the nearest of `others` [S, H]: [N]."""
    best = np.full(len(vectors), -np.inf, dtype=np.float32)
    step = max(1, (1 << 24) // min(max(len(others), 1), TILE))
    for first in range(0, len(vectors), step):
        rows = vectors[first : first + step]
        for other in range(0, len(others), TILE):
            found = (rows @ others[other : other + TILE].T).max(axis=1)
            np.maximum(best[first : first + step], found, out=best[first : first + step])
    return best


def check_sizes(count: int, n: int, strata: Strata | None) -> None:
    """Refuse an n or quotas that cannot be met.

    Raises:
        ValueError: names which.
    """
    if not 0 <= n <= count:
        raise ValueError(f"n: must be from 0 to the {count} there are (got {n})")
    if strata is not None:
        sizes = np.bincount(strata.groups, minlength=len(strata.quotas))
        if strata.quotas.sum() != n or (strata.quotas > sizes).any():
            raise ValueError("quotas: must add up to n, and be no more than their groups hold")
