"""Divergences of a student from any teacher signal, and the soft-target objective: pure functions
of tensors (DESIGN section 5).

All are in nats and come as (total, items) over valid positions, so that the caller divides once, by
the global number of valid targets: the result is then the same under any split into micro-batches,
any padding or packing, and any number of ranks. Sums are taken in float32 or better. NaN in is NaN
out: an objective looks at its sum (`train.finite`). Knows no model, no trainer and no data.

Shapes: ... leading dimensions (batch, or batch and tokens), V vocabulary or classes, K kept
entries, N valid positions. T is the distillation temperature.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.models.divergence_kind import FORWARD_KL, Divergence
from stillhouse.models.divergence_rows import accumulating
from stillhouse.models.signal_rows import signal_rows
from stillhouse.models.signals import DenseSignal, TeacherSignal

IGNORE_INDEX: Final = -100


class Summed(NamedTuple):
    """A sum over valid positions and their number; the mean is `total / items`, taken once."""

    total: Tensor  # scalar, nats
    items: Tensor  # scalar int64


class SoftTargetLoss(NamedTuple):
    """The objective and its parts.

    `loss` is what is differentiated. The parts are detached sums over the valid targets at hand:
    `divergence_sum` is D(teacher_T, student_T) in nats, without the factor T^2;
    `cross_entropy_sum` is in nats at temperature 1. A part with weight 0 is not computed and is 0.
    """

    loss: Tensor  # scalar
    divergence_sum: Tensor  # scalar
    cross_entropy_sum: Tensor  # scalar
    items: Tensor  # scalar int64


def divergence(
    signal: TeacherSignal,
    student_logits: Tensor,  # [..., V]
    distillation_temperature: float = 1.0,
    mask: Tensor | None = None,  # [...] bool, True where the position counts
    of: Divergence = FORWARD_KL,
) -> Summed:
    """Sum of D(teacher_T, student_T) over valid positions; no T^2, no gradient to the teacher.

    What it is for each kind of signal is with `signal_rows`.

    Raises:
        ValueError: T not positive, or positions that do not fit.
        UserError: vocabularies of unequal size, or a sampled signal asked for what it cannot give.
    """
    if not 0.0 < distillation_temperature < math.inf:
        raise ValueError(
            f"distillation_temperature must be positive and finite, got {distillation_temperature}"
        )
    if signal.positions != student_logits.shape[:-1]:
        raise ValueError(
            f"signal {list(signal.positions)} does not fit student_logits "
            f"{list(student_logits.shape)}"
        )
    if mask is not None:
        signal, student_logits = signal.select(mask), student_logits[mask]
    rows = signal_rows(signal, student_logits, distillation_temperature, of)
    return Summed(rows.sum(), torch.tensor(rows.numel(), device=rows.device))


def forward_kl(
    teacher_logits: Tensor,  # [..., V], or log-probabilities
    student_logits: Tensor,  # [..., V]
    distillation_temperature: float = 1.0,
    mask: Tensor | None = None,  # [...] bool
) -> Summed:
    """Sum of KL(teacher_T || student_T) = sum_v p_T(v) (log p_T(v) - log q_T(v)), in nats.

    p_T = softmax(teacher_logits / T), q_T = softmax(student_logits / T); Hinton et al. 2015,
    "Distilling the Knowledge in a Neural Network". No factor T^2: `soft_target_loss` applies it.
    """
    return divergence(DenseSignal(teacher_logits), student_logits, distillation_temperature, mask)


def forward_kl_from_probabilities(
    teacher_probabilities: Tensor,  # [..., V], rows sum to one
    student_logits: Tensor,  # [..., V]
    distillation_temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Summed:
    """`forward_kl` for a teacher known by its probabilities p at temperature 1.

    p_T = p^(1/T) renormalised, which is softmax(log p / T).
    """
    p = accumulating(teacher_probabilities.detach())
    return forward_kl(p.log(), student_logits, distillation_temperature, mask)


def cross_entropy(
    student_logits: Tensor,  # [..., V]
    targets: Tensor,  # [...] int64, `ignore_index` where the position does not count
    ignore_index: int = IGNORE_INDEX,
) -> Summed:
    """Sum of -log q(target) over valid targets, in nats at temperature 1."""
    valid = targets != ignore_index
    logits, wanted = accumulating(student_logits[valid]), targets[valid]
    return Summed(functional.cross_entropy(logits, wanted, reduction="sum"), valid.sum())


def soft_target_loss(
    student_logits: Tensor,  # [..., V]
    targets: Tensor,  # [...] int64, `ignore_index` where the position does not count
    signal: TeacherSignal | None,  # positions [...]; None only where alpha is 0
    *,
    alpha: float,
    distillation_temperature: float,
    num_items: Tensor | int,
    ignore_index: int = IGNORE_INDEX,
    of: Divergence = FORWARD_KL,
) -> SoftTargetLoss:
    """alpha * T^2 * D(teacher_T, student_T) + (1 - alpha) * CE, Hinton et al. 2015 for D = KL.

    T^2 is applied once, here: the gradient of a tempered divergence that is smooth where p = q
    shrinks as 1/T^2, and this keeps the balance of the two terms when T changes. (Total variation
    is not: its gradient shrinks as 1/T, and with T^2 grows as T.) Each term is the sum over valid
    targets divided by `num_items`, the number of valid targets of the whole optimizer step over all
    micro-batches and ranks; micro-batch losses therefore add up. (A data-parallel trainer that
    averages gradients over ranks multiplies by the number of ranks.) Positions with target
    `ignore_index` count in neither term; a step without any valid target has loss 0.

    Raises:
        ValueError: alpha outside [0, 1], T not positive, no signal though alpha > 0, or shapes that
            do not fit.
        UserError: as `divergence`.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be within [0, 1], got {alpha}")
    if not 0.0 < distillation_temperature < math.inf:
        raise ValueError(
            f"distillation_temperature must be positive and finite, got {distillation_temperature}"
        )
    if student_logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"student_logits {list(student_logits.shape)} do not fit targets {list(targets.shape)}"
        )
    valid = targets != ignore_index
    soft = hard = student_logits.new_zeros((), dtype=accumulating(student_logits[:0]).dtype)
    if alpha > 0.0:
        if signal is None:
            raise ValueError("alpha > 0 needs a teacher signal")
        soft = divergence(signal, student_logits, distillation_temperature, valid, of).total
    if alpha < 1.0:
        hard = cross_entropy(student_logits, targets, ignore_index).total
    weighted = alpha * distillation_temperature**2 * soft + (1.0 - alpha) * hard
    number = num_items.clamp_min(1) if isinstance(num_items, Tensor) else max(num_items, 1)
    return SoftTargetLoss(weighted / number, soft.detach(), hard.detach(), valid.sum())
