"""Teacher signals: what a white-box teacher believed, dense or sparse, in one type for all losses.

Live teachers, label likelihoods and stored signals all end up here; losses never ask which it was.
Knows no loss, no temperature and no file.

Shapes: B batch, T tokens, V vocabulary or classes, K kept entries, N selected positions,
... any leading dimensions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stillhouse.models.head import Head


@dataclass(frozen=True, slots=True)
class DenseSignal:
    """Belief over the whole vocabulary (or all classes) at each position.

    `logits` are unnormalised log-probabilities at distillation temperature 1, so that
    log-probabilities do as well: softmax(log p / T) is p^(1/T) renormalised. -inf means impossible.
    """

    logits: Tensor  # [..., V]

    @property
    def positions(self) -> torch.Size:
        """Leading shape: one belief for each of these."""
        return self.logits.shape[:-1]

    def select(self, index: Tensor) -> DenseSignal:
        """Beliefs at the positions of a boolean mask or of row numbers."""
        return DenseSignal(self.logits[index])

    def to(self, device: torch.device | str) -> DenseSignal:
        """The same on another device."""
        return DenseSignal(self.logits.to(device))


@dataclass(frozen=True, slots=True)
class SparseSignal:
    """The K most likely entries at each position, and the mass that all others share.

    Log-probabilities in nats at distillation temperature 1, normalised over the whole vocabulary:
    exp(log_probs).sum(-1) + exp(tail_log_mass) = 1. Nothing is renormalised in silence.
    `vocabulary_size` is how many ids the teacher's probabilities run over, where that is known.
    """

    token_ids: Tensor  # [..., K] int64, distinct within a position
    log_probs: Tensor  # [..., K]
    tail_log_mass: Tensor  # [...], -inf where nothing is left
    vocabulary_size: int | None = None

    @property
    def positions(self) -> torch.Size:
        """Leading shape: one belief for each of these."""
        return self.token_ids.shape[:-1]

    def select(self, index: Tensor) -> SparseSignal:
        """Beliefs at the positions of a boolean mask or of row numbers."""
        return replace(
            self,
            token_ids=self.token_ids[index],
            log_probs=self.log_probs[index],
            tail_log_mass=self.tail_log_mass[index],
        )

    def to(self, device: torch.device | str) -> SparseSignal:
        """The same on another device."""
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            log_probs=self.log_probs.to(device),
            tail_log_mass=self.tail_log_mass.to(device),
        )


@dataclass(frozen=True, slots=True)
class SampledSignal:
    """K draws from the teacher's belief at each position: an unbiased stand-in for all of it.

    sum_k weights_k onehot(token_ids_k) has the teacher's probabilities as its expectation, those at
    `distillation_temperature`: draws of p say nothing of p_T, so a signal serves one T only. Equal
    draws are merged (gradients do not need that, the value of a KL does), and a slot that is not
    used has weight 0. Random sampling knowledge distillation: Anshumann et al. 2025,
    arXiv:2503.16870. `models.drawing` makes them.
    """

    token_ids: Tensor  # [..., K] int64
    weights: Tensor  # [..., K] float32, not negative
    distillation_temperature: float = 1.0
    vocabulary_size: int | None = None  # ids that the teacher's probabilities run over, if known

    @property
    def positions(self) -> torch.Size:
        """Leading shape: one belief for each of these."""
        return self.token_ids.shape[:-1]

    def select(self, index: Tensor) -> SampledSignal:
        """Beliefs at the positions of a boolean mask or of row numbers."""
        return replace(self, token_ids=self.token_ids[index], weights=self.weights[index])

    def to(self, device: torch.device | str) -> SampledSignal:
        """The same on another device."""
        return replace(self, token_ids=self.token_ids.to(device), weights=self.weights.to(device))


@dataclass(frozen=True, slots=True)
class HiddenSignal:
    """The teacher's last hidden states and its head: the whole belief, at H numbers a position."""

    hidden: Tensor  # [..., H]
    head: Head

    @property
    def positions(self) -> torch.Size:
        """Leading shape: one belief for each of these."""
        return self.hidden.shape[:-1]

    def select(self, index: Tensor) -> HiddenSignal:
        """Beliefs at the positions of a boolean mask or of row numbers."""
        return HiddenSignal(self.hidden[index], self.head)

    def to(self, device: torch.device | str) -> HiddenSignal:
        """The hidden states on another device; the head stays where it is."""
        return HiddenSignal(self.hidden.to(device), self.head)

    def dense(self) -> DenseSignal:
        """All logits at once."""
        with torch.no_grad():
            return DenseSignal(self.head.logits(self.hidden))


