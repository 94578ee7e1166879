"""Run the stages in order, and skip what is up to date.

Knows keys, manifests and the order of work; the stages themselves are declared in `stages`. A stage
whose key (inputs' hashes, recipe section, versions, seed) matches its manifest is skipped, while
its files are those that it left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.compress.planning import check_compress
from stillhouse.core.errors import DataError, RecipeError
from stillhouse.core.forgotten import FORGOTTEN
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.lineage import record_lineage
from stillhouse.core.machine import package_versions, peak_rss_mb
from stillhouse.core.optional import require
from stillhouse.core.owners import record_owners
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.core.recipe_train import SCRATCH
from stillhouse.core.rights import ASKING, check_rights
from stillhouse.core.runfolder import (
    Manifest,
    Outcome,
    RunFolder,
    StageKey,
    hash_folder,
)
from stillhouse.core.section_dump import says_the_same
from stillhouse.core.stage_files import hash_file
from stillhouse.core.user_function import source_of
from stillhouse.dataset.card import write_dataset_card
from stillhouse.evaluate.model_card import CARD, write_model_card
from stillhouse.evaluate.report import Report
from stillhouse.evaluate.report_files import write_report
from stillhouse.speculate import check_speculate
from stillhouse.stage_calls import Context
from stillhouse.stages import Stage, check_quality, stages_of
from stillhouse.teacher.replay import store_path
from stillhouse.teacher.retirement import warn_of_retirement
from stillhouse.train.extractive import check_labelled
from stillhouse.train.planning import check_recipe

RECIPE_FILE: Final = "recipe.json"
LOCAL: Final = ("hf:", "gguf:", "replay:")  # sources that may be files of this machine
WEIGHTS: Final = (".safetensors", ".gguf", ".index.json")
TRAINS: Final = ("train", "prune")
# Stages whose key holds the weights of models on this machine: `speculate` too, which measures the
# teacher, and the student as it was before training.
READS_WEIGHTS: Final = (
    "tune",
    "check",
    "expand",
    "ask",
    "capture",
    "train",
    "prune",
    "speculate",
)
# What in a recipe brings a stage that not every recipe has.
NEEDED: Final = {
    "tune": "teacher.tune and traffic.labelled",
    "expand": "traffic.expand",
    "judge": "dataset.judge",
    "capture": "capture or train.signals: cache",
    "prune": "prune",
    "compress": "compress",
    "speculate": "speculate",
}


class StageResult(NamedTuple):
    """What came of one stage."""

    name: str
    skipped: bool
    manifest: Manifest


def run_stages(
    recipe: Recipe, root: Path, progress: Progress, last: str | None = None
) -> list[StageResult]:
    """Run the recipe's stages up to and including `last`, skipping what is up to date.

    `last` is `None` for all of them.

    Raises:
        UserError: something the user wrote or supplied cannot be used.
        StillhouseError: a stage failed; what is finished stays and is not done again.
    """
    plan = stages_of(recipe)
    last = plan[-1].name if last is None else last
    if last not in [stage.name for stage in plan]:
        raise RecipeError(
            last,
            "this recipe has no such stage",
            action=f"give {NEEDED.get(last, 'traffic.labelled')} to have it",
        )
    names = [stage.name for stage in plan]
    until = names.index(last) + 1
    check_rights(recipe, names[:until])
    check_recipe(recipe)
    check_quality(recipe)
    if "compress" in names[:until]:
        check_compress(recipe)
    if "speculate" in names[:until]:
        check_speculate(recipe)
    run = RunFolder(root)
    results: list[StageResult] = []
    with run.locked(), reproducible_threads():
        write_json(root / RECIPE_FILE, recipe.model_dump(mode="json", by_alias=True))
        warned = False
        student_checked = "train" not in names[:until]
        labelled_checked = False
        for number, stage in enumerate(plan[:until], start=1):
            key = stage_key(stage, recipe, run)
            count = f"[{number}/{len(plan)}] {stage.name}"
            current = up_to_date(run, key, count, progress)
            if current is not None:
                results.append(StageResult(stage.name, True, current))
                _record(recipe, run, results[-1])
                continue
            if not warned and stage.name in ASKING:
                warn_of_retirement(recipe.teacher, progress)
                warned = True
            if not labelled_checked and stage.name != "traffic":
                check_labelled(recipe, run.stage("traffic"))
                labelled_checked = True
            if not student_checked and stage.name != "traffic":
                require("stillhouse.train.preflight", "train", "training").check_student(recipe)
                if "speculate" in names[:until]:
                    drafts = require("stillhouse.compress.speculate_check", "train", "drafting")
                    drafts.check_drafts(recipe)
                student_checked = True
            progress.say(f"{count}: {stage.caption}")
            run_this = partial(_call, stage, recipe, run, progress)
            results.append(StageResult(stage.name, False, run_one(run, key, progress, run_this)))
            _record(recipe, run, results[-1])
    return results


def up_to_date(run: RunFolder, key: StageKey, count: str, progress: Progress) -> Manifest | None:
    """The manifest of a stage that need not be done again. Says so; or which file is the reason."""
    manifest, changed = run.look(key)
    if manifest is not None:
        progress.say(f"{count}: up to date")
    elif changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        progress.say(f"{count}: {changed[0]}{more} changed since it was made; done again")
    return manifest


def _record(recipe: Recipe, run: RunFolder, result: StageResult) -> None:
    """Write down where the stage's result comes from: whose queries, lineage, cards.

    Also of a stage that is up to date: a kill may have come between its end and this.
    """
    if result.name == "traffic":
        record_owners(run)
    if result.name in ("tune", "dataset", "train", "prune"):
        record_lineage(recipe, run)
    if result.name == "dataset":
        write_dataset_card(recipe, run.stage("dataset"), result.manifest.output_hash)
    if result.name == "train" and not (
        result.skipped and (run.stage("train") / "student" / CARD).exists()
    ):
        write_model_card(recipe, run, None)


def _call(stage: Stage, recipe: Recipe, run: RunFolder, progress: Progress, work: Path) -> Outcome:
    return stage.run(Context(recipe, run, work, progress))


def run_one(
    run: RunFolder, key: StageKey, progress: Progress, call: Callable[[Path], Outcome]
) -> Manifest:
    """Have `call` do a stage in its working folder; time it, settle it, say so."""
    work = run.open_partial(key)
    started = time.monotonic()
    outcome = call(work)
    seconds = time.monotonic() - started
    manifest = run.finish(key, outcome, round(seconds, 3), round(peak_rss_mb(), 1))
    said = ", ".join(
        f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in outcome.summary.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool) and value != 0
    )
    progress.say(f"      done in {seconds:,.0f} s" + (f": {said}" if said else ""))
    return manifest


def _short(value: int | float | str) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def stage_key(stage: Stage, recipe: Recipe, run: RunFolder) -> StageKey:
    """The key of a stage whose earlier stages are finished."""
    inputs = _stage_inputs(stage, recipe, run)
    if stage.name == "traffic":
        for field in ("path", "labelled", "golden"):
            path = getattr(recipe.traffic, field)
            if path is not None and Path(path).is_file():
                inputs[field] = _hash_of_users(Path(path))
        if (run.root / FORGOTTEN).exists():  # a forgotten user's lines are passed over
            inputs["forgotten"] = hash_file(run.root / FORGOTTEN)
    judge, function = recipe.dataset.judge, recipe.dataset.validators.function
    if stage.name == "judge" and judge is not None:
        inputs["gold"] = _hash_of_users(Path(judge.gold))
        if judge.model.startswith(LOCAL):
            inputs.update(local_weights("judge", judge.model))
    if stage.name in ("judge", "dataset") and function is not None:
        source_file = source_of(function)
        if source_file is not None:
            inputs["validator"] = _hash_of_users(source_file)
    for field, source in local_models(recipe):
        if stage.name in READS_WEIGHTS:
            found = dict(local_weights(field, source))
            if stage.name == "capture" and field == "student":  # how it cuts text, no weights
                found = {name: h for name, h in found.items() if not _of_a_model(name)}
            inputs.update(found)
    if stage.name in TRAINS:
        for field, source in local_readers(recipe):
            inputs.update(local_weights(field, source))
    for field, part in (("traffic", recipe.traffic.select), ("expand", recipe.traffic.expand)):
        if stage.name == field and part is not None and part.embedder.startswith("hf:"):
            inputs.update(local_weights("embedder", part.embedder))
    if stage.name.startswith("compress") and recipe.compress and recipe.compress.calibration:
        inputs["calibration"] = _hash_of_users(Path(recipe.compress.calibration))
    if stage.name == "speculate" and recipe.speculate is not None:
        for field, source in recipe.speculate.files.items():
            inputs.update(local_weights(field, source))
    return StageKey(
        stage=stage.name,
        inputs=inputs,
        section=stage.section(recipe),
        versions=package_versions("stillhouse", *stage.packages),
        seed=recipe.seed,
    )


def _stage_inputs(stage: Stage, recipe: Recipe, run: RunFolder) -> dict[str, str]:
    """Hashes of what the stage reads of earlier ones."""
    inputs: dict[str, str] = {}
    planned = [one.name for one in stages_of(recipe)]
    for read in stage.reads:
        name, _, file = read.partition("/")
        manifest = run.manifest(name) if name in planned else None
        if manifest is not None and not file:
            inputs[read] = manifest.output_hash
        elif manifest is not None and file in manifest.outputs:
            inputs[read] = manifest.outputs[file]
    return inputs


def _hash_of_users(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}") from None


def local_models(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The teacher, or its members, and the student, where they may lie on this machine; each with
    the name that its hashes bear in a key."""
    for number, source in enumerate(recipe.teacher.sources):
        if source.startswith(LOCAL):
            yield f"member {number}" if recipe.teacher.members else "teacher", source
    if recipe.student.source.startswith((*LOCAL, SCRATCH)):
        yield "student", recipe.student.source


