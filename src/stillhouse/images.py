"""Run an image recipe: teacher, students, evaluate, then report.json.

Each stage leaves a folder with a manifest, as the stages of `pipeline` do: what is up to date is
skipped, what was killed goes on. Does not know how any stage works.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.machine import package_versions, this_machine
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_images import ImageRecipe
from stillhouse.core.runfolder import Outcome, RunFolder, StageKey
from stillhouse.core.section_dump import dump_section
from stillhouse.core.stage_files import hash_file
from stillhouse.pipeline import local_weights, reproducible_threads, run_one, up_to_date
from stillhouse.stages import TORCH_PACKAGES

STAGES: Final = ("teacher", "students", "evaluate")
RECIPE_FILE: Final = "image_recipe.json"


def run_images(recipe: ImageRecipe, root: Path, progress: Progress) -> dict[str, Any]:
    """Run what is not up to date, write report.json, and return it.

    Raises:
        UserError: images or nets that cannot be used.
        StillhouseError: training went off; what is finished stays and is not done again.
    """
    module = require("stillhouse.train.image_stage", "train", "training on images")
    run = RunFolder(root)
    seconds: dict[str, float] = {}
    with run.locked(), reproducible_threads():
        write_json(root / RECIPE_FILE, recipe.model_dump(mode="json", by_alias=True))
        checked = False
        for number, name in enumerate(STAGES, start=1):
            key = _key(name, recipe, run)
            count = f"[{number}/{len(STAGES)}] {name}"
            current = up_to_date(run, key, count, progress)
            if current is not None:
                seconds[name] = current.seconds
                continue
            if name != "evaluate" and not checked:
                module.check_image_nets(recipe)
                checked = True
            progress.say(count)
            call = partial(_stage, module, name, recipe, run, progress)
            seconds[name] = run_one(run, key, progress, call).seconds
        report: dict[str, Any] = {
            "name": recipe.name,
            "seed": recipe.seed,
            "machine": this_machine()._asdict(),
            "student": str(run.stage("students") / "student"),
            **read_json(run.stage("evaluate") / "evaluation.json"),
            "speed": read_json(run.stage("evaluate") / "speed.json"),
            "seconds": seconds,
        }
        write_json(root / "report.json", report)
    return report


def _stage(  # noqa: PLR0917 - what a stage may use
    module: Any, name: str, recipe: ImageRecipe, run: RunFolder, progress: Progress, work: Path
) -> Outcome:
    teacher, students = run.stage("teacher"), run.stage("students")
    outcome: Outcome
    if name == "teacher":
        outcome = module.run_image_teacher(recipe, work, progress)
    elif name == "students":
        outcome = module.run_image_students(recipe, teacher, work, progress)
    else:
        outcome = module.run_image_evaluate(recipe, teacher, students, work)
    return outcome


def _key(name: str, recipe: ImageRecipe, run: RunFolder) -> StageKey:
    inputs: dict[str, str] = {}
    for part in ("train", "test"):
        path = getattr(recipe.images, part)
        try:
            inputs[part] = hash_file(Path(path))
        except OSError as error:
            raise DataError(
                f"images.{part}", f"cannot be read: {error.strerror}", value=path,
                action="check the path",
            ) from None  # fmt: skip
    for before in STAGES[: STAGES.index(name)]:
        manifest = run.manifest(before)
        assert manifest is not None, "stages run in order"
        inputs[before] = manifest.output_hash
    for field, source in (("teacher", recipe.teacher.source), ("student", recipe.student.source)):
        if source.startswith("hf:") and not (field == "student" and name == "teacher"):
            inputs.update(local_weights(field, source))
    return StageKey(
        stage=name,
        inputs=inputs,
        section=_section(name, recipe),
        versions=package_versions("stillhouse", *TORCH_PACKAGES),
        seed=recipe.seed,
    )


def _section(name: str, recipe: ImageRecipe) -> Mapping[str, object]:
    images = {"validation": recipe.images.validation, "limit": recipe.images.limit}
    if name == "teacher":
        own = {"alpha", "temperatures", "seeds", "divergence", "divergence_beta", "alone"}
        rest = dump_section(recipe.train, without=own)
        return {"images": images, "teacher": dump_section(recipe.teacher), "train": rest}
    if name == "students":
        student, train = dump_section(recipe.student), dump_section(recipe.train)
        return {"images": images, "student": student, "train": train}
    return {"images": images, "evaluate": dump_section(recipe.evaluate)}
