"""Spherical k-means: groups of unit vectors by direction.

Lloyd's iteration with cosine similarity (Dhillon and Modha, Machine Learning 42, 2001), started by
k-means++ (Arthur and Vassilvitskii, SODA 2007), on a sample where there are very many vectors. The
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
BLOCK: Final = 4096


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
    for start in range(0, len(vectors), BLOCK):
        found = vectors[start : start + BLOCK] @ centres.T
        best = found.argmax(axis=1)
        labels[start : start + BLOCK] = best
        similarity[start : start + BLOCK] = found[np.arange(len(best)), best]
    return Nearest(labels, similarity)


def _start(vectors: Vectors, k: int, rng: np.random.Generator) -> Vectors:
    """k-means++: each next centre is drawn with a chance in proportion to 1 - its best cosine.

    Half the squared distance of unit vectors is 1 - cosine. Fewer than `k` centres come back where
    all vectors are among them already.
    """
    chosen = [int(rng.integers(len(vectors)))]
    gap = _gap(vectors, vectors[chosen[0]])
    while len(chosen) < k:
        total = gap.cumsum(dtype=np.float64)
        if total[-1] <= 0:
            break
        chosen.append(int(np.searchsorted(total, rng.random() * total[-1], side="right")))
        np.minimum(gap, _gap(vectors, vectors[chosen[-1]]), out=gap)
    return vectors[chosen]


def _gap(vectors: Vectors, centre: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    gap = np.maximum(1.0 - vectors @ centre, 0.0)
    # Rounding keeps equal vectors a hair apart: they are one point all the same.
    gap[gap < 1e-6] = 0.0
    return np.asarray(gap, dtype=np.float32)


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
