"""`stillhouse curve`: quality against the number of teacher examples, and what more would bring.

Trains the recipe's student on nested parts of one dataset, judges all on the same samples, fits a
learning curve and sets it against the price of an answer. Writes curve.json, curve.html and
curve.svg into the run folder's `curve/`, beside one run folder a student. Knows stages and files;
the fit is in `core.learning_curve`, the sums in `evaluate.worth`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.errors import DataError, RunFolderError
from stillhouse.core.jsonl import read_json, void, write_atomic, write_json
from stillhouse.core.learning_curve import CurveFit
from stillhouse.core.machine import package_versions
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.candidates import load_sets
from stillhouse.evaluate.comparison import retention_of
from stillhouse.evaluate.curve_page import curve_chart, render_curve
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.pricing import FIGURES_REST_ON
from stillhouse.evaluate.report import Report
from stillhouse.evaluate.size_curve import curve_through
from stillhouse.evaluate.studies import (
    AnswerCost,
    CurveMean,
    CurvePoint,
    CurveStudy,
    Fit,
    FitPoint,
)
from stillhouse.evaluate.worth import reach_of, steps_from, verdict_of, worth_most
from stillhouse.study_forms import judged_together
from stillhouse.study_repeats import deviation, mean_of, over_words, seeds_of
from stillhouse.variants import Ran, Variant, check_variant, run_shared, run_variant, varied

FOLDER: Final = "curve"
HALVINGS: Final = 4  # sizes where none are given: all, a half, ... a sixteenth
DRAWN: Final = 41
REACHES: Final = 4.0  # how far beyond the largest size the curve is drawn


class Options(NamedTuple):
    """What is asked for beyond the recipe.

    `sizes` are numbers of training examples (none: all and its halves); `repeats` trainings of each
    differ in seed and in the choice of examples; with `same_steps` each takes as many optimizer
    steps as the whole would; `point_usd` is what a point of quality is worth.
    """

    sizes: tuple[int, ...] = ()
    repeats: int = 1
    same_steps: bool = False
    point_usd: float | None = None


class _Planned(NamedTuple):
    examples: int
    seed: int
    variant: Variant


def run_curve(recipe: Recipe, root: Path, options: Options, progress: Progress) -> CurveStudy:
    """Draw the recipe's data curve in a run folder.

    Raises:
        UserError: the recipe, its data or a size cannot be used.
        StillhouseError: a stage failed; what is finished stays, and the same command goes on.
    """
    whole = Variant("all", _of_study(recipe, {}))
    check_variant(whole.recipe)
    run = run_shared(recipe, [whole], root, progress)
    there = int(str(read_json(run.stage("dataset") / "dataset.json")["train"]))
    sizes, notes = _sizes(options.sizes, there)
    planned = list(_planned(recipe, sizes, there, options))
    folder = root / FOLDER
    ran: list[tuple[_Planned, Ran]] = []
    with run.locked():
        for number, one in enumerate(planned, start=1):
            progress.say(
                f"curve {number}/{len(planned)}: a student of {one.examples:,} examples"
                + (f", seed {one.seed}" if options.repeats > 1 else "")
            )
            ran.append((one, run_variant(one.variant, run, folder, progress)))
            study = _study(recipe, run, ran, there, options, notes, done=number == len(planned))
            write_json(folder / "curve.json", study.model_dump(mode="json"))
        chart = curve_chart(study)
        write_atomic(folder / "curve.svg", lambda file: void(file.write(str(chart))))
        write_atomic(folder / "curve.html", lambda file: void(file.write(render_curve(study))))
    return study


def _of_study(recipe: Recipe, train: dict[str, Any]) -> Recipe:
    """A variant; the twin, which would double the work, is left to `stillhouse run`."""
    # Smaller forms say nothing of how many answers are worth paying for.
    plain = recipe.model_copy(update={"compress": None})
    return varied(plain, {"train": {"hard_label_twin": False, **train}})


def _sizes(wanted: Sequence[int], there: int) -> tuple[list[int], list[str]]:
    """The sizes that can be tried, in rising order, and what is to be said of the others."""
    notes: list[str] = []
    if any(size < 2 for size in wanted):
        raise DataError("--sizes", "must each be at least 2", value=min(wanted))
    given = wanted or [math.ceil(there / 2**halving) for halving in range(HALVINGS + 1)]
    too_large = sorted({size for size in given if size > there})
    if too_large:
        notes.append(
            f"there are {there:,} training examples: in the place of "
            f"{', '.join(f'{size:,}' for size in too_large)} stands all of them"
        )
    return sorted({min(size, there) for size in given if size >= 2}), notes


def _planned(
    recipe: Recipe, sizes: Sequence[int], there: int, options: Options
) -> Iterator[_Planned]:
    for size in sizes:
        for repeat, seed in enumerate(seeds_of(recipe, options.repeats)):
            train: dict[str, Any] = {"examples": size, "seed": seed}
            if options.same_steps:
                train["epochs"] = recipe.train.epochs * there / size
            name = f"{size:07d}" + (f"-seed{seed}" if repeat else "")
            yield _Planned(size, seed, Variant(name, _of_study(recipe, train)))


def _study(  # noqa: PLR0917 - what a study is made of
    recipe: Recipe,
    run: RunFolder,
    ran: Sequence[tuple[_Planned, Ran]],
    there: int,
    options: Options,
    notes: Sequence[str],
    *,
    done: bool,
) -> CurveStudy:
    points = tuple(_point(one, made) for one, made in ran)
    report = ran[-1][1].report
    cost = answer_cost(recipe, run, report)
    study = CurveStudy(
        **common(recipe, report),
        notes=(*notes, *_notes(recipe, options), *report.notes),
        all_examples=there,
        same_steps=options.same_steps,
        points=points,
        over=over_words(report.n, options.repeats),
        fit=None,
        cost=cost,
        point_usd=options.point_usd,
        verdict=(f"not finished: {len(points)} students so far; the same command goes on",),
    )
    if not done:
        return study
    if options.repeats > 1:
        study = study.model_copy(update={"means": _means(recipe, run, ran)})
    try:
        fit = fitted(points, recipe.evaluate.confidence)
    except ValueError as error:
        said = f"no curve can be fitted, so nothing is said of more answers: {error}"
        return study.model_copy(update={"verdict": (said,)})
    more = steps_from(fit, there, cost)
    target = report.teacher.score.estimate - recipe.evaluate.margin
    reach = reach_of(fit, there, target, cost)
    worth = None if options.point_usd is None else worth_most(fit, there, cost, options.point_usd)
    return study.model_copy(
        update={
            "fit": _drawn(fit, points),
            "more": more,
            "reach": reach,
            "worth": worth,
            "verdict": verdict_of(
                there, fit, more, reach, report.teacher.score.estimate, options.point_usd, worth
            ),
        }
    )


def _means(
    recipe: Recipe, run: RunFolder, ran: Sequence[tuple[_Planned, Ran]]
) -> tuple[CurveMean, ...]:
    """Each size's trainings together."""
    main = load_sets(recipe, run)[0]
    how = Resampling(
        recipe.evaluate.confidence, recipe.evaluate.resamples, recipe.seed, main.groups
    )
    found = []
    for examples in dict.fromkeys(one.examples for one, _ in ran):
        own = [made for one, made in ran if one.examples == examples]
        judged = judged_together(recipe, own, main)
        found.append(
            CurveMean(
                examples=examples,
                trainings=len(own),
                score=mean_of(judged.student, how),
                retention=retention_of(judged.student, judged.teacher, how),
                deviation=deviation(judged.trainings),
            )
        )
    return tuple(found)


