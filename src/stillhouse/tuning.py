"""`stillhouse tune`: search a recipe's training settings, choose on a split of the training
examples, and say on the held-out sets what the choice was worth.

The stages up to the dataset (and the capture, where the recipe has one) are run where they are not
up to date, in the run's own folder; trials never open what is held out. At the end the recipe as it
is and the best trial, both trained on the same examples, answer the held-out sets once. Writes
study.db, tune.json, tune.html and tuned.yaml in the run's folder `tuning/`, and there a run folder
`run/`, in which that recipe finds what was asked already. Knows stages and files; trials are in
`train.search_run`, figures in `evaluate`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from stillhouse.core.errors import RecipeError, RunFolderError
from stillhouse.core.jsonl import read_json, void, write_atomic, write_json
from stillhouse.core.machine import package_versions
from stillhouse.core.money import machine_usd_per_hour
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.core.recipe_tune import SearchSection
from stillhouse.core.rights import check_rights
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.candidates import Answers, EvaluationSet, ask, load_sets
from stillhouse.evaluate.comparison import compare
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.pricing import FIGURES_REST_ON
from stillhouse.evaluate.results import STUDENT, TEACHER, TWIN
from stillhouse.evaluate.search import HeldOutResult, Spread, TrialResult, TuneResult
from stillhouse.evaluate.search_figures import notes_of, parameter_result
from stillhouse.evaluate.search_page import render_search
from stillhouse.models.completer import Completer
from stillhouse.pipeline import local_models, local_readers, local_weights, run_stages
from stillhouse.stages import stages_of
from stillhouse.train.search_space import Parameter, space_of, with_values
from stillhouse.variants import link_shared

FOLDER: Final = "tuning"
STUDY: Final = "study.db"
RESULT: Final = "tune.json"
PAGE: Final = "tune.html"
TUNED: Final = "tuned.yaml"
TUNED_RUN: Final = "run"
JUDGED: Final = "judged.json"
TRIALS: Final = "trials"


class _Found(NamedTuple):
    """The best trial, and the recipe as it is where that was finished."""

    best: Any
    own: Any | None


def tune_recipe(recipe: Recipe, root: Path, progress: Progress) -> TuneResult:
    """Search, judge, and write the results and the recipe that came out.

    Args:
        recipe: with or without a `tune` section.
        root: the run folder.
        progress: bars and lines.

    Raises:
        UserError: a key, value, student or dataset that cannot be used; found before the teacher is
            asked where it can be.
        BudgetError: not one trial was finished within the budget.
        StillhouseError: a stage failed; what is finished stays.
    """
    section = recipe.tune or SearchSection()
    if recipe.train.distributed is not None and recipe.train.distributed.world_size > 1:
        raise RecipeError(
            "train.distributed",
            "trials are trained in one process",
            action="search a smaller student, or leave train.distributed out while tuning",
        )
    runs = require("stillhouse.train.search_run", "tune", "tuning")
    space = space_of(recipe, section)
    _check_students(recipe, space)
    last = "capture" if recipe.train.signals == "cache" else "dataset"
    check_rights(recipe, [stage.name for stage in stages_of(recipe)])
    run_stages(recipe, root, progress, last=last)
    run = RunFolder(root)
    data = runs.tuning_data(run.stage("dataset"), section, recipe)
    price = machine_usd_per_hour(recipe.prices)
    seconds = _budget(section, price.usd_per_hour)
    name = _study_name(recipe, section, space, run)
    folder = root / FOLDER
    with run.locked():
        folder.mkdir(exist_ok=True)
        search = runs.Search(folder / STUDY, name, space, section, recipe.seed)
        try:
            ground = runs.Ground(
                recipe,
                space,
                section,
                data,
                run.stage("tune") / "model" if recipe.teacher.tune is not None else None,
                run.stage("capture") if recipe.train.signals == "cache" else None,
                folder / TRIALS / name,
                seconds,
            )
            progress.say(
                f"tune: {len(space)} settings, at most {section.trials} trials on "
                f"{len(data.train):,} examples, judged on {len(data.held_out):,}"
            )
            if there := search.begun():
                done = sum(one.state != "unfinished" for one in there)
                stopped = ", and one that was interrupted" if done < len(there) else ""
                progress.say(f"tune: goes on after {done} trials that are there{stopped}")
            tried, stopped_by = runs.run_search(search, ground, progress)
            with progress.bar("sensitivity", None, ""):
                importance = search.importance(seed=recipe.seed)
        finally:
            search.close()
        found = _Found(runs.best_of(tried), runs.own_of(tried))
        if found.best is None:
            raise RunFolderError(
                f"tune: none of {len(tried)} trials was finished; see the reasons above, and give "
                "narrower ranges in tune.search"
            )
        sets = _judged(recipe, run, ground.folder, found, runs, progress)
        looks = _count_look(folder / JUDGED, name, found.best.number)
        trials = tuple(TrialResult(**one._asdict()) for one in tried)
        tuned = with_values(recipe, found.best.values) if not found.best.own else recipe
        result = TuneResult(
            name=recipe.name,
            task=recipe.task.name,
            study=name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            measure=runs.measure_of(recipe, section),
            train=len(data.train),
            tuning=len(data.held_out),
            tuning_groups=len({example.group for example in data.held_out}),
            best=found.best.number,
            own=None if found.own is None else found.own.number,
            trials=trials,
            parameters=tuple(
                parameter_result(
                    one.key,
                    own=one.own,
                    ends=None if one.choices else (one.low, one.high),
                    log=one.log,
                    choices=one.choices,
                    trials=trials,
                    best=trials[found.best.number],
                    importance=None
                    if importance is None
                    else Spread(**importance[one.key]._asdict()),
                )
                for one in space
            ),
            sets=sets,
            held_out_looks=looks,
            seconds=round(sum(one.seconds for one in tried), 1),
            budget_seconds=seconds,
            usd=sum(one.seconds for one in tried) / 3600 * price.usd_per_hour,
            usd_per_hour=price.usd_per_hour,
            stopped_by=stopped_by,
            notes=(),
            versions=package_versions(*FIGURES_REST_ON, "optuna"),
        )
        result = result.model_copy(update={"notes": notes_of(result)})
        text = recipe_text(tuned, result)
        write_atomic(folder / TUNED, lambda file: void(file.write(text)))
        page = render_search(result)
        write_atomic(folder / PAGE, lambda file: void(file.write(page)))
        write_json(folder / RESULT, result.model_dump(mode="json"))
        link_shared(parse_recipe(yaml.safe_load(text), TUNED), run, folder / TUNED_RUN)
    return result


def recipe_text(tuned: Recipe, result: TuneResult) -> str:
    """The recipe with the values that were found, as YAML; its paths are absolute."""
    raw = tuned.model_copy(update={"tune": None}).model_dump(
        mode="json", by_alias=True, exclude_defaults=True
    )
    if parse_recipe(raw, TUNED) != tuned.model_copy(update={"tune": None}):
        raw = tuned.model_dump(mode="json", by_alias=True, exclude={"tune"})
    best = result.trial(result.best)
    head = (
        f"# Trial {best.number + 1} of {len(result.trials)} of `stillhouse tune`, chosen on "
        f"{result.tuning:,} examples by {result.measure.replace('_', ' ')}.\n"
    )
    return head + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _check_students(recipe: Recipe, space: Sequence[Parameter]) -> None:
    """Every student that is searched can be built, before the teacher is paid."""
    preflight = require("stillhouse.train.preflight", "train", "training")
    preflight.check_student(recipe)
    for one in space:
        if one.key.startswith(("student.", "train.lora.target_modules")):
            for value in one.tried:
                preflight.check_student(with_values(recipe, {one.key: value}))


def _budget(section: SearchSection, usd_per_hour: float) -> float | None:
    """Seconds of training, the smaller of both budgets; what costs nothing has no budget in USD."""
    limits = [] if section.budget_s is None else [section.budget_s]
    if section.budget_usd is not None:
        if usd_per_hour == 0:
            raise RecipeError(
                "tune.budget_usd",
                "prices.machine_usd_per_hour is 0: training costs nothing",
                value=section.budget_usd,
                action="give the machine a price, or use tune.budget_s",
            )
        limits.append(section.budget_usd / usd_per_hour * 3600)
    return min(limits) if limits else None


def _study_name(
    recipe: Recipe, section: SearchSection, space: Sequence[Parameter], run: RunFolder
) -> str:
    """A hash of all that trials depend on: equal searches share a study, others get a new one.

    The number of trials and the budget are no part of it: raising them goes on.
    """
    read = {
        name: manifest.output_hash
        for name in ("tune", "dataset", "capture")
        if (manifest := run.manifest(name)) is not None
    }
    said = {
        "read": read,
        "task": recipe.task.model_dump(mode="json"),
        "student": recipe.student.model_dump(mode="json", by_alias=True),
        "train": recipe.train.model_dump(mode="json"),
        "teacher": [*recipe.teacher.sources, recipe.teacher.chat_template],
        "weights": {
            name: digest
            for field, source in (*local_models(recipe), *local_readers(recipe))
            for name, digest in local_weights(field, source)
        },
        "space": [[one.key, one.low, one.high, one.log, list(one.choices)] for one in space],
        "how": section.model_dump(
            mode="json", exclude={"search", "trials", "budget_s", "budget_usd"}
        ),
        "seed": recipe.seed,
        "versions": package_versions("stillhouse", "torch", "transformers", "peft", "optuna"),
    }
    text = json.dumps(said, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def _judged(  # noqa: PLR0917
    recipe: Recipe, run: RunFolder, trials: Path, found: _Found, runs: Any, progress: Progress
) -> tuple[HeldOutResult, ...]:
    """The recipe's own student and the best one on the sets that nothing was chosen by."""
    sets = load_sets(recipe, run)
    same = found.own is not None and found.own.number == found.best.number
    read = [run.manifest(name) for name in ("traffic", "ask", "dataset")]
    kept = hashlib.sha256("".join(m.output_hash for m in read if m).encode()).hexdigest()[:12]
    who = [found.best] if same or found.own is None else [found.own, found.best]

    async def all_answers() -> dict[int, dict[str, Answers]]:
        answers: dict[int, dict[str, Answers]] = {}
        for one in who:
            folder = runs.trial_folder(trials, one.number)
            applied = recipe if one.own else with_values(recipe, one.values)
            student = _open(applied, folder / "student")
            try:
                answers[one.number] = {
                    each.name: await ask(
                        student,
                        each,
                        recipe,
                        folder=folder / "answers" / kept,
                        progress=progress,
                        name=f"trial {one.number + 1}",
                    )
                    for each in sets
                }
            finally:
                await student.aclose()
        return answers

    answers = asyncio.run(all_answers())
    how = Resampling(recipe.evaluate.confidence, recipe.evaluate.resamples, recipe.seed)
    own = None if found.own is None else answers[found.own.number]
    return tuple(
        _held_out(recipe, each, answers[found.best.number][each.name], own, how) for each in sets
    )


