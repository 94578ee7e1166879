"""What two models compute inside for the same tokens, compared: pure functions of tensors.

Each function returns a sum over tokens or samples, to be divided once by their number in the whole
optimizer step, and is the same under any split into micro-batches and any padding. Teacher tensors
carry no gradient. Knows no model, layer or weight.

Legend: M real tokens, B batch, T tokens, H hidden (of student and teacher, where they differ Hs and
Ht), A attention heads, R relation heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hidden_mse(
    student: Tensor,  # [M, H]
    teacher: Tensor,  # [M, H]
) -> Tensor:
    """sum_i |s_i - t_i|^2 / H: mean squared error of each token's hidden state, summed over tokens
    (FitNets, Romero et al. 2015, arXiv:1412.6550; TinyBERT, Jiao et al. 2020, arXiv:1909.10351)."""
    total: Tensor = (_float(student) - _float(teacher)).square().mean(-1).sum()
    return total


def hidden_cosine(
    student: Tensor,  # [M, H]
    teacher: Tensor,  # [M, H]
) -> Tensor:
    """sum_i (1 - cos(s_i, t_i)) over tokens (DistilBERT, Sanh et al. 2019, arXiv:1910.01108)."""
    return (1 - torch.cosine_similarity(_float(student), _float(teacher), dim=-1)).sum()


def attention_kl(
    student: Tensor,  # [B, A, T, T] probabilities, rows are queries
    teacher: Tensor,  # [B, A, T, T]
    mask: Tensor,  # [B, T] bool, real tokens
) -> Tensor:
    """sum over real queries of the mean over heads of KL(teacher row || student row), in nats
    (MiniLM, Wang et al. 2020, arXiv:2002.10957, eq. 7; MobileBERT, Sun et al. 2020,
    arXiv:2004.02984, eq. 3)."""
    p, q = _float(teacher), _float(student)
    tiny = torch.finfo(p.dtype).tiny
    terms = p * (p.clamp_min(tiny).log() - q.clamp_min(tiny).log())
    return _over_rows(terms, mask)


def attention_mse(
    student: Tensor,  # [B, A, T, T] probabilities, rows are queries
    teacher: Tensor,  # [B, A, T, T]
    mask: Tensor,  # [B, T] bool, real tokens
) -> Tensor:
    """sum over real queries of the mean over heads of |teacher row - student row|^2.

    TinyBERT's loss (eq. 7), on probabilities, and with the squares of a row summed: a mean over
    columns would depend on the padding.
    """
    return _over_rows((_float(teacher) - _float(student)).square(), mask)


def activation_attention(
    student: Tensor,  # [B, T, Hs]
    teacher: Tensor,  # [B, T, Ht]
    mask: Tensor,  # [B, T] bool, real tokens
) -> Tensor:
    """sum over samples of | Q_s / |Q_s| - Q_t / |Q_t| |^2, with Q = sum over channels of squares at
    each real token and Euclidean norms: activation-based attention transfer (Zagoruyko & Komodakis
    2017, arXiv:1612.03928, eq. 2 with p = 2). Widths may differ, and nothing is learned.

    The norm is squared, as in the authors' code: the gradient of the norm itself is rounding where
    the two maps are almost equal.
    """
    maps = []
    for hidden in (student, teacher):
        energy = _float(hidden).square().sum(-1) * mask  # [B, T]
        maps.append(energy / energy.norm(dim=-1, keepdim=True).clamp_min(_tiny(energy)))
    total: Tensor = (maps[0] - maps[1]).square().sum()
    return total


def relation_kl(
    student: Tensor,  # [B, As, T, Ds]: queries, keys or values
    teacher: Tensor,  # [B, At, T, Dt]: the same of the teacher
    mask: Tensor,  # [B, T] bool, real tokens
    relation_heads: int,
) -> Tensor:
    """sum over real tokens of the mean over relation heads of KL(R_t row || R_s row), in nats.

    R = softmax(X X^T / sqrt(D_R)) over the real tokens of a sample, where X are queries, keys or
    values, their heads joined and cut again into `relation_heads` heads of width D_R (MiniLM's
    value relation, Wang et al. 2020, arXiv:2002.10957, eq. 8 to 10; MiniLMv2, Wang et al. 2021,
    arXiv:2012.15828, eq. 5 and 6). Widths and head counts may differ between the two models; each
    width must be a multiple of `relation_heads`.
    """
    log_q, log_p = (_relations(x, mask, relation_heads) for x in (student, teacher))
    return _over_rows(log_p.exp() * (log_p - log_q), mask)


def _relations(x: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Log-softmax of scaled products of each token with each real one [B, R, T, T]."""
    batch, _, tokens, _ = x.shape
    joined = _float(x).transpose(1, 2).reshape(batch, tokens, heads, -1).transpose(1, 2)
    scores = joined @ joined.transpose(-1, -2) / joined.shape[-1] ** 0.5
    low = torch.finfo(scores.dtype).min / 4
    relations: Tensor = scores.masked_fill(~mask[:, None, None, :], low).log_softmax(-1)
    return relations


def _over_rows(terms: Tensor, mask: Tensor) -> Tensor:
    """Rows of `terms` [B, A, T, T] summed, the mean over heads, summed over real tokens."""
    total: Tensor = (terms.sum(-1).mean(1) * mask).sum()
    return total


def _float(x: Tensor) -> Tensor:
    """At least float32: sums are not taken in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
