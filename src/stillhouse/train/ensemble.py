"""Several teachers read along: each on the examples of its domains, their beliefs made one.

Knows teacher sources and batches; the arithmetic is `models.mixtures`.

Legend: B batch, M teachers, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.models.mixtures import Combine, combined
from stillhouse.models.signals import DenseSignal, HiddenSignal, TeacherSignal
from stillhouse.train.batches import DOMAIN
from stillhouse.train.outputs import Batch, Needs
from stillhouse.train.teachers import TeacherSource, TeacherView


class Member(NamedTuple):
    """One teacher. `domains` are the numbers it is asked about; `None`: all."""

    source: TeacherSource
    weight: float = 1.0
    domains: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class EnsembleSource:
    """One signal from any number of sources, live, stored or remote.

    A teacher reads the rows of its own domains and no others. Heads of one tokenizer that are
    padded to unequal widths are cut to the ids that all have. Terms that compare insides have
    nothing to read here: an ensemble has none.

    Raises:
        ValueError: a row that belongs to no teacher's domains.
    """

    members: Sequence[Member]
    combine: Combine
    vocabulary: int

    def view(self, batch: Batch, needs: Needs) -> TeacherView:
        """See `TeacherSource`."""
        rows = [self._rows(batch, member) for member in self.members]  # of [B] bool
        if not bool(torch.stack(rows).any(0).all()):
            raise ValueError("an example's domain has no teacher")
        of_target = _row_of_target(batch)
        found: list[TeacherSignal] = []
        weights: list[Tensor] = []
        for member, own in zip(self.members, rows, strict=True):
            targets = own[of_target]  # [N]
            if len(targets) and not bool(targets.any()):  # none of its rows, or only fillers
                continue
            part = batch if bool(own.all()) else _part(batch, own)
            signal = member.source.view(part, needs).signal
            if signal is None:
                return TeacherView(None, None)
            found.append(_spread(signal, targets))
            weights.append(member.weight * targets.float())
        width = min([self.vocabulary, *(_width(signal, self.vocabulary) for signal in found)])
        found = [_narrowed(signal, width) for signal in found]
        return TeacherView(combined(found, torch.stack(weights, -1), self.combine, width), None)

    def _rows(self, batch: Batch, member: Member) -> Tensor:
        labels = batch["labels"]
        if member.domains is None:
            return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        own = torch.tensor(sorted(member.domains), device=labels.device)
        return torch.isin(batch[DOMAIN], own)


def _width(signal: TeacherSignal, vocabulary: int) -> int:
    """Ids that a signal speaks of."""
    match signal:
        case DenseSignal():
            return int(signal.logits.shape[-1])
        case HiddenSignal():
            return int(signal.head.weight.shape[0])
        case _:
            return vocabulary


def _narrowed(signal: TeacherSignal, width: int) -> TeacherSignal:
    """A whole belief over the ids that all have: what is cut off is padding of the head."""
    whole = signal.dense() if isinstance(signal, HiddenSignal) else signal
    return DenseSignal(whole.logits[..., :width]) if isinstance(whole, DenseSignal) else whole


def _part(batch: Batch, rows: Tensor) -> Batch:
    """The rows of a batch alone."""
    size = len(rows)
    return {
        name: value[rows] if value.ndim and len(value) == size else value
        for name, value in batch.items()
    }


def _row_of_target(batch: Batch) -> Tensor:
    """Row of each target [N]."""
    labels = batch["labels"]
    each = labels != IGNORE_INDEX if labels.ndim == 1 else (labels[:, 1:] != IGNORE_INDEX).sum(-1)
    return torch.repeat_interleave(torch.arange(len(labels), device=labels.device), each.long())


def _spread(signal: TeacherSignal, at: Tensor) -> TeacherSignal:
    """A signal of the chosen positions as one of all positions; others hold what does not count."""
    if bool(at.all()):
        return signal
    place = (at.long().cumsum(0) - 1).clamp_min(0)  # others repeat a chosen one; their weight is 0
    return signal.select(place)
