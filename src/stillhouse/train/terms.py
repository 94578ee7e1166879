"""Terms of an objective: what is compared between student and teacher, as sums.

A term gives a sum over its unit (targets, tokens or samples); the objective divides once, by the
number of those units in the whole optimizer step, and weighs. Knows outputs and signals; knows no
trainer.

Legend: N targets, V vocabulary or classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from stillhouse.models.divergence import soft_target_loss
from stillhouse.models.divergence_kind import FORWARD_KL, Divergence
from stillhouse.models.signals import DenseSignal, HiddenSignal, TeacherSignal
from stillhouse.train.outputs import Batch, Needs, Outputs

Unit = Literal["targets", "tokens", "samples"]


class View(NamedTuple):
    """All that a term may read of one micro-batch."""

    batch: Batch
    targets: Tensor  # [N] int64
    student: Outputs
    signal: TeacherSignal | None  # positions [N]
    teacher: Outputs | None
    information: Tensor | None = None  # [N], see `TeacherView`


class TermValue(NamedTuple):
    """A term's sum, with gradient, and the sums of its parts, detached, for the log."""

    total: Tensor  # scalar
    parts: Mapping[str, Tensor]


class Term(Protocol):
    """One comparison. `unit` says what its sum runs over."""

    @property
    def name(self) -> str:
        """Stable, for weights and logs."""

    @property
    def unit(self) -> Unit:
        """What the sum is divided by."""

    @property
    def student_needs(self) -> Needs:
        """What it reads of the student."""

    @property
    def teacher_needs(self) -> Needs:
        """What it reads of the teacher."""

    def __call__(self, view: View) -> TermValue:
        """The sum over the micro-batch."""


@dataclass(frozen=True, slots=True)
class Response:
    """alpha * T^2 * D(teacher_T, student_T) + (1 - alpha) * CE, summed over targets (Hinton et al.
    2015). T^2 is applied in `models.divergence`, once.

    Models of one tokenizer may pad their heads to different widths (152,064 rows against 151,936
    for 151,665 tokens, say). Both are then cut to the smaller, and each softmax is over the shared
    ids alone: what is cut off belongs to no token.
    """

    alpha: float
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
        return Needs(logits=self.alpha > 0)

    def __call__(self, view: View) -> TermValue:
        """See `Term`; the parts are `divergence` (without T^2) and `cross_entropy`, in nats."""
        shared = over_shared_ids(view.student.class_logits(), view.signal)
        value = soft_target_loss(
            shared.student_logits,
            view.targets,
            shared.signal,
            alpha=self.alpha,
            distillation_temperature=self.distillation_temperature,
            num_items=1,
        )
        return TermValue(
            value.loss,
            {"divergence": value.divergence_sum, "cross_entropy": value.cross_entropy_sum},
        )


class Shared(NamedTuple):
    """Student and teacher over the same ids."""

    student_logits: Tensor  # [N, V]
    signal: TeacherSignal | None  # [N, V]


def over_shared_ids(student_logits: Tensor, signal: TeacherSignal | None) -> Shared:
    """Cut the wider of the two heads to the ids that both have."""
    if isinstance(signal, HiddenSignal):
        head, width = signal.head, student_logits.shape[-1]
        rows = head.weight.shape[0]
        if rows > width:
            bias = None if head.bias is None else head.bias[:width]
            narrow = replace(head, weight=head.weight[:width], bias=bias)
            return Shared(student_logits, replace(signal, head=narrow))
        return Shared(student_logits[..., :rows], signal)
    if not isinstance(signal, DenseSignal):
        return Shared(student_logits, signal)
    if signal.logits.shape[-1] == student_logits.shape[-1]:
        return Shared(student_logits, signal)
    width = min(signal.logits.shape[-1], student_logits.shape[-1])
    return Shared(student_logits[..., :width], DenseSignal(signal.logits[..., :width]))