TeacherSignal = DenseSignal | SparseSignal | SampledSignal | HiddenSignal


def from_class_probabilities(
    probabilities: Sequence[Sequence[float]] | Tensor, dtype: torch.dtype = torch.float32
) -> DenseSignal:
    """Class probabilities [B, C], as an example stores them, as a signal.

    Raises:
        ValueError: empty, negative, or a row that does not sum to one within 1e-3.
    """
    p = torch.as_tensor(probabilities, dtype=torch.float64)
    if p.ndim != 2 or p.numel() == 0:
        raise ValueError(f"class probabilities must be of shape [B, C], got {list(p.shape)}")
    total = p.sum(-1, keepdim=True)
    if bool((p < 0).any()) or not bool(((total - 1.0).abs() < 1e-3).all()):
        raise ValueError("class probabilities must not be negative and must sum to one in each row")
    return DenseSignal((p / total).log().to(dtype))


def sparsify(signal: DenseSignal, k: int) -> SparseSignal:
    """The `k` most likely entries of a dense signal, the rest as one mass."""
    log_p = _float(signal.logits).log_softmax(-1)
    top = log_p.topk(min(k, log_p.shape[-1]), dim=-1)
    if top.indices.shape[-1] == log_p.shape[-1]:
        tail = torch.full_like(log_p[..., 0], -torch.inf)
    else:
        tail = log_p.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    return SparseSignal(top.indices, top.values, tail, log_p.shape[-1])


def without_tail(signal: SparseSignal) -> SparseSignal:
    """A teacher that believes in its kept entries alone: top-k, cut off and renormalised.

    What most top-k distillation trains on. It is another teacher, not an approximation of a
    divergence from the first: the best student of it puts nothing outside the top k, and its
    gradients are biased by p - p_cut at every position (Anshumann et al. 2025).
    """
    log_probs = _float(signal.log_probs).log_softmax(-1)
    nothing = torch.full_like(log_probs[..., 0], -torch.inf)
    return replace(signal, log_probs=log_probs, tail_log_mass=nothing)


@torch.no_grad()
def live_token_signal(
    model: Any,
    input_ids: Tensor,  # [B, T] int64
    attention_mask: Tensor,  # [B, T], 1 where a token is real
    positions: Tensor,  # [B, T] bool
) -> DenseSignal:
    """What a causal language model believes comes after each selected position; no gradient.

    Rows of the result follow `positions` in row-major order, like `student_logits[positions]`:
    shape [N, V], with N = positions.sum(). The head is evaluated only for the columns that hold a
    selected position, where the model can be asked for that. Padding may be on either side.
    """
    assert positions.dtype == torch.bool, "positions are a mask"
    assert positions.shape == input_ids.shape
    columns = positions.any(0).nonzero().squeeze(-1)  # [T'] the columns that are needed
    position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
    asked = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    accepted = accepts(model)
    if "position_ids" in accepted:
        asked["position_ids"] = position_ids
    if "logits_to_keep" in accepted:
        logits = model(**asked, logits_to_keep=columns).logits  # [B, T', V]
    else:
        logits = model(**asked).logits[:, columns]
    return DenseSignal(logits[positions[:, columns]])


def accepts(model: Any) -> frozenset[str]:
    """Names of the arguments of a model's forward pass (of the base model under adapters)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(inner.forward).parameters)


def _float(x: Tensor) -> Tensor:
    """At least float32: sums over a vocabulary are not taken in half precision."""
    return x if x.dtype == torch.float64 else x.float()
