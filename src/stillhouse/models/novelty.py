"""How near a text is to those that a student was trained on, by the light embedder.

`familiarity` is the highest cosine to a training text: 1 minus the novelty. A file holds vectors
and the embedder's weights, never a text. Imports no torch; knows texts, not whose they are.

Shapes: N training texts, H dimensions.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from stillhouse.core.errors import DataError
from stillhouse.core.hashing import unit_hash
from stillhouse.core.jsonl import disk_errors
from stillhouse.models.embedders import Vectors
from stillhouse.models.hashing_embedder import HashingEmbedder

MOST: Final = 4000  # training texts that are compared with
FAMILIARITY: Final = "familiarity"


class Novelty:
    """Training texts as unit vectors [N, H]."""

    def __init__(self, embedder: HashingEmbedder, vectors: Vectors) -> None:
        if not len(vectors):
            raise ValueError("novelty needs at least one training text")
        self._embedder, self._vectors = embedder, vectors

    @classmethod
    def of_texts(cls, texts: Sequence[str], seed: int = 0) -> Novelty:
        """Fit the embedder on all distinct texts and keep up to `MOST` of them, drawn by hash.

        Raises:
            ValueError: no texts.
        """
        distinct = sorted(set(texts), key=lambda text: (unit_hash(text, seed), text))
        embedder = HashingEmbedder(distinct)
        return cls(embedder, embedder.embed(distinct[:MOST]))

    def familiarity(self, texts: Sequence[str]) -> list[float]:
        """Highest cosine of each text to a training text, in [-1, 1]."""
        near = (self._embedder.embed(texts) @ self._vectors.T).max(axis=1)
        return [float(one) for one in near]

    def save(self, path: Path) -> None:
        """Write to a file."""
        with disk_errors(path), path.open("wb") as file:
            np.savez_compressed(
                file,
                vectors=self._vectors.astype(np.float16),
                weights=np.stack(self._embedder.weights),
            )


def load_novelty(path: Path) -> Novelty:
    """Read a file of `Novelty.save`.

    Raises:
        DataError: it is none.
    """
    try:
        with np.load(path) as found:
            vectors = np.asarray(found["vectors"], dtype=np.float32)
            weights = np.asarray(found["weights"], dtype=np.float32)
        if not (np.isfinite(vectors).all() and np.isfinite(weights).all()):
            raise ValueError("numbers are not finite")
        embedder = HashingEmbedder(weights=list(weights))
        if vectors.ndim != 2 or vectors.shape[1] != embedder.dimensions:
            raise ValueError(f"vectors of shape {vectors.shape}")
        return Novelty(embedder, vectors)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(str(path), f"holds no training texts' vectors: {error}") from None
