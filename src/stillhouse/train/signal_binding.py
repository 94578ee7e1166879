"""Tie a student's examples to their rows in a signal cache, or refuse.

All that the rows depend on is compared before the first step: teacher, its revision, tokenizer,
chat template, length, temperature, and for every example its exact token ids. Knows recipes,
students and caches; knows no objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stillhouse.core.errors import UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.signal_layout import Layout
from stillhouse.models.signal_writer import Named
from stillhouse.train.batches import Encoded
from stillhouse.train.cached_teacher import CachedSignals, open_signals
from stillhouse.train.planning_signals import reads_logprobs
from stillhouse.train.signal_keys import (
    answering_revisions,
    class_names,
    cutting_of,
    known_revision,
    token_names,
)
from stillhouse.train.students import Student


class Learnt(NamedTuple):
    """One set of examples, and the same as a student reads them."""

    examples: Sequence[Example]
    encoded: Encoded


class Bound(NamedTuple):
    """Open caches, and the examples that name their rows in them."""

    signals: CachedSignals
    train: Encoded
    held_out: Encoded


def bind_signals(
    recipe: Recipe,
    student: Student,
    teacher: str,
    folder: Path,
    sets: tuple[Learnt, Learnt],
    *,
    split: bool = False,
) -> Bound:
    """Open a cache, compare everything it depends on, and find each example's rows in it.

    Args:
        recipe: its task, teacher and T.
        student: reads the examples.
        teacher: its weights, as `models.loading` reads sources; looked at only if they are here.
        folder: what the capture stage wrote.
        sets: what is learnt from, and what is held out.
        split: what is held out is a part of the dataset's training examples.

    Raises:
        UserError: it is of another teacher, tokenizer, template or length, or an example is not in
            it with exactly these tokens.
        RunFolderError: it is damaged.
    """
    signals = open_signals(folder)
    signals.require(**_wanted(recipe, student, teacher, sets))
    _check_layout(recipe, student, signals.train.layout, folder)
    train, held_out = (
        part.encoded._replace(
            rows=signals.bound(
                part.encoded.rows,
                _named(recipe, student, part),
                [example.id for example in part.examples],
                held_out=number == 1 and not split,
            )
        )
        for number, part in enumerate(sets)
    )
    return Bound(signals, train, held_out)


def _wanted(
    recipe: Recipe, student: Student, teacher: str, sets: Sequence[Learnt]
) -> dict[str, object]:
    """The key a cache for this run has; `None` where this machine cannot tell."""
    answered = answering_revisions([example for part in sets for example in part.examples])
    wanted: dict[str, object] = {"teacher": recipe.teacher.model}
    if student.head == "label":
        return wanted | {"read_from": "answers", "teacher_revision": answered}
    wanted |= cutting_of(student.tokenizer, student.plan.max_tokens)._asdict()
    if reads_logprobs(recipe):
        return wanted | {"read_from": "logprobs", "teacher_revision": answered}
    return wanted | {"read_from": "teacher", "teacher_revision": known_revision(teacher)}


def _named(recipe: Recipe, student: Student, part: Learnt) -> list[Named]:
    if student.head == "text":
        return token_names(part.examples, part.encoded.rows.items)
    task = recipe.task
    assert isinstance(task, ClassificationTask), "recipes pair head label with labels"
    return class_names(part.examples, task)


def _check_layout(recipe: Recipe, student: Student, layout: Layout, folder: Path) -> None:
    temperature = recipe.train.distillation_temperature
    if layout.format == "sampled" and layout.distillation_temperature != temperature:
        raise UserError(
            "train.distillation_temperature",
            f"{folder} holds targets drawn at T = {layout.distillation_temperature:g}",
            value=temperature,
            action="set that T, or capture again",
        )
    config = student.model.config
    rows = int(config.num_labels or 0) if student.head == "label" else int(config.vocab_size)
    if layout.format != "hidden" and layout.width > rows:
        raise UserError(
            "train.signals",
            f"{folder} is over {layout.width:,} ids, the student's head has {rows:,}",
            action="remove that folder and run: stillhouse capture RECIPE",
        )
