"""Divergences and the soft-target objective, as pure functions of tensors (DESIGN section 5).

All are in nats and come as (total, items) over valid positions, so that the caller divides once, by
the global number of valid targets: the result is then the same under any split into micro-batches,
any padding or packing, and any number of ranks. Sums are taken in float32 or better.
Knows no model, no trainer and no data.

Shapes: ... leading dimensions (batch, or batch and tokens), V vocabulary or classes, K kept
entries, N valid positions. T is the distillation temperature.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.models.drawing import sampled_cross_entropy
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    TeacherSignal,
)

IGNORE_INDEX: Final = -100


class Summed(NamedTuple):
    """A sum over valid positions and their number; the mean is `total / items`, taken once."""

    total: Tensor  # scalar, nats
    items: Tensor  # scalar int64


class SoftTargetLoss(NamedTuple):
    """The objective and its parts.

    `loss` is what is differentiated. The parts are detached sums over the valid targets at hand:
    `divergence_sum` is KL(teacher_T || student_T) in nats, without the factor T^2;
    `cross_entropy_sum` is in nats at temperature 1. A part with weight 0 is not computed and is 0.
    """

    loss: Tensor  # scalar
    divergence_sum: Tensor  # scalar
    cross_entropy_sum: Tensor  # scalar
    items: Tensor  # scalar int64


def forward_kl(
    teacher_logits: Tensor,  # [..., V], or log-probabilities
    student_logits: Tensor,  # [..., V]
    distillation_temperature: float = 1.0,
    mask: Tensor | None = None,  # [...] bool, True where the position counts
) -> Summed:
    """Sum of KL(teacher_T || student_T) = sum_v p_T(v) (log p_T(v) - log q_T(v)), in nats.

    p_T = softmax(teacher_logits / T), q_T = softmax(student_logits / T); Hinton et al. 2015,
    "Distilling the Knowledge in a Neural Network". No factor T^2: `soft_target_loss` applies it.
    The teacher gets no gradient. A class that is impossible for the teacher contributes 0.
    """
    teacher, student = _valid(teacher_logits, mask), _valid(student_logits, mask)
    return Summed(
        _kl(_tempered(teacher.detach(), distillation_temperature),
            _tempered(student, distillation_temperature)),
        _count(student),
    )  # fmt: skip


def forward_kl_from_probabilities(
    teacher_probabilities: Tensor,  # [..., V], rows sum to one
    student_logits: Tensor,  # [..., V]
    distillation_temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Summed:
    """`forward_kl` for a teacher known by its probabilities p at temperature 1.

    p_T = p^(1/T) renormalised, which is softmax(log p / T).
    """
    p = _accumulating(teacher_probabilities.detach())
    return forward_kl(p.log(), student_logits, distillation_temperature, mask)


def forward_kl_sparse(
    signal: SparseSignal,
    student_logits: Tensor,  # [..., V]
    distillation_temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Summed:
    """Sum of KL between teacher and student over K + 1 outcomes: the kept entries and "any other".

    Both are coarse-grained at temperature 1 and then tempered, so at T = 1 this is the exact KL of
    the coarse-grained distributions: a lower bound of the dense KL (data-processing inequality),
    equal to it where the teacher has no tail or K = V. The tail's inner shape, which a sparse
    signal does not hold, is left to the student. No factor T^2.
    """
    if mask is not None:
        signal, student_logits = signal.select(mask), student_logits[mask]
    log_q = _accumulating(student_logits).log_softmax(-1)  # [..., V]
    kept = log_q.gather(-1, signal.token_ids)  # [..., K]
    teacher = _accumulating(signal.log_probs.detach()).to(log_q.dtype)
    if signal.token_ids.shape[-1] < log_q.shape[-1]:
        tail = log_q.scatter(-1, signal.token_ids, -torch.inf).logsumexp(-1, keepdim=True)
        kept = torch.cat([kept, tail], -1)
        teacher = torch.cat([teacher, signal.tail_log_mass.detach().to(teacher)[..., None]], -1)
    total = _kl(
        _tempered(teacher, distillation_temperature), _tempered(kept, distillation_temperature)
    )
    return Summed(total, _count(student_logits))


def divergence(
    signal: TeacherSignal,
    student_logits: Tensor,  # [..., V]
    distillation_temperature: float = 1.0,
    mask: Tensor | None = None,  # [...] bool
) -> Summed:
    """Sum of KL(teacher_T || student_T) in nats for any kind of signal; no factor T^2.

    Of a sampled signal, the cross-entropy: the same but for the teacher's entropy, which no
    gradient sees.
    """
    match signal:
        case DenseSignal():
            return forward_kl(signal.logits, student_logits, distillation_temperature, mask)
        case SparseSignal():
            return forward_kl_sparse(signal, student_logits, distillation_temperature, mask)
        case HiddenSignal():
            return forward_kl(signal.dense().logits, student_logits, distillation_temperature, mask)
        case SampledSignal():
            if mask is not None:
                signal, student_logits = signal.select(mask), student_logits[mask]
            rows = sampled_cross_entropy(signal, student_logits, distillation_temperature)
            return Summed(rows.sum(), _count(student_logits))


def cross_entropy(
    student_logits: Tensor,  # [..., V]
    targets: Tensor,  # [...] int64, `ignore_index` where the position does not count
    ignore_index: int = IGNORE_INDEX,
) -> Summed:
    """Sum of -log q(target) over valid targets, in nats at temperature 1."""
    valid = targets != ignore_index
    logits, wanted = _accumulating(student_logits[valid]), targets[valid]
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
) -> SoftTargetLoss:
    """alpha * T^2 * KL(teacher_T || student_T) + (1 - alpha) * CE, Hinton et al. 2015.

    T^2 is applied once, here: the gradient of the tempered KL shrinks as 1/T^2, and this keeps the
    balance of the two terms when T changes. Each term is the sum over valid targets divided by
    `num_items`, the number of valid targets of the whole optimizer step over all micro-batches and
    ranks; micro-batch losses therefore add up. (A data-parallel trainer that averages gradients
    over ranks multiplies by the number of ranks.) Positions with target `ignore_index` count in
    neither term.

    Raises:
        ValueError: alpha outside [0, 1], T not positive, no signal though alpha > 0, or shapes that
            do not fit.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be within [0, 1], got {alpha}")
    if not distillation_temperature > 0.0:
        raise ValueError(
            f"distillation_temperature must be positive, got {distillation_temperature}"
        )
    if student_logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"student_logits {list(student_logits.shape)} do not fit targets {list(targets.shape)}"
        )
    valid = targets != ignore_index
    zero = _accumulating(student_logits).new_zeros(())
    soft = hard = zero
    if alpha > 0.0:
        if signal is None:
            raise ValueError("alpha > 0 needs a teacher signal")
        if signal.positions != targets.shape:
            raise ValueError(
                f"signal {list(signal.positions)} does not fit targets {list(targets.shape)}"
            )
        soft = divergence(signal, student_logits, distillation_temperature, valid).total
    if alpha < 1.0:
        hard = cross_entropy(student_logits, targets, ignore_index).total
    weighted = alpha * distillation_temperature**2 * soft + (1.0 - alpha) * hard
    return SoftTargetLoss(weighted / num_items, soft.detach(), hard.detach(), valid.sum())


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum p (log p - log q); entries with p = 0 contribute 0, also where log q is -inf."""
    possible = log_p > -torch.inf
    difference = torch.where(possible, log_p, 0.0) - torch.where(possible, log_q, 0.0)
    return (log_p.exp() * difference).sum()


def _tempered(logits: Tensor, distillation_temperature: float) -> Tensor:
    return (_accumulating(logits) / distillation_temperature).log_softmax(-1)


def _accumulating(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _valid(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x[mask]


def _count(student_logits: Tensor) -> Tensor:
    number = student_logits[..., 0].numel()
    return torch.tensor(number, dtype=torch.int64, device=student_logits.device)
