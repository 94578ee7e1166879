"""The linear baseline for closed labels: TF-IDF with logistic regression.

Trains in seconds on one core. Apart from `baselines`, since scikit-learn takes a second to import.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from stillhouse.models.baselines import MajorityBaseline, Probabilities


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
