"""Terms that compare the insides of student and teacher, over pairs of layers or samples.

Each is the mean over its pairs of layers of one pure function of `features` or `features_samples`.
Knows outputs and layer pairs; knows no recipe and no trainer.

Legend: B batch, T tokens, M real tokens, H hidden, N targets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.train import features, features_samples
from stillhouse.train.features_layers import LayerPair
from stillhouse.train.features_samples import Pool
from stillhouse.train.outputs import Needs, Outputs
from stillhouse.train.terms import TermValue, Unit, View

HIDDEN = Needs(hidden_states=True)


@dataclass(frozen=True, slots=True)
class Layered:
    """What the terms over pairs of layers have in common. Pairs may be left out for a while."""

    name: str
    pairs: tuple[LayerPair, ...]

    @property
    def unit(self) -> Unit:
        """See `Term`."""
        return "tokens"

    @property
    def compared(self) -> Needs:
        """What is read of both models."""
        return HIDDEN

    @property
    def student_needs(self) -> Needs:
        """See `Term`."""
        return self.compared

    @property
    def teacher_needs(self) -> Needs:
        """See `Term`."""
        return self.compared

    @property
    def reach(self) -> int:
        """How many of the student's layers the term depends on whole, counted from the lowest."""
        return max(pair.student for pair in self.pairs) + 1

    def only(self, layers: Collection[int]) -> Any:
        """The same over the pairs of these student layers; `None` where there are none."""
        kept = tuple(pair for pair in self.pairs if pair.student in layers)
        return replace(self, pairs=kept) if kept else None

    def value(self, view: View, one: Callable[[LayerPair, Outputs, Outputs], Tensor]) -> TermValue:
        """The mean over pairs of `one`."""
        assert view.teacher is not None, "a term that reads the teacher's insides has a teacher"
        sums = [one(pair, view.student, view.teacher) for pair in self.pairs]
        return TermValue(torch.stack(sums).mean(), {})


@dataclass(frozen=True, slots=True)
class Hidden(Layered):
    """Hidden states of real tokens: mean squared error, or one minus the cosine.

    `maps` hold a learned linear map from the student's width to the teacher's for each pair, by
    the pair; none is the identity.
    """

    loss: Literal["mse", "cosine"]
    maps: dict[LayerPair, nn.Module]

    def __call__(self, view: View) -> TermValue:
        """See `Term`."""
        function = features.hidden_mse if self.loss == "mse" else features.hidden_cosine

        def one(pair: LayerPair, student: Outputs, teacher: Outputs) -> Tensor:
            mask = real(student, view)
            own = hidden_after(student, pair.student)[mask]  # [M, H]
            if pair in self.maps:
                own = self.maps[pair](own)
            return function(own, hidden_after(teacher, pair.teacher)[mask])

        return self.value(view, one)


@dataclass(frozen=True, slots=True)
class Attention(Layered):
    """Attention maps, head by head or their mean."""

    loss: Literal["kl", "mse"]
    mean_heads: bool

    @property
    def compared(self) -> Needs:
        """See `Layered`."""
        return Needs(attentions=True)

    @property
    def reach(self) -> int:
        """See `Layered`: of a compared layer itself only queries and keys."""
        return max(pair.student for pair in self.pairs)

    def __call__(self, view: View) -> TermValue:
        """See `Term`."""
        function = features.attention_kl if self.loss == "kl" else features.attention_mse

        def one(pair: LayerPair, student: Outputs, teacher: Outputs) -> Tensor:
            assert student.attentions is not None
            assert teacher.attentions is not None
            own, other = student.attentions[pair.student], teacher.attentions[pair.teacher]
            if self.mean_heads:
                own, other = own.mean(1, keepdim=True), other.mean(1, keepdim=True)
            return function(own, other, real(student, view))

        return self.value(view, one)


@dataclass(frozen=True, slots=True)
class Activation(Layered):
    """Activation-based attention transfer; its unit is the sample."""

    @property
    def unit(self) -> Unit:
        """See `Term`."""
        return "samples"

    def __call__(self, view: View) -> TermValue:
        """See `Term`."""

        def one(pair: LayerPair, student: Outputs, teacher: Outputs) -> Tensor:
            return features.activation_attention(
                hidden_after(student, pair.student),
                hidden_after(teacher, pair.teacher),
                real(student, view),
            )

        return self.value(view, one)


