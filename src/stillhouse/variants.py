"""Variants of one recipe: each a run folder of its own that shares what does not differ.

The shared stages are run once, in the recipe's own folder; a variant's folder holds links to them
and to the paid answers, and its own training and evaluation. So nothing is asked, judged or
captured twice, and each variant can be reported, served or gone on with as any other run. Killed at
any moment, the next start goes on from the last finished piece of work. Knows folders and stages;
not what is varied, nor why.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.errors import RunFolderError
from stillhouse.core.forgotten import FORGOTTEN
from stillhouse.core.jsonl import disk_errors
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.report import Report
from stillhouse.pipeline import report_of, run_stages, stage_key
from stillhouse.stages import stages_of
from stillhouse.train.planning import check_recipe

OWN: Final = ("train", "evaluate", "compress")
STORE: Final = "store"


class Variant(NamedTuple):
    """A name, which is its folder's too, and the whole recipe."""

    name: str
    recipe: Recipe


class Ran(NamedTuple):
    """A finished variant."""

    variant: Variant
    root: Path
    report: Report


def varied(recipe: Recipe, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe with some keys of some sections changed, checked like any other.

    Args:
        recipe: as it was loaded, its paths absolute.
        changes: section: {key: value}.

    Raises:
        RecipeError: a key or value that does not fit.
    """
    raw = recipe.model_dump(mode="json", by_alias=True)
    # What was left out of a student's section may depend on what is now put in.
    raw["student"] = recipe.student.model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw["speculate"] = None  # measured again for a variant that names it among `changes`
    for section, keys in changes.items():
        raw[section] = {**(raw.get(section) or {}), **keys}
    return parse_recipe(raw, "this variant of the recipe")


def check_variant(recipe: Recipe) -> None:
    """Refuse, before anything is paid, a variant that could not be trained here.

    Raises:
        UserError: a student, size or setting that cannot be.
        MissingExtraError: the train extra is not installed.
    """
    check_recipe(recipe)
    require("stillhouse.train.preflight", "train", "training").check_student(recipe)


def run_shared(
    recipe: Recipe, variants: Sequence[Variant], root: Path, progress: Progress
) -> RunFolder:
    """Run, in the recipe's own folder, the stages that variants share.

    The capture of signals is among them where a variant reads the recipe's own.

    Raises:
        UserError: something the user wrote or supplied cannot be used.
        StillhouseError: a stage failed; what is finished stays.
    """
    run_stages(recipe, root, progress, last="dataset")
    run = RunFolder(root)
    for stage in stages_of(recipe):
        if stage.name == "capture":
            own = stage_key(stage, recipe, run).digest
            if any(stage_key(stage, one.recipe, run).digest == own for one in variants):
                run_stages(recipe, root, progress, last="capture")
    return run


def run_variant(variant: Variant, run: RunFolder, folder: Path, progress: Progress) -> Ran:
    """Train and evaluate one variant in `folder/NAME`.

    Raises:
        UserError: something in it cannot be used.
        StillhouseError: a stage failed; what is finished stays.
    """
    root = folder / variant.name
    link_shared(variant.recipe, run, root)
    run_stages(variant.recipe, root, progress)
    return Ran(variant, root, report_of(root))


def link_shared(recipe: Recipe, run: RunFolder, root: Path) -> None:
    """Link the finished stages of `run` that this recipe would make just so, and the store.

    A stage that differs, and what follows it, is the variant's own.
    """
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        # A forgotten user's lines are part of the traffic's key: they are the run's.
        for name in (STORE, FORGOTTEN):
            link(root / name, run.root / name)
        same = True
        for stage in stages_of(recipe):
            same = (
                same
                and stage.name not in OWN
                and run.standing(stage_key(stage, recipe, run)).manifest is not None
            )
            link(root / stage.name, run.stage(stage.name) if same else None)


def link(place: Path, target: Path | None) -> None:
    """Have `place` be a link to the target; where there is none, have no link there."""
    wanted: str | None = None
    if target is not None and target.exists():
        wanted = os.path.relpath(target.parent.resolve() / target.name, place.parent.resolve())
    if place.is_symlink():
        if wanted is not None and os.readlink(place) == wanted:
            return
        place.unlink()
    if wanted is None:
        return
    if place.is_dir():  # of an earlier variant of this name, which differed more
        shutil.rmtree(place)
    elif place.exists():
        place.unlink()
    try:
        place.symlink_to(wanted, target_is_directory=True)
    except OSError as error:
        raise RunFolderError(
            f"{place}: this disk takes no symbolic link ({error.strerror}); choose another with "
            "--run-dir"
        ) from None
