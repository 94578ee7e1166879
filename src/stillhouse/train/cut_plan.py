"""Plan the shape of a student of a given size: how deep, how wide, how many rows. Needs no weights.

Every shape that meets the budget is compared, and the one that takes least from the source in the
worst-hit places is chosen: the sum over depth, hidden size, heads x key-value heads, neurons and
rows of w * ln(before / after)^2. Squares spread a cut over all of them, as Minitron found best once
the student is trained again (Muralidharan et al. 2024, arXiv:2407.14679: width before depth, hence
the weights); what was spread is then made up exactly by the number of MLP neurons. The weights are
a rule of thumb and no promise of quality. Knows configs; `cut_width` carries a plan out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import log
from typing import Final

from transformers import PreTrainedConfig

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_cut import CutSection
from stillhouse.train.cut_shapes import Form, Layout, Shape, layout_of, low_rank

TOLERANCE: Final = 0.02  # of the budget
FIELD: Final = "student.size"
LEAST_ROWS: Final = 512  # a vocabulary that is free is not made smaller than this
# Weights of what is lost: layers, hidden, heads x key-value heads, neurons, rows. A head that takes
# its key-value head with it loses what it looks for and what it looks at, and so counts twice.
_BALANCED: Final = (1.0, 2.0, 0.6, 0.6, 0.4)
_WEIGHTS: Final = {
    "balanced": _BALANCED,
    "depth": (0.01, *_BALANCED[1:]),  # width and heads as they are, wherever layers will do
    "width": (12.0, *_BALANCED[1:]),
}
_TIE_COST: Final = 0.6
_SPARE_ROW_COST: Final = 0.02  # rows beyond those that the task uses buy little


@dataclass(frozen=True, slots=True)
class CutPlan:
    """A student's shape, its source's, and both their parameters."""

    family: str
    share: float
    budget: int
    source_parameters: int
    parameters: int
    before: Shape
    after: Shape
    depth: str
    layers_kept: tuple[int, ...] | None  # None: by importance, known when weights are read
    drawn: bool = False  # all weights anew, in this shape

    def as_json(self) -> dict[str, object]:
        """A plain object."""
        kept = None if self.layers_kept is None else list(self.layers_kept)
        return asdict(self) | {"layers_kept": kept}

    @property
    def narrower(self) -> bool:
        """Whether anything but layers and rows is cut."""
        return any(
            getattr(self.before, name) != getattr(self.after, name)
            for name in ("hidden", "heads", "kv_heads", "neurons", "tied", "embedding")
        )

    def lines(self) -> Iterator[str]:
        """What is kept and what is lost, for people."""
        a, b = self.before, self.after
        yield (
            f"{self.parameters:,} of {self.source_parameters:,} parameters "
            f"({self.parameters / self.source_parameters:.1%}; asked for {self.share:.1%})"
        )
        which = (
            "all weights drawn anew"
            if self.drawn
            else f"the {b.layers} that change their input most"
            if self.layers_kept is None
            else ", ".join(map(str, self.layers_kept))
        )
        yield f"layers: {b.layers} of {a.layers} ({which})"
        yield f"hidden size: {b.hidden:,} of {a.hidden:,}"
        heads = f"heads: {b.heads} of {a.heads}"
        if a.kv_heads != a.heads:
            heads += f", in {b.kv_heads} of {a.kv_heads} key-value groups"
        yield f"{heads}, each {b.head_dim} wide"
        yield f"MLP neurons a layer: {b.neurons:,} of {a.neurons:,}"
        yield f"vocabulary rows: {b.vocabulary:,} of {a.vocabulary:,}"
        if b.positions != a.positions:
            yield f"positions: {b.positions:,} of {a.positions:,}"
        if b.tied and not a.tied:
            yield "embedding and output share one table"
        if b.embedding:
            yield f"embeddings: {b.embedding} channels, projected to {b.hidden:,}"


@dataclass(frozen=True, slots=True)
class Rows:
    """How many vocabulary rows a student may have. `wanted`: those that its task uses; `free`
    lets the plan take fewer, or more, the source's other rows."""

    wanted: int
    free: bool = False


