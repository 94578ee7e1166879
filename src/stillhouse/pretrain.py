"""Run a corpus recipe: corpus, teacher (if it is adapted), train, evaluate, then the report.

Each stage leaves a folder with a manifest, as the stages of `pipeline` do: what is up to date is
skipped, what was killed goes on. Does not know how any stage works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.corpus import TRAIN, Passage
from stillhouse.core.errors import DataError, RecipeError
from stillhouse.core.jsonl import read_json, read_records, write_json
from stillhouse.core.machine import package_versions, this_machine
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_corpus import CorpusRecipe
from stillhouse.core.runfolder import (
    Manifest,
    Outcome,
    RunFolder,
    StageKey,
)
from stillhouse.core.section_dump import dump_section
from stillhouse.core.stage_files import hash_file
from stillhouse.dataset.corpus import run_corpus
from stillhouse.pipeline import local_weights, reproducible_threads, run_one, up_to_date
from stillhouse.stages import STATISTICS_PACKAGES, TORCH_PACKAGES

RECIPE_FILE: Final = "corpus_recipe.json"
REPORT: Final = "report.json"
_MODULE: Final = "stillhouse.train.corpus_stage"


class CorpusContext(NamedTuple):
    """What a stage may use."""

    recipe: CorpusRecipe
    run: RunFolder
    work: Path
    progress: Progress

    @property
    def adapted(self) -> Path | None:
        """The adapted teacher's folder, where there is one."""
        return self.run.stage("teacher") / "model" if self.recipe.teacher.adapt else None


@dataclass(frozen=True, slots=True)
class CorpusStage:
    """One stage: what it reads of others, the part of the recipe it depends on, and its call."""

    name: str
    caption: str
    reads: tuple[str, ...]
    section: Callable[[CorpusRecipe], Mapping[str, Any]]
    run: Callable[[CorpusContext], Outcome]
    packages: tuple[str, ...] = ()


class CorpusResult(NamedTuple):
    """What came of one stage."""

    name: str
    skipped: bool
    manifest: Manifest


def _train_module() -> Any:
    return require(_MODULE, "train", "training on a corpus")


def _models() -> Any:
    return require("stillhouse.train.corpus_models", "train", "training on a corpus")


def _adapt(c: CorpusContext) -> Outcome:
    found: Outcome = _train_module().run_adapt(c.recipe, c.run.stage("corpus"), c.work, c.progress)
    return found


def _train(c: CorpusContext) -> Outcome:
    found: Outcome = _train_module().run_corpus_train(
        c.recipe, c.run.stage("corpus"), c.adapted, c.work, c.progress
    )
    return found


def _evaluate(c: CorpusContext) -> Outcome:
    found: Outcome = _train_module().run_corpus_evaluate(
        c.recipe,
        c.run.stage("corpus"),
        c.adapted,
        c.run.stage("train"),
        c.work,
        progress=c.progress,
    )
    return found


def _dump(section: Any, *without: str) -> dict[str, Any]:
    return dump_section(section, without=set(without))


def _masking(recipe: CorpusRecipe) -> dict[str, Any]:
    """What decides how texts become rows."""
    return {
        "kind": recipe.objective.kind,
        "mask_share": recipe.objective.mask_share,
        "max_tokens": recipe.corpus.max_tokens,
    }


CORPUS_STAGES: Final[tuple[CorpusStage, ...]] = (
    CorpusStage(
        "corpus",
        "read the texts and divide them",
        (),
        lambda r: {"corpus": _dump(r.corpus, "path", "max_tokens")},
        lambda c: run_corpus(c.recipe.corpus, c.recipe.seed, c.work, c.progress),
        ("datasketch", "numpy"),
    ),
    CorpusStage(
        "teacher",
        "train the teacher on the corpus",
        ("corpus",),
        lambda r: {
            **_masking(r),
            "teacher": _dump(r.teacher),
            "train": _dump(r.train, "untaught_twin", "epochs", "learning_rate", "evals"),
        },
        _adapt,
        TORCH_PACKAGES,
    ),
    CorpusStage(
        "train",
        "train the student",
        ("corpus", "teacher"),
        lambda r: {
            **_masking(r),
            "teacher": r.teacher.model,
            "student": _dump(r.student),
            "objective": _dump(r.objective),
            "train": _dump(r.train),
        },
        _train,
        TORCH_PACKAGES,
    ),
    CorpusStage(
        "evaluate",
        "score teacher and student on the test texts",
        ("corpus", "teacher", "train"),
        lambda r: {
            **_masking(r),
            "teacher": r.teacher.model,
            "evaluate": _dump(r.evaluate, "zero_shot"),
        },
        _evaluate,
        (*TORCH_PACKAGES, *STATISTICS_PACKAGES),
    ),
)