@dataclass(frozen=True, slots=True)
class Relation(Layered):
    """Relations among queries, keys or values; the mean over the kinds that are compared."""

    of: tuple[Literal["queries", "keys", "values"], ...]
    relation_heads: int

    @property
    def compared(self) -> Needs:
        """See `Layered`."""
        return Needs(queries_keys_values=True)

    @property
    def reach(self) -> int:
        """See `Layered`: of a compared layer itself only projections."""
        return max(pair.student for pair in self.pairs)

    def __call__(self, view: View) -> TermValue:
        """See `Term`."""

        def one(pair: LayerPair, student: Outputs, teacher: Outputs) -> Tensor:
            assert student.projections is not None
            assert teacher.projections is not None
            own, other = student.projections[pair.student], teacher.projections[pair.teacher]
            mask = real(student, view)
            sums = [
                features.relation_kl(
                    getattr(own, kind), getattr(other, kind), mask, self.relation_heads
                )
                for kind in self.of
            ]
            return torch.stack(sums).mean()

        return self.value(view, one)


SampleFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Samples:
    """Distances, angles or similarities among the samples of a micro-batch."""

    name: str
    pair: LayerPair
    pool: Pool
    function: SampleFunction

    @property
    def unit(self) -> Unit:
        """See `Term`."""
        return "samples"

    @property
    def student_needs(self) -> Needs:
        """See `Term`."""
        return HIDDEN

    @property
    def teacher_needs(self) -> Needs:
        """See `Term`."""
        return HIDDEN

    def __call__(self, view: View) -> TermValue:
        """See `Term`."""
        return TermValue(self.function(*_vectors(view, self.pair, self.pool)), {})


@dataclass(frozen=True, slots=True)
class Contrastive:
    """Which teacher vector is a student vector's own, among those of a micro-batch."""

    name: str
    pair: LayerPair
    pool: Pool
    student_map: nn.Module
    teacher_map: nn.Module
    temperature: float
    population: int
    by_label: bool

    @property
    def unit(self) -> Unit:
        """See `Term`."""
        return "samples"

    @property
    def student_needs(self) -> Needs:
        """See `Term`."""
        return HIDDEN

    @property
    def teacher_needs(self) -> Needs:
        """See `Term`."""
        return HIDDEN

    def __call__(self, view: View) -> TermValue:
        """See `Term`."""
        own, other = _vectors(view, self.pair, self.pool)
        total = features_samples.contrastive(
            self.student_map(own),
            self.teacher_map(other),
            temperature=self.temperature,
            population=self.population,
            groups=_groups(view) if self.by_label else None,
        )
        return TermValue(total, {})


def hidden_after(outputs: Outputs, layer: int) -> Tensor:
    """What a layer gives [B, T, H]; layer -1 is what enters the first."""
    assert outputs.hidden_states is not None
    return outputs.hidden_states[layer + 1]


def real(outputs: Outputs, view: View) -> Tensor:
    """Which tokens count [B, T] bool: no padding, and no row that only fills up."""
    rows = there(view.batch["labels"])[:, None]
    if outputs.mask is not None:
        return outputs.mask & rows
    return torch.ones_like(view.batch["input_ids"], dtype=torch.bool) & rows


def there(labels: Tensor) -> Tensor:
    """Rows that hold a target [B] bool: one without only fills up a batch (`outputs.count`)."""
    found = labels != IGNORE_INDEX
    return found if labels.ndim == 1 else found.any(-1)


def _groups(view: View) -> Tensor:
    labels = view.batch["labels"]
    return labels[there(labels)]


def _vectors(view: View, pair: LayerPair, pool: Pool) -> tuple[Tensor, Tensor]:
    assert view.teacher is not None, "a term that reads the teacher's insides has a teacher"
    rows = there(view.batch["labels"])
    mask = real(view.student, view)[rows]
    return (
        features_samples.pooled(hidden_after(view.student, pair.student)[rows], mask, pool),
        features_samples.pooled(hidden_after(view.teacher, pair.teacher)[rows], mask, pool),
    )
