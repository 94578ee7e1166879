"""Choose n of N vectors that stand for all: facility location by lazy greedy.

F(S) = sum_i max over j in S of max(cos(i, j), 0): every vector counts by how near its nearest
chosen one is. F is submodular: greedy reaches 1 - 1/e of the best (Nemhauser, Wolsey and Fisher
1978), one half where quotas by group bind (Fisher, Nemhauser and Wolsey 1978), and gains that can
only fall need not be counted again until they come to the top (Minoux 1978).

All N x N similarities of 100K vectors are 40 GB, so each vector keeps its T nearest neighbours
among the clusters around its own; the rest count as 0 (Lindgren, Wu and Dimakis, NeurIPS 2016,
bound the loss). With T = N and one cluster the graph is whole. Knows vectors and groups, not texts.

N vectors, H dimensions, K clusters, T neighbours.
"""

from __future__ import annotations

import heapq
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from stillhouse.core.selection import Selection, Strata, Vectors, best_similarity, check_sizes

NEIGHBOURS: Final = 64
PROBES: Final = 4  # clusters searched for a vector's neighbours, its own among them
ROWS: Final = 1024


def neighbour_graph(
    vectors: Vectors,
    labels: npt.NDArray[np.int32],
    centres: Vectors,
    *,
    neighbours: int = NEIGHBOURS,
    probes: int = PROBES,
) -> sparse.csr_matrix:
    """Similarities of each vector to its nearest ones, [N, N], itself among them (1).

    Args:
        vectors: [N, H], rows of length 1.
        labels: [N], their clusters.
        centres: [K, H], of the clusters.
        neighbours: T, kept of each vector; those of no positive similarity are left out.
        probes: clusters searched, by the similarity of their centres.
    """
    members = [np.flatnonzero(labels == c) for c in range(len(centres))]
    around = np.argsort(-(centres @ centres.T), axis=1, kind="stable")[:, :probes]
    rows: list[npt.NDArray[np.int64]] = []
    columns: list[npt.NDArray[np.int64]] = []
    values: list[npt.NDArray[np.float32]] = []
    for label, own in enumerate(members):
        searched = np.sort(np.concatenate([members[c] for c in {label, *around[label].tolist()}]))
        block = vectors[searched].T
        for first in range(0, len(own), ROWS):
            part = own[first : first + ROWS]
            found = vectors[part] @ block
            here = np.searchsorted(searched, part)
            found[np.arange(len(part)), here] = np.inf  # itself is always kept
            keep = min(neighbours, len(searched))
            best = np.argpartition(-found, keep - 1, axis=1)[:, :keep]
            rows.append(np.repeat(part, keep))
            columns.append(searched[best].ravel())
            values.append(np.take_along_axis(found, best, axis=1).ravel())
    value = np.concatenate(values) if values else np.empty(0, dtype=np.float32)
    row = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
    column = np.concatenate(columns) if columns else np.empty(0, dtype=np.int64)
    value[np.isinf(value)] = 1.0
    positive = value > 0
    shape = (len(vectors), len(vectors))
    return sparse.csr_matrix((value[positive], (row[positive], column[positive])), shape)


def facility_location(
    vectors: Vectors,
    n: int,
    graph: sparse.csr_matrix,
    *,
    start: Vectors | None = None,
    strata: Strata | None = None,
) -> Selection:
    """Choose n vectors by lazy greedy; with equal gains the lowest index.

    Args:
        vectors: [N, H], rows of length 1; read for `start` alone.
        n: how many; at most N.
        graph: [N, N], similarity of a vector (row) to one that may stand for it (column).
        start: [S, H], chosen already.
        strata: groups whose quotas must not be crossed.

    Raises:
        ValueError: n is more than there are, or the quotas do not add up to n.
    """
    check_sizes(len(vectors), n, strata)
    served = np.zeros(len(vectors))  # [N], similarity to the nearest chosen
    if start is not None and len(start):
        served = np.maximum(best_similarity(vectors, start).astype(np.float64), 0.0)
    columns = graph.tocsc()
    columns.sort_indices()
    starts, who, value = columns.indptr, columns.indices, columns.data.astype(np.float64)
    left = None if strata is None else strata.quotas.astype(np.int64)
    growth = np.maximum(value - served[who], 0.0)
    owner = np.repeat(np.arange(len(vectors)), np.diff(starts))
    first = np.bincount(owner, growth, minlength=len(vectors))
    heap = [(-gain, index) for index, gain in enumerate(first.tolist())]
    heapq.heapify(heap)
    fresh = np.zeros(len(vectors), dtype=np.int64)  # how many were chosen when a gain was counted
    chosen = np.empty(n, dtype=np.int64)
    gains = np.empty(n)
    done = 0
    while done < n:
        bound, index = heap[0]
        if left is not None and strata is not None and left[strata.groups[index]] == 0:
            heapq.heappop(heap)
            continue
        mine = slice(starts[index], starts[index + 1])
        if fresh[index] != done:
            gain = float(np.maximum(value[mine] - served[who[mine]], 0.0).sum())
            fresh[index] = done
            heapq.heapreplace(heap, (-gain, index))
            continue
        heapq.heappop(heap)
        chosen[done], gains[done] = index, -bound
        served[who[mine]] = np.maximum(served[who[mine]], value[mine])
        done += 1
        if left is not None and strata is not None:
            left[strata.groups[index]] -= 1
    return Selection(chosen, gains)
