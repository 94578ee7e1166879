"""A divergence position by position, for each kind of teacher signal.

Brings both sides into log-probabilities over the same outcomes: all ids, the kept ones and the
rest, or the ids that were drawn. Knows the signals; knows no mask and no sum over positions.

Shapes: ... leading dimensions, V vocabulary or classes, K kept or drawn entries. T is the
distillation temperature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stillhouse.core.errors import UserError
from stillhouse.models.divergence_kind import SAMPLED_KINDS, Divergence
from stillhouse.models.divergence_rows import accumulating, divergence_rows, tempered
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    TeacherSignal,
)


def signal_rows(
    signal: TeacherSignal,
    student_logits: Tensor,  # [..., V]
    distillation_temperature: float,
    of: Divergence,
) -> Tensor:
    """D(teacher_T, student_T) at each position [...], in nats; no T^2, no gradient to the teacher.

    - dense, hidden states: D(p_T, q_T) with p_T = softmax(teacher logits / T), likewise q_T.
    - sparse: D over K + 1 outcomes, the kept entries and "any other". Both sides are coarse-grained
      at temperature 1 and then tempered. At T = 1 that is a lower bound of the dense divergence for
      every kind (data-processing inequality), and equal to it where the teacher has no tail; with
      K = V it is equal at any T. How the two differ inside the tail is not seen.
    - sampled: with w the weights, forward_kl is sum_v w_v log(w_v / q_T(v)) - sum_v w_v + 1 and
      cross_entropy is -sum_v w_v log q_T(v). Both gradients, and the value of cross_entropy, are
      unbiased estimates of the dense ones; the value of forward_kl is not below KL(p_T || q_T) in
      expectation (Jensen). Other kinds are not linear in p and are refused.

    Raises:
        UserError: vocabularies of unequal size, or a sampled signal asked for what it cannot give.
    """
    match signal:
        case HiddenSignal():
            return signal_rows(signal.dense(), student_logits, distillation_temperature, of)
        case DenseSignal():
            _check_one_vocabulary(signal, student_logits)
            log_p = tempered(signal.logits.detach(), distillation_temperature)
            return divergence_rows(of, log_p, tempered(student_logits, distillation_temperature))
        case SparseSignal():
            coarse = _coarse(signal, student_logits)
            return divergence_rows(of, *(tempered(x, distillation_temperature) for x in coarse))
        case SampledSignal():
            return _sampled_rows(signal, student_logits, distillation_temperature, of)


class _Coarse(NamedTuple):
    """Log-probabilities over the kept entries and, last, all others, at temperature 1."""

    teacher: Tensor  # [..., K + 1], or K where nothing can be left
    student: Tensor


def _coarse(signal: SparseSignal, student_logits: Tensor) -> _Coarse:
    log_q = accumulating(student_logits).log_softmax(-1)  # [..., V]
    kept = log_q.gather(-1, signal.token_ids)  # [..., K]
    log_p = accumulating(signal.log_probs.detach()).to(log_q.dtype)
    if signal.token_ids.shape[-1] == log_q.shape[-1]:
        return _Coarse(log_p, kept)
    tail = _logsumexp(log_q.scatter(-1, signal.token_ids, -torch.inf))
    return _Coarse(
        torch.cat([log_p, signal.tail_log_mass.detach().to(log_p)[..., None]], -1),
        torch.cat([kept, tail], -1),
    )


def _logsumexp(x: Tensor) -> Tensor:
    """[..., V] to [..., 1]; torch's own has NaN for a derivative where all is -inf."""
    top = x.detach().amax(-1, keepdim=True)
    empty = top == -torch.inf
    top = torch.where(empty, 0.0, top)
    total = (x - top).exp().sum(-1, keepdim=True)
    return torch.where(empty, -torch.inf, torch.where(empty, 1.0, total).log() + top)


def _sampled_rows(
    signal: SampledSignal, student_logits: Tensor, distillation_temperature: float, of: Divergence
) -> Tensor:
    if of.kind not in SAMPLED_KINDS:
        raise UserError(
            "train.divergence",
            "draws from the teacher estimate forward_kl and cross_entropy alone",
            value=of.kind,
            action="use one of these, or train from dense or top-k beliefs",
        )
    if signal.distillation_temperature != distillation_temperature:
        raise UserError(
            "train.distillation_temperature",
            f"the draws are of the teacher at {signal.distillation_temperature:g}",
            value=distillation_temperature,
            action="draw again at the temperature that is trained at",
        )
    scaled = accumulating(student_logits) / distillation_temperature
    log_q = scaled.gather(-1, signal.token_ids) - scaled.logsumexp(-1, keepdim=True)  # [..., K]
    weights = signal.weights.detach().to(log_q.dtype)
    drawn = -(weights * torch.where(weights > 0, log_q, 0.0)).sum(-1)
    if of.kind == "cross_entropy":
        return drawn
    return drawn + torch.xlogy(weights, weights).sum(-1) - weights.sum(-1) + 1.0


def _check_one_vocabulary(signal: DenseSignal, student_logits: Tensor) -> None:
    teacher, student = signal.logits.shape[-1], student_logits.shape[-1]
    if teacher != student:
        raise UserError(
            "student",
            f"has {student:,} outputs where its teacher has {teacher:,}",
            action="compare models of one vocabulary, or cut both to the ids they share",
        )