def _held_out(
    recipe: Recipe,
    judged: EvaluationSet,
    best: Answers,
    own: Mapping[str, Answers] | None,
    how: Resampling,
) -> HeldOutResult:
    both = {STUDENT: best} if own is None else {STUDENT: best, TWIN: own[judged.name]}
    found = compare(recipe.task, judged, both, how).result
    first, second = found.candidates[STUDENT], found.candidates.get(TWIN)
    assert first.agreement is not None, "a student is always compared with its teacher"
    return HeldOutResult(
        name=judged.name,
        reference=found.reference,
        metric=found.metric,
        n=found.n,
        teacher=found.candidates[TEACHER].score,
        own=None if second is None else second.score,
        best=first.score,
        gain=found.soft_target_gain,  # student minus twin, paired: here best minus own
        own_agreement=None if second is None else second.agreement,
        best_agreement=first.agreement,
        own_divergence=None if second is None else second.divergence,
        best_divergence=first.divergence,
    )


def _open(recipe: Recipe, folder: Path) -> Completer:
    module = require("stillhouse.models.student", "train", "evaluating a student")
    student: Completer = module.open_student(
        folder, recipe.task, recipe.student.head, recipe.evaluate.batch_size, recipe.train.device
    )
    return student


def _count_look(path: Path, study: str, best: int) -> int:
    """How many different students were judged on the held-out sets of this run, this one too."""
    stored: Any = read_json(path) if path.exists() else {"judged": []}
    seen: list[str] = list(stored["judged"])
    mark = f"{study} {best}"
    if mark not in seen:
        seen.append(mark)
        write_json(path, {"judged": seen})
    return len(seen)
