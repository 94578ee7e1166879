"""What a training step minimises and what the held-out set measures, for students of any kind.

An objective reads student and teacher once a micro-batch, has its terms compare them, divides each
sum by the number of its units in the whole step, and weighs. Knows readers, sources and terms;
knows no optimizer and no file.

Legend: N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import UserError
from stillhouse.core.records import Example
from stillhouse.models.divergence import IGNORE_INDEX, cross_entropy, divergence
from stillhouse.models.divergence_kind import (
    CROSS_ENTROPY,
    FORWARD_KL,
    Divergence,
    infinite_at_zero,
)
from stillhouse.models.fused_divergence import fused_measures
from stillhouse.models.signal_rows import signal_rows
from stillhouse.models.signals import SampledSignal
from stillhouse.train.finite import not_finite
from stillhouse.train.outputs import (
    Batch,
    CausalReader,
    Counts,
    LabelReader,
    Needs,
    Reader,
    StepAt,
    TagReader,
)
from stillhouse.train.teachers import StoredBeliefs, TeacherSource, TeacherView
from stillhouse.train.terms import Response, Shared, Term, View, over_shared_ids


class HeldOutSums(NamedTuple):
    """Sums over valid targets (samples, or completion tokens); divide by `items` once.

    `divergence` is KL(teacher || student) at T = 1, in nats, where the teacher's belief is known,
    and otherwise the KL from its answer as a one-point distribution, which is `cross_entropy`.
    `agreed` counts targets where the student's first choice is the teacher's answer. `choices` [N]
    are a classifier's first choices and `each` [N] its divergences, sample by sample.
    """

    divergence: Tensor
    cross_entropy: Tensor
    agreed: Tensor
    items: Tensor
    choices: Tensor | None = None
    each: Tensor | None = None


class Objective(Protocol):
    """What a trainer asks of an objective."""

    def prepare(self, model: Any, batch: Batch, step: StepAt) -> Batch:
        """The batch to train on, before its units are counted: where a student writes its own."""

    def loss(self, model: Any, batch: Batch, counts: Counts) -> Tensor:
        """Loss of a micro-batch: sums divided by the counts of the whole optimizer step, so that
        micro-batch losses add up.

        Raises:
            StillhouseError: it is NaN or infinite; says why.
        """

    def held_out(self, model: Any, batch: Batch) -> HeldOutSums:
        """What the held-out set measures; without gradient."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """A term and its weight."""

    term: Term
    weight: float = 1.0


@dataclass(slots=True)
class TermsObjective:
    """sum_k weight_k * total_k / units_k over terms k."""

    reader: Reader
    terms: Sequence[Weighted]
    teacher: TeacherSource | None = None
    logged: dict[str, Tensor] = field(default_factory=dict)  # parts of the last micro-batch, sums

    def prepare(self, model: Any, batch: Batch, step: StepAt) -> Batch:
        """See `Objective`: the batch as it is."""
        return batch

    def loss(self, model: Any, batch: Batch, counts: Counts) -> Tensor:
        """See `Objective`."""
        student, teacher = Needs(), Needs()
        student = reduce(or_, (w.term.student_needs for w in self.terms), student)
        teacher = reduce(or_, (w.term.teacher_needs for w in self.terms), teacher)
        view = self._view(model, batch, student, teacher)
        self.logged.clear()
        losses: list[Tensor] = []
        for weighted in self.terms:
            value = weighted.term(view)
            losses.append(weighted.weight * value.total / counts.of(weighted.term.unit))
            self.logged |= {f"{weighted.term.name}/{k}": v for k, v in value.parts.items()}
        loss = reduce(Tensor.add, losses)
        self._check(loss, view)
        return loss

    def held_out(self, model: Any, batch: Batch) -> HeldOutSums:
        """See `Objective`."""
        view = self._view(model, batch, Needs(last_hidden=True), Needs(last_hidden=True))
        student = view.student
        if student.last_hidden is not None and student.head is not None:
            drawn = isinstance(view.signal, SampledSignal) and view.information is not None
            of = CROSS_ENTROPY if drawn else FORWARD_KL
            found = fused_measures(
                student.last_hidden, student.head, view.targets, view.signal, of=of
            )
            soft = found.cross_entropy if view.signal is None else found.divergence
            if drawn and view.information is not None:
                soft = soft + view.information.sum()
            self._check(soft, view)
            return HeldOutSums(soft, found.cross_entropy, found.agreed, found.items)
        shared = over_shared_ids(
            view.student.class_logits(), view.signal, classes=view.targets_are_classes
        )
        hard = cross_entropy(shared.student_logits, view.targets)
        soft = hard.total
        if shared.signal is not None:
            there = view.targets != IGNORE_INDEX  # a row that fills up a batch has no target
            soft = _held_out_divergence(shared, view.information, there)
        self._check(soft, view)
        choices = shared.student_logits.argmax(-1)
        sums = HeldOutSums(soft, hard.total, (choices == view.targets).sum(), hard.items)
        if not view.targets_are_classes:
            return sums
        if shared.signal is None:
            each = functional.cross_entropy(
                shared.student_logits.float(), view.targets, reduction="none"
            )
        else:
            each = signal_rows(shared.signal, shared.student_logits, 1.0, FORWARD_KL)
        return sums._replace(choices=choices, each=each)

    @staticmethod
    @torch.no_grad()
    def _check(loss: Tensor, view: View) -> None:
        if bool(loss.isfinite()):
            return
        student = view.student
        known = student.logits is not None or student.last_hidden is not None
        raise not_finite(loss, student.class_logits() if known else None, view.signal)

    def _view(self, model: Any, batch: Batch, student: Needs, teacher: Needs) -> View:
        seen = TeacherView(None, None)
        if self.teacher is not None and teacher.anything:
            seen = self.teacher.view(batch, teacher)
        return View(
            batch,
            self.reader.targets(batch),
            self.reader.read(model, batch, student),
            seen.signal,
            seen.outputs,
            seen.information,
        )


def _held_out_divergence(shared: Shared, information: Tensor | None, there: Tensor) -> Tensor:
    """Sum of KL(teacher || student) at T = 1 over the targets that are `there`; of draws, its
    unbiased estimate."""
    signal = shared.signal
    assert signal is not None
    if isinstance(signal, SampledSignal) and information is not None:
        rows = signal_rows(signal, shared.student_logits, 1.0, CROSS_ENTROPY) + information
        return rows[there].sum()
    return divergence(signal, shared.student_logits, mask=there).total


def label_objective(
    alpha: float, distillation_temperature: float, divergence: Divergence = FORWARD_KL
) -> TermsObjective:
    """For a classifier: one target a sample, the teacher's belief over C classes beside it."""
    response = Response(alpha, distillation_temperature, divergence)
    return TermsObjective(LabelReader(), (Weighted(response),), StoredBeliefs())


