"""Small figures that reports of the dataset share. Knows numbers and texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def entropy(probabilities: Sequence[float]) -> float:
    """-sum p ln p, in nats; 0 ln 0 is 0."""
    return abs(math.fsum(-p * math.log(p) for p in probabilities if p > 0))


def lengths(texts: Sequence[str]) -> dict[str, object]:
    """p50 and p95 (linear interpolation) of characters and words.

    Raises:
        ValueError: there is no text.
    """
    if not texts:
        raise ValueError("lengths of nothing have no percentiles")
    characters = [len(text) for text in texts]
    words = [len(text.split()) for text in texts]
    return {
        name: {"p50": float(np.percentile(of, 50)), "p95": float(np.percentile(of, 95))}
        for name, of in (("characters", characters), ("words", words))
    }