def plan_cut(
    config: PreTrainedConfig,
    share: float,
    *,
    form: Form,
    classes: int = 2,
    rows: Rows | None = None,
    positions: int | None = None,
    layers: int | tuple[int, ...] | None = None,
    cut: CutSection | None = None,
    trims: str = "task",
) -> CutPlan:
    """Choose the shape of a student with `share` of its source's parameters, within 2%.

    Args:
        config: the source's, as transformers reads it.
        share: above 0, below 1.
        form: what stands on the student's body.
        classes: of form `label`.
        rows: of the vocabulary; `None`: all of the source's.
        positions: as many learned positions are kept at most (BERT and DistilBERT); `None`: all.
        layers: fixes the depth, or the very layers.
        cut: the recipe's `student.cut`.
        trims: the `student.vocabulary` that leaves rows out, for people.

    Raises:
        UserError: an architecture that cannot be cut, or a size that no cut meets.
    """
    cut = cut or CutSection()
    layout = layout_of(config, form, classes)
    source = source_parameters(config, layout, form, classes)
    before, budget = layout.shape, round(share * source)
    _check_tie(layout, cut.tie, form)
    layout = _with_rank(layout, cut.embedding_rank)
    rows = rows or Rows(before.vocabulary)
    held = layout.shape.positions
    if positions is not None and layout.family in ("bert", "distilbert", "electra"):
        held = min(held, positions)
    start = replace(layout.shape, vocabulary=min(rows.wanted, before.vocabulary), positions=held)
    depths: Sequence[int] = range(1, before.layers + 1)
    if layers is not None:
        depths = (layers,) if isinstance(layers, int) else (len(layers),)
        if depths[0] > before.layers:
            raise UserError(
                "student.layers",
                f"the source has {before.layers} layers",
                value=depths[0],
                action=f"use at most {before.layers}",
            )
    weights = _WEIGHTS[cut.prefer]
    best: tuple[float, Shape] | None = None
    least, most = math.inf, 0.0
    for shape in _shapes(layout, start, rows, cut):
        outside, bare = layout.parts(replace(shape, neurons=0))
        neuron = layout.parts(replace(shape, neurons=1))[1] - bare
        low, high = max(1, min(before.neurons, shape.hidden // 2)), before.neurons
        for deep in depths:
            fixed, each = outside + deep * bare, deep * neuron
            least, most = min(least, fixed + low * each), max(most, fixed + high * each)
            found = _neurons(budget, fixed, each, low, high)
            if found is None:
                continue
            fits = replace(shape, layers=deep, neurons=found)
            lost = _lost(before, start, fits, weights)
            if best is None or lost < best[0]:
                best = lost, fits
    if best is None and rows.free:
        best = _filled(layout, replace(start, layers=max(depths)), budget)
    if best is None:
        said = f"{share:g}, {budget:,} of {source:,} parameters"
        if budget < least:
            whole = not rows.free and rows.wanted >= before.vocabulary
            smaller = f", or student.vocabulary: {trims}" if whole else ""
            raise UserError(
                FIELD,
                f"the smallest cut of this source has {least:,.0f}",
                value=said,
                action=f"use at least {least / source + 0.0005:.3f}{smaller}, or a smaller source",
            )
        if budget > most:
            raise UserError(
                FIELD,
                f"with {rows.wanted:,} vocabulary rows the largest cut has {most:,.0f}",
                value=said,
                action=f"use at most {most / source - 0.0005:.3f}, or more rows and layers",
            )
        raise UserError(
            FIELD,
            "no cut comes within 2% of it",
            value=said,
            action="leave student.layers, student.cut.hidden and student.cut.heads out, or use "
            "another size",
        )
    shape = best[1]
    return CutPlan(
        family=layout.family,
        share=share,
        budget=budget,
        source_parameters=source,
        parameters=layout.count(shape),
        before=before,
        after=shape,
        depth="given" if isinstance(layers, tuple) else cut.depth,
        layers_kept=layers
        if isinstance(layers, tuple)
        else layers_by_rule(before.layers, shape.layers, cut.depth),
    )


def source_parameters(config: PreTrainedConfig, layout: Layout, form: Form, classes: int) -> int:
    """Parameters of the source: as the language model it is, else with the student's head."""
    named = " ".join(getattr(config, "architectures", None) or ())
    if form in ("label", "tags") and not layout.encoder and "CausalLM" in named:
        whole = layout_of(config, "text", classes)
        return whole.count(whole.shape)
    return layout.count(layout.shape)


def layers_by_rule(total: int, keep: int, rule: str) -> tuple[int, ...] | None:
    """The layers that a rule keeps; `None` for `importance` and `greedy`, which need weights."""
    if rule in ("importance", "greedy"):
        return None if keep < total else tuple(range(total))
    if rule == "first":
        return tuple(range(keep))
    if rule == "last":
        return tuple(range(total - keep, total))
    if rule == "first_last":
        top = keep // 2
        return (*range(keep - top), *range(total - top, total))
    if keep == 1:
        return (0,)
    return tuple((2 * i * (total - 1) + keep - 1) // (2 * (keep - 1)) for i in range(keep))


def _check_tie(layout: Layout, tie: bool | None, form: Form) -> None:
    """Refuse a wish about tables that this student does not have."""
    field = "student.cut.tie"
    if tie is not None and form in ("label", "tags"):
        raise UserError(
            field,
            f"a student with head {form} has no output table",
            value=tie,
            action="leave it out",
        )
    if tie is False and not layout.untied_output:
        raise UserError(
            field,
            "the source has one table for embedding and output, and a cut makes no second one",
            value=tie,
            action="leave it out, or use a source with two tables",
        )


def _with_rank(layout: Layout, rank: int | None) -> Layout:
    if rank is None:
        return layout
    field = "student.cut.embedding_rank"
    if layout.family != "bert":
        raise UserError(
            field,
            f"plain transformers has no low-rank embeddings for {layout.family}",
            value=rank,
            action="leave it out, or use a BERT source; student.cut.tie and student.vocabulary "
            "make other embeddings smaller",
        )
    if rank >= layout.shape.hidden:
        raise UserError(
            field, f"the source's embeddings are {layout.shape.hidden} wide", value=rank
        )
    return low_rank(layout, rank)


def _shapes(layout: Layout, start: Shape, rows: Rows, cut: CutSection) -> Iterator[Shape]:
    """All shapes to look at, but for their layers and neurons."""
    ties = [start.tied]
    if layout.untied_output:
        ties = [False, True] if cut.tie is None else [cut.tie]
    widths = list(_widths(layout, start, cut))
    if not widths:
        raise UserError(
            "student.cut.hidden" if cut.hidden is not None else "student.cut.heads",
            f"does not go with heads of {start.head_dim} channels in a source of {start.heads} "
            f"heads and hidden size {start.hidden}",
            value=cut.hidden if cut.hidden is not None else cut.heads,
            action="leave it out, or use a multiple of heads and head size within the source's",
        )
    for table, tied, (hidden, heads, groups) in itertools.product(
        _row_counts(rows, start.vocabulary, layout.shape.vocabulary), ties, widths
    ):
        yield replace(
            start,
            hidden=hidden,
            heads=heads,
            kv_heads=groups,
            vocabulary=table,
            tied=tied,
        )


def _filled(layout: Layout, whole: Shape, budget: int) -> tuple[float, Shape] | None:
    """All of the body, and as many rows as fill the budget."""
    bare = layout.count(replace(whole, vocabulary=0))
    each = layout.count(replace(whole, vocabulary=1)) - bare
    count = min(layout.shape.vocabulary, round((budget - bare) / each))
    if count < whole.vocabulary or abs(bare + count * each - budget) > TOLERANCE * budget:
        return None
    return 0.0, replace(whole, vocabulary=count)


def _row_counts(rows: Rows, wanted: int, whole: int) -> list[int]:
    if not rows.free:
        return [wanted]
    fewer = {max(min(LEAST_ROWS, wanted), round(wanted * part)) for part in (1, 0.7, 0.5, 0.35)}
    more = {min(whole, round(wanted * part)) for part in (1.4, 2, 3, 5, 8, 16, 64)} | {whole}
    return sorted(fewer | more)


def _widths(layout: Layout, start: Shape, cut: CutSection) -> Iterator[tuple[int, int, int]]:
    """Hidden size, query heads and key-value heads that go together."""
    if layout.encoder:  # hidden size is heads x head size
        for heads in range(1, start.heads + 1):
            hidden = heads * start.head_dim
            if cut.hidden in (None, hidden) and cut.heads in (None, heads):
                yield hidden, heads, heads
        return
    in_group = start.heads // start.kv_heads
    for groups, each in itertools.product(range(1, start.kv_heads + 1), range(1, in_group + 1)):
        heads = groups * each
        if cut.heads not in (None, heads):
            continue
        for hidden in [cut.hidden] if cut.hidden is not None else _hidden_sizes(start, heads):
            if hidden <= start.hidden and (hidden % heads == 0 or heads == start.heads):
                yield hidden, heads, groups


def _hidden_sizes(start: Shape, heads: int) -> Iterator[int]:
    """Multiples of the number of heads, which the configs of some families demand, and of 8 (small
    models: 2)."""
    step = math.lcm(heads, 8 if start.hidden >= 256 else 2)
    step *= max(1, round(start.hidden / step / 48))  # 48 of them are enough to choose from
    yield from range(step, start.hidden, step)
    yield start.hidden


def _neurons(budget: int, fixed: int, each: int, low: int, high: int) -> int | None:
    """As many neurons as fill the budget, in a round number if that is close enough."""
    exact = (budget - fixed) / each
    for multiple in (64, 32, 16, 8, 4, 2, 1):
        count = min(high, max(low, multiple * round(exact / multiple)))
        off = abs(fixed + count * each - budget) / budget
        if off <= (TOLERANCE if multiple == 1 else TOLERANCE / 4):
            return count
    return None


def _lost(
    before: Shape, start: Shape, shape: Shape, weights: tuple[float, float, float, float, float]
) -> float:
    pairs = (
        (before.layers, shape.layers),
        (before.hidden, shape.hidden),
        (before.heads * before.kv_heads, shape.heads * shape.kv_heads),
        (before.neurons, shape.neurons),
        (start.vocabulary, min(start.vocabulary, shape.vocabulary)),
    )
    lost = sum(w * log(a / b) ** 2 for w, (a, b) in zip(weights, pairs, strict=True))
    lost += _TIE_COST * (shape.tied and not before.tied)
    return lost + _SPARE_ROW_COST * log(max(1, shape.vocabulary / start.vocabulary))
