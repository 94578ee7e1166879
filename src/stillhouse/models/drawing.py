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

from stillhouse.models.divergence_rows import tempered
from stillhouse.models.signals import DenseSignal, HiddenSignal, SampledSignal

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
    drawn = _draw(log_probs, numbers, proposal_temperature)
    return drawn._replace(weights=drawn.weights.float(), information=drawn.information.float())


def _draw(log_probs: Tensor, numbers: Tensor, proposal_temperature: float) -> Draws:
    """`draw`, its weights and information in float64."""
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
    return Draws(first.sum(-1), token_ids, counts, weights, information)


@torch.no_grad()
def draw_signal(
    signal: DenseSignal | HiddenSignal,
    numbers: Tensor,  # [..., S] within [0, 1); float64 reaches the rarest tokens
    *,
    distillation_temperature: float = 1.0,
    proposal_temperature: float = 1.0,
) -> SampledSignal:
    """`draw` at each position of a belief, as a signal: S slots, ids rise, unused ones (weight 0)
    last.

    E[sum_k weights_k onehot_k] = p_T = softmax(logits / T), so the gradient of
    -sum_k weights_k log q_T(k) is an unbiased estimate of that of cross-entropy and forward KL from
    p_T. The signal serves this T alone. At t = 1 every draw weighs 1/S, and the variance of the
    estimate of p_T(v) is p_T(v) (1 - p_T(v)) / S; t > 1 looks more at the tail.

    Raises:
        ValueError: T or t not positive, or no draw.
    """
    for name, value in (
        ("distillation_temperature", distillation_temperature),
        ("proposal_temperature", proposal_temperature),
    ):
        if not value > 0.0:
            raise ValueError(f"{name} must be positive, got {value}")
    samples = numbers.shape[-1]
    if samples < 1:
        raise ValueError("a sampled signal needs at least one draw a position")
    logits = signal.dense().logits if isinstance(signal, HiddenSignal) else signal.logits
    log_p = tempered(logits, distillation_temperature)  # [..., V]
    drawn = _draw(log_p.flatten(0, -2), numbers.flatten(0, -2).double(), proposal_temperature)
    rows = torch.arange(len(drawn.in_row), device=log_p.device)
    row = torch.repeat_interleave(rows, drawn.in_row)  # [E]
    slot = torch.arange(len(row), device=log_p.device)
    slot = slot - (drawn.in_row.cumsum(0) - drawn.in_row)[row]
    token_ids = torch.zeros(len(rows), samples, dtype=torch.int64, device=log_p.device)
    weights = torch.zeros(len(rows), samples, dtype=log_p.dtype, device=log_p.device)
    token_ids[row, slot] = drawn.token_ids
    weights[row, slot] = drawn.weights.to(log_p.dtype)
    return SampledSignal(
        token_ids.reshape(numbers.shape),
        weights.reshape(numbers.shape),
        distillation_temperature,
        vocabulary_size=log_p.shape[-1],
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
