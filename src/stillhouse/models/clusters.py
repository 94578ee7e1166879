"""Spherical k-means: groups of unit vectors by direction.

Lloyd's iteration with cosine similarity (Dhillon and Modha, Machine Learning 42, 2001), started by
greedy k-means++ (Arthur and Vassilvitskii, SODA 2007), on a sample where there are very many. The
same vectors, k and seed give the same clusters. Knows vectors, not texts.

N vectors, H dimensions, K clusters.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

Vectors = npt.NDArray[np.float32]  # [N, H]
Labels = npt.NDArray[np.int32]  # [N]

ROUNDS: Final = 25
# Vectors a cluster is fitted on, at most: more move its centre by little.
PER_CLUSTER: Final = 256
CELLS: Final = 1 << 22  # similarities held at a time


class Clusters(NamedTuple):
    """`labels` [N] says which of the `centres` [K, H], of length 1, each vector is nearest to.

    Clusters are numbered by size, the largest first; none is empty, so that K may be below what
    was asked for where there are fewer distinct vectors.
    """

    labels: Labels
    centres: Vectors

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Vectors in each cluster, [K]."""
        return np.bincount(self.labels, minlength=len(self.centres))


def default_clusters(count: int) -> int:
    """sqrt(N / 2), a rule of thumb (Mardia, Kent and Bibby, Multivariate Analysis, 1979)."""
    return max(1, round(math.sqrt(count / 2)))


def cluster(vectors: Vectors, k: int | None = None, seed: int = 0) -> Clusters:
    """Group unit vectors into about `k` clusters.

    Args:
        vectors: [N, H], rows of length 1.
        k: clusters; `None`: `default_clusters(N)`. More than N is N.
        seed: of the start.
    """
    count = len(vectors)
    if k is not None and k < 1:
        raise ValueError(f"k: must be at least 1 (got {k})")
    if count == 0:
        return Clusters(np.empty(0, dtype=np.int32), np.empty((0, vectors.shape[1]), np.float32))
    wanted = min(count, default_clusters(count) if k is None else k)
    rng = np.random.default_rng(seed)
    sample = vectors
    if count > wanted * PER_CLUSTER:
        sample = vectors[np.sort(rng.choice(count, wanted * PER_CLUSTER, replace=False))]
    centres = _start(sample, wanted, rng)
    before: Labels | None = None
    for _ in range(ROUNDS):
        labels = nearest(sample, centres).labels
        if before is not None and np.array_equal(labels, before):
            break
        centres, before = _means(sample, labels, centres), labels
    return _numbered(vectors, centres)


class Nearest(NamedTuple):
    """The nearest centre of each vector [N], and the cosine similarity to it [N]."""

    labels: Labels
    similarity: npt.NDArray[np.float32]


def nearest(vectors: Vectors, centres: Vectors) -> Nearest:
    """The most similar of the centres [K, H] for each of the vectors [N, H]; ties: the first."""
    labels = np.empty(len(vectors), dtype=np.int32)
    similarity = np.empty(len(vectors), dtype=np.float32)
    block = max(1, CELLS // max(1, len(centres)))
    for start in range(0, len(vectors), block):
        found = vectors[start : start + block] @ centres.T
        best = found.argmax(axis=1)
        labels[start : start + block] = best
        similarity[start : start + block] = found[np.arange(len(best)), best]
    return Nearest(labels, similarity)


def mean_directions(vectors: Vectors, labels: Labels) -> Vectors:
    """The centre of each cluster 0..max(labels), [K, H]; of one without a vector, any direction."""
    anywhere = np.full((int(labels.max()) + 1, vectors.shape[1]), vectors.shape[1] ** -0.5)
    return _means(vectors, labels, anywhere.astype(np.float32))


def _start(vectors: Vectors, k: int, rng: np.random.Generator) -> Vectors:
    """Greedy k-means++: of some vectors, drawn with a chance in proportion to 1 - their best cosine
    (half the squared distance), the next centre is the one that lowers the sum of it most.

    Fewer than `k` centres come back where all vectors are among them already.
    """
    trials = 2 + int(math.log(k))
    chosen = [int(rng.integers(len(vectors)))]
    gap = _gaps(vectors, chosen)[:, 0]
    while len(chosen) < k:
        total = gap.cumsum(dtype=np.float64)
        if total[-1] <= 0:
            break
        drawn = np.searchsorted(total, rng.random(trials) * total[-1], side="right")
        left = np.minimum(gap[:, None], _gaps(vectors, drawn.tolist()))  # [N, trials]
        best = int(left.sum(axis=0, dtype=np.float64).argmin())
        chosen.append(int(drawn[best]))
        gap = left[:, best]
    return vectors[chosen]


def _gaps(vectors: Vectors, centres: list[int]) -> npt.NDArray[np.float32]:
    """1 - cos of each vector to each of some centres, [N, len(centres)]."""
    gaps = 1.0 - vectors @ vectors[centres].T
    # Rounding keeps equal vectors a hair apart: they are one point all the same.
    gaps[gaps < 1e-6] = 0.0
    return np.asarray(gaps, dtype=np.float32)


def _means(vectors: Vectors, labels: Labels, centres: Vectors) -> Vectors:
    """The direction of each cluster's mean; a cluster without a direction keeps its centre."""
    count = len(vectors)
    members = sparse.csr_matrix(
        (np.ones(count, np.float32), (labels, np.arange(count))), (len(centres), count)
    )
    sums = np.asarray(members @ vectors, dtype=np.float32)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    usable = lengths > 1e-6
    return np.where(usable, sums / np.where(usable, lengths, 1.0), centres).astype(np.float32)


def _numbered(vectors: Vectors, centres: Vectors) -> Clusters:
    """All vectors to their nearest centre; empty clusters left out, the rest by size."""
    labels = nearest(vectors, centres).labels
    sizes = np.bincount(labels, minlength=len(centres))
    order = np.lexsort((np.arange(len(centres)), -sizes))
    order = order[sizes[order] > 0]
    number = np.zeros(len(centres), dtype=np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    return Clusters(number[labels], centres[order])
