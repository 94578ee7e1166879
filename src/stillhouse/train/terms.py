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

from stillhouse.core.errors import UserError
from stillhouse.models.divergence import SoftTargetLoss, soft_target_loss
from stillhouse.models.divergence_kind import FORWARD_KL, Divergence
from stillhouse.models.fused_divergence import fused_soft_target_loss
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    TeacherSignal,
)
from stillhouse.train.outputs import Batch, Needs, Outputs

Unit = Literal["targets", "tokens", "samples", "aligned"]


class View(NamedTuple):
    """All that a term may read of one micro-batch."""

    batch: Batch
    targets: Tensor  # [N] int64
    student: Outputs
    signal: TeacherSignal | None  # positions [N]
    teacher: Outputs | None
    information: Tensor | None = None  # [N], see `TeacherView`

    @property
    def targets_are_classes(self) -> bool:
        """Whether a row has one target: a class of the task, not a token of a tokenizer."""
        return self.batch["labels"].ndim == 1


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
    2015), over the ids that student and teacher share. T^2 is applied in `models.divergence`, once.
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
        return Needs(last_hidden=True)

    @property
    def teacher_needs(self) -> Needs:
        """See `Term`."""
        return Needs(last_hidden=self.alpha > 0)

    def __call__(self, view: View) -> TermValue:
        """See `Term`; the parts are `divergence` (without T^2) and `cross_entropy`, in nats.

        Where the reader gave hidden states and a head, no logits are ever made of all targets.
        """
        value = self._fused(view) or self._dense(view)
        return TermValue(
            value.loss,
            {"divergence": value.divergence_sum, "cross_entropy": value.cross_entropy_sum},
        )

    def _fused(self, view: View) -> SoftTargetLoss | None:
        student = view.student
        if student.last_hidden is None or student.head is None:
            return None
        return fused_soft_target_loss(
            student.last_hidden,
            student.head,
            view.targets,
            view.signal,
            alpha=self.alpha,
            distillation_temperature=self.distillation_temperature,
            num_items=1,
            of=self.divergence,
        )

    def _dense(self, view: View) -> SoftTargetLoss:
        logits = view.student.class_logits()
        shared = over_shared_ids(logits, view.signal, classes=view.targets_are_classes)
        return soft_target_loss(
            shared.student_logits,
            view.targets,
            shared.signal,
            alpha=self.alpha,
            distillation_temperature=self.distillation_temperature,
            num_items=1,
            of=self.divergence,
        )


class Shared(NamedTuple):
    """Student and teacher over the same ids."""

    student_logits: Tensor  # [N, V]
    signal: TeacherSignal | None  # over V ids


def over_shared_ids(
    student_logits: Tensor, signal: TeacherSignal | None, *, classes: bool = False
) -> Shared:
    """Cut the wider of two heads of one tokenizer to the ids that both have.

    Models of one tokenizer may pad their heads to different widths (152,064 rows against 151,936
    for 151,665 tokens, say). Each softmax is then over the shared ids alone: what is cut off
    belongs to no token. Beliefs that hold every logit are cut on either side. Of stored ones
    (sparse, sampled) the mass beyond the student's head cannot be told from the rest: there only
    the student is cut, to the ids that they say they run over.

    Args:
        student_logits: [N, V].
        signal: the teacher's belief, of the same tokenizer; `None` passes.
        classes: the outputs are a task's classes, which nobody pads: unequal numbers are refused.

    Raises:
        UserError: the two cannot be cut to the same ids.
    """
    student = student_logits.shape[-1]
    match signal:
        case None:
            return Shared(student_logits, None)
        case DenseSignal():
            teacher = signal.logits.shape[-1]
        case HiddenSignal():
            teacher = signal.head.weight.shape[0]
        case SparseSignal() | SampledSignal():
            teacher = signal.vocabulary_size or student
    if teacher == student:
        return Shared(student_logits, signal)
    if classes:
        raise UserError(
            "student",
            f"has {student:,} classes where its teacher believes in {teacher:,}",
            action="train a student whose labels are the teacher's",
        )
    width = min(teacher, student)
    if teacher > width:
        signal = _cut(signal, width)
    return Shared(student_logits[..., :width], signal)


def _cut(signal: TeacherSignal, width: int) -> TeacherSignal:
    match signal:
        case DenseSignal():
            return DenseSignal(signal.logits[..., :width])
        case HiddenSignal():
            return replace(signal, head=signal.head.narrowed(width))
        case SparseSignal() | SampledSignal():
            raise UserError(
                "student",
                f"its head has {width:,} outputs, and the stored beliefs run over "
                f"{signal.vocabulary_size:,}: their mass beyond cannot be told",
                action="capture over the ids of the tokenizer, or use a student as wide",
            )
