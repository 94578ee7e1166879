"""Fidelity: how closely a student follows its teacher, right or wrong.

Agreement compares answers, divergence compares beliefs. Knows neither the truth nor the models.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from stillhouse.core.overlap import rouge_l
from stillhouse.core.scorers import exact_object, label_match
from stillhouse.core.statistics import Interval, bootstrap_mean, proportion
from stillhouse.core.tasks import Task
from stillhouse.evaluate.metrics import Resampling

Floats = npt.NDArray[np.float64]
STUDENT_FLOOR: Final = 1e-9


def agreement_scores(task: Task, student: Sequence[str], teacher: Sequence[str]) -> list[float]:
    """Agreement per sample, in [0, 1], shape [N].

    classification: same label. extraction: same object. generation: ROUGE-L F1 of the student's
    text against the teacher's, for two texts are hardly ever equal. An answer that the task cannot
    read agrees with nothing.

    Raises:
        ValueError: lengths that differ.
    """
    pairs = zip(student, teacher, strict=True)
    if task.kind == "classification":
        return [label_match(task, a, b) for a, b in pairs]
    if task.kind == "extraction":
        return [exact_object(task, a, b) for a, b in pairs]
    return [rouge_l(a, b) for a, b in pairs]


def agreement(
    task: Task, student: Sequence[str], teacher: Sequence[str], how: Resampling
) -> Interval:
    """Mean agreement with the teacher, with its interval."""
    return proportion(
        agreement_scores(task, student, teacher),
        how.confidence,
        resamples=how.resamples,
        seed=how.seed,
        groups=how.groups,
    )


def divergences(teacher: Floats, student: Floats) -> Floats:
    """KL(teacher || student) per sample in nats, at T = 1, shape [N].

    sum_c p_c (ln p_c - ln q_c), where p_c = 0 adds nothing. The student's probabilities are floored
    at 1e-9 and renormalised, so that a class it rules out costs at most ln(1e9) = 20.7 nats instead
    of infinity. Never below 0; no T^2 enters, for T is 1.

    Raises:
        ValueError: no samples, shapes that differ, or rows that are no probabilities.
    """
    p, q = np.asarray(teacher, dtype=np.float64), np.asarray(student, dtype=np.float64)
    if p.ndim != 2 or p.shape != q.shape or not len(p):
        raise ValueError("teacher and student must be of one shape [N, C], at least one row")
    for rows in (p, q):
        if not np.isfinite(rows).all() or (rows < 0).any():
            raise ValueError("probabilities must be finite and at least 0")
        if not np.allclose(rows.sum(axis=1), 1, atol=1e-3):
            raise ValueError("every row of probabilities must sum to 1")
    p = p / p.sum(axis=1, keepdims=True)
    q = np.maximum(q, STUDENT_FLOOR)
    q = q / q.sum(axis=1, keepdims=True)
    log_p = np.log(np.where(p > 0, p, 1.0))
    per_sample: Floats = np.maximum((p * (log_p - np.log(q))).sum(axis=1), 0.0)
    return per_sample


def divergence(teacher: Floats, student: Floats, how: Resampling) -> Interval:
    """Mean KL(teacher || student) in nats per sample, with its BCa bootstrap interval."""
    return bootstrap_mean(
        divergences(teacher, student),
        how.confidence,
        resamples=how.resamples,
        seed=how.seed,
        groups=how.groups,
    )
