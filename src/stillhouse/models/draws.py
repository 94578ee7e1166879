"""Draws from a teacher's belief: the sampled signal, an unbiased stand-in for all of it.

Random sampling knowledge distillation (Anshumann et al. 2025, arXiv:2503.16870). A pure function of
logits and of uniform numbers, so that what is drawn for an example need not depend on its
neighbours in a batch. Knows no file and no student.

Shapes: ... leading dimensions, V vocabulary or classes, N draws a position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillhouse.models.divergence_rows import tempered
from stillhouse.models.signals import DenseSignal, HiddenSignal, SampledSignal


@torch.no_grad()
def draw(
    signal: DenseSignal | HiddenSignal,
    uniforms: Tensor,  # [..., N] within [0, 1); float64 reaches the rarest tokens
    *,
    distillation_temperature: float = 1.0,
    proposal_exponent: float = 1.0,
    self_normalised: bool = False,
) -> SampledSignal:
    """N draws with replacement from r ~ p_T^t at each position, weighted w = p_T / (N r), merged.

    p_T = softmax(logits / T) and t is `proposal_exponent`. Then E[sum_k w_k onehot_k] = p_T, so the
    gradient of -sum_k w_k log q_T(k) is an unbiased estimate of that of cross-entropy and forward
    KL from p_T. At t = 1 every draw weighs 1/N, and the weights of a position sum to 1; that is the
    setting that stores best, and the variance of the estimate of p_T(v) is p_T(v) (1 - p_T(v)) / N.
    t < 1 looks more at the tail.

    Args:
        signal: the teacher's belief.
        uniforms: one number for each draw, e.g. `torch.rand(..., N, dtype=torch.float64)`.
        distillation_temperature: T. The signal serves this T alone.
        proposal_exponent: t, positive.
        self_normalised: divide the weights of a position by their sum, so that they are a
            distribution also for t other than 1. Less variance, but a bias of order 1/N.

    Raises:
        ValueError: T or t not positive, or no draw.
    """
    if not distillation_temperature > 0.0:
        raise ValueError(
            f"distillation_temperature must be positive, got {distillation_temperature}"
        )
    if not proposal_exponent > 0.0:
        raise ValueError(f"proposal_exponent must be positive, got {proposal_exponent}")
    draws = uniforms.shape[-1]
    if draws < 1:
        raise ValueError("a sampled signal needs at least one draw a position")
    logits = signal.dense().logits if isinstance(signal, HiddenSignal) else signal.logits
    log_p = tempered(logits, distillation_temperature)  # [..., V]
    log_r = log_p if proposal_exponent == 1.0 else (proposal_exponent * log_p).log_softmax(-1)
    reached = log_r.double().exp().cumsum(-1)
    # From the right: an outcome of probability 0 has no width, and is never met.
    ids = torch.searchsorted(
        reached, (uniforms.double() * reached[..., -1:]).contiguous(), right=True
    ).clamp_max(log_p.shape[-1] - 1)
    ratio = (log_p.gather(-1, ids) - log_r.gather(-1, ids)).exp()  # p / r
    weights = ratio / (ratio.sum(-1, keepdim=True) if self_normalised else draws)
    return merged(
        SampledSignal(ids, weights, distillation_temperature, vocabulary_size=log_p.shape[-1])
    )


def merged(signal: SampledSignal) -> SampledSignal:
    """The same with equal ids of a position in one slot: ids rise, unused slots (weight 0) last."""
    ids, order = signal.token_ids.sort(-1)
    weights = signal.weights.gather(-1, order)
    starts = torch.ones_like(ids)
    starts[..., 1:] = ids[..., 1:] != ids[..., :-1]
    slot = starts.cumsum(-1) - 1
    return SampledSignal(
        torch.zeros_like(ids).scatter(-1, slot, ids),
        torch.zeros_like(weights).scatter_add(-1, slot, weights),
        signal.distillation_temperature,
        signal.vocabulary_size,
    )