def corpus_stages_of(recipe: CorpusRecipe) -> tuple[CorpusStage, ...]:
    """The stages this recipe needs, in order."""
    return tuple(
        stage
        for stage in CORPUS_STAGES
        if stage.name != "teacher" or recipe.teacher.adapt is not None
    )


def run_pretrain(
    recipe: CorpusRecipe, root: Path, progress: Progress, last: str = "evaluate"
) -> list[CorpusResult]:
    """Run the stages up to and including `last`, skipping what is up to date.

    Raises:
        UserError: something the user wrote or supplied cannot be used.
        StillhouseError: a stage failed; what is finished stays and is not done again.
    """
    plan = corpus_stages_of(recipe)
    names = [stage.name for stage in plan]
    if last not in names:
        raise RecipeError(
            "--until", "this recipe has no such stage", value=last, action=f"use {', '.join(names)}"
        )
    run = RunFolder(root)
    results: list[CorpusResult] = []
    with run.locked(), reproducible_threads():
        checked = False
        write_json(root / RECIPE_FILE, recipe.model_dump(mode="json", by_alias=True))
        for number, stage in enumerate(plan[: names.index(last) + 1], start=1):
            key = _key(stage, recipe, run)
            count = f"[{number}/{len(plan)}] {stage.name}"
            current = up_to_date(run, key, count, progress)
            if current is not None:
                results.append(CorpusResult(stage.name, True, current))
                continue
            if stage.name in ("teacher", "train") and not checked:
                cut = _models().check_corpus_student(recipe, training_texts(run)).cut
                for line in () if cut is None else cut.lines():
                    progress.say(f"      student: {line}")
                checked = True
            progress.say(f"{count}: {stage.caption}")
            call = partial(_call, stage, recipe, run, progress)
            results.append(CorpusResult(stage.name, False, run_one(run, key, progress, call)))
    return results


def training_texts(run: RunFolder) -> list[str]:
    """What the student will be trained on, once the corpus is divided."""
    path = run.stage("corpus") / f"{TRAIN}.jsonl"
    return [passage.text for passage in read_records(path, Passage)]


def _call(
    stage: CorpusStage, recipe: CorpusRecipe, run: RunFolder, progress: Progress, work: Path
) -> Outcome:
    return stage.run(CorpusContext(recipe, run, work, progress))


def pretrain_report(recipe: CorpusRecipe, root: Path) -> dict[str, Any]:
    """Write `report.json` of a finished run from its artifacts, and return it."""
    run = RunFolder(root)
    evaluation = read_json(run.stage("evaluate") / "evaluation.json")
    seconds = {}
    for stage in corpus_stages_of(recipe):
        manifest = run.manifest(stage.name)
        assert manifest is not None, "all stages are finished"
        seconds[stage.name] = manifest.seconds
    report: dict[str, Any] = {
        "name": recipe.name,
        "seed": recipe.seed,
        "machine": this_machine()._asdict(),
        "teacher": recipe.teacher.model,
        "adapted": recipe.teacher.adapt is not None,
        "corpus": read_json(run.stage("corpus") / "corpus.json"),
        "student": str(run.stage("train") / "student"),
        **evaluation,
        "speed": read_json(run.stage("evaluate") / "speed.json"),
        "training": read_json(run.stage("train") / "train.json"),
        "seconds": seconds,
    }
    write_json(root / REPORT, report)
    return report


def _key(stage: CorpusStage, recipe: CorpusRecipe, run: RunFolder) -> StageKey:
    inputs: dict[str, str] = {}
    planned = [one.name for one in corpus_stages_of(recipe)]
    for name in stage.reads:
        manifest = run.manifest(name) if name in planned else None
        if manifest is not None:
            inputs[name] = manifest.output_hash
    if stage.name == "corpus":
        inputs["corpus"] = _hash(recipe.corpus.path, "corpus.path")
    else:
        for field, source in (
            ("teacher", recipe.teacher.model),
            ("student", recipe.student.source),
        ):
            if source.startswith("hf:") and not (field == "student" and stage.name == "teacher"):
                inputs.update(local_weights(field, source))
    if stage.name == "evaluate" and recipe.evaluate.zero_shot is not None:
        inputs["zero_shot"] = _hash(recipe.evaluate.zero_shot, "evaluate.zero_shot")
    return StageKey(
        stage=stage.name,
        inputs=inputs,
        section=stage.section(recipe),
        versions=package_versions("stillhouse", *stage.packages),
        seed=recipe.seed,
    )


def _hash(path: str, field: str) -> str:
    try:
        return hash_file(Path(path))
    except OSError as error:
        raise DataError(
            field, f"cannot be read: {error.strerror}", value=path, action="check the path"
        ) from None
