"""`stillhouse compress`: a run's student, or any student's folder, in smaller forms.

Runs what must be there first; the stage itself is `compress.stage`. Knows stages and folders.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.compress.planning import check_compress, section_of
from stillhouse.compress_aware import compress
from stillhouse.core.artefact import read_artefact, student_sha
from stillhouse.core.errors import UserError
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import Outcome, RunFolder
from stillhouse.evaluate.compressed import CompressedTable, read_table
from stillhouse.pipeline import (
    report_of,
    reproducible_threads,
    run_one,
    run_stages,
    stage_key,
    up_to_date,
)
from stillhouse.stage_calls import Context
from stillhouse.stages import STAGES

STAGE: Final = next(stage for stage in STAGES if stage.name == "compress")


class Compressed(NamedTuple):
    """A finished compress run: its table, and the folder of the artefacts."""

    table: CompressedTable
    folder: Path


def compress_recipe(
    recipe: Recipe, root: Path, progress: Progress, student: Path | None = None
) -> Compressed:
    """Compress the student of a recipe's run, with the defaults where it has no section.

    Args:
        recipe: the recipe.
        root: its run folder; the stages that are not up to date are run.
        progress: where to say how far it is.
        student: another student's folder for the same task; it is judged on this run's samples.

    Raises:
        UserError: something the user wrote or supplied cannot be used.
        StillhouseError: a stage failed; what is finished stays.
    """
    recipe = recipe.model_copy(update={"compress": section_of(recipe)})
    if student is None:
        run_stages(recipe, root, progress, last=STAGE.name)
        report_of(root)
        return _verified(root / STAGE.name)
    return _compress_other(recipe, root, progress, student)


def _compress_other(recipe: Recipe, root: Path, progress: Progress, student: Path) -> Compressed:
    check_compress(recipe)
    sha = student_sha(student)
    if not (student / "config.json").is_file():
        raise UserError(
            "--student", "is no student's folder: it has no config.json", value=str(student)
        )
    run_stages(recipe, root, progress, last="dataset")
    run = RunFolder(root)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", student.resolve().name).strip("-.") or "student"
    # Beside the stages, so that what is true of their folders is true of it.
    stage = replace(
        STAGE,
        name=f"{STAGE.name}-{name}-{sha[:8]}",
        reads=("traffic", "tune", "expand", "ask", "dataset", "capture"),
    )
    with run.locked(), reproducible_threads():
        key = stage_key(stage, recipe, run)
        key = replace(key, inputs={**key.inputs, "student": sha})
        if up_to_date(run, key, stage.name, progress) is None:
            progress.say(f"{stage.name}: {stage.caption}")
            run_one(run, key, progress, partial(_call, recipe, run, progress, student))
    return _verified(run.stage(stage.name))


def _verified(folder: Path) -> Compressed:
    """A finished stage, whose artefacts are still as they were judged."""
    table = read_table(folder)
    for row in table.artefacts:
        place = folder / row.folder
        try:
            read_artefact(place)
        except UserError as error:
            again = f"delete {place}, and stillhouse compress makes it again"
            raise UserError(error.field, error.problem, value=error.value, action=again) from None
    return Compressed(table, folder)


def _call(recipe: Recipe, run: RunFolder, progress: Progress, student: Path, work: Path) -> Outcome:
    context = Context(recipe, run, work, progress)
    return compress(
        recipe,
        run,
        context.tuned,
        context.signals,
        work=work,
        progress=progress,
        student=student,
    )
