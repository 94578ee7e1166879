"""From `train.terms` to an objective: teacher read along, layers paired, linear maps made.

Both models read one example first, so that what cannot be compared is said before the first step.
Knows the recipe, a student and its teacher's source; runs no training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from stillhouse.core.errors import UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_features import (
    ActivationTerm,
    AttentionTerm,
    ContrastiveTerm,
    GeometryTerm,
    HiddenTerm,
    RelationTerm,
    ResponseTerm,
    SampleTerm,
)
from stillhouse.core.recipe_train import TrainSection
from stillhouse.models.loading import Loaded, holds_classifier, load_causal_lm, load_classifier
from stillhouse.train import features_samples
from stillhouse.train.balance import Balance, GradientNorm, Uncertainty
from stillhouse.train.balanced import BalancedObjective, Scheduled, Stages
from stillhouse.train.batches import Collator, Rows
from stillhouse.train.features_layers import EMBEDDINGS, LayerPair, layer_pairs
from stillhouse.train.features_terms import (
    Activation,
    Attention,
    Contrastive,
    Hidden,
    Layered,
    Relation,
    Samples,
)
from stillhouse.train.features_tokens import same_tokens
from stillhouse.train.layers import depth
from stillhouse.train.objectives import TermsObjective
from stillhouse.train.outputs import Batch, BodyReader, Needs, Outputs, Reader
from stillhouse.train.parts import Parts
from stillhouse.train.students import Student
from stillhouse.train.teachers import Beside, LiveInsides, LiveTeacher, TeacherSource
from stillhouse.train.terms import Term

GEOMETRY = {
    "rkd_distance": features_samples.rkd_distance,
    "rkd_angle": features_samples.rkd_angle,
    "similarity": features_samples.similarity_preserving,
}


class Learned(NamedTuple):
    """What the student learns from, to check and to size terms by."""

    rows: Rows
    texts: Sequence[str]  # of a label student, as it reads them


class Reads(NamedTuple):
    """The teacher's weights, as `models.loading` reads sources, where they go if they are not there
    yet, and their precision."""

    source: str
    device: torch.device
    dtype: torch.dtype


class Live(NamedTuple):
    """A teacher that reads along."""

    model: Any
    source: TeacherSource


@dataclass(frozen=True, slots=True)
class Pair:
    """Student and teacher at one example."""

    student: Outputs
    teacher: Outputs
    depths: tuple[int, int]


def with_terms(
    base: TermsObjective, recipe: Recipe, student: Student, learned: Learned, reads: Reads
) -> BalancedObjective:
    """The response objective with the recipe's terms beside it.

    Args:
        base: its first term is the response.
        recipe: its `train` section and seed.
        student: plain, before adapters.
        learned: the training set.
        reads: the teacher.

    Raises:
        UserError: layers, heads, widths or tokens that cannot be compared; names the term.
    """
    pair = None
    if recipe.train.insides:
        live = _live(base, student, learned, reads)
        shortest = min(learned.rows.items, key=lambda item: len(item["input_ids"]))
        batch = Collator(int(student.tokenizer.pad_token_id))([shortest])
        pair = read_one(student.model, live, BodyReader(), batch, recipe.train.terms or ())
        base = replace(base, teacher=live.source)
    return assembled(base, recipe.train, recipe.seed, pair, len(learned.rows))


def assembled(
    base: TermsObjective,
    train: TrainSection,
    seed: int,
    pair: Pair | None,
    population: int,
    *,
    field: str = "train.terms",
) -> BalancedObjective:
    """The response objective with the terms of a `train` section beside it.

    Args:
        base: its first term is the response, its teacher one that gives what the terms read.
        train: terms, balance, progress.
        seed: of what is learned beside the student.
        pair: student and teacher at one example, where a term reads their insides.
        population: rows that are trained on.
        field: where the terms are in the recipe, for errors.

    Raises:
        UserError: layers, heads or widths that cannot be compared; names the term.
    """
    sections = train.terms or ()
    parts, response = Parts(), base.terms[0].term
    scheduled = [Scheduled(response)]
    names = _names([section.kind for section in sections])
    for number, section in enumerate(sections):
        if isinstance(section, ResponseTerm):
            scheduled[0] = Scheduled(response, section.weight, section.schedule)
            continue
        assert pair is not None, "terms over insides have both models read"
        make = _Maker(f"{field}.{number}", names[number], pair, parts, seed)
        term = make.term(section, population)
        scheduled.append(Scheduled(term, section.weight, section.schedule))
    balance = _balance(train, len(scheduled))
    parts.add_balance(balance, train.balancing.learning_rate)
    return BalancedObjective(
        reader=base.reader,
        terms=base.terms,
        teacher=base.teacher,
        scheduled=tuple(scheduled),
        parts=parts,
        balance=balance,
        norms_over=train.balancing.norms_over,
        stages=_stages(train, scheduled),
    )


def _names(kinds: Sequence[str]) -> list[str]:
    """Stable and distinct: a kind that comes again is numbered."""
    seen: Counter[str] = Counter()
    found = []
    for kind in kinds:
        seen[kind] += 1
        found.append(kind if seen[kind] == 1 else f"{kind}_{seen[kind]}")
    return found


def _live(base: TermsObjective, student: Student, learned: Learned, reads: Reads) -> Live:
    if isinstance(base.teacher, LiveTeacher):  # reads along already, its tokenizer was checked
        return Live(base.teacher.model, base.teacher)
    labels = student.head == "label" and holds_classifier(reads.source)
    load: Any = load_classifier if labels else load_causal_lm
    loaded: Loaded = load(reads.source, device=str(reads.device), dtype=reads.dtype)
    ids = same_tokens(student, loaded, learned.rows, learned.texts)
    insides = LiveInsides(loaded.model, None if ids is None else ids.to(reads.device))
    return Live(loaded.model, Beside(base.teacher, insides))


@torch.no_grad()
def read_one(
    student: Any, live: Live, reader: Reader, batch: Batch, sections: Sequence[Any]
) -> Pair:
    """What both models compute for one example, with all that any term may read of it.

    `reader` reads the student's insides, `batch` is where the student is.
    """
    kinds = {section.kind for section in sections}
    needs = Needs(
        hidden_states=True,
        attentions="attention" in kinds,
        queries_keys_values="relation" in kinds,
    )
    own = reader.read(student, batch, needs)
    there = {name: tensor.to(live.model.device) for name, tensor in batch.items()}
    other = live.source.view(there, needs).outputs
    assert other is not None
    return Pair(own, other, (depth(student), depth(live.model)))


def _balance(train: TrainSection, count: int) -> Balance:
    options = train.balancing
    if train.balance == "uncertainty":
        return Uncertainty(count)
    if train.balance == "gradient_norm":
        return GradientNorm(count, options.alpha, options.learning_rate)
    return Balance()


def _stages(train: TrainSection, scheduled: Sequence[Scheduled]) -> Stages | None:
    if train.progressive is None:
        return None
    layered = [one.term for one in scheduled if isinstance(one.term, Layered)]
    layers = {pair.student for term in layered for pair in term.pairs} - {EMBEDDINGS.student}
    return Stages(tuple(sorted(layers)), train.progressive.until)


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes one term: its place in the recipe, its name, and the two models at one example."""

    field: str
    name: str
    pair: Pair
    parts: Parts
    seed: int

    def term(self, section: Any, population: int) -> Term:
        """The term of a section."""
        if isinstance(section, HiddenTerm):
            return self._hidden(section)
        if isinstance(section, AttentionTerm):
            return self._attention(section)
        if isinstance(section, ActivationTerm):
            return Activation(self.name, self._pairs(section))
        if isinstance(section, RelationTerm):
            return self._relation(section)
        if isinstance(section, GeometryTerm):
            one = self._one_pair(section)
            return Samples(self.name, one, section.pool, GEOMETRY[section.kind])
        assert isinstance(section, ContrastiveTerm)
        return self._contrastive(section, population)

    def _pairs(self, section: Any) -> tuple[LayerPair, ...]:
        return layer_pairs(section.layers, section.count, *self.pair.depths, field=self.field)

    def _one_pair(self, section: SampleTerm) -> LayerPair:
        if section.layers is None:
            return LayerPair(*(layers - 1 for layers in self.pair.depths))
        return layer_pairs((section.layers,), None, *self.pair.depths, field=self.field)[0]

    def _widths(self, pair: LayerPair) -> tuple[int, int]:
        assert self.pair.student.hidden_states is not None
        assert self.pair.teacher.hidden_states is not None
        own = self.pair.student.hidden_states[pair.student + 1].shape[-1]
        return own, self.pair.teacher.hidden_states[pair.teacher + 1].shape[-1]

    def _hidden(self, section: HiddenTerm) -> Hidden:
        pairs = self._pairs(section)
        if section.embeddings:
            pairs = (EMBEDDINGS, *pairs)
        maps: dict[LayerPair, torch.nn.Module] = {}
        for pair in pairs:
            own, other = self._widths(pair)
            if section.projector == "linear" or own != other:
                name = f"{self.name}_{pair.student}_{pair.teacher}"
                rate = section.learning_rate
                maps[pair] = self.parts.add_map(name, own, other, rate, self.seed)
        return Hidden(self.name, pairs, section.loss, maps)

    def _attention(self, section: AttentionTerm) -> Attention:
        own, other = self.pair.student.attentions, self.pair.teacher.attentions
        if not own or not other:
            raise UserError(
                self.field,
                "one of the two models does not give its attention maps",
                action="use hidden or relation terms",
            )
        pairs = self._pairs(section)
        for pair in pairs:
            heads = own[pair.student].shape[1], other[pair.teacher].shape[1]
            if section.heads == "each" and heads[0] != heads[1]:
                raise UserError(
                    f"{self.field}.heads",
                    f"the student has {heads[0]} attention heads, the teacher {heads[1]}",
                    value=section.heads,
                    action="use heads: mean, or a relation term",
                )
        return Attention(self.name, pairs, section.loss, section.heads == "mean")

    def _relation(self, section: RelationTerm) -> Relation:
        own, other = self.pair.student.projections, self.pair.teacher.projections
        assert own is not None
        assert other is not None
        pairs = self._pairs(section)
        heads = section.relation_heads
        for pair in pairs:
            for kind in section.of:
                found = getattr(own[pair.student], kind), getattr(other[pair.teacher], kind)
                widths = [x.shape[1] * x.shape[3] for x in found]
                heads = found[1].shape[1] if heads is None else heads
                if any(width % heads for width in widths):
                    raise UserError(
                        f"{self.field}.relation_heads",
                        f"{kind} are {widths[0]} wide in the student and {widths[1]} in the "
                        "teacher, which this does not divide",
                        value=heads,
                        action="use a number that divides both",
                    )
        assert heads is not None
        return Relation(self.name, pairs, section.of, heads)

    def _contrastive(self, section: ContrastiveTerm, population: int) -> Contrastive:
        pair = self._one_pair(section)
        own, other = self._widths(pair)
        rate = section.learning_rate
        return Contrastive(
            self.name,
            pair,
            section.pool,
            self.parts.add_map(f"{self.name}_student", own, section.width, rate, self.seed),
            self.parts.add_map(f"{self.name}_teacher", other, section.width, rate, self.seed),
            section.temperature,
            population,
            section.negatives == "other_labels",
        )
