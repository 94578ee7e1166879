"""MinHash signatures of sets of 64-bit hashes, by datasketch. Imported where texts are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from datasketch import MinHash

_LOW: Final = (1 << 32) - 1


def minhash(sets: Sequence[frozenset[int]], permutations: int) -> npt.NDArray[np.uint32]:
    """Signatures, shape [len(sets), permutations]; equal for equal sets, everywhere."""
    # The shingles are hashes already; datasketch mixes them once more before its permutations.
    found = MinHash.bulk(sets, num_perm=permutations, seed=1, hashfunc=lambda value: value & _LOW)
    return np.array([one.hashvalues for one in found], dtype=np.uint32).reshape(-1, permutations)
