"""The stages in order, and which of them are up to date.

Knows what each stage depends on and in which order they run; does not know how any of them works.
A stage whose key (inputs' hashes, recipe section, versions, seed) matches its manifest is skipped.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.errors import RecipeError
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.machine import package_versions, peak_rss_mb
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.core.runfolder import (
    Manifest,
    Outcome,
    RunFolder,
    StageKey,
    hash_file,
    hash_folder,
)
from stillhouse.dataset.stage import needs_beliefs, run_dataset
from stillhouse.evaluate.report import Report
from stillhouse.evaluate.stage import run_evaluate, write_report
from stillhouse.models.completer import Completer
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.stage import run_ask, run_check
from stillhouse.traffic.stage import run_traffic
from stillhouse.train.planning import check_recipe

TORCH_PACKAGES: Final = ("torch", "transformers", "peft", "tokenizers")
RECIPE_FILE: Final = "recipe.json"

# What does not change an answer does not make answers stale.
NOT_IN_ANSWERS: Final = {"concurrency", "retries", "timeout_s", "budget_usd", "tune", "api_key_env"}


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


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its name, what it reads, and the function that does it.

    `reads` names earlier stages, `STAGE` for all their outputs or `STAGE/FILE` for one: new traffic
    does not tune a teacher again.
    """

    name: str
    caption: str
    reads: tuple[str, ...]
    section: Callable[[Recipe], Mapping[str, Any]]
    run: Callable[[Context], Outcome]
    packages: tuple[str, ...] = ()


class StageResult(NamedTuple):
    """What came of one stage."""

    name: str
    skipped: bool
    manifest: Manifest


