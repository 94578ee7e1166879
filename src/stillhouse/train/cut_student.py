"""Cut a loaded model to a size: plan, measure, narrow, thin out. Knows the steps and their order.

`sized` is for a recipe's student; `cut_model` is the same for any model in memory (a masked LM that
is trained on a corpus, say).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.recipe_cut import share_of
from stillhouse.core.recipe_train import SCRATCH, StudentSection
from stillhouse.train.cut_greedy import greedy_layers
from stillhouse.train.cut_importance import measure_importance
from stillhouse.train.cut_low_rank import electra_like, with_low_rank
from stillhouse.train.cut_plan import CutPlan, Rows, layers_by_rule, plan_cut
from stillhouse.train.cut_shapes import Form, family_of, layout_from
from stillhouse.train.cut_width import (
    choose_layers,
    deepened,
    most_important,
    narrowed,
    set_width,
)
from stillhouse.train.embeddings import keep_rows
from stillhouse.train.layers import blocks_of, evenly_spaced
from stillhouse.train.vocabulary import Trimmed

# What a label student's task is taken to use while its texts are not there yet.
GUESSED_ROWS: Final = 8192


class Cut(NamedTuple):
    """A model that was cut, its tokenizer and how."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: CutPlan
    layers_kept: tuple[int, ...]


def plan_student(
    config: PreTrainedConfig, section: StudentSection, classes: int, rows: Rows | None = None
) -> CutPlan:
    """The plan of a recipe's student, before its texts are read where `rows` is `None`.

    Args:
        config: the source's, as transformers reads it.
        section: with a size.
        classes: labels of the task (head `label`).
        rows: the vocabulary; `None`: by the recipe, 8,192 being taken for `task`.

    Raises:
        UserError: as `plan_cut`.
    """
    assert section.size is not None
    total = int(config.vocab_size)
    if rows is None and section.vocabulary == "task":
        rows = Rows(min(total, GUESSED_ROWS), free=True)
    elif rows is None and section.vocabulary != "full":
        assert isinstance(section.vocabulary, int)
        rows = Rows(min(total, section.vocabulary))
    plan = plan_cut(
        config,
        share_of(section.size),
        form=section.head,
        classes=classes,
        rows=rows,
        positions=section.max_tokens,
        layers=section.layers,
        cut=section.cut,
    )
    return replace(plan, drawn=section.source.startswith(SCRATCH))


def sized(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    section: StudentSection,
    classes: int,
    texts: Sequence[str],
    *,
    trim: Callable[[int | None], Trimmed] | None,
    fresh: bool,
) -> Cut:
    """Cut a recipe's student.

    Args:
        model: the source with the student's head.
        tokenizer: the source's.
        section: with a size.
        classes: of a label head.
        texts: of the task; importance is measured on them.
        trim: trims the tokenizer to a number of rows, or to the task's (`None`); `None`: all stay.
        fresh: draw weights of the plan's shape anew (`from: scratch:`), from torch's seed.

    Raises:
        UserError: as `plan_cut`.
    """
    trimmed: Trimmed | None = None
    if trim is None:
        plan = plan_student(model.config, section, classes)
    else:
        limit = section.vocabulary if isinstance(section.vocabulary, int) else None
        trimmed = trim(limit)
        rows = Rows(len(trimmed.kept), free=limit is None)
        plan = plan_student(model.config, section, classes, rows)
        if plan.after.vocabulary != len(trimmed.kept):
            trimmed = trim(plan.after.vocabulary)  # may keep a few fewer than it is allowed
            plan = plan_student(model.config, section, classes, Rows(len(trimmed.kept)))
    kept = None if trimmed is None else trimmed.kept
    cut = cut_model(
        model,
        tokenizer,
        plan,
        section.head,
        texts,
        samples=section.cut.samples,
        kept=kept,
        fresh=fresh,
    )
    return cut if trimmed is None else cut._replace(tokenizer=trimmed.tokenizer)


def cut_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: CutPlan,
    form: Form,
    texts: Sequence[str],
    *,
    samples: int = 128,
    kept: Sequence[int] | None = None,
    fresh: bool = False,
) -> Cut:
    """Carry a plan out, but for learned positions, which `keep_positions` shortens.

    Args:
        model: the source, whole; it is used up.
        tokenizer: the source's; `kept` are ids of its own.
        plan: of this model's config and `form`.
        form: what stands on the body.
        texts: importance is measured on them.
        samples: how many of them.
        kept: vocabulary rows that stay, in their new order; `None`: all.
        fresh: draw the weights anew instead, from torch's seed.

    Raises:
        UserError: a model that is not what was planned for, or no text.
    """
    layers = plan.layers_kept or tuple(range(plan.after.layers))
    if fresh:
        model = _drawn(model, plan)
    else:
        layout = layout_from(model, family_of(model.config), plan.after.classes)
        importance = measure_importance(model, tokenizer, layout, texts, samples)
        if plan.layers_kept is None and plan.depth == "greedy":
            layers = greedy_layers(model, tokenizer, texts, plan.after.layers, samples)
        else:
            layers = choose_layers(plan, importance)
        if plan.narrower:
            model = narrowed(model, layout, plan, importance)
        deepened(model, layers)
        if plan.after.embedding and not plan.before.embedding:
            model = with_low_rank(model, tokenizer, plan.after.embedding, texts, samples)
    if kept is not None:
        keep_rows(model, kept)
    return Cut(model, tokenizer, plan, layers)


def _drawn(model: PreTrainedModel, plan: CutPlan) -> PreTrainedModel:
    """A model of the plan's depth and width, with rows as they are, of random weights."""
    deepened(model, range(plan.after.layers))
    config = model.config
    set_width(config, plan.after)
    if plan.after.embedding and not plan.before.embedding:
        return electra_like(type(model)(config), plan.after.embedding)
    kind: Any = type(model)
    drawn: PreTrainedModel = kind(config)
    return drawn


def layers_of_count(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    section: StudentSection,
    classes: int,
    texts: Sequence[str],
) -> tuple[int, ...]:
    """Which of a model's layers stay for `student.layers`, of a student without a size.

    Args:
        model: the source with the student's head.
        tokenizer: the source's.
        section: with `layers`.
        classes: of a label head.
        texts: of the task; what its layers are worth is measured on them.

    Raises:
        UserError: layers that the source does not have, no text, or `depth: importance` of a family
            without a table of axes.
    """
    keep, rule = section.layers, section.cut.depth
    assert keep is not None
    if isinstance(keep, tuple):
        return keep
    total = len(blocks_of(model))
    if rule == "greedy":
        return greedy_layers(model, tokenizer, texts, keep, section.cut.samples)
    if rule == "importance" and keep < total:
        layout = layout_from(model, family_of(model.config), classes)
        worth = measure_importance(model, tokenizer, layout, texts, section.cut.samples).layers
        return most_important(worth, keep)
    evenly_spaced(total, keep)  # refuses more than there are
    chosen = layers_by_rule(total, keep, rule)
    assert chosen is not None
    return chosen
