"""Random draws from a teacher's belief: a few tokens whose weights stand for all, without bias.

Random sampling knowledge distillation, Anshumann et al. 2025, arXiv:2503.16870. Draws are by the
inverse distribution function of given uniform numbers, so a row depends on those and on its own
belief alone: not on the batch, the rank or the number of ranks. Knows no file.

Legend: N positions, V vocabulary, S draws, E entries: distinct tokens of each row, rows in order.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillhouse.models.signals import SampledSignal

Spread = Literal["systematic", "independent"]


class Draws(NamedTuple):
    """What was drawn. `information` is sum_k weights_k log p(token_k) of a row: an unbiased
    estimate of minus the entropy, from the draws that the cross-entropy is estimated by."""

    in_row: Tensor  # [N] int64, entries of each row
    token_ids: Tensor  # [E] int64, ascending within a row
    counts: Tensor  # [E] int64, sum over a row is S
    weights: Tensor  # [E] float32
    information: Tensor  # [N] float32, nats


def uniforms(seed: int, rows: int, samples: int, spread: Spread) -> Tensor:
    """Uniform numbers [rows, samples] in [0, 1), float64, ascending within a row.

    `systematic` (Madow 1949) is one offset a row and even steps: each number alone is uniform, so a
    token is drawn floor or ceil of S p times, S p in the mean, with less variance than
    `independent` draws have.
    """
    random = np.random.default_rng(seed)
    if spread == "independent":
        return torch.from_numpy(np.sort(random.random((rows, samples)), axis=-1))
    offset = random.random((rows, 1))
    return torch.from_numpy((np.arange(samples) + offset) / samples)


def draw(
    log_probs: Tensor,  # [N, V] normalised, at the targets' temperature
    numbers: Tensor,  # [N, S] from `uniforms`
    proposal_temperature: float = 1.0,
) -> Draws:
    """Draw S tokens a row, equal ones merged.

    From g = p^(1/t) renormalised, with t the proposal temperature; a token that was drawn c times
    weighs c / S * p / g. For every t the mean of sum_k weights_k onehot(token_k) is p; at t = 1 the
    weights of a row sum to one.
    """
    log_p = log_probs.double()
    log_g = log_p if proposal_temperature == 1.0 else (log_p / proposal_temperature).log_softmax(-1)
    mass = log_g.exp().cumsum(-1)  # [N, V]
    samples = numbers.shape[-1]
    # The sum of a row is not 1 to the last bit; scaled to it, no number falls off the end.
    points = numbers.to(mass.device) * mass[:, -1:]
    drawn = torch.searchsorted(mass, points, right=True)
    likeliest = log_p.argmax(-1, keepdim=True)  # [N, 1]
    drawn = torch.where(points < mass[:, -1:], drawn, likeliest).clamp_max(mass.shape[-1] - 1)
    drawn = drawn.sort(-1).values
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    starts = first.flatten().nonzero().squeeze(-1)  # [E]
    ends = torch.cat([starts[1:], starts.new_tensor([drawn.numel()])])
    counts = ends - starts
    row = starts // samples
    token_ids = drawn.flatten()[starts]
    log_w = log_p[row, token_ids] - log_g[row, token_ids]
    weights = counts / samples * log_w.exp()
    information = torch.zeros_like(mass[:, 0]).index_add_(0, row, weights * log_p[row, token_ids])
    return Draws(first.sum(-1), token_ids, counts, weights.float(), information.float())


def sampled_cross_entropy(
    signal: SampledSignal,  # positions [...]
    student_logits: Tensor,  # [..., V]
    distillation_temperature: float = 1.0,
) -> Tensor:
    """-sum_k weights_k log q_T(token_k) at each position [...], in nats: its mean over draws is the
    cross-entropy to the whole soft targets, and its gradient's mean is theirs. No factor T^2.

    With a row's `information` added (at T = 1) it is sum_k weights_k log(p_k / q_k): an unbiased
    estimate of KL(p || q) whose noise shrinks with the divergence itself.

    Raises:
        ValueError: T is not the temperature the targets were drawn at.
    """
    if signal.distillation_temperature != distillation_temperature:
        raise ValueError(
            f"targets drawn at T = {signal.distillation_temperature:g} cannot stand for "
            f"T = {distillation_temperature:g}"
        )
    scaled = student_logits if student_logits.dtype == torch.float64 else student_logits.float()
    scaled = scaled / distillation_temperature
    log_q = scaled.gather(-1, signal.token_ids) - scaled.logsumexp(-1, keepdim=True)
    return -(signal.weights * torch.where(signal.weights > 0, log_q, 0.0)).sum(-1)
