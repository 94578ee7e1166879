"""Honest baselines for closed labels: the majority class, and TF-IDF with logistic regression.

They see text and labels only, train in seconds on one core, and say whether a model is worth its
price. Imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

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


class TfidfBaseline:
    """TF-IDF over word 1- and 2-grams, logistic regression (C = 1 after scikit-learn's default).

    Where the training answers hold one class only, it predicts that class: there is nothing to fit.
    """

    def __init__(
        self, labels: Sequence[str], texts: Sequence[str], answers: Sequence[str], seed: int = 0
    ) -> None:
        if len(texts) != len(answers) or not texts:
            raise ValueError("texts and answers must be of one length, at least 1")
        self._labels = tuple(labels)
        self._model: Pipeline | None = None
        self._only = MajorityBaseline(labels, answers)
        if len(set(answers)) > 1:
            self._model = make_pipeline(
                TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+"),
                LogisticRegression(max_iter=1000, random_state=seed),
            )
            self._model.fit(list(texts), list(answers))

    def predict_probabilities(self, texts: Sequence[str]) -> Probabilities:
        """Class probabilities in the task's order of labels; labels never seen get 0."""
        if self._model is None:
            return self._only.predict_probabilities(texts)
        raw = self._model.predict_proba(list(texts))
        full = np.zeros((len(texts), len(self._labels)))
        for column, label in enumerate(self._model.classes_):
            full[:, self._labels.index(str(label))] = raw[:, column]
        return full
