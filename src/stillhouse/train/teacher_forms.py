"""Teachers as a library's user hands them over: a model, several, one with other ids, a source.

`as_source` makes a `TeacherSource` of each. Knows models and signals; knows no loss and no data.

Legend: N targets, V vocabulary or classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.core.errors import UserError
from stillhouse.models.mixtures import combined
from stillhouse.models.signals import DenseSignal, HiddenSignal
from stillhouse.train.ensemble import EnsembleSource
from stillhouse.train.outputs import Batch, Needs, Reader
from stillhouse.train.teachers import Beside, LiveTeacher, TeacherSource, TeacherView

Teacher = nn.Module | TeacherSource | Sequence["nn.Module | TeacherSource"]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several teachers with equal say: log of the mean of their probabilities at temperature 1
    (`mean_probabilities`). Terms that compare layers see the first of them."""

    sources: Sequence[TeacherSource]

    @torch.no_grad()
    def view(self, batch: Batch, needs: Needs) -> TeacherView:
        """See `TeacherSource`."""
        views = [source.view(batch, needs) for source in self.sources]
        beliefs = [_log_probs(view) for view in views]
        if len({belief.shape[-1] for belief in beliefs}) > 1:
            raise UserError(
                "teacher",
                "teachers of unequal numbers of classes cannot be averaged",
                value=[belief.shape[-1] for belief in beliefs],
                action="give each its own mapping (teacher_forms.Mapped)",
            )
        signals = [DenseSignal(belief) for belief in beliefs]
        mixed = combined(signals, torch.ones(len(signals)), "mean_probabilities")
        return TeacherView(mixed, views[0].outputs)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A teacher whose ids are others: `teacher_ids` [V] has, for each id of the student, the
    teacher's. Both softmaxes then run over the student's ids alone."""

    source: TeacherSource
    teacher_ids: Tensor  # [V] int64

    def view(self, batch: Batch, needs: Needs) -> TeacherView:
        """See `TeacherSource`."""
        signal, outputs, _ = self.source.view(batch, needs)
        match signal:
            case None:
                return TeacherView(None, outputs)
            case DenseSignal(logits):
                chosen = self.teacher_ids.to(logits.device)
            case HiddenSignal():
                logits = signal.dense().logits
                chosen = self.teacher_ids.to(logits.device)
            case _:
                raise UserError(
                    "mapping",
                    f"is for whole beliefs, and the teacher gives a {type(signal).__name__}",
                    action="store signals by the student's ids",
                )
        return TeacherView(DenseSignal(logits[..., chosen]), outputs)


def as_source(teacher: Teacher, reader: Reader) -> TeacherSource:
    """A module reads along; several are mixed; a source stays what it is."""
    if isinstance(teacher, nn.Module):
        return LiveTeacher(teacher, reader)
    if isinstance(teacher, Sequence):
        if not teacher:
            raise UserError("teacher", "is an empty list", action="give one or more, or None")
        return Mixture([as_source(one, reader) for one in teacher])
    return teacher


def by_name(source: TeacherSource, student: Any) -> TeacherSource:
    """The source with the classes of each of its models in the student's order (`label_mapping`).

    What is mapped already stays as it is.

    Raises:
        UserError: a model names other classes; or the same ones in another order, inside a source
            that is none of ours and may or may not see to it.
    """
    match source:
        case Mapped():
            return source
        case LiveTeacher():
            ids = label_mapping(student, source.model)
            return source if ids is None else Mapped(source, torch.tensor(ids))
        case Mixture():
            return Mixture([by_name(one, student) for one in source.sources])
        case EnsembleSource():
            members = [
                member._replace(source=by_name(member.source, student)) for member in source.members
            ]
            return replace(source, members=members)
        case Beside():
            beliefs = None if source.beliefs is None else by_name(source.beliefs, student)
            return replace(source, beliefs=beliefs)
    for model in modules_of(source):
        if label_mapping(student, model) is not None:
            raise UserError(
                "teacher id2label",
                f"names the student's classes in another order, within a {type(source).__name__}",
                value=_class_names(model),
                action="wrap the model inside (teacher_forms.Mapped), or give mapping=[0, 1, ...] "
                "where its beliefs come by the student's ids",
            )
    return source


def read_along(source: TeacherSource) -> list[nn.Module]:
    """The models of a source that read the student's own tokens."""
    match source:
        case LiveTeacher():
            return [source.model]
        case Mapped():
            return read_along(source.source)
        case Mixture():
            return [model for one in source.sources for model in read_along(one)]
        case EnsembleSource():
            return [model for member in source.members for model in read_along(member.source)]
        case Beside():
            return [] if source.beliefs is None else read_along(source.beliefs)
    return []


def modules_of(teacher: Teacher | None) -> list[nn.Module]:
    """The models in what the user gave; they are to be in evaluation mode and on the device."""
    if isinstance(teacher, nn.Module):
        return [teacher]
    if isinstance(teacher, Sequence):
        return [module for one in teacher for module in modules_of(one)]
    if isinstance(teacher, LiveTeacher):
        return [teacher.model]
    return [] if teacher is None else modules_of(_inner(teacher))


@contextmanager
def evaluating(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Teachers on the device, in evaluation mode; as they were afterwards."""
    modes = [model.training for model in models]
    for model in models:
        model.to(device)
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def label_mapping(student: Any, teacher: Any) -> list[int] | None:
    """Teacher's class for each class of the student, where both name theirs in another order.

    Raises:
        UserError: both name their classes, and not the same ones.
    """
    own, other = _class_names(student), _class_names(teacher)
    if own is None or other is None or own == other:
        return None
    if sorted(own) != sorted(other):
        raise UserError(
            "teacher id2label",
            f"names other classes than the student's {own}",
            value=other,
            action="give mapping=[teacher's class for each class of the student]",
        )
    return [other.index(name) for name in own]


def _class_names(model: Any) -> list[str] | None:
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not names or all(str(name) == f"LABEL_{number}" for number, name in names.items()):
        return None
    return [str(names[number]) for number in sorted(names)]


def _inner(source: Any) -> Any:
    """What a wrapping source holds: one teacher, several (an ensemble's members), or none."""
    if hasattr(source, "members"):
        return [member.source for member in source.members]
    return getattr(source, "source", None) or getattr(source, "sources", None)


def _log_probs(view: TeacherView) -> Tensor:
    signal = view.signal.dense() if isinstance(view.signal, HiddenSignal) else view.signal
    if not isinstance(signal, DenseSignal):
        raise UserError(
            "teacher", f"several teachers need whole beliefs, not {type(signal).__name__}"
        )
    logits = signal.logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1)
