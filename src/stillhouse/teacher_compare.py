"""`stillhouse teacher compare`: ask several teachers the labelled sample, and say which to take.

Answers go to the run folder's store under each teacher's own name: what is asked here is not paid
again by a run, an ensemble or another comparison. Knows stages and files; the figures are in
`evaluate.teacher_statistics`, the choice in `evaluate.teacher_choice`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from stillhouse.core.errors import DataError, RecipeError
from stillhouse.core.jsonl import read_records, void, write_atomic, write_json, write_records
from stillhouse.core.machine import package_versions
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_compare import OWN, CompareSection
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.core.records import LabelledQuery, Query, Record
from stillhouse.core.rights import check_compared_rights
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.scorers import scorers_for
from stillhouse.core.split import near_groups, tune_check_split
from stillhouse.core.statistics import Interval
from stillhouse.core.tasks import ClassificationTask
from stillhouse.evaluate.candidates import Answers, answers_of
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.pricing import FIGURES_REST_ON
from stillhouse.evaluate.results import CandidateSpeed
from stillhouse.evaluate.speed import Contestant, Speed, measure_speed
from stillhouse.evaluate.teacher_choice import judged_by, recommend
from stillhouse.evaluate.teacher_page import render_comparison
from stillhouse.evaluate.teacher_speed import api_speed, ensemble_speed, local_speed
from stillhouse.evaluate.teacher_statistics import (
    agreement,
    beats_the_majority,
    complementarity,
    differences,
    mean,
    quality,
    scores_of,
)
from stillhouse.evaluate.teachers import Difference, ProbeResult, TeacherComparison, TeacherResult
from stillhouse.models.completer import Completer, Sampling
from stillhouse.pipeline import run_stages
from stillhouse.teacher.check import linear_baseline
from stillhouse.teacher.panel import (
    Answered,
    Asking,
    Panel,
    ask_panel,
    budget_left,
    candidates_of,
    check_openable,
)
from stillhouse.teacher.replay import STORE_FILE
from stillhouse.teacher.store import AnswerStore
from stillhouse.teacher_probe import Lesson, School, Taught, probe_queries, teach
from stillhouse.traffic.stage import hash_sample

FOLDER: Final = "compare"
LABELLED_SET: Final = "labelled sample"
PROBE_SET: Final = "traffic sample"


class TeacherAnswer(Record):
    """One line of compare/answers.jsonl: what every teacher said to one labelled query."""

    id: str
    text: str
    reference: str
    answers: dict[str, str]
    probabilities: dict[str, tuple[float, ...]]


class _Sets(NamedTuple):
    labelled: list[LabelledQuery]
    probe: list[Query]


def compare_teachers(recipe: Recipe, root: Path, progress: Progress) -> TeacherComparison:
    """Compare the recipe's teachers and write compare.json, compare.html and answers.jsonl.

    Args:
        recipe: with a `compare` section.
        root: the run folder; its traffic stage (and tune stage, where the teacher is tuned) are run
            where they are not up to date.
        progress: bars and lines.

    Raises:
        RecipeError: there is no `compare` section.
        UserError: data or keys are missing, or no teacher's answers can be used.
        StillhouseError: asking had to stop; what was answered is kept.
    """
    section = recipe.compare
    if section is None:
        raise RecipeError(
            "compare",
            "is not in the recipe",
            action="name what to compare: compare: {teachers: {NAME: {model: ...}}}",
        )
    check_compared_rights(recipe)
    candidates = candidates_of(recipe, section)
    asyncio.run(check_openable(recipe, candidates))
    tuned_here = recipe.teacher.tune is not None
    run_stages(recipe, root, progress, last="tune" if tuned_here else "traffic")
    run = RunFolder(root)
    tuned = run.stage("tune") / "model" if tuned_here else None
    with run.locked():
        sets = _sets(recipe, section, run)
        both: dict[str, Sequence[Query]] = {LABELLED_SET: sets.labelled, PROBE_SET: sets.probe}
        titled = {title: queries for title, queries in both.items() if queries}

        async def timed(completer: Completer, sampling: Sampling) -> Speed:
            few = sets.labelled[: section.speed_queries]
            return (await measure_speed({"": Contestant(completer, sampling)}, few, 1))[""]

        budget_usd = budget_left(recipe, section, candidates, run.store)
        with AnswerStore(run.store / STORE_FILE) as store:
            asking = Asking(recipe, tuned, store, titled, progress, budget_usd, timed)
            panel = asyncio.run(ask_panel(asking, candidates))
        return _compared(recipe, section, sets, panel, tuned, root, progress)


def _sets(recipe: Recipe, section: CompareSection, run: RunFolder) -> _Sets:
    """The labelled sample (of a tuned teacher: of what it was not tuned on), and the traffic's."""
    path = run.stage("traffic") / "labelled.jsonl"
    labelled = list(read_records(path, LabelledQuery))
    if recipe.teacher.tune is not None:
        labelled = tune_check_split(
            labelled, recipe.teacher.tune.check_fraction, recipe.seed
        ).second
    if not labelled:
        raise DataError(str(path), "holds no labelled query", action="add labelled queries")
    sample = hash_sample(labelled, section.sample, recipe.seed)
    if section.probe is None:
        return _Sets(sample, [])
    traffic = list(read_records(run.stage("traffic") / "queries.jsonl", Query))
    return _Sets(sample, probe_queries(recipe, traffic, sample, section.probe.queries))


