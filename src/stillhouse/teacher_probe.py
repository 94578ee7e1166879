"""Probe students: what a small student makes of each teacher's answers, before one is chosen.

The best teacher is the one that makes the best student, which is not always the one with the best
answers (docs/teachers.md). Knows the stages that make a dataset and train; compares nothing.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from stillhouse.core.answers import agreed
from stillhouse.core.duplicates import bare, matches
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import write_records
from stillhouse.core.optional import late, require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.core.records import LABELLED, Completion, LabelledQuery, Query, Rejection
from stillhouse.core.tasks import ClassificationTask
from stillhouse.dataset.stage import run_dataset
from stillhouse.evaluate.candidates import Answers, answers_of, sampling_for
from stillhouse.models.completer import Completer
from stillhouse.traffic.stage import hash_sample

_NO_SOFT_FILTERS: Final[Mapping[str, object]] = {
    "consistency": None,
    "agreement": None,
    "judge": None,
    "best_of": "none",
    "floor": None,
}

_SOFT: Final = ("consistency", "agreement", "judge")


class Taught(NamedTuple):
    """A probe student's answers to the labelled sample, and how many examples it learnt from."""

    answers: Answers
    trained_on: int


class Lesson(NamedTuple):
    """What one teacher said to the traffic sample. `section` says how its beliefs are read."""

    section: TeacherSection
    completions: Mapping[str, Sequence[Completion]]
    failures: Sequence[Rejection]


class School(NamedTuple):
    """What all probe students have in common.

    `believed`: all teachers show class probabilities, so soft targets are fair to all. `labelled`
    is what they are judged on; it is kept out of training like a golden set. `tuned` is the
    recipe's tuned teacher, where the student is cut from it. `folder` is emptied after each.
    """

    recipe: Recipe
    queries: Sequence[Query]
    labelled: Sequence[LabelledQuery]
    believed: bool
    tuned: Path | None
    folder: Path
    progress: Progress


class Results(NamedTuple):
    """Probe students by teacher and kind, and why one is missing."""

    taught: dict[str, dict[str, Taught]]
    notes: list[str]


def teach(
    school: School, lessons: Mapping[str, Lesson], student: Literal["tfidf", "recipe"]
) -> Results:
    """Train each teacher's probe students; one that cannot be trained is a note, not the end."""
    recipe = school.recipe
    taught: dict[str, dict[str, Taught]] = {name: {} for name in lessons}
    notes: list[str] = []
    soft = recipe.student.head == "label" and school.believed
    for name, lesson in lessons.items():
        if isinstance(recipe.task, ClassificationTask):
            linear = linear_probe(recipe.task, lesson, school.queries, school.labelled, recipe.seed)
            if linear is not None:
                taught[name]["tfidf"] = linear
        if student == "recipe":
            school.progress.say(
                f"{name}: a probe student learns from {len(school.queries)} answers"
            )
            try:
                taught[name]["recipe"] = recipe_probe(school, lesson, soft=soft)
            except UserError as error:
                notes.append(f"{name} has no probe student: {error}")
    if student == "recipe" and recipe.train.alpha > 0 and not soft:
        notes.append("probe students learn from answers alone: not all teachers show beliefs")
    used = [key for key in _SOFT if getattr(recipe.dataset, key) is not None]
    if student == "recipe" and used:
        notes.append(
            f"dataset.{', dataset.'.join(used)} is not applied to what probe students learn from: "
            "all teachers' answers pass the same checks and no other filter"
        )
    return Results(taught, notes)


def probe_queries(
    recipe: Recipe, traffic: Sequence[Query], labelled: Sequence[LabelledQuery], count: int
) -> list[Query]:
    """A sample of the traffic without the labelled queries and what nearly equals one of them."""
    own = [query for query in traffic if not query.id.startswith(LABELLED)]
    texts = [bare(recipe.task.varying_text(query)) for query in own]
    known = [bare(recipe.task.varying_text(query)) for query in labelled]
    near = matches(texts, known, recipe.dataset.near_duplicate)
    free = [query for index, query in enumerate(own) if index not in near]
    return hash_sample(free, count, recipe.seed)


def linear_probe(
    task: ClassificationTask,
    lesson: Lesson,
    queries: Sequence[Query],
    labelled: Sequence[Query],
    seed: int,
) -> Taught | None:
    """TF-IDF and logistic regression on the teacher's answers; `None` where none can be read."""
    texts: list[str] = []
    said: list[str] = []
    for query in queries:
        chosen = agreed(task, lesson.completions.get(query.id, ()))
        if chosen is not None:
            texts.append(task.input_text(query))
            said.append(str(task.parse(chosen.text).value))
    if not texts:
        return None
    student = late("stillhouse.models.tfidf").TfidfBaseline(task.labels, texts, said, seed)
    beliefs = student.predict_probabilities([task.input_text(query) for query in labelled])
    best = beliefs.argmax(axis=1)
    return Taught(Answers(tuple(task.labels[i] for i in best), beliefs), len(texts))


def recipe_probe(school: School, lesson: Lesson, *, soft: bool) -> Taught:
    """The recipe's own student, trained as the recipe says on one teacher's answers.

    With `soft` it learns from the teacher's beliefs as the recipe says, else from answers alone.

    Raises:
        UserError: no dataset can be made of the answers, or the student cannot be trained.
        MissingExtraError: the train extra is not installed.
    """
    recipe, folder = school.recipe, school.folder
    module = require("stillhouse.train.stage", "train", "a probe with the recipe's student")
    opener = require("stillhouse.models.student", "train", "a probe with the recipe's student")
    shutil.rmtree(folder, ignore_errors=True)
    traffic, asked = folder / "traffic", folder / "ask"
    write_records(traffic / "queries.jsonl", school.queries)
    write_records(traffic / "golden.jsonl", school.labelled)
    write_records(
        asked / "completions.jsonl", (c for said in lesson.completions.values() for c in said)
    )
    write_records(asked / "failures.jsonl", lesson.failures)
    train = recipe.train.model_copy(
        update={"hard_label_twin": False, **({} if soft else {"alpha": 0.0})}
    )
    dataset = recipe.dataset.model_copy(
        update={
            # No judge sits here, and agreement needs samples or members that not all teachers have.
            **_NO_SOFT_FILTERS,
            "watch": 0.0,
            "min_examples": min(recipe.dataset.min_examples, max(2, len(school.queries) // 2)),
        }
    )
    made = recipe.model_copy(update={"teacher": lesson.section, "dataset": dataset, "train": train})
    outcome = run_dataset(made, traffic, asked, folder / "dataset", school.progress)
    # The student is the same for every teacher: where it is cut from one, from the recipe's own.
    module.run_train(
        recipe.model_copy(update={"train": train}),
        folder / "dataset",
        school.tuned,
        folder / "train",
        school.progress,
    )
    student: Completer = opener.open_student(
        folder / "train" / "student",
        recipe.task,
        recipe.student.head,
        recipe.evaluate.batch_size,
        recipe.train.device,
    )
    said = asyncio.run(_answers(student, recipe, school.labelled))
    shutil.rmtree(folder, ignore_errors=True)
    return Taught(answers_of(recipe.task, said, "auto"), int(str(outcome.summary["train"])))


async def _answers(
    student: Completer, recipe: Recipe, queries: Sequence[Query]
) -> list[Sequence[Completion]]:
    sampling = sampling_for(recipe)
    try:
        return await asyncio.gather(*(student.complete(query, sampling) for query in queries))
    finally:
        await student.aclose()
