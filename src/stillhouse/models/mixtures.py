"""Several teachers' beliefs as one: the mixture or the geometric mean, position by position.

- `mean_probabilities`: p = sum_i w_i p_i, the mixture.
- `mean_logits`: p proportional to prod_i p_i^w_i, the geometric mean; what averaging logits amounts
  to, since logits are log-probabilities up to a constant of the position.

Both at distillation temperature 1. Tempering afterwards gives the same as tempering each teacher
first for `mean_logits`, and not for `mean_probabilities`. Weights sum to one at each position.

A sparse signal does not say how its tail is spread. Here it is spread evenly over the entries that
were not kept (the distribution of most entropy among those that fit), so that the mixture of sparse
signals has exact numbers: each is a distribution over the whole vocabulary, and what comes out is
again one.

Legend: M teachers, N positions, V vocabulary, K kept entries, U entries of the union.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from stillhouse.models.drawing import merged
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    TeacherSignal,
)

Combine = Literal["mean_logits", "mean_probabilities"]


def combined(
    signals: Sequence[TeacherSignal],  # M, each of N positions
    weights: Tensor,  # [M], or [N, M] where they differ by position; not negative
    how: Combine,
    vocabulary: int | None = None,  # V; needed where all signals are sparse
) -> TeacherSignal:
    """One signal of N positions: dense where all are, sampled where all are, else sparse.

    A teacher with weight 0 at a position does not count there, whatever its signal holds.

    Raises:
        ValueError: no signals, positions or vocabularies that differ, weights that sum to nothing,
            sampled signals beside others, or their `mean_logits`.
    """
    if not signals:
        raise ValueError("an ensemble needs at least one teacher")
    positions = {signal.positions for signal in signals}
    if len(positions) > 1:
        raise ValueError(f"teachers speak of different positions: {sorted(map(list, positions))}")
    (place,) = positions
    w = weights.to(torch.float32).expand(*place, len(signals))
    total = w.sum(-1, keepdim=True)
    if bool((w < 0).any()) or not bool((total > 0).all()):
        raise ValueError("weights must not be negative, and some teacher must count everywhere")
    w = w / total  # [N, M]
    whole = [s.dense() if isinstance(s, HiddenSignal) else s for s in signals]
    if all(isinstance(s, SampledSignal) for s in whole):
        return _sampled([s for s in whole if isinstance(s, SampledSignal)], w, how)
    if any(isinstance(s, SampledSignal) for s in whole):
        raise ValueError("sampled signals can only be combined with sampled signals")
    dense = [s for s in whole if isinstance(s, DenseSignal)]
    widths = {s.logits.shape[-1] for s in dense} | ({vocabulary} if vocabulary else set())
    if len(widths) > 1:
        raise ValueError(f"teachers have different vocabularies: {sorted(widths)}")
    if len(dense) == len(whole):
        values = torch.stack([_log_p(s.logits) for s in dense], -1)  # [N, V, M]
        return DenseSignal(_mean(values, w[..., None, :], how))
    if not widths:
        raise ValueError("sparse signals are combined over a vocabulary whose size must be given")
    return _sparse([s for s in whole if not isinstance(s, SampledSignal)], w, how, widths.pop())


def _log_p(logits: Tensor) -> Tensor:
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def _mean(log_p: Tensor, w: Tensor, how: Combine) -> Tensor:
    """Unnormalised log of the mean over the last dimension, teachers; weight 0 does not count."""
    if how == "mean_probabilities":
        return (torch.where(w > 0, log_p, 0.0) + w.log()).logsumexp(-1)
    return torch.where(w > 0, w * log_p, 0.0).sum(-1)


def _sampled(signals: Sequence[SampledSignal], w: Tensor, how: Combine) -> SampledSignal:
    """Draws of all teachers, each weighted: its expectation is the mixture."""
    if how != "mean_probabilities":
        raise ValueError("draws can only be mixed: use mean_probabilities")
    if any(s.distillation_temperature != 1.0 for s in signals):
        raise ValueError("draws of tempered teachers are not draws of the tempered mixture")
    weights = torch.cat([s.weights * w[..., i, None] for i, s in enumerate(signals)], -1)
    ids = torch.cat([s.token_ids for s in signals], -1)
    return merged(SampledSignal(ids, weights, vocabulary_size=signals[0].vocabulary_size))


def _sparse(
    signals: Sequence[DenseSignal | SparseSignal], w: Tensor, how: Combine, vocabulary: int
) -> TeacherSignal:
    """The mean at the union of all kept entries, filled up with others to one length."""
    kept = [s.token_ids for s in signals if isinstance(s, SparseSignal)]
    ids = _union(torch.cat(kept, -1), vocabulary)  # [N, U], distinct
    size = ids.shape[-1]
    at = torch.stack([_at(s, ids, vocabulary) for s in signals], -1)  # [N, U, M]
    values = _mean(at, w[..., None, :], how)
    if size == vocabulary:
        log_p = values.log_softmax(-1)
        return SparseSignal(ids, log_p, torch.full_like(log_p[..., 0], -torch.inf), vocabulary)
    if how == "mean_logits" and any(isinstance(s, DenseSignal) for s in signals):
        whole = torch.stack([_everywhere(s, vocabulary) for s in signals], -1)
        log_p = _mean(whole, w[..., None, :], how).log_softmax(-1)
        top = log_p.gather(-1, ids)
        tail = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)
        return SparseSignal(ids, top, tail, vocabulary)
    if how == "mean_probabilities":
        rests = [_rest(s, ids, vocabulary) for s in signals]
        tail = _mean(torch.stack(rests, -1), w, how)  # exact, where 1 - sum would cancel
        norm = torch.cat([values, tail[..., None]], -1).logsumexp(-1, keepdim=True)
        return SparseSignal(ids, values - norm, tail - norm[..., 0], vocabulary)
    share = torch.stack([_share(s, vocabulary) for s in signals if isinstance(s, SparseSignal)], -1)
    tail = _mean(share, w, how) + math.log(vocabulary - size)
    norm = torch.cat([values, tail[..., None]], -1).logsumexp(-1, keepdim=True)
    return SparseSignal(ids, values - norm, tail - norm[..., 0], vocabulary)


def _share(signal: SparseSignal, vocabulary: int) -> Tensor:
    """Log-probability of one entry that was not kept [N]."""
    unkept = vocabulary - signal.token_ids.shape[-1]
    if unkept == 0:
        return torch.full_like(signal.tail_log_mass, -torch.inf)
    return signal.tail_log_mass - math.log(unkept)


def _at(signal: DenseSignal | SparseSignal, ids: Tensor, vocabulary: int) -> Tensor:
    """Log-probabilities [N, U] at `ids`."""
    if isinstance(signal, DenseSignal):
        return _log_p(signal.logits).gather(-1, ids)
    order = signal.token_ids.argsort(-1)
    known, values = signal.token_ids.gather(-1, order), signal.log_probs.gather(-1, order)
    place = torch.searchsorted(known, ids).clamp_max(known.shape[-1] - 1)
    found = known.gather(-1, place) == ids
    share = _share(signal, vocabulary)[..., None].to(values)
    return torch.where(found, values.gather(-1, place), share)


def _everywhere(signal: DenseSignal | SparseSignal, vocabulary: int) -> Tensor:
    if isinstance(signal, DenseSignal):
        return _log_p(signal.logits)
    share = _share(signal, vocabulary)[..., None].to(signal.log_probs)
    whole = share.expand(*signal.positions, vocabulary)
    return whole.scatter(-1, signal.token_ids, signal.log_probs)


def _rest(signal: DenseSignal | SparseSignal, ids: Tensor, vocabulary: int) -> Tensor:
    """Log of the mass outside of `ids` [N]."""
    if isinstance(signal, DenseSignal):
        return _log_p(signal.logits).scatter(-1, ids, -torch.inf).logsumexp(-1)
    left = vocabulary - ids.shape[-1]
    return _share(signal, vocabulary) + math.log(left)  # the union holds all that was kept


def _union(ids: Tensor, vocabulary: int) -> Tensor:
    """Distinct ids [N, U] that hold all of `ids` [N, K]; gaps are filled with the least others.

    U is the same at all positions: the largest union there is, at most V.
    """
    flat = ids.reshape(-1, ids.shape[-1]).sort(-1).values  # [n, K]
    first = torch.ones_like(flat, dtype=torch.bool)
    first[:, 1:] = flat[:, 1:] != flat[:, :-1]
    size = int(first.sum(-1).max()) if len(flat) else 0
    reach = min(vocabulary, 2 * flat.shape[-1])  # enough candidates: K of them may be taken
    candidates = torch.arange(reach, device=ids.device)
    candidates = candidates.expand(len(flat), -1).contiguous()
    place = torch.searchsorted(flat, candidates).clamp_max(flat.shape[-1] - 1)
    free = flat.gather(-1, place) != candidates
    # distinct ids first, in order, then free candidates in order
    score = torch.cat([(~first).long() * 2, torch.where(free, 1, 2)], -1)  # [n, K + reach]
    pool = torch.cat([flat, candidates], -1)
    order = score.argsort(dim=-1, stable=True)[:, :size]
    return pool.gather(-1, order).reshape(*ids.shape[:-1], size)