def _compared(  # noqa: PLR0917 - what a comparison needs
    recipe: Recipe,
    section: CompareSection,
    sets: _Sets,
    panel: Panel[Speed],
    tuned: Path | None,
    root: Path,
    progress: Progress,
) -> TeacherComparison:
    task, truth = recipe.task, [query.reference for query in sets.labelled]
    groups = near_groups(sets.labelled)
    alike = 1 < len(set(groups)) < len(groups)
    how = Resampling(
        recipe.evaluate.confidence,
        recipe.evaluate.resamples,
        recipe.seed,
        groups if alike else None,
    )
    answers = {name: _answers(recipe, one, sets.labelled) for name, one in panel.answered.items()}
    scores = {name: scores_of(task, said, truth) for name, said in answers.items()}
    notes = _notes(recipe, sets, panel, alike)
    taught: dict[str, dict[str, Taught]] = {name: {} for name in panel.answered}
    if section.probe is not None and sets.probe:
        lessons = {
            name: Lesson(
                recipe.teacher.model_copy(update={"signals": _signals(one), "members": ()}),
                one.results[1].completions_by_query,
                one.results[1].failures,
            )
            for name, one in panel.answered.items()
        }
        believed = all(said.probabilities is not None for said in answers.values())
        school = School(
            recipe,
            sets.probe,
            sets.labelled,
            believed,
            tuned,
            root / FOLDER / "probe.partial",
            progress,
        )
        taught, silent = teach(school, lessons, section.probe.student)
        notes.extend(silent)
    teachers: dict[str, TeacherResult] = {}
    with progress.bar("intervals", len(answers), "teachers") as bar:
        for name, one in panel.answered.items():
            teachers[name] = _result(recipe, one, answers[name], taught[name], sets, how)
            bar.advance()
    probe_scores = {
        kind: {
            name: scores_of(task, probes[kind].answers, truth)
            for name, probes in taught.items()
            if kind in probes
        }
        for kind in dict.fromkeys(kind for probes in taught.values() for kind in probes)
    }
    probed = {kind: differences(each, how) for kind, each in probe_scores.items()}
    telling = [
        kind for kind, each in probe_scores.items() if beats_the_majority(task, each, truth, how)
    ]
    notes.extend(
        f"no {kind} probe student is significantly better than always giving the most frequent "
        "label, so they decide nothing: give compare.probe more queries"
        for kind in probed
        if kind not in telling
    )
    own = differences(scores, how)
    by = judged_by(teachers, telling)
    deciding: tuple[Difference, ...] = own if by == "teacher" else probed[by]
    singles = tuple(name for name, one in panel.answered.items() if not one.members)
    together = [singles] if len(singles) > 1 else []
    together += [
        t.members for t in teachers.values() if t.members and set(t.members) < set(singles)
    ]
    found = TeacherComparison(
        name=recipe.name,
        task=task.name,
        kind=task.kind,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        metric=scorers_for(task)[0].name,
        n=len(sets.labelled),
        confidence=how.confidence,
        margin=recipe.evaluate.margin,
        teachers=teachers,
        failed=panel.failed,
        differences=own,
        probe_differences=probed,
        agreement=agreement(task, answers, scores),
        complementarity=tuple(
            complementarity(task, of, answers, scores, how) for of in dict.fromkeys(together)
        ),
        baseline=_baseline(recipe, sets.labelled),
        recommendation=recommend(
            teachers,
            deciding,
            {
                name: section.section_of(
                    name, recipe.teacher if name == OWN else _own(recipe, tuned)
                )
                for name in teachers
            },
            by=by,
            margin=recipe.evaluate.margin,
            own=own,
        ),
        usd_paid=_paid(panel),
        notes=tuple(notes),
        versions=package_versions(*FIGURES_REST_ON),
    )
    folder = root / FOLDER
    write_records(folder / "answers.jsonl", _lines(recipe, sets.labelled, answers))
    write_atomic(folder / "compare.html", lambda page: void(page.write(render_comparison(found))))
    write_json(folder / "compare.json", found.model_dump(mode="json"))
    return found


