"""A block of student logits to its loss and, in its place, the gradient of the loss.

One function a kind of teacher signal. Blocks are small enough to stay in the processor's cache
while a dozen passes go over them. Knows no matrix product and no autograd.

Legend: R rows, V vocabulary, K kept entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stillhouse.models.divergence_gradient import graded
from stillhouse.models.divergence_kind import Divergence


@dataclass(frozen=True, slots=True)
class Weighing:
    """soft T^2 D(p_T, q_T) + hard (-log q(target)), of one head.

    With `measure` both sums are taken, and agreement counted, whatever the weights.
    """

    divergence: Divergence
    distillation_temperature: float  # T
    soft: float
    hard: float
    scale: float  # of the student's head
    softcap: float | None
    measure: bool

    @property
    def wants_hard(self) -> bool:
        """Whether -log q(target) is computed."""
        return self.hard > 0.0 or self.measure


class Sums(NamedTuple):
    """Of each row [R]: D without T^2, -log q(target), and whether the first choice is the target;
    zeros where nobody asked."""

    divergence: Tensor
    cross_entropy: Tensor
    agreed: Tensor


class Logits(NamedTuple):
    """A teacher's logits [R, V]; overwritten."""

    logits: Tensor


class Kept(NamedTuple):
    """The `SparseSignal` of a block."""

    token_ids: Tensor  # [R, K]
    log_probs: Tensor  # [R, K]
    tail_log_mass: Tensor  # [R]


class Drawn(NamedTuple):
    """The `SampledSignal` of a block, drawn at T."""

    token_ids: Tensor  # [R, K]
    weights: Tensor  # [R, K]


Teaching = Logits | Kept | Drawn | None


def finish(raw: Tensor, scale: float, softcap: float | None) -> Tensor:
    """What a head does after its product, in place."""
    if scale != 1.0:
        raw.mul_(scale)
    if softcap is not None:
        raw.div_(softcap).tanh_().mul_(softcap)
    return raw


def overwrite(
    raw: Tensor,  # [R, V] the head's product; becomes d loss / d raw
    targets: Tensor,  # [R] int64
    teaching: Teaching,
    weighing: Weighing,
) -> Sums:
    """The sums of each row; `raw` is overwritten."""
    logits = finish(raw, weighing.scale, weighing.softcap)
    capped = None if weighing.softcap is None else logits.clone()
    none = logits.new_zeros(len(logits))
    agreed = none
    if weighing.measure:
        agreed = (logits.argmax(-1) == targets).to(logits.dtype)
    match teaching:
        case None:
            sums = Sums(none, _alone(logits, targets, weighing), agreed)
        case Kept():
            soft, hard = _kept(logits, targets, teaching, weighing)
            sums = Sums(soft, hard, agreed)
        case _:
            soft, hard = _tempered(logits, targets, teaching, weighing)
            sums = Sums(soft, hard, agreed)
    if capped is not None and weighing.softcap is not None:
        # d (c tanh(x / c)) / dx = 1 - tanh^2
        raw.mul_(capped.div_(weighing.softcap).square_().neg_().add_(1.0))
    if weighing.scale != 1.0:
        raw.mul_(weighing.scale)
    return sums


def _alone(logits: Tensor, targets: Tensor, weighing: Weighing) -> Tensor:
    """Cross-entropy to the targets; gradient q - onehot."""
    hard = _answers(log_softmax_(logits), targets)
    logits.exp_().mul_(weighing.hard)
    _subtract_targets(logits, targets, weighing.hard)
    return hard


