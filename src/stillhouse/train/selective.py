"""Selective distillation: learn the tokens that a model of this size can learn (AdaSPEC).

A small draft cannot follow its target everywhere, and what it spends on tokens that it will never
get right it lacks where it could. Hu et al. 2025 (arXiv:2510.19779) first distil a reference of the
draft's own size in the plain way, and then train the draft on the share k of tokens where it has
most to gain on the reference:

    gap_i = D(p_i, q_i) - D(p_i, r_i)     with p the teacher, q the student, r the reference
    kept  = the ceil(k n) targets of largest gap, of the n in a forward pass

A token that the reference too cannot fit has a large D on both sides and a small gap: it is left
out. Chosen anew in each forward pass, so a run depends on the micro-batch; the loss of the kept is
scaled by n / kept, which keeps it a mean over targets.

Knows models, signals and one term; knows no recipe.

Legend: N targets, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.models.divergence_kind import FORWARD_KL, Divergence
from stillhouse.models.signal_rows import signal_rows
from stillhouse.train.outputs import CausalReader, Needs
from stillhouse.train.terms import TermValue, Unit, View, over_shared_ids


def most_to_gain(student: Tensor, reference: Tensor, keep: float) -> Tensor:
    """Which targets [N] are kept: the ceil(keep * N) of largest student - reference; ties by order.

    Both are divergences from the teacher [N], in nats.
    """
    count = math.ceil(keep * len(student) - 1e-9)
    kept = torch.zeros_like(student, dtype=torch.bool)
    kept[torch.sort(student - reference, descending=True, stable=True).indices[:count]] = True
    return kept


@dataclass(frozen=True, slots=True)
class SelectedResponse:
    """alpha * T^2 * D(teacher_T, student_T) + (1 - alpha) * CE over the kept targets, scaled so
    that it stands for all. Targets are kept by D at the distillation temperature."""

    alpha: float
    reference: Any  # a causal language model over the student's ids, in eval mode
    keep: float
    distillation_temperature: float = 1.0
    divergence: Divergence = FORWARD_KL

    @property
    def name(self) -> str:
        """See `Term`."""
        return "response"

    @property
    def unit(self) -> Unit:
        """See `Term`."""
        return "targets"

    @property
    def student_needs(self) -> Needs:
        """See `Term`."""
        return Needs(logits=True)

    @property
    def teacher_needs(self) -> Needs:
        """See `Term`."""
        return Needs(logits=True)

    def __call__(self, view: View) -> TermValue:
        """See `Term`; the parts are of the kept targets, scaled alike."""
        shared = over_shared_ids(view.student.class_logits(), view.signal)
        assert shared.signal is not None, "planning refuses a selection without a teacher"
        temperature, of = self.distillation_temperature, self.divergence
        soft = signal_rows(shared.signal, shared.student_logits, temperature, of)  # [N]
        with torch.no_grad():
            read = CausalReader().read(self.reference, view.batch, Needs(logits=True))
            width = shared.student_logits.shape[-1]
            theirs = signal_rows(shared.signal, read.class_logits()[..., :width], temperature, of)
            there = view.targets != IGNORE_INDEX
            kept = torch.zeros_like(there)
            kept[there] = most_to_gain(soft.detach()[there], theirs[there], self.keep)
            scale = there.sum() / kept.sum().clamp_min(1)
        hard = functional.cross_entropy(
            shared.student_logits.float(),
            view.targets,
            reduction="none",
            ignore_index=IGNORE_INDEX,
        )
        soft_sum, hard_sum = soft[kept].sum() * scale, hard[kept].sum() * scale
        total = self.alpha * temperature**2 * soft_sum + (1.0 - self.alpha) * hard_sum
        return TermValue(
            total, {"divergence": soft_sum.detach(), "cross_entropy": hard_sum.detach()}
        )