def _dump(model: Any, *, without: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    return dict(model.model_dump(mode="json", exclude=set(without), by_alias=True))


def _tune(context: Context) -> Outcome:
    module = require("stillhouse.train.tune_teacher", "train", "tuning the teacher")
    outcome: Outcome = module.run_tune(
        context.recipe, context.run.stage("traffic"), context.work, context.progress
    )
    return outcome


def _train(context: Context) -> Outcome:
    module = require("stillhouse.train.stage", "train", "training a student")
    outcome: Outcome = module.run_train(
        context.recipe,
        context.run.stage("dataset"),
        context.tuned,
        context.work,
        context.progress,
    )
    return outcome


def _evaluate(context: Context) -> Outcome:
    recipe = context.recipe
    teacher: Completer | None = None
    if recipe.teacher.local:
        teacher = open_teacher(recipe.teacher, recipe.prices, context.tuned)
    try:
        return run_evaluate(recipe, context.run, context.work, context.progress, teacher)
    finally:
        if teacher is not None:
            asyncio.run(teacher.aclose())


STAGES: Final[tuple[Stage, ...]] = (
    Stage(
        "traffic",
        "read the queries, the labelled and the golden set",
        (),
        lambda r: {
            "task": _dump(r.task),
            "traffic": _dump(r.traffic, without={"path", "labelled", "golden"}),
            "near_duplicate": r.dataset.near_duplicate,
            "min_examples": r.dataset.min_examples,
        },
        lambda c: run_traffic(c.recipe, c.work, c.progress),
    ),
    Stage(
        "tune",
        "tune the teacher on the labelled set",
        ("traffic/labelled.jsonl",),
        lambda r: {
            "task": _dump(r.task),
            "model": r.teacher.model,
            "device": r.teacher.device,
            "chat_template": r.teacher.chat_template,
            "tune": _dump(r.teacher.tune) if r.teacher.tune else {},
        },
        _tune,
        TORCH_PACKAGES,
    ),
    Stage(
        "check",
        "check the teacher on the labelled set, beside a linear baseline",
        ("traffic/labelled.jsonl", "tune"),
        lambda r: {
            "task": _dump(r.task),
            "teacher": _dump(r.teacher, without=NOT_IN_ANSWERS),
            "check_fraction": r.teacher.tune.check_fraction if r.teacher.tune else None,
            "confidence": r.evaluate.confidence,
        },
        lambda c: run_check(
            c.recipe, c.run.stage("traffic"), c.tuned, c.run.store, c.work, c.progress
        ),
    ),
    Stage(
        "ask",
        "ask the teacher, each query once",
        ("traffic/queries.jsonl", "traffic/golden.jsonl", "tune"),
        lambda r: {"task": _dump(r.task), "teacher": _dump(r.teacher, without=NOT_IN_ANSWERS)},
        lambda c: run_ask(
            c.recipe, c.run.stage("traffic"), c.tuned, c.run.store, c.work, c.progress
        ),
    ),
    Stage(
        "dataset",
        "keep the good answers: checks, duplicates, contamination, split",
        ("traffic", "ask"),
        lambda r: {
            "task": _dump(r.task),
            "dataset": _dump(r.dataset),
            "signals": r.teacher.signals,
            "beliefs": needs_beliefs(r),
        },
        lambda c: run_dataset(
            c.recipe, c.run.stage("traffic"), c.run.stage("ask"), c.work, c.progress
        ),
    ),
    Stage(
        "train",
        "train the student",
        ("dataset", "tune"),
        lambda r: {
            "task": _dump(r.task),
            "student": _dump(r.student),
            "train": _dump(r.train),
            "teacher": r.teacher.model,
        },
        _train,
        TORCH_PACKAGES,
    ),
    Stage(
        "evaluate",
        "prove it: teacher, student and baselines on held-out and golden sets",
        ("traffic", "ask", "check", "dataset", "train"),
        lambda r: {
            "task": _dump(r.task),
            "evaluate": _dump(r.evaluate),
            "prices": _dump(r.prices),
            "teacher": _dump(r.teacher, without=NOT_IN_ANSWERS),
        },
        _evaluate,
        TORCH_PACKAGES,
    ),
)
STAGE_NAMES: Final = tuple(stage.name for stage in STAGES)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages this recipe needs, in order."""
    return tuple(
        stage
        for stage in STAGES
        if (stage.name != "tune" or recipe.teacher.tune is not None)
        and (stage.name != "check" or recipe.traffic.labelled is not None)
    )


def run_stages(
    recipe: Recipe, root: Path, progress: Progress, last: str = "evaluate"
) -> list[StageResult]:
    """Run the recipe's stages up to and including `last`, skipping what is up to date.

    Raises:
        UserError: something the user wrote or supplied cannot be used.
        StillhouseError: a stage failed; what is finished stays and is not done again.
    """
    plan = stages_of(recipe)
    if last not in [stage.name for stage in plan]:
        raise RecipeError(
            last,
            "this recipe has no such stage",
            action="give teacher.tune and traffic.labelled to have it"
            if last == "tune"
            else "give traffic.labelled to have it",
        )
    check_recipe(recipe)
    run = RunFolder(root)
    results: list[StageResult] = []
    with run.locked(), _reproducible_threads():
        write_json(root / RECIPE_FILE, recipe.model_dump(mode="json", by_alias=True))
        until = [stage.name for stage in plan].index(last) + 1
        for number, stage in enumerate(plan[:until], start=1):
            results.append(_run_stage(stage, recipe, run, progress, f"[{number}/{len(plan)}]"))
    return results


def _run_stage(
    stage: Stage, recipe: Recipe, run: RunFolder, progress: Progress, count: str
) -> StageResult:
    key = stage_key(stage, recipe, run)
    current = run.is_current(key)
    if current is not None:
        progress.say(f"{count} {stage.name}: up to date")
        return StageResult(stage.name, True, current)
    work = run.open_partial(key)
    progress.say(f"{count} {stage.name}: {stage.caption}")
    started = time.monotonic()
    outcome = stage.run(Context(recipe, run, work, progress))
    seconds = time.monotonic() - started
    manifest = run.finish(key, outcome, round(seconds, 3), round(peak_rss_mb(), 1))
    said = ", ".join(
        f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in outcome.summary.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool) and value != 0
    )
    progress.say(f"      done in {seconds:,.0f} s" + (f": {said}" if said else ""))
    return StageResult(stage.name, False, manifest)


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
                inputs[field] = hash_file(Path(path))
    for field, source in (("teacher", recipe.teacher.model), ("student", recipe.student.source)):
        if stage.name in ("tune", "check", "ask", "train") and source.startswith(("hf:", "gguf:")):
            inputs.update(_local_weights(field, source.partition(":")[2]))
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


def _local_weights(field: str, source: str) -> Iterator[tuple[str, str]]:
    path = Path(source).expanduser()
    if path.is_file():
        yield f"{field} weights", hash_file(path)
    elif path.is_dir():
        for name, digest in hash_folder(path).items():
            if not name.startswith("."):
                yield f"{field} {name}", digest


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
    for stage in stages_of(recipe):
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
        made.get("section") == json.loads(json.dumps(stage.section(recipe)))
        and made.get("seed") == recipe.seed
        and isinstance(inputs, dict)
        and all(
            inputs.get(read) == found for read, found in _stage_inputs(stage, recipe, run).items()
        )
    )


@contextmanager
def _reproducible_threads() -> Iterator[None]:
    """Tokenizer threads warn after a fork; the models' own threads are enough."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = before or "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
