"""The embedder that needs no download: hashed words and character 4-grams, projected at random.

Weighted by how rare they are in the corpus. It sees shared words and word parts, not meaning. Does
not know what the vectors are used for.

N texts, H dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from stillhouse.core.duplicates import normalised
from stillhouse.models.embedders import BATCH, HASHING, Vectors, unit_rows

DIMENSIONS: Final = 384
FEATURES: Final = 1 << 18  # buckets that n-grams of one kind are hashed into
NONZEROS: Final = 16  # of each bucket's row in the projection


class HashingEmbedder:
    """Hashed TF-IDF of words and of character 4-grams within words, projected to H dimensions.

    Each kind's weights are (1 + ln tf) * (ln((1 + n) / (1 + df)) + 1), scaled to length 1; the two
    count equally. The projection is a sparse Johnson-Lindenstrauss transform: each bucket adds
    +-1/sqrt(s) to s of the H coordinates, one in each of s blocks (Kane and Nelson, Journal of the
    ACM 61(1), 2014), so a cosine is kept to within about 1/sqrt(H).

    A text without any letter or sign has the vector of an empty text.

    Args:
        weights: of another, as it gives them, in place of a corpus.
    """

    def __init__(
        self,
        corpus: Sequence[str] = (),
        *,
        dimensions: int = DIMENSIONS,
        seed: int = 0,
        weights: Sequence[Vectors] | None = None,
    ) -> None:
        if dimensions < NONZEROS or dimensions % NONZEROS:
            raise ValueError(f"dimensions: must be a multiple of {NONZEROS} (got {dimensions})")
        self._dimensions = dimensions
        self._kinds = (
            _vectorizer(analyzer="word", ngram_range=(1, 1), token_pattern=r"\w+"),
            _vectorizer(analyzer="char_wb", ngram_range=(4, 4)),
        )
        self._weights = [np.empty(0, dtype=np.float32) for _ in self._kinds]
        if weights is None:
            self._fit(corpus)
        else:
            self._weights = [np.asarray(one, dtype=np.float32) for one in weights]
            if [one.shape for one in self._weights] != [(FEATURES,)] * len(self._kinds):
                raise ValueError(f"weights: must be {len(self._kinds)} rows of {FEATURES}")
        rng = np.random.default_rng(seed)
        self._projections = [_projection(rng, dimensions) for _ in self._kinds]
        # An empty text shares nothing with any other: a direction of its own.
        self._nothing = rng.standard_normal(dimensions).astype(np.float32)

    @property
    def name(self) -> str:
        """`hashing`."""
        return HASHING

    @property
    def dimensions(self) -> int:
        """H."""
        return self._dimensions

    @property
    def weights(self) -> list[Vectors]:
        """What was fitted: a weight a bucket, [FEATURES] of each kind."""
        return self._weights

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, shape [len(texts), H]."""
        vectors = np.zeros((len(texts), self._dimensions), dtype=np.float32)
        for start in range(0, len(texts), BATCH):
            plain = [normalised(text) for text in texts[start : start + BATCH]]
            block = vectors[start : start + BATCH]
            for kind, weights, projection in zip(
                self._kinds, self._weights, self._projections, strict=True
            ):
                counts = kind.transform(plain)
                counts.data = (1.0 + np.log(counts.data)) * weights[counts.indices]
                block += (normalize(counts, copy=False) @ projection).toarray()
        vectors[~vectors.any(axis=1)] = self._nothing
        return unit_rows(vectors)

    def _fit(self, corpus: Sequence[str]) -> None:
        """Document frequencies of each kind's buckets."""
        counts = [np.zeros(FEATURES, dtype=np.int64) for _ in self._kinds]
        for start in range(0, len(corpus), BATCH):
            plain = [normalised(text) for text in corpus[start : start + BATCH]]
            for kind, frequency in zip(self._kinds, counts, strict=True):
                frequency += np.bincount(kind.transform(plain).indices, minlength=FEATURES)
        self._weights = [
            (np.log((1.0 + len(corpus)) / (1.0 + frequency)) + 1.0).astype(np.float32)
            for frequency in counts
        ]


def _vectorizer(**kind: object) -> HashingVectorizer:
    return HashingVectorizer(
        n_features=FEATURES,
        norm=None,
        alternate_sign=False,
        lowercase=False,
        dtype=np.float32,
        **kind,
    )


def _projection(rng: np.random.Generator, dimensions: int) -> sparse.csr_matrix:
    """[FEATURES, H], `NONZEROS` entries a row."""
    block = dimensions // NONZEROS
    within = rng.integers(0, block, size=(FEATURES, NONZEROS), dtype=np.int32)
    columns = within + block * np.arange(NONZEROS, dtype=np.int32)
    signs = rng.integers(0, 2, size=(FEATURES, NONZEROS), dtype=np.int8) * 2 - 1
    values = (signs / np.sqrt(NONZEROS)).astype(np.float32)
    starts = np.arange(0, FEATURES * NONZEROS + 1, NONZEROS, dtype=np.int32)
    return sparse.csr_matrix((values.ravel(), columns.ravel(), starts), (FEATURES, dimensions))