def _tempered(
    logits: Tensor, targets: Tensor, teaching: Logits | Drawn, weighing: Weighing
) -> tuple[Tensor, Tensor]:
    """A belief at T over all ids, whole or drawn, beside the targets at temperature 1."""
    t = weighing.distillation_temperature
    hard, beside = logits.new_zeros(len(logits)), None
    if t != 1.0 and weighing.wants_hard:
        log_q = logits.log_softmax(-1)
        hard = _answers(log_q, targets)
        beside = log_q.exp_()
    log_q = log_softmax_(logits if t == 1.0 else logits.div_(t))
    if t == 1.0 and weighing.wants_hard:
        hard = _answers(log_q, targets)
        if isinstance(teaching, Logits) and weighing.hard > 0.0:
            beside = log_q.exp()
    # d loss / d logits is T^2 times d D / d (logits / T), over T.
    soft = weighing.soft * t
    if isinstance(teaching, Drawn):
        found = _drawn(log_q, teaching, weighing, soft, weighing.hard if t == 1.0 else 0.0)
    else:
        p = teaching.logits
        log_p = log_softmax_(p if t == 1.0 else p.div_(t))
        found, gradient = graded(weighing.divergence, log_p, log_q)
        torch.mul(gradient, soft, out=logits)
    if weighing.hard > 0.0:
        if beside is not None:
            logits.add_(beside, alpha=weighing.hard)
        _subtract_targets(logits, targets, weighing.hard)
    return found, hard


def _drawn(
    log_q: Tensor, drawn: Drawn, weighing: Weighing, soft: float, hard: float
) -> Tensor:
    """-sum w log q over the draws; gradient W q - w, W the sum of the weights. As a forward KL its
    value has sum w log w - W + 1 more, which is not negative and 0 where w = q."""
    weights = drawn.weights.to(log_q.dtype)
    whole = weights.sum(-1)
    rows = -(weights * log_q.gather(-1, drawn.token_ids)).sum(-1)
    if weighing.divergence.kind == "forward_kl":
        rows = rows + torch.xlogy(weights, weights).sum(-1) - whole + 1.0
    log_q.exp_().mul_(whole.mul(soft).add_(hard)[:, None])
    log_q.scatter_add_(-1, drawn.token_ids, weights * -soft)
    return rows


def _kept(
    logits: Tensor, targets: Tensor, kept: Kept, weighing: Weighing
) -> tuple[Tensor, Tensor]:
    """K + 1 outcomes, coarse-grained at temperature 1 and then tempered.

    With u the student's coarse log-probabilities and a = dD/du, which sums to 0, the gradient is
    a_k at a kept entry and a_tail q_v / Q_tail elsewhere.
    """
    t = weighing.distillation_temperature
    log_q = log_softmax_(logits)
    hard = logits.new_zeros(len(logits))
    if weighing.wants_hard:
        hard = _answers(log_q, targets)
    coarse_q = log_q.gather(-1, kept.token_ids)  # [R, K]
    coarse_p = kept.log_probs.to(log_q.dtype)
    own = coarse_q.exp()
    q = log_q.exp_()
    has_tail = kept.token_ids.shape[-1] < q.shape[-1]
    rest = None
    if has_tail:
        q.scatter_(-1, kept.token_ids, 0.0)
        rest = q.sum(-1)  # [R]
        coarse_q = torch.cat([coarse_q, rest.log()[:, None]], -1)
        coarse_p = torch.cat([coarse_p, kept.tail_log_mass.to(coarse_p)[:, None]], -1)
    soft, a = graded(
        weighing.divergence, log_softmax_(coarse_p / t), log_softmax_(coarse_q / t)
    )
    a = a * (weighing.soft * t)
    if rest is not None:
        a, of_tail = a[:, :-1], a[:, -1]
        share = torch.where(rest > 0, of_tail / rest, 0.0) + weighing.hard
        q.mul_(share[:, None])
    q.scatter_(-1, kept.token_ids, a + own * weighing.hard)
    if weighing.hard > 0.0:
        _subtract_targets(q, targets, weighing.hard)
    return soft, hard


def _answers(log_q: Tensor, targets: Tensor) -> Tensor:
    """-log q(target) [R]."""
    return log_q.gather(-1, targets[:, None]).squeeze(-1).neg()


def _subtract_targets(gradient: Tensor, targets: Tensor, weight: float) -> None:
    where = targets[:, None]
    gradient.scatter_add_(-1, where, gradient.new_full(where.shape, -weight))


def log_softmax_(x: Tensor) -> Tensor:
    """log_softmax over the last dimension, in place where the device's kernel allows it."""
    if x.device.type == "cpu":
        return torch.log_softmax(x, -1, out=x)
    return x.copy_(x.log_softmax(-1))
