"""Text embedders: texts in, unit vectors out, so that a dot product is a cosine similarity.

The default (`hashing_embedder`) needs no download and no torch: it sees shared words and parts of
words, not meaning. The pretrained encoders (`sentence_encoder`, behind the `train` extra) see
meaning and cost far more. Does not know what the vectors are used for.

N texts, H dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from stillhouse.core.errors import UserError
from stillhouse.core.optional import late, require
from stillhouse.core.progress import Progress

Vectors = npt.NDArray[np.float32]  # [N, H]

BATCH: Final = 2048
HASHING: Final = "hashing"
MINILM: Final = "minilm"


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors."""

    @property
    def name(self) -> str:
        """What reports call it; equal names give equal vectors for equal texts and corpora."""

    @property
    def dimensions(self) -> int:
        """H."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, shape [len(texts), H], float32; equal texts have equal vectors."""


def open_embedder(name: str, corpus: Sequence[str]) -> Embedder:
    """The embedder that a recipe names.

    Args:
        name: `hashing` (the default of recipes), `minilm` (all-MiniLM-L6-v2 from its package), or
            `hf:ID_OR_PATH[@REVISION]`, any sentence-transformers model or plain encoder.
        corpus: texts that the weights of `hashing` are fitted on; may be empty. Others ignore it.

    Raises:
        UserError: no such embedder, or its model cannot be had.
        MissingExtraError: it needs an extra that is not installed.
    """
    if name == HASHING:
        hashing: Embedder = late("stillhouse.models.hashing_embedder").HashingEmbedder(corpus)
        return hashing
    if name == MINILM or name.startswith("hf:"):
        module = require("stillhouse.models.sentence_encoder", "train", f"embedder {name}")
        source = "embedded-encoder" if name == MINILM else name
        encoder: Embedder = module.open_sentence_encoder(source, name)
        return encoder
    raise UserError(
        "embedder",
        "is not one that is known",
        value=name,
        action=f"use {HASHING}, {MINILM} or hf:ID_OR_PATH of a sentence-transformers model",
    )


def embed_all(embedder: Embedder, texts: Sequence[str], progress: Progress) -> Vectors:
    """Unit vectors of all texts, [N, H], with a bar."""
    if not texts:
        return np.empty((0, embedder.dimensions), dtype=np.float32)
    parts: list[Vectors] = []
    with progress.bar("embedding queries", len(texts), "queries") as bar:
        for start in range(0, len(texts), BATCH):
            parts.append(embedder.embed(texts[start : start + BATCH]))
            bar.advance(len(parts[-1]))
    return np.concatenate(parts)


def unit_rows(vectors: Vectors) -> Vectors:
    """The rows scaled to length 1. No row may be zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, dtype=np.float32)
