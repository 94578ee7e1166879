"""Honest baselines for closed labels: the majority class here, the linear one in `tfidf`.

They see text and labels only, train in seconds on one core, and say whether a model is worth its
price. Imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]  # [N, C], rows sum to one, columns in the task's order


class Baseline(Protocol):
    """A fitted baseline."""

    def predict_probabilities(self, texts: Sequence[str]) -> Probabilities:
        """Class probabilities, shape [len(texts), C]."""


class MajorityBaseline:
    """Always the most frequent label of the training set (ties: the first label of the task)."""

    def __init__(self, labels: Sequence[str], answers: Sequence[str]) -> None:
        if not answers:
            raise ValueError("answers: at least one is needed to know the majority")
        counts = Counter(answers)
        self._row = np.array([counts[label] / len(answers) for label in labels])

    def predict_probabilities(self, texts: Sequence[str]) -> Probabilities:
        """The training set's class frequencies, on every row."""
        return np.tile(self._row, (len(texts), 1))
