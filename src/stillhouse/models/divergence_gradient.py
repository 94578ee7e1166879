"""Each divergence with its gradient in closed form, for losses that form gradients on the way.

Autograd is not used: a block of logits is overwritten by its gradient. docs/fused.md derives the
formulas. Knows no head, no signal and no weighting.

Shapes: R rows, V outcomes (vocabulary, or kept entries and their tail).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stillhouse.models.divergence_kind import Divergence


class Graded(NamedTuple):
    """D(p, q) of each row, and its gradient with respect to z where q = softmax(z)."""

    rows: Tensor  # [R]
    gradient: Tensor  # [R, V]


def graded(
    divergence: Divergence,
    log_p: Tensor,  # [R, V] of the teacher, normalised; overwritten
    log_q: Tensor,  # [R, V] of the student, normalised; overwritten
) -> Graded:
    """Value in nats (total variation: without unit) and gradient; no gradient to the teacher.

    An outcome that the teacher rules out contributes nothing where the divergence allows that, and
    makes it `inf` where it does not; the gradient of an infinite divergence is NaN.
    """
    beta = divergence.beta
    match divergence.kind:
        case "forward_kl":
            return _forward(log_p, log_q)
        case "cross_entropy":
            p = log_p.exp_()
            rows = -(p * _floored(log_q)).sum(-1)
            return Graded(rows, log_q.exp_().sub_(p))
        case "reverse_kl":
            return _reverse(log_p, log_q)
        case "jsd" if beta == 0.0:
            return _forward(log_p, log_q)
        case "jsd" if beta == 1.0:
            return _reverse(log_p, log_q)
        case "jsd":
            return _jensen_shannon(log_p, log_q, beta)
        case "skew_forward_kl":
            return _skew_forward(log_p, log_q, beta)
        case "skew_reverse_kl" if beta == 0.0:
            return _reverse(log_p, log_q)
        case "skew_reverse_kl":
            return _skew_reverse(log_p, log_q, beta)
        case "total_variation":
            p, q = log_p.exp_(), log_q.exp_()
            apart = q - p
            rows = 0.5 * apart.abs().sum(-1)
            return Graded(rows, _through_softmax(q, apart.sign_().mul_(q).mul_(0.5)))


def _forward(log_p: Tensor, log_q: Tensor) -> Graded:
    """KL(p || q); gradient q - p."""
    p = log_p.exp()
    rows = _floored(log_p).sub_(_floored(log_q)).mul_(p).sum(-1)
    return Graded(rows, log_q.exp_().sub_(p))


def _reverse(log_p: Tensor, log_q: Tensor) -> Graded:
    """KL(q || p); gradient q (log q - log p - KL)."""
    q = log_q.exp()
    weighted = log_q.sub_(log_p).mul_(q).masked_fill_(q == 0, 0.0)
    rows = weighted.sum(-1)
    return Graded(rows, weighted.sub_(q.mul_(rows[:, None])))


def _jensen_shannon(log_p: Tensor, log_q: Tensor, beta: float) -> Graded:
    """beta KL(p || m) + (1 - beta) KL(q || m); gradient (1 - beta) q (log q - log m - KL(q || m)),
    since what m itself moves cancels."""
    p, q = log_p.exp(), log_q.exp()
    log_m = _mixture(p, q, beta).log_()
    of_teacher = _floored(log_p).sub_(log_m).mul_(p).sum(-1)
    weighted = _floored(log_q).sub_(log_m).mul_(q)
    of_student = weighted.sum(-1)
    rows = beta * of_teacher + (1.0 - beta) * of_student
    return Graded(rows, weighted.sub_(q.mul_(of_student[:, None])).mul_(1.0 - beta))


def _skew_forward(log_p: Tensor, log_q: Tensor, beta: float) -> Graded:
    """KL(p || m), m = beta p + (1 - beta) q; dD/dq = -(1 - beta) p / m."""
    p, q = log_p.exp(), log_q.exp_()
    m = _mixture(p, q, beta)
    moved = (p * q).div_(m).mul_(beta - 1.0)
    rows = _floored(log_p).sub_(m.log_()).mul_(p).sum(-1)
    return Graded(rows, _through_softmax(q, moved))


def _skew_reverse(log_p: Tensor, log_q: Tensor, beta: float) -> Graded:
    """KL(q || m), m = beta q + (1 - beta) p; dD/dq = log(q / m) + 1 - beta q / m."""
    p, q = log_p.exp_(), log_q.exp()
    m = _mixture(q, p, beta)
    share = (q / m).mul_(-beta)
    weighted = _floored(log_q).sub_(m.log_())
    moved = share.add_(weighted).add_(1.0).mul_(q)
    rows = weighted.mul_(q).sum(-1)
    return Graded(rows, _through_softmax(q, moved))


def _through_softmax(q: Tensor, moved: Tensor) -> Tensor:
    """q_j (g_j - sum_v q_v g_v) from `moved` = q g: how g = dD/dq reaches z."""
    return moved.sub_(q.mul_(moved.sum(-1, keepdim=True)))


def _mixture(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """weight a + (1 - weight) b, above 0 also where both are: 0 log 0 is then 0."""
    return torch.lerp(b, a, weight).clamp_min_(torch.finfo(a.dtype).tiny)


def _floored(log_mass: Tensor) -> Tensor:
    """-inf as a finite number, in place, so that its product with a mass of 0 is 0, not NaN."""
    return log_mass.clamp_min_(-1e30)
