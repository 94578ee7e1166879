"""Gathers what `convergence` judges a training by, and writes its judgement.

Has the student answer the watch set at each look, and the kept one a sample of its training
examples. Both are read for answers alone, which needs no soft target: stored ones may be draws, and
the watch set has none. Knows the recipe, the trainer and one folder; judges nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from stillhouse.core.jsonl import write_json
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example
from stillhouse.core.tasks import ClassificationTask
from stillhouse.train.batches import Rows
from stillhouse.train.convergence import judge_course
from stillhouse.train.detect import Integers
from stillhouse.train.evidence import Evidence
from stillhouse.train.fit import Fitted
from stillhouse.train.heads import WAYS
from stillhouse.train.history import curve
from stillhouse.train.looks import Look, keep_looks, look_of, read_looks
from stillhouse.train.objectives import Objective, TermsObjective, Weighted
from stillhouse.train.terms import Response
from stillhouse.train.trainer import DistillationTrainer

CONVERGENCE: Final = "convergence.json"
SAMPLE: Final = 500  # training examples that the kept student is looked at on, at most
UNKNOWN: Final = -1


class Watch(NamedTuple):
    """A classifier's watch set: examples with the teacher's answer as label and the truth as
    reference, and the same as a student reads them."""

    examples: Sequence[Example]
    rows: Rows


class Course(NamedTuple):
    """What is trained on and looked at, and the folder in which looks are kept."""

    recipe: Recipe
    alpha: float
    train: Rows
    held_out: Rows
    examples: Sequence[Example]  # held out
    folder: Path
    watch: Watch | None = None

    @property
    def labels(self) -> bool:
        """Whether the student is a classifier."""
        return self.recipe.student.head == "label"


def watch_course(course: Course, trainer: DistillationTrainer) -> None:
    """Have the looks of a training kept, where it runs in one process."""
    if trainer.args.world_size == 1:
        answers = _labels(course.held_out) if course.labels else None
        trainer.on_look = keep_looks(course.folder, answers, lambda: _watched(course, trainer))


def write_course(
    course: Course, trainer: DistillationTrainer, fitted: Fitted, path: Path
) -> dict[str, Any]:
    """Judge a finished training and write `convergence.json`; the trainer holds the kept student.

    Returns the verdict as plain objects.
    """
    looks = [look for look in read_looks(course.folder) if look.step <= fitted.steps]
    section = course.recipe.train
    task = course.recipe.task
    classes = len(task.labels) if isinstance(task, ClassificationTask) and course.labels else None
    kept = next((look for look in looks if look.step == fitted.best_step), None)
    beliefs = [example.label_probabilities for example in course.examples]
    soft = course.alpha > 0 and classes is not None and all(b is not None for b in beliefs)
    evidence = Evidence(
        rows=curve(fitted.log),
        looks=looks,
        kept=kept,
        lesson=None if kept is None else _lesson(course, trainer, fitted.best_step),
        best_step=fitted.best_step,
        learning_rate=section.effective_learning_rate,
        distillation_temperature=section.distillation_temperature,
        classes=classes,
        teacher=None if classes is None else _teacher(course),
        truth=None if classes is None else _truth(course, course.examples),
        watched=None
        if course.watch is None
        else (np.array(_labels(course.watch.rows)), _truth(course, course.watch.examples)),
        entropy=_entropy(beliefs, section.distillation_temperature) if soft else None,
    )
    found = judge_course(evidence).as_json()
    write_json(path, found)
    verdict: dict[str, Any] = found["verdict"]
    return verdict


def _lesson(course: Course, trainer: DistillationTrainer, step: int) -> Look:
    """The kept student on training examples, as many as are held out."""
    count = min(len(course.train), max(len(course.held_out), 64), SAMPLE)
    draw = np.random.default_rng(course.recipe.seed)
    numbers = sorted(draw.permutation(len(course.train))[:count].tolist())
    sample = Rows([course.train[number] for number in numbers])
    answers = _labels(sample) if course.labels else None
    return look_of(step, list(trainer.measured(sample, _answers_alone(course))), answers)


def _watched(course: Course, trainer: DistillationTrainer) -> Integers | None:
    """The student's answers to the watch set as it is now [N]."""
    if course.watch is None:
        return None
    sums = trainer.measured(course.watch.rows, _answers_alone(course))
    return np.concatenate([one.choices.cpu().numpy() for one in sums if one.choices is not None])


def _answers_alone(course: Course) -> Objective:
    """Measures agreement with the answers in the examples; reads no soft target."""
    reader = WAYS[course.recipe.student.head].reader
    return TermsObjective(reader, (Weighted(Response(0.0)),))


def _labels(rows: Rows) -> list[int]:
    return [int(item["labels"]) for item in rows.items]


def _teacher(course: Course) -> Integers:
    """The teacher's own answers: where an example holds the truth in their place, its belief's."""
    found: list[int] = []
    for example, label in zip(course.examples, _labels(course.held_out), strict=True):
        if example.label_probabilities is not None:
            found.append(int(np.argmax(example.label_probabilities)))
        else:
            found.append(label if example.reference is None else UNKNOWN)
    return np.array(found)


def _truth(course: Course, examples: Sequence[Example]) -> Integers:
    task = course.recipe.task
    assert isinstance(task, ClassificationTask), "recipes pair head label with labels"
    numbers = {label: number for number, label in enumerate(task.labels)}
    return np.array([numbers.get(e.reference or "", UNKNOWN) for e in examples])


def _entropy(beliefs: Sequence[tuple[float, ...] | None], temperature: float) -> float:
    """Mean entropy of softmax(log p / T) over examples, in nats."""
    logs = np.log(np.clip(np.array(beliefs, dtype=np.float64), 1e-30, None)) / temperature
    p = np.exp(logs - logs.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return float(-(p * np.log(np.clip(p, 1e-300, None))).sum(-1).mean())