def _point(one: _Planned, made: Ran) -> CurvePoint:
    report = made.report
    linear = report.baselines.tfidf
    return CurvePoint(
        examples=one.examples,
        seed=one.seed,
        folder=one.variant.name,
        score=report.student.score,
        agreement=report.fidelity.agreement,
        retention=report.retention,
        verdict=report.gate.verdict,
        linear=None if linear is None else linear.score,
        train_seconds=report.seconds["train"],
    )


def fitted(points: Sequence[CurvePoint], confidence: float) -> CurveFit:
    """The learning curve through the students.

    Raises:
        ValueError: fewer than three sizes.
    """
    return curve_through(
        [point.examples for point in points], [point.score for point in points], confidence
    )


def _drawn(fit: CurveFit, points: Sequence[CurvePoint]) -> Fit:
    low, high = points[0].examples, points[-1].examples
    span = REACHES * high / low
    grid = sorted({round(low * span ** (k / (DRAWN - 1))) for k in range(DRAWN)} | {high})
    return Fit(
        ceiling=fit.ceiling,
        ceiling_known=fit.ceiling_known,
        exponent=fit.exponent,
        amount=fit.amount,
        drawn=tuple(FitPoint(examples=n, score=fit.at(n), beyond=n > high) for n in grid),
    )


def common(recipe: Recipe, report: Report) -> dict[str, Any]:
    """What every study says of its recipe, from one of its reports."""
    return {
        "name": recipe.name,
        "task": report.task,
        "kind": report.kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "metric": report.metric,
        "reference": report.reference,
        "n": report.n,
        "confidence": recipe.evaluate.confidence,
        "margin": recipe.evaluate.margin,
        "teacher": report.teacher.score,
        "teacher_name": report.teacher.name,
        "versions": package_versions(*FIGURES_REST_ON),
    }


def answer_cost(recipe: Recipe, run: RunFolder, report: Report) -> AnswerCost:
    """What an answer cost: what was paid for those of this run, else the teacher's price."""
    ask, counts = run.manifest("ask"), read_json(run.stage("dataset") / "dataset.json")
    if ask is None:
        raise RunFolderError(f"{run.root}: the ask stage is not finished")
    queries = int(str(ask.summary["queries"]))
    golden = report.dataset.golden or 0
    if ask.cost_usd > 0:
        price: float | None = ask.cost_usd / (queries + golden)
        source = "paid for the answers of this run"
    else:
        per_1k = report.cost.teacher_usd_per_1k
        samples = 1 if recipe.teacher.local else recipe.teacher.samples
        price = None if per_1k is None else samples * per_1k / 1000
        source = (
            report.cost.machine_price_source
            if recipe.teacher.local
            else "the teacher's price for its mean answer"
        )
    return AnswerCost(
        usd_per_answer=price,
        answers_per_example=int(str(counts["queries"])) / int(str(counts["train"])),
        source=source,
    )


def _notes(recipe: Recipe, options: Options) -> Iterator[str]:
    if options.same_steps:
        yield "every size was trained as many optimizer steps as the whole would be"
    else:
        yield (
            f"every size was trained {recipe.train.epochs:g} epochs, so small ones took fewer steps"
            ": a part of the rise may be steps, not examples; --same-steps tells them apart"
        )
    if recipe.train.hard_label_twin:
        yield "no hard-label twins were trained here"