def tags_objective() -> TermsObjective:
    """For a token classifier: cross-entropy over the tags of the tokens whose tag is known."""
    return TermsObjective(TagReader(), (Weighted(Response(0.0)),))


def text_objective(
    alpha: float,
    distillation_temperature: float,
    teacher: TeacherSource | None = None,  # with the student's tokenizer
    divergence: Divergence = FORWARD_KL,
) -> TermsObjective:
    """For a language model: completion tokens are the targets; the teacher, if any, reads along."""
    response = Response(alpha, distillation_temperature, divergence)
    return TermsObjective(CausalReader(), (Weighted(response),), teacher)


def check_beliefs(examples: Sequence[Example], alpha: float) -> None:
    """Soft targets of a `label` student need the teacher's belief for every example.

    Raises:
        UserError: some have none and alpha is not 0.
    """
    missing = sum(example.label_probabilities is None for example in examples)
    if alpha > 0 and missing:
        raise UserError(
            "train.alpha",
            f"soft targets need class probabilities, and {missing:,} of {len(examples):,} examples "
            "have none",
            value=alpha,
            action="use teacher.signals: auto (a white-box teacher or one with logprobs) or "
            "samples, or set train.alpha: 0",
        )


def check_finite(examples: Sequence[Example], alpha: float, divergence: Divergence) -> None:
    """Some divergences need beliefs that rule out no class.

    Raises:
        UserError: it would be infinite for some example, and alpha is not 0.
    """
    if alpha == 0 or not infinite_at_zero(divergence):
        return
    ruled_out = sum(0.0 in (example.label_probabilities or ()) for example in examples)
    if ruled_out:
        raise UserError(
            "train.divergence",
            f"is infinite where a class has probability 0, as for {ruled_out:,} of "
            f"{len(examples):,} examples",
            value=divergence.kind,
            action="use jsd or skew_reverse_kl with a beta between 0 and 1",
        )


def check_one_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Token logits can only be compared over one vocabulary.

    Raises:
        UserError: the two tokenizers differ.
    """
    if student.get_vocab() != teacher.get_vocab():
        raise UserError(
            "train.alpha",
            "soft targets for text need a student with its teacher's tokenizer "
            f"({len(student):,} tokens against {len(teacher):,})",
            action="set train.alpha: 0, train.teachers with tokenizers: universal, or "
            "student.from: teacher with vocabulary: full",
        )
