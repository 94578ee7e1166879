"""Where the teacher's belief about a batch comes from while a student trains.

A source gives, for the targets of a batch, one `TeacherSignal`, and for terms that compare insides
also what a white-box teacher computed. Knows batches and models; knows no loss.

Legend: B batch, N targets, C classes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from stillhouse.models.signals import DenseSignal, HiddenSignal, TeacherSignal
from stillhouse.train.outputs import Batch, BodyReader, CausalReader, Needs, Outputs, Reader
from stillhouse.train.shared_prefix import SharedPrefix

BELIEFS = "teacher_logits"  # a batch's own beliefs [B, C], log-probabilities


class TeacherView(NamedTuple):
    """What is known of the teacher at one batch."""

    signal: TeacherSignal | None  # positions [N]
    outputs: Outputs | None  # insides, where terms asked for them and the teacher is here
    # [N] nats, with a sampled signal: cross-entropy + information estimates the divergence
    information: Tensor | None = None


class TeacherSource(Protocol):
    """Gives the teacher's view of a batch; never a gradient."""

    def view(self, batch: Batch, needs: Needs) -> TeacherView:
        """The teacher's signal at the targets of `batch`, and what else `needs` asks."""


@dataclass(frozen=True, slots=True)
class StoredBeliefs:
    """Beliefs that came with the examples (`label_probabilities`)."""

    def view(self, batch: Batch, needs: Needs) -> TeacherView:
        """See `TeacherSource`; no signal where the batch holds none."""
        beliefs = batch.get(BELIEFS)
        return TeacherView(None if beliefs is None else DenseSignal(beliefs), None)


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """A model that reads along, in evaluation mode, with the student's tokens."""

    model: Any
    reader: Reader
    prefix: SharedPrefix = field(init=False)  # what the texts of a task begin with

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", SharedPrefix(self.model))

    @torch.no_grad()
    def view(self, batch: Batch, needs: Needs) -> TeacherView:
        """See `TeacherSource`. Hidden states and head stand for the logits where that will do.

        What terms compare with the student's insides is saved for their gradients, which tensors
        of inference mode cannot be; what the fused loss reads is not.
        """
        with torch.inference_mode(needs == Needs(last_hidden=True) and not self._sharded()):
            model, rest = self.model, batch
            if isinstance(self.reader, CausalReader) and not needs.insides.anything:
                model, rest = self.prefix.split(batch) or (model, rest)
            outputs = self.reader.read(model, rest, needs)
        if outputs.last_hidden is not None and outputs.head is not None:
            return TeacherView(HiddenSignal(outputs.last_hidden, outputs.head), outputs)
        signal = None if outputs.logits is None else DenseSignal(outputs.logits)
        return TeacherView(signal, outputs)

    def _sharded(self) -> bool:
        return any(isinstance(weight, DTensor) for weight in self.model.parameters())


@dataclass(frozen=True, slots=True)
class LiveInsides:
    """A model whose layers read along with the student's tokens, without its head.

    `ids` [student pieces] gives the teacher's id of each of the student's, where its vocabulary was
    trimmed.
    """

    model: Any
    ids: torch.Tensor | None = None
    reader: BodyReader = field(default_factory=BodyReader)

    @torch.no_grad()
    def view(self, batch: Batch, needs: Needs) -> TeacherView:
        """See `TeacherSource`; never a signal."""
        needs = needs.insides
        if not needs.anything:
            return TeacherView(None, None)
        if self.ids is not None:
            ids = self.ids.to(batch["input_ids"].device)
            batch = {**batch, "input_ids": ids[batch["input_ids"]]}
        return TeacherView(None, self.reader.read(self.model, batch, needs))


@dataclass(frozen=True, slots=True)
class Beside:
    """Beliefs from one source, insides from another."""

    beliefs: TeacherSource | None
    insides: TeacherSource

    def view(self, batch: Batch, needs: Needs) -> TeacherView:
        """See `TeacherSource`."""
        believed = TeacherView(None, None)
        asked = Needs(logits=needs.logits, last_hidden=needs.last_hidden)
        if self.beliefs is not None and asked.anything:
            believed = self.beliefs.view(batch, asked)
        return believed._replace(outputs=self.insides.view(batch, needs).outputs)
