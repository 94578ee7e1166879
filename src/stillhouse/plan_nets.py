"""`stillhouse plan` of recipes of a corpus and of images: what will be trained, before it is.

Reads texts or images and configurations; trains nothing and asks nobody. Knows the shapes of what
is told; the counting is where the models are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_corpus import CorpusRecipe
from stillhouse.core.recipe_images import ImageRecipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.plan import PLAN
from stillhouse.pretrain import run_pretrain

Planned = dict[str, Any]


def plan_corpus(recipe: CorpusRecipe, root: Path, progress: Progress) -> Planned:
    """Divide the corpus in a run folder, and say what its training will be; writes plan.json.

    Raises:
        UserError: a corpus, teacher or student that cannot be used.
    """
    run_pretrain(recipe, root, progress, last="corpus")
    module = require("stillhouse.train.corpus_plan", "train", "planning a training on a corpus")
    corpus = RunFolder(root).stage("corpus")
    found: Planned = {
        "name": recipe.name,
        "teacher": recipe.teacher.model,
        "texts": read_json(corpus / "corpus.json")["texts"],
        **module.planned_training(recipe, corpus),
    }
    write_json(root / PLAN, found)
    return found


def plan_images(recipe: ImageRecipe, root: Path) -> Planned:
    """Build both nets, and say what their training will be; writes plan.json.

    Raises:
        UserError: images or nets that cannot be used.
    """
    module = require("stillhouse.train.image_stage", "train", "planning a training on images")
    found: Planned = {"name": recipe.name, **module.planned_images(recipe)}
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / PLAN, found)
    return found


def corpus_plan_lines(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The plan as (name, value) rows for people."""
    adapted, student, texts = plan["adapt_steps"], plan["student"], plan["texts"]
    yield "teacher", f"{plan['teacher']}, {plan['teacher_parameters']:,} parameters"
    if adapted is not None:
        yield "adapted first", f"{adapted:,} steps on the corpus"
    share = student["parameters"] / plan["teacher_parameters"]
    yield (
        "student",
        f"{student['parameters']:,} parameters, {share:.1%} of the teacher's; {student['layers']} "
        f"layers; {student['vocabulary']:,} of {plan['vocabulary']:,} pieces",
    )
    for line in student["cut"]:
        yield "student cut", line
    yield "texts", ", ".join(f"{count:,} {name}" for name, count in texts.items())
    yield (
        "training",
        f"{plan['rows']:,} rows, {plan['tokens']:,} tokens an epoch, {plan['steps']:,} steps"
        + (", and as many of the untaught twin" if plan["untaught_twin"] else ""),
    )


def image_plan_lines(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The plan as (name, value) rows for people."""
    teacher, student = plan["teacher"], plan["student"]
    steps = f"{teacher['steps']:,} steps" if teacher["steps"] else "taken as it is"
    yield "teacher", f"{teacher['source']}, {teacher['parameters']:,} parameters; {steps}"
    share = student["parameters"] / teacher["parameters"]
    yield (
        "student",
        f"{student['source']}, {student['parameters']:,} parameters, {share:.1%} of the teacher's",
    )
    yield (
        "images",
        f"{plan['train']:,} to learn from, {plan['validation']:,} to choose by, {plan['test']:,} "
        f"for the test, {plan['classes']} classes",
    )
    yield "training", f"{plan['students']} students of {student['steps']:,} steps each"
