"""`stillhouse frontier`: students of several sizes, quality against cost, and which one to take.

Trains each on the same answers, judges all on the same samples, times all in turns, and takes the
cheapest whose lower bound passes the gate. Writes frontier.json, frontier.html and frontier.svg
into the run folder's `frontier/`, beside one run folder a student. Knows stages and files; the
choice is in `evaluate.frontier_choice`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import yaml

from stillhouse.core.errors import DataError, RecipeError, UserError
from stillhouse.core.jsonl import void, write_atomic, write_json
from stillhouse.core.money import HOUR_S, machine_usd_per_hour
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.statistics import paired_difference
from stillhouse.evaluate.build import read_evaluation
from stillhouse.evaluate.candidates import EvaluationSet, load_sets
from stillhouse.evaluate.frontier_choice import choose, corrected, efficient, verdict_of
from stillhouse.evaluate.frontier_page import frontier_chart, render_frontier
from stillhouse.evaluate.gate import decide
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.results import TEACHER, CandidateSpeed
from stillhouse.evaluate.size_curve import size_fit, size_words
from stillhouse.evaluate.studies import FrontierStudy, SizedStudent, Step
from stillhouse.pipeline import run_stages
from stillhouse.study_curve import common
from stillhouse.study_drafts import drafted_by, drafts_in
from stillhouse.study_forms import judged_forms, of_form, of_student, of_trainings
from stillhouse.study_repeats import over_words, repeated
from stillhouse.study_speeds import speeds_of
from stillhouse.train.extractive import check_labelled
from stillhouse.variants import Ran, Variant, check_variant, run_shared, run_variant, varied

FOLDER: Final = "frontier"
SIZES: Final = ("light", "medium", "heavy")


def sized_variants(recipe: Recipe, sizes: Sequence[str], students: Sequence[str]) -> list[Variant]:
    """The variants asked for.

    Args:
        recipe: the recipe.
        sizes: of `student.size`: light, medium, heavy, or a share as 0.33 or 33%.
        students: further students, each as `key=value,...` of the section `student`.

    Raises:
        UserError: one that cannot be read or does not fit, or none at all.
    """
    found: dict[str, Variant] = {}
    for size in dict.fromkeys(sizes):
        keys: dict[str, Any] = {"size": _size(size), "layers": None}
        found[size] = Variant(_folder(size), _of_study(recipe, keys))
    for text in dict.fromkeys(students):
        found[text] = Variant(_folder(text), _of_study(recipe, _keys(text)))
    names = [variant.name for variant in found.values()]
    if len(set(names)) < len(names):
        raise RecipeError("--student", "two students would share a folder", value=students)
    if not found:
        raise RecipeError("--sizes", "names no student", action="give light,medium,heavy")
    return list(found.values())


def _of_study(recipe: Recipe, keys: Mapping[str, Any]) -> Recipe:
    """A variant; the twin, which would double the work, is left to `stillhouse run`."""
    made = varied(recipe, {"student": keys, "train": {"hard_label_twin": False}})
    drafts = drafts_in(recipe) if made.student.head == "text" else None
    return made if drafts is None else varied(made, {"speculate": drafts})


def _size(text: str) -> str | float:
    if text in SIZES:
        return text
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise RecipeError(
            "--sizes", "must be light, medium, heavy or a share as 0.33", value=text
        ) from None


def _keys(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load("{" + text.replace("=", ": ") + "}")
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not found or None in found.values():
        raise RecipeError("--student", "needs key=value,... of the section student", value=text)
    return found


def _folder(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._%-]+", "-", text).strip("-.") or "student"


def run_frontier(
    recipe: Recipe,
    root: Path,
    variants: Sequence[Variant],
    progress: Progress,
    repeats: int = 1,
) -> FrontierStudy:
    """Draw the recipe's frontier in a run folder.

    Args:
        recipe: the recipe.
        root: its run folder.
        variants: the students, of `sized_variants`.
        progress: what is said meanwhile.
        repeats: trainings of each, which differ in `train.seed`.

    Raises:
        UserError: the recipe, its data or every student cannot be used.
        StillhouseError: a stage failed; what is finished stays, and the same command goes on.
    """
    left_out: dict[str, str] = {}
    fit = _usable(variants, check_variant, left_out, progress)
    # A variant of another head asks more of the labelled set than the recipe, which is run first.
    run_stages(recipe, root, progress, last="traffic")
    traffic = RunFolder(root).stage("traffic")
    fit = _usable(fit, partial(check_labelled, traffic=traffic), left_out, progress)
    run = run_shared(recipe, fit, root, progress)
    folder = root / FOLDER
    ran: list[Ran] = []
    further: dict[str, list[Ran]] = {}
    with run.locked():
        for number, variant in enumerate(fit, start=1):
            made: list[Ran] = []
            try:
                for one in repeated(variant, repeats):
                    progress.say(f"frontier {number}/{len(fit)}: {one.name}")
                    made.append(run_variant(one, run, folder, progress))
            except UserError as error:
                if len(fit) == 1:
                    raise
                left_out[variant.name] = str(error)
                progress.say(f"frontier: {variant.name} is left out: {error}")
            else:
                ran.append(made[0])
                further[variant.name] = made[1:]
        if not ran:
            raise DataError(
                "frontier",
                f"no student could be trained; the first: {next(iter(left_out.values()))}",
            )
        main = load_sets(recipe, run)[0]
        speeds = speeds_of(recipe, run, ran, main, folder, progress)
        study = _study(recipe, run, ran, main, speeds, left_out, further)
        write_json(folder / "frontier.json", study.model_dump(mode="json"))
        chart = frontier_chart(study)
        write_atomic(folder / "frontier.svg", lambda file: void(file.write(str(chart))))
        write_atomic(
            folder / "frontier.html", lambda file: void(file.write(render_frontier(study)))
        )
    return study


def _usable(
    variants: Sequence[Variant],
    check: Callable[[Recipe], None],
    left_out: dict[str, str],
    progress: Progress,
) -> list[Variant]:
    """The variants that pass a check, before anything is paid; why others do not is noted.

    Raises:
        UserError: none does.
    """
    found: list[Variant] = []
    for variant in variants:
        try:
            check(variant.recipe)
        except UserError as error:
            if len(variants) == 1:
                raise
            left_out[variant.name] = str(error)
            progress.say(f"frontier: {variant.name} is left out: {error}")
        else:
            found.append(variant)
    if not found:
        raise DataError(
            "frontier", f"no student can be made; the first: {next(iter(left_out.values()))}"
        )
    return found


def _study(  # noqa: PLR0917 - what a study is made of
    recipe: Recipe,
    run: RunFolder,
    ran: Sequence[Ran],
    main: EvaluationSet,
    speeds: Mapping[str, CandidateSpeed],
    left_out: Mapping[str, str],
    further: Mapping[str, Sequence[Ran]] | None = None,
) -> FrontierStudy:
    judged = judged_forms(recipe, ran, main, further)
    trainings = {one.variant.name: (one, *(further or {}).get(one.variant.name, ())) for one in ran}
    repeats = max(map(len, trainings.values()))
    report = ran[0].report
    how = Resampling(
        recipe.evaluate.confidence, recipe.evaluate.resamples, recipe.seed, main.groups
    )
    strict = how._replace(confidence=corrected(how.confidence, len(judged)))
    gate = partial(decide, margin=recipe.evaluate.margin, reference=main.reference)
    teacher = speeds.get(TEACHER)
    teacher_usd = teacher.usd_per_1k if teacher else report.cost.teacher_usd_per_1k
    teacher_qps = teacher.qps if teacher else report.speed.teacher_qps
    ask = run.manifest("ask")
    answers_usd = 0.0 if ask is None else ask.cost_usd
    hour = machine_usd_per_hour(recipe.prices).usd_per_hour
    students: dict[str, SizedStudent] = {}
    for one in judged:
        name, made, form = one.name, one.ran.report, one.form
        speed = speeds[name]
        several = trainings[one.ran.variant.name] if one.trainings else (one.ran,)
        seconds = fmean(each.report.seconds["train"] for each in several)
        train_usd = seconds / HOUR_S * hour
        evaluation = read_evaluation(RunFolder(one.ran.root))
        saved = (
            None
            if teacher_usd is None or speed.usd_per_1k is None
            else (teacher_usd - speed.usd_per_1k) / 1000
        )
        said = of_student(made, evaluation) if form is None else of_form(form, main.name)
        bounds = [gate(one.student, one.teacher, how=strict)]
        if one.trainings:
            mean = gate(one.student, one.teacher, how=how)
            said |= of_trainings(one, several, mean, how)
            bounds.append(gate(one.trainings[0], one.teacher, how=strict))
        students[name] = SizedStudent(
            name=name,
            folder=name if form is None else f"{one.ran.variant.name}/compress/{form.folder}",
            parameters=made.student.parameters,
            share=made.size.ratio,
            **said,
            corrected_low=min(bound.difference.low for bound in bounds),
            passes_corrected=all(
                v == "pass" for v in (said["verdict"], *(b.verdict for b in bounds))
            ),
            qps=speed.qps,
            speedup=speed.qps / teacher_qps if speed.qps and teacher_qps else None,
            latency_p50_ms=speed.latency_p50_ms,
            latency_p95_ms=speed.latency_p95_ms,
            usd_per_1k=speed.usd_per_1k,
            train_seconds=seconds,
            train_usd=train_usd,
            break_even_queries=math.ceil((answers_usd + train_usd) / saved)
            if saved is not None and saved > 0
            else None,
            efficient=True,
        )
    sources = {one.variant.name: one.variant.recipe.student.source for one in ran}
    judged.sort(key=lambda one: -(one.ran.report.student.parameters or 0))
    ordered = efficient([students[one.name] for one in judged])
    chosen = choose(ordered)
    steps = tuple(
        Step(
            larger=larger.ran.variant.name,
            smaller=smaller.ran.variant.name,
            difference=paired_difference(
                larger.student,
                smaller.student,
                how.confidence,
                resamples=how.resamples,
                seed=how.seed,
                groups=how.groups,
            ),
        )
        for larger, smaller in pairwise([one for one in judged if one.form is None])
    )
    plain = {one.name for one in judged if one.form is None}
    own = {name for name in plain if sources[name] == recipe.student.source}
    sized = [one for one in ordered if one.name in own]
    fit = size_fit(sized, report.teacher.parameters, how.confidence)
    return FrontierStudy(
        **common(recipe, report),
        over=over_words(len(main.queries), repeats),
        notes=(*_notes(recipe, teacher is not None, repeats), *report.notes),
        teacher_parameters=report.teacher.parameters,
        teacher_qps=teacher_qps,
        teacher_usd_per_1k=teacher_usd,
        answers_usd=answers_usd,
        machine_usd_per_hour=hour,
        students=tuple(ordered),
        drafted=drafted_by(ran, teacher, hour),
        fit=fit,
        bigger=size_words(fit, len({one.parameters for one in sized})),
        steps=steps,
        left_out=dict(left_out),
        chosen=None if chosen is None else chosen.name,
        firm=chosen is not None and chosen.passes_corrected,
        verdict=verdict_of(
            ordered, chosen, report.teacher.score, how.confidence, recipe.evaluate.margin
        ),
    )


def _notes(recipe: Recipe, timed: bool, repeats: int) -> list[str]:
    notes: list[str] = []
    if repeats > 1 and (recipe.compress is not None or drafts_in(recipe) is not None):
        notes.append("compressed forms and drafts are of each size's first training alone")
    if not timed:
        notes.append("the teacher was timed when it was asked, not beside the students")
    if recipe.train.hard_label_twin:
        notes.append("no hard-label twins were trained here")
    return notes