def _answers(recipe: Recipe, one: Answered[Speed], queries: Sequence[Query]) -> Answers:
    """A query without an answer has an empty text, which scores 0."""
    said = one.results[0].completions_by_query
    known = [query for query in queries if said.get(query.id)]
    some = answers_of(recipe.task, [said[query.id] for query in known], _signals(one))
    texts = dict(zip((query.id for query in known), some.texts, strict=True))
    rows = None
    if some.probabilities is not None:
        by_id = dict(zip((query.id for query in known), some.probabilities, strict=True))
        blank = np.full(some.probabilities.shape[1], np.nan)
        rows = np.array([by_id.get(query.id, blank) for query in queries])
    return Answers(tuple(texts.get(query.id, "") for query in queries), rows)


def _signals(one: Answered[Speed]) -> str:
    """An ensemble's beliefs are in its answers."""
    return "auto" if one.members else one.candidate.members[0][1].signals


def _result(  # noqa: PLR0917
    recipe: Recipe,
    one: Answered[Speed],
    answers: Answers,
    taught: Mapping[str, Taught],
    sets: _Sets,
    how: Resampling,
) -> TeacherResult:
    truth = [query.reference for query in sets.labelled]
    found = quality(recipe.task, answers, truth, how)
    candidate = one.candidate
    return TeacherResult(
        model=candidate.model,
        revision=one.info.revision,
        members=tuple(name for name, _ in candidate.members) if candidate.how else (),
        combine=candidate.how,
        score=found.score,
        metrics=found.metrics,
        no_answer=sum(text == "" for text in answers.texts),
        unreadable=found.unreadable,
        calibration_error=found.calibration_error,
        brier=found.brier,
        speed=_speed(recipe, one),
        probes={
            kind: ProbeResult(
                score=mean(scores_of(recipe.task, probe.answers, truth), how),
                trained_on=probe.trained_on,
            )
            for kind, probe in taught.items()
        },
    )


def _speed(recipe: Recipe, one: Answered[Speed]) -> CandidateSpeed:
    if one.members:
        return ensemble_speed(
            [_speed(recipe, member) for member in one.members],
            [member.info.local for member in one.members],
        )
    if one.timing is not None:
        return local_speed(one.timing, recipe.prices)
    said = [s for result in one.results for s in result.completions_by_query.values()]
    return api_speed(
        one.candidate.model,
        said,
        asked=sum(result.asked for result in one.results),
        seconds=sum(result.seconds for result in one.results),
        prices=recipe.prices,
    )


def _own(recipe: Recipe, tuned: Path | None) -> TeacherSection:
    """The recipe's own teacher as an ensemble can name it: a tuned one by its folder."""
    if tuned is None:
        return recipe.teacher
    return recipe.teacher.model_copy(update={"model": f"hf:{tuned}"})


def _baseline(recipe: Recipe, labelled: Sequence[LabelledQuery]) -> Interval | None:
    if not isinstance(recipe.task, ClassificationTask):
        return None
    found = linear_baseline(
        recipe.task, labelled, (), confidence=recipe.evaluate.confidence, seed=recipe.seed
    )
    return None if found is None else found.accuracy


def _paid(panel: Panel[Speed]) -> float:
    """Each distinct answer once, whoever used it."""
    paid = {
        key: usd
        for one in panel.answered.values()
        for result in one.results
        for key, usd in result.usd_by_key.items()
    }
    return sum(paid.values())


def _notes(recipe: Recipe, sets: _Sets, panel: Panel[Speed], alike: bool) -> list[str]:
    notes: list[str] = []
    if recipe.teacher.tune is not None:
        notes.append("judged on the part of the labelled set that the teacher was not tuned on")
    if alike:
        notes.append(
            "near-duplicates stay together, so intervals and tests draw groups of queries, "
            f"{len(set(near_groups(sets.labelled)))} in number"
        )
    if recipe.task.kind == "generation":
        notes.append(
            "scores are ROUGE-L against the labelled texts: alike in wording, not in worth"
        )
    for name, one in panel.answered.items():
        silent = len(one.results[0].failures)
        if silent:
            notes.append(f"{name} gave no answer to {silent} labelled queries; they score 0")
    return notes


def _lines(
    recipe: Recipe, queries: Sequence[LabelledQuery], answers: Mapping[str, Answers]
) -> list[TeacherAnswer]:
    lines: list[TeacherAnswer] = []
    for index, query in enumerate(queries):
        beliefs = {
            name: tuple(round(float(p), 6) for p in said.probabilities[index])
            for name, said in answers.items()
            if said.probabilities is not None and np.isfinite(said.probabilities[index]).all()
        }
        lines.append(
            TeacherAnswer(
                id=query.id,
                text=recipe.task.varying_text(query),
                reference=query.reference,
                answers={name: said.texts[index] for name, said in answers.items()},
                probabilities=beliefs,
            )
        )
    return lines
