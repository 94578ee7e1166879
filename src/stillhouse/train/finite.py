"""Why a loss is not a number, and what to do about it.

Looked into only once it has happened: a healthy step costs one look at one scalar. Knows losses,
signals and targets; knows no trainer.

Legend: N targets, V vocabulary or classes.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    TeacherSignal,
)

_LOWER: Final = "lower train.learning_rate or train.max_grad_norm and run again"


def unusable(log_weights: Tensor) -> Tensor:
    """Which rows [...] of logits or log-probabilities [..., V] are no belief: one of them is NaN or
    +inf, or all are -inf."""
    top = log_weights.amax(-1)  # NaN wins
    return ~(top < torch.inf) | (top == -torch.inf)


def unusable_positions(signal: TeacherSignal) -> Tensor:
    """Which positions of a signal are no belief: for whoever stores signals, too."""
    match signal:
        case DenseSignal():
            return unusable(signal.logits)
        case HiddenSignal():
            return unusable(signal.dense().logits)
        case SparseSignal():
            whole = torch.cat([signal.log_probs, signal.tail_log_mass[..., None]], -1)
            return unusable(whole)
        case SampledSignal():
            total = signal.weights.sum(-1)
            return ~(total < torch.inf) | (total <= 0)


def not_finite(
    loss: Tensor,  # scalar, NaN or infinite
    student_logits: Tensor | None,  # [N, V]
    signal: TeacherSignal | None,  # positions [N]
) -> StillhouseError:
    """The error that names what made a loss NaN or infinite: the teacher, the student, or a
    divergence that is infinite where the teacher rules out a class."""
    if signal is not None:
        bad = int(unusable_positions(signal).sum())
        if bad:
            return UserError(
                "teacher",
                f"its beliefs are NaN, or rule out every class, at {bad:,} of "
                f"{signal.positions.numel():,} targets",
                action="check its weights, or read it in float32 (train.precision: fp32)",
            )
    if student_logits is not None and bool(unusable(student_logits).any()):
        bad = int(unusable(student_logits).sum())
        return StillhouseError(
            f"training went off: the student's logits are NaN or infinite at {bad:,} of "
            f"{len(student_logits):,} targets; {_LOWER}"
        )
    if signal is not None and float(loss) == torch.inf:
        return UserError(
            "train.divergence",
            "is infinite where one side rules out a class that the other believes in",
            action="use jsd, skew_reverse_kl or total_variation, which stay finite there",
        )
    return StillhouseError(f"training went off: the loss is {float(loss)}; {_LOWER}")