def local_readers(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Models that read along while the student trains, where they may lie on this machine."""
    members = () if recipe.train.teachers is None else recipe.train.teachers.members
    for number, one in enumerate(members):
        if one.model.startswith(LOCAL):
            yield f"reader {number}", one.model


def local_weights(field: str, source: str) -> Iterator[tuple[str, str]]:
    """Names and hashes of the files of a model that lies on this machine.

    Of `scratch:SOURCE`, whose weights are not read, those of its shape and tokenizer.
    """
    if source.startswith(SCRATCH):
        whole = local_weights(field, f"hf:{source.removeprefix(SCRATCH).removeprefix('hf:')}")
        yield from ((name, digest) for name, digest in whole if not name.endswith(WEIGHTS))
        return
    kind, _, name = source.partition(":")
    path = Path(name).expanduser()
    if kind == "replay":  # of a run folder, its store alone
        path = store_path(path)
    if path.is_file():
        yield f"{field} weights", _hash_of_users(path)
    elif path.is_dir():
        for name, digest in hash_folder(path).items():
            if not name.startswith(".") and name != CARD:
                yield f"{field} {name}", digest


def _of_a_model(name: str) -> bool:
    return name.endswith((*WEIGHTS, "config.json")) and not (name.endswith("tokenizer_config.json"))


def read_run_recipe(root: Path) -> Recipe:
    """The recipe a run folder was made with.

    Raises:
        RecipeError: the folder is not a run.
    """
    path = root / RECIPE_FILE
    if not path.exists():
        raise RecipeError(
            str(root), "is not a run folder", action="give the folder of a finished run"
        )
    return parse_recipe(read_json(path), str(path))


def report_of(root: Path) -> Report:
    """Write report.json and report.html of a finished run anew, from its artifacts.

    Raises:
        RecipeError: the folder is not a run, or the run is not finished, or a later one in the same
            folder is not: its stages are then of different recipes.
    """
    recipe = read_run_recipe(root)
    run = RunFolder(root)
    if run.manifest("evaluate") is None:
        raise RecipeError(str(root), "the run is not finished", action="go on with: stillhouse run")
    planned = stages_of(recipe)
    for stage in planned[: 1 + [stage.name for stage in planned].index("evaluate")]:
        if not _fits(stage, recipe, run):
            raise RecipeError(
                str(root),
                f"the last run in this folder did not finish: its stage {stage.name} is of an "
                "earlier one",
                action="go on with: stillhouse run",
            )
    return write_report(recipe, run)


def _fits(stage: Stage, recipe: Recipe, run: RunFolder) -> bool:
    """Whether a finished stage was made by this recipe, from what the stages before it hold now.

    The user's own files, weights and packages are not looked at: a report needs none of them.
    """
    manifest = run.manifest(stage.name)
    if manifest is None:
        return False
    made = manifest.key
    inputs = made.get("inputs")
    return (
        says_the_same(made.get("section"), stage.section(recipe))
        and made.get("seed") == recipe.seed
        and isinstance(inputs, dict)
        and all(
            inputs.get(read) == found for read, found in _stage_inputs(stage, recipe, run).items()
        )
    )


@contextmanager
def reproducible_threads() -> Iterator[None]:
    """Tokenizer threads warn after a fork; the models' own threads are enough."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = before or "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
