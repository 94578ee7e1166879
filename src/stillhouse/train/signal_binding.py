"""Tie a student's examples to their rows in a signal cache, or refuse.

All that the rows depend on is compared before the first step: teacher, its revision, tokenizer,
chat template, length, temperature, and for every example its exact token ids. Knows recipes,
students and caches; knows no objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from stillhouse.core.errors import UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.restricted import check_width
from stillhouse.models.signal_layout import Layout
from stillhouse.models.signal_writer import Named
from stillhouse.train.batches import Encoded, Rows
from stillhouse.train.cached_teacher import CachedSignals, open_signals
from stillhouse.train.kept import Whole, whole_of
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
    """Open caches, and the examples that name their rows in them. `watched_on` are the held-out
    examples that have rows; `left_out` have none: a trimmed student cuts them into other pieces."""

    signals: CachedSignals
    train: Encoded
    held_out: Encoded
    watched_on: Sequence[Example]
    left_out: int = 0


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
    whole = whole_of(recipe, student, teacher)
    signals.require(**_wanted(recipe, student, teacher, sets, whole))
    _check_layout(recipe, student, signals.train.layout, folder, whole)
    given = len(sets[1].examples)
    if whole is not None:
        signals = replace(signals, kept=whole.kept)
        sets = _cut_alike(sets, whole)
    train, held_out = (
        part.encoded._replace(
            rows=signals.bound(
                part.encoded.rows,
                _named(recipe, student, part, whole),
                [example.id for example in part.examples],
                held_out=number == 1 and not split,
            )
        )
        for number, part in enumerate(sets)
    )
    there = sets[1].examples
    return Bound(signals, train, held_out, there, given - len(there))


def _cut_alike(sets: tuple[Learnt, Learnt], whole: Whole) -> tuple[Learnt, Learnt]:
    """Both sets without the held-out examples that a trimmed student cuts into other pieces: what
    the teacher believed is there for the whole tokenizer's. Training examples must have none."""
    train, held_out = sets
    differ = len(whole.differing(train.encoded.rows, train.examples))
    if differ:
        raise UserError(
            "student.vocabulary",
            f"{differ:,} of {len(train.examples):,} training examples are cut into other pieces "
            "than the captured ones",
            action="use vocabulary: task (or a larger number), or train.signals: live",
        )
    left_out = set(whole.differing(held_out.encoded.rows, held_out.examples))
    there = [n for n in range(len(held_out.examples)) if n not in left_out]
    if not there:
        raise UserError(
            "student.vocabulary",
            f"all {len(held_out.examples):,} held-out examples are cut into other pieces than the "
            "captured ones",
            action="keep more pieces (a number), or use train.signals: live",
        )
    rows = Rows([held_out.encoded.rows[n] for n in there])
    kept = Learnt([held_out.examples[n] for n in there], held_out.encoded._replace(rows=rows))
    return train, kept


def _wanted(
    recipe: Recipe,
    student: Student,
    teacher: str,
    sets: Sequence[Learnt],
    whole: Whole | None,
) -> dict[str, object]:
    """The key a cache for this run has; `None` where this machine cannot tell."""
    answered = answering_revisions([example for part in sets for example in part.examples])
    wanted: dict[str, object] = {"teacher": recipe.teacher.model}
    if student.head == "label":
        return wanted | {"read_from": "answers", "teacher_revision": answered}
    reads = student.tokenizer if whole is None else whole.reads.tokenizer
    wanted |= cutting_of(reads, student.plan.max_tokens)._asdict()
    if reads_logprobs(recipe):
        return wanted | {"read_from": "logprobs", "teacher_revision": answered}
    return wanted | {"read_from": "teacher", "teacher_revision": known_revision(teacher)}


def _named(recipe: Recipe, student: Student, part: Learnt, whole: Whole | None) -> list[Named]:
    if student.head == "text":
        rows = part.encoded.rows
        rows = rows if whole is None else whole.renumbered(rows)  # as the cache has them
        return token_names(part.examples, rows.items)
    task = recipe.task
    assert isinstance(task, ClassificationTask), "recipes pair head label with labels"
    return class_names(part.examples, task)


def _check_layout(
    recipe: Recipe, student: Student, layout: Layout, folder: Path, whole: Whole | None
) -> None:
    temperature = recipe.train.distillation_temperature
    if layout.format == "sampled" and layout.distillation_temperature != temperature:
        raise UserError(
            "train.distillation_temperature",
            f"{folder} holds targets drawn at T = {layout.distillation_temperature:g}",
            value=temperature,
            action="set that T, or capture again",
        )
    if whole is not None:
        if layout.format == "sampled":
            raise UserError(
                "capture.format",
                f"{folder} holds draws, which say nothing of a vocabulary that was trimmed",
                value="sampled",
                action="capture with format: hidden or top_k",
            )
        if layout.format != "hidden":
            check_width(whole.kept, layout.width, str(folder))
        return
    config = student.model.config
    rows = int(config.num_labels or 0) if student.head == "label" else int(config.vocab_size)
    if layout.format != "hidden" and layout.width > rows:
        raise UserError(
            "train.signals",
            f"{folder} is over {layout.width:,} ids, the student's head has {rows:,}",
            action="remove that folder and run: stillhouse capture RECIPE",
        )
