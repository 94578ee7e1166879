"""Metrics: scores of many samples become one number with its interval.

Knows scores and label indices; does not know texts or models.

Shapes: N samples, C classes. Index -1 is an answer that names no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.bootstrap import Groups, Indices
from stillhouse.core.statistics import Interval, bootstrap_statistic

Ints = npt.NDArray[np.int64]
NO_LABEL = -1


class Resampling(NamedTuple):
    """How intervals are made: the same for every figure of a report."""

    confidence: float
    resamples: int
    seed: int
    groups: Groups | None = None


def label_indices(labels: Sequence[str], answers: Sequence[str | None]) -> Ints:
    """Index of each answer in the task's labels, shape [N]; -1 where it names none."""
    index = {label: number for number, label in enumerate(labels)}
    return np.array([index.get(a, NO_LABEL) if a is not None else NO_LABEL for a in answers])


def confusion(truth: Ints, answers: Ints, classes: int) -> Ints:
    """Counts, shape [C, C + 1]: rows are the truth, columns the answer, the last one no label.

    Raises:
        ValueError: no samples, or a truth that is no label.
    """
    if not len(truth) or len(truth) != len(answers):
        raise ValueError("truth and answers must be of one length, at least 1")
    if (truth < 0).any():
        raise ValueError("every truth must be one of the labels")
    columns = np.where(answers < 0, classes, answers)
    cells = np.bincount(truth * (classes + 1) + columns, minlength=classes * (classes + 1))
    return cells.reshape(classes, classes + 1)


def macro_f1_of(table: Ints) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN); classes in neither truth nor answers are out.

    An answer that names no label is a miss of its class and a false alarm of none.
    """
    hits = np.diagonal(table).astype(np.float64)
    total = table.sum(axis=1) + table[:, :-1].sum(axis=0)  # 2 TP + FP + FN
    present = total > 0
    return float((2 * hits[present] / total[present]).mean())


def macro_f1(truth: Ints, answers: Ints, classes: int, how: Resampling) -> Interval:
    """Macro F1 with a percentile bootstrap interval."""
    confusion(truth, answers, classes)

    def statistic(index: Indices) -> float:
        return macro_f1_of(confusion(truth[index], answers[index], classes))

    return bootstrap_statistic(
        statistic,
        len(truth),
        how.confidence,
        resamples=how.resamples,
        seed=how.seed,
        groups=how.groups,
    )
