"""Cycles in tests neither wait for the disk nor fit a large embedder."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pytest

from stillhouse.core.hashing import unit_hash
from stillhouse.core.selection import Vectors
from stillhouse.retrain import cycle_choose


class WordEmbedder:
    """A few words each a direction, most of them drawn by hash."""

    name = "words"
    dimensions = 32

    def embed(self, texts: Sequence[str]) -> Vectors:
        found = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for index, text in enumerate(texts):
            for word in text.split():
                found[index, int(unit_hash(word, 0) * self.dimensions)] += 1.0
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    monkeypatch.setattr(cycle_choose, "open_embedder", lambda *_: WordEmbedder())
