"""The mathematics of each divergence: two log-probability tensors in, one number a position out.

Exact at the edge of the simplex: an outcome that both rule out contributes nothing, neither to the
value nor to a gradient, and a divergence that is infinite there is `inf`, never NaN. Knows no
signal, no mask and no sum over positions.

Shapes: ... leading dimensions, V outcomes (vocabulary, classes, or kept entries and their tail).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillhouse.models.divergence_kind import Divergence


def divergence_rows(
    divergence: Divergence,
    log_p: Tensor,  # [..., V] of the teacher, normalised
    log_q: Tensor,  # [..., V] of the student, normalised
) -> Tensor:
    """D(p, q) at each position [...], in nats (total variation: without unit).

    Definitions and papers are with `Divergence`. Gradients flow to whichever side has them. A
    probability that is 0 in the tensors' precision counts as 0.
    """
    beta = divergence.beta
    match divergence.kind:
        case "forward_kl":
            return _kl(log_p, log_q)
        case "reverse_kl":
            return _kl(log_q, log_p)
        case "jsd" if beta == 0.0:
            return _kl(log_p, log_q)
        case "jsd" if beta == 1.0:
            return _kl(log_q, log_p)
        case "jsd":
            log_m = _mixture(log_p, log_q, beta)
            return beta * _kl(log_p, log_m) + (1.0 - beta) * _kl(log_q, log_m)
        case "skew_forward_kl":
            return _kl(log_p, _mixture(log_p, log_q, beta))
        case "skew_reverse_kl":
            return _kl(log_q, _mixture(log_q, log_p, beta))
        case "total_variation":
            return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
        case "cross_entropy":
            return -_expected(log_p, log_q)


def tempered(logits: Tensor, distillation_temperature: float) -> Tensor:
    """log softmax(logits / T) over the last dimension, in float32 or better."""
    return (accumulating(logits) / distillation_temperature).log_softmax(-1)


def accumulating(x: Tensor) -> Tensor:
    """At least float32: sums are not taken in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """sum_v a (log a - log b), over the outcomes that a does not rule out."""
    mass = log_a.exp()
    possible = mass > 0
    # Both operands are replaced, not the product: 0 * inf would be NaN on the way back.
    difference = torch.where(possible, log_a, 0.0) - torch.where(possible, log_b, 0.0)
    return (mass * difference).sum(-1)


def _expected(log_a: Tensor, log_b: Tensor) -> Tensor:
    """sum_v a log b, over the outcomes that a does not rule out."""
    mass = log_a.exp()
    return (mass * torch.where(mass > 0, log_b, 0.0)).sum(-1)


def _mixture(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """log(weight a + (1 - weight) b), for weight in [0, 1)."""
    if weight == 0.0:
        return log_b
    # logaddexp(-inf, -inf) is -inf, but its derivative is NaN.
    neither = (log_a == -torch.inf) & (log_b == -torch.inf)
    mixed = torch.logaddexp(
        torch.where(neither, 0.0, log_a) + math.log(weight),
        torch.where(neither, 0.0, log_b) + math.log1p(-weight),
    )
    return torch.where(neither, -torch.inf, mixed)
