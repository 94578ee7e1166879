"""Near-duplicates by meaning: vectors of one cluster with a cosine above a threshold (SemDeDup).

Within each cluster vectors are looked at in the order of a rule, and one that is as similar as the
threshold to one that stays is left out (Abbas et al., 2023, arXiv:2303.09540). Unlike their code,
similarity to one that was itself left out does not count: whatever is left out has a near one that
stays, and is named. Pairs across clusters are not compared. Knows vectors, not texts.

N vectors, H dimensions, K clusters.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from stillhouse.core.selection import Vectors

Keep = Literal["atypical", "typical", "first"]
BLOCK: Final = 2048


def semantic_duplicates(
    vectors: Vectors,
    labels: npt.NDArray[np.int32],
    centres: Vectors,
    threshold: float,
    keep: Keep = "atypical",
) -> dict[int, int]:
    """Index of a vector to leave out -> index of the one that stays in its place.

    Args:
        vectors: [N, H], rows of length 1.
        labels: [N], their clusters.
        centres: [K, H], of the clusters.
        threshold: least cosine of a pair that counts as one.
        keep: which of a pair stays: the one farther from its cluster's centre (the paper's choice),
            the nearer one, or the one that comes first.
    """
    found: dict[int, int] = {}
    for label, centre in enumerate(centres):
        members = np.flatnonzero(labels == label)
        if keep != "first":
            typical = vectors[members] @ centre
            members = members[
                np.argsort(typical if keep == "atypical" else -typical, kind="stable")
            ]
        _within(vectors, members, threshold, found)
    return dict(sorted(found.items()))


def _within(
    vectors: Vectors, members: npt.NDArray[np.int64], threshold: float, found: dict[int, int]
) -> None:
    """Leave out members, in their order, that are near one that stays."""
    staying = np.empty(0, dtype=np.int64)
    for first in range(0, len(members), BLOCK):
        block = members[first : first + BLOCK]
        rows = vectors[block]
        earlier = np.full(len(block), -1, dtype=np.int64)
        for other in range(0, len(staying), BLOCK):
            part = staying[other : other + BLOCK]
            near = rows @ vectors[part].T >= threshold
            hit = near.any(axis=1) & (earlier < 0)
            earlier[hit] = part[near[hit].argmax(axis=1)]
        near = rows @ rows.T >= threshold
        for index in np.flatnonzero(near.sum(axis=1) > 1):
            if earlier[index] < 0:
                later = np.flatnonzero(near[index, index + 1 :]) + index + 1
                later = later[earlier[later] < 0]
                earlier[later] = block[index]
        out = earlier >= 0
        found.update(zip(block[out].tolist(), earlier[out].tolist(), strict=True))
        staying = np.concatenate([staying, block[~out]])
