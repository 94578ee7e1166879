"""The stages' work: each calls its own module with what it needs of the run.

A stage's module is imported when the stage is run: a key, a plan or a report needs none of them.
Knows where each is; does not know how any of them works.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

from stillhouse.core.forgotten import ForgottenUsers
from stillhouse.core.optional import late, require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Query, Rejection
from stillhouse.core.runfolder import Outcome, RunFolder
from stillhouse.dataset.checks import check_completion
from stillhouse.dataset.validators import Validators
from stillhouse.models.completer import Completer
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.ensemble import open_ensemble


class Context(NamedTuple):
    """What a stage may use."""

    recipe: Recipe
    run: RunFolder
    work: Path
    progress: Progress

    @property
    def tuned(self) -> Path | None:
        """The tuned teacher's folder, where there is one."""
        return self.run.stage("tune") / "model" if self.recipe.teacher.tune else None

    @property
    def signals(self) -> Path | None:
        """What the capture stage wrote, where training reads it."""
        return self.run.stage("capture") if self.recipe.train.signals == "cache" else None

    @property
    def traffic(self) -> Path:
        """What is asked: the traffic stage's folder, or its like with what was added to it."""
        return self.run.stage("expand" if self.recipe.traffic.expand else "traffic")


def traffic(context: Context) -> Outcome:
    """Read what the users asked."""
    outcome: Outcome = late("stillhouse.traffic.stage").run_traffic(
        context.recipe, context.work, context.progress, ForgottenUsers(context.run.root)
    )
    return outcome


def tune(context: Context) -> Outcome:
    """Tune the teacher on the labelled set."""
    module = require("stillhouse.train.tune_teacher", "train", "tuning the teacher")
    outcome: Outcome = module.run_tune(
        context.recipe, context.run.stage("traffic"), context.work, context.progress
    )
    return outcome


def check(context: Context) -> Outcome:
    """Measure the teacher on the labelled set."""
    outcome: Outcome = late("stillhouse.teacher.stage").run_check(
        context.recipe,
        context.run.stage("traffic"),
        context.tuned,
        context.run.store,
        context.work,
        context.progress,
    )
    return outcome


def expand(context: Context) -> Outcome:
    """Have the teacher write queries."""
    outcome: Outcome = late("stillhouse.teacher.expand_stage").run_expand(
        context.recipe,
        context.run.stage("traffic"),
        context.run.store,
        context.work,
        context.progress,
    )
    return outcome


def ask(context: Context) -> Outcome:
    """Ask the teacher."""
    outcome: Outcome = late("stillhouse.teacher.stage").run_ask(
        context.recipe,
        context.traffic,
        context.tuned,
        context.run.store,
        context.work,
        context.progress,
    )
    return outcome


def judge(context: Context) -> Outcome:
    """Judge the answers that the checks keep."""
    recipe, run = context.recipe, context.run
    validators = Validators(recipe.dataset.validators)

    def kept(query: Query, completion: Completion) -> str | None:
        verdict = check_completion(recipe.task, query, completion, recipe.dataset, validators)
        return None if isinstance(verdict, Rejection) else verdict.text

    outcome: Outcome = late("stillhouse.teacher.judge_stage").run_judge(
        recipe,
        context.traffic,
        run.stage("ask"),
        run.store,
        context.work,
        context.progress,
        kept,
    )
    return outcome


def dataset(context: Context) -> Outcome:
    """Make the dataset of the answers."""
    recipe, run = context.recipe, context.run
    outcome: Outcome = late("stillhouse.dataset.stage").run_dataset(
        recipe,
        context.traffic,
        run.stage("ask"),
        context.work,
        context.progress,
        run.stage("judge") if recipe.dataset.judge is not None else None,
    )
    return outcome


def train(context: Context) -> Outcome:
    """Train the student."""
    module = require("stillhouse.train.stage", "train", "training a student")
    outcome: Outcome = module.run_train(
        context.recipe,
        context.run.stage("dataset"),
        context.tuned,
        context.work,
        context.progress,
        signals=context.signals,
    )
    return outcome


def prune(context: Context) -> Outcome:
    """Prune the student, and heal it."""
    module = require("stillhouse.train.prune", "train", "pruning a student")
    run = context.run
    outcome: Outcome = module.run_prune(
        context.recipe,
        run.stage("train") / "student",
        run.stage("dataset"),
        context.tuned,
        work=context.work,
        progress=context.progress,
        signals=context.signals,
    )
    return outcome


def capture(context: Context) -> Outcome:
    """Write down the teacher's signals."""
    module = require("stillhouse.train.capture", "train", "capturing the teacher's signals")
    outcome: Outcome = module.run_capture(
        context.recipe,
        context.run.stage("dataset"),
        context.run.stage("ask"),
        context.work,
        context.progress,
        tuned=context.tuned,
    )
    return outcome


def evaluate(context: Context) -> Outcome:
    """Score teacher, student and baselines."""
    recipe = context.recipe
    teacher: Completer | None = None
    # What answers on a cluster need not fit here: it was timed when it was asked.
    if recipe.teacher.local and recipe.teacher.ray is None:
        teacher = (
            open_ensemble(recipe)
            if recipe.teacher.members
            else open_teacher(recipe.teacher, recipe.prices, context.tuned)
        )
    try:
        outcome: Outcome = late("stillhouse.evaluate.stage").run_evaluate(
            recipe, context.run, context.work, context.progress, teacher
        )
    finally:
        if teacher is not None:
            asyncio.run(teacher.aclose())
    return outcome


def compress(context: Context) -> Outcome:
    """Bring the student into smaller forms."""
    outcome: Outcome = late("stillhouse.compress_aware").compress(
        context.recipe,
        context.run,
        context.tuned,
        context.signals,
        work=context.work,
        progress=context.progress,
    )
    return outcome
