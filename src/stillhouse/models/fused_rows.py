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
    # d loss / d logits is T^2 times d D / d (logits / T), over T.
    soft, hard = weighing.soft * t, weighing.hard
    shifted = logits.sub_(logits.amax(-1, keepdim=True))
    answers, beside = logits.new_zeros(len(logits)), None
    q = whole = None
    if weighing.wants_hard:
        q = shifted.exp()
        whole = q.sum(-1, keepdim=True)
        answers = (whole.log() - shifted.gather(-1, targets[:, None])).squeeze(-1)
    if t != 1.0 or q is None or whole is None:
        beside = None if q is None or whole is None or hard == 0.0 else q.mul_(hard / whole)
        if t != 1.0:
            shifted.div_(t)
        q = shifted.exp()
        whole = q.sum(-1, keepdim=True)
    tied = hard if beside is None else 0.0  # the weight of the same softmax in the hard part
    student = _Softmax(shifted, q, whole)
    if isinstance(teaching, Drawn):
        found = _drawn(student, teaching, weighing, soft, tied)
    elif weighing.divergence.kind in ("forward_kl", "cross_entropy"):
        found = _forward(student, teaching.logits, weighing, soft, tied)
    else:
        log_p = teaching.logits if t == 1.0 else teaching.logits.div_(t)
        same = None if tied == 0.0 else q.mul_(tied / whole)
        log_q = shifted.sub_(whole.log())
        found, gradient = graded(weighing.divergence, log_softmax_(log_p), log_q)
        torch.mul(gradient, soft, out=logits)
        if same is not None:
            logits.add_(same)
    if hard > 0.0:
        if beside is not None:
            logits.add_(beside)
        _subtract_targets(logits, targets, hard)
    return found, answers


class _Softmax(NamedTuple):
    """q = exp(shifted) / whole; `mass` is overwritten by whoever reads it."""

    shifted: Tensor  # [R, V] the logits' own memory
    mass: Tensor  # [R, V]
    whole: Tensor  # [R, 1]


def _forward(
    student: _Softmax, teacher: Tensor, weighing: Weighing, soft: float, tied: float
) -> Tensor:
    """Forward KL or cross-entropy with as few passes as there can be: one exponential a side."""
    x, q, whole = student
    t = weighing.distillation_temperature
    y = teacher.sub_(teacher.amax(-1, keepdim=True))
    if t != 1.0:
        y.div_(t)
    p = y.exp()
    whole_p = p.sum(-1, keepdim=True)
    p.mul_(1.0 / whole_p)
    if weighing.divergence.kind == "forward_kl":
        # -inf, where the teacher rules an id out, as a number: times p = 0 it is then 0.
        apart = y.clamp_min_(-1e30).sub_(_ruled_out(x, p)).mul_(p).sum(-1)
        rows = apart + (whole.log() - whole_p.log()).squeeze(-1)
    else:
        rows = whole.log().squeeze(-1) - torch.mul(_ruled_out(x, p), p, out=y).sum(-1)
    torch.sub(q.mul_((soft + tied) / whole), p, alpha=soft, out=x)
    return rows


def _ruled_out(x: Tensor, p: Tensor) -> Tensor:
    """x with 0 for -inf where p is 0 too: neither side holds it possible, and it adds nothing."""
    if bool(x.amin() > -torch.inf):
        return x
    return torch.where((x == -torch.inf) & (p == 0.0), 0.0, x)


def _drawn(student: _Softmax, drawn: Drawn, weighing: Weighing, soft: float, tied: float) -> Tensor:
    """-sum w log q over the draws; gradient W q - w, W the sum of the weights. As a forward KL its
    value has sum w log w - W + 1 more, which makes it not negative, and 0 where w = q."""
    x, q, whole = student
    weights = drawn.weights.to(x.dtype)
    total = weights.sum(-1)
    log_q = x.gather(-1, drawn.token_ids).sub_(whole.log())
    rows = -torch.where(weights > 0, weights * log_q, 0.0).sum(-1)  # unused slots say token 0
    if weighing.divergence.kind == "forward_kl":
        rows = rows + torch.xlogy(weights, weights).sum(-1) - total + 1.0
    torch.mul(q, total.mul(soft).add_(tied)[:, None] / whole, out=x)
    x.scatter_add_(-1, drawn.token_ids, weights * -soft)
    return rows


def _kept(logits: Tensor, targets: Tensor, kept: Kept, weighing: Weighing) -> tuple[Tensor, Tensor]:
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
    soft, a = graded(weighing.divergence, log_softmax_(coarse_p / t), log_softmax_(coarse_q / t))
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
    """log_softmax over the last dimension, in place."""
    x.sub_(x.amax(-1, keepdim=True))
    return x.sub_(x.exp().sum(-1, keepdim=True).log_())
