"""How samples lie to each other in two models, compared: pure functions of tensors.

These compare the samples of a micro-batch with each other, one vector a sample: their value
depends on which samples meet in a micro-batch (not on their order or padding). Each function
returns B times a mean, to be divided once by the samples of the whole optimizer step: micro-batches
then count by their size. A micro-batch that is too small to compare gives 0. Knows no model.

Legend: B samples of a micro-batch, T tokens, H width (Hs and Ht may differ), W shared width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Pool = Literal["mean", "first", "last"]


def pooled(
    hidden: Tensor,  # [B, T, H]
    mask: Tensor,  # [B, T] bool, real tokens
    pool: Pool,
) -> Tensor:
    """One vector a sample [B, H], of its real tokens, at least in float32."""
    hidden = _float(hidden)
    if pool == "mean":
        weights = mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)
    numbers = torch.arange(mask.shape[1], device=mask.device)
    if pool == "first":
        at = torch.where(mask, numbers, mask.shape[1] - 1).amin(1)
    else:
        at = torch.where(mask, numbers, 0).amax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), at]


def rkd_distance(
    student: Tensor,  # [B, Hs]
    teacher: Tensor,  # [B, Ht]
) -> Tensor:
    """B * mean over pairs i < j of huber(psi_s - psi_t), psi = |x_i - x_j| / mean distance:
    distance-wise relational distillation (Park et al. 2019, arXiv:1904.05068, eq. 4 to 6).
    Unchanged when either space is scaled, moved or rotated."""
    if len(student) < 2:
        return _nothing(student)
    return len(student) * F.smooth_l1_loss(_distances(student), _distances(teacher))


def rkd_angle(
    student: Tensor,  # [B, Hs]
    teacher: Tensor,  # [B, Ht]
) -> Tensor:
    """B * mean over triplets of distinct i, j, k of huber(psi_s - psi_t), psi = cosine of the angle
    at x_j between x_i and x_k: angle-wise relational distillation (Park et al. 2019, eq. 7 and
    8). Unchanged when either space is scaled, moved or rotated.

    Samples that coincide (closer than sqrt(machine epsilon) of the mean distance) have no direction
    between them: such a ray's cosines are 0 and give no gradient.
    """
    count = len(student)
    if count < 3:
        return _nothing(student)
    same = torch.eye(count, dtype=torch.bool, device=student.device)
    # axes: corner j, ends i and k
    distinct = ~(same[:, :, None] | same[:, None, :] | same[None, :, :])
    return count * F.smooth_l1_loss(_angles(student)[distinct], _angles(teacher)[distinct])


def similarity_preserving(
    student: Tensor,  # [B, Hs]
    teacher: Tensor,  # [B, Ht]
) -> Tensor:
    """B * |G_s - G_t|_F^2 / B^2, G = X X^T with each row divided by its length:
    similarity-preserving distillation (Tung & Mori 2019, arXiv:1907.09682, eq. 2 to 4). Unchanged
    when either space is scaled or rotated."""
    own, other = (F.normalize(x @ x.T, dim=1) for x in (student, teacher))
    return (own - other).square().sum() / len(student)


def contrastive(
    student: Tensor,  # [B, W] mapped student vectors
    teacher: Tensor,  # [B, W] mapped teacher vectors
    *,
    temperature: float,
    population: int,
    groups: Tensor | None = None,  # [B] int64
) -> Tensor:
    """Contrastive representation distillation (Tian et al. 2020, arXiv:1910.10699, eq. 17 and 18),
    with the other samples of the micro-batch as negatives.

        sum_i [ -log h(t_i, s_i) - sum_j log(1 - h(t_j, s_i)) ]
        h(t, s) = e^(t.s / tau) / (e^(t.s / tau) + N / M)

    with vectors of length one, N the negatives of sample i, and M = `population`, the size of the
    training set. With `groups` the negatives are the samples of other groups only.
    """
    count = len(student)
    own, other = (F.normalize(_float(x), dim=1) for x in (student, teacher))
    critic = own @ other.T / temperature  # [B, B]
    same = torch.eye(count, dtype=torch.bool, device=student.device)
    negative = ~same if groups is None else groups[:, None] != groups[None, :]
    chosen = negative.sum(1, keepdim=True)  # [B, 1]
    # h = sigmoid(score) and 1 - h = sigmoid(-score)
    score = critic - (chosen.clamp_min(1).to(critic.dtype) / population).log()
    right = F.logsigmoid(score.diagonal()) * (chosen[:, 0] > 0)
    wrong = F.logsigmoid(-score).masked_fill(~negative, 0.0)
    return -(right.sum() + wrong.sum())


def _distances(x: Tensor) -> Tensor:
    """Of all pairs, over their mean [B (B - 1) / 2]."""
    first, second = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    found: Tensor = torch.linalg.vector_norm(x[first] - x[second], dim=-1)
    return found / found.mean().clamp_min(torch.finfo(found.dtype).tiny)


def _angles(x: Tensor) -> Tensor:
    """Cosines [B corner, B, B]."""
    rays = x[None, :, :] - x[:, None, :]  # [j, i]: from j to i
    length = torch.linalg.vector_norm(rays, dim=-1, keepdim=True)  # [B, B, 1]
    # of a shorter ray rounding leaves less than half the digits, and its gradient is 1 / length
    shortest = torch.finfo(x.dtype).eps ** 0.5 * length.sum() / (len(x) * (len(x) - 1))
    apart = length > shortest
    rays = (rays / torch.where(apart, length, 1.0)).masked_fill(~apart, 0.0)
    cosines: Tensor = rays @ rays.transpose(1, 2)
    return cosines


def _float(x: Tensor) -> Tensor:
    """At least float32: sums are not taken in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def _nothing(x: Tensor) -> Tensor:
    """0, with a gradient of zeros."""
    return (x * 0).sum()
