"""The evaluate stage: teacher, student, twin and baselines judged on the same samples.

Writes evaluation.json (scores and verdict, equal for equal runs), predictions.jsonl, answers/ and
speed.json (measured). Knows the run folder and the Completer seam; opens no teacher itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from stillhouse.core.jsonl import read_records, write_json, write_records
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion
from stillhouse.core.runfolder import Outcome, RunFolder
from stillhouse.evaluate.candidates import (
    Answers,
    EvaluationSet,
    ask,
    baseline_answers,
    fit_baselines,
    load_sets,
)
from stillhouse.evaluate.comparison import Comparison, compare, judge
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.pricing import measure_candidates
from stillhouse.evaluate.results import (
    STUDENT,
    TEACHER,
    TWIN,
    Evaluation,
    GateResult,
    ModelFacts,
    Prediction,
)
from stillhouse.models.completer import Completer

EVALUATION: Final = "evaluation.json"
PREDICTIONS: Final = "predictions.jsonl"
SPEED: Final = "speed.json"
ANSWERS: Final = "answers"


def run_evaluate(
    recipe: Recipe, run: RunFolder, work: Path, progress: Progress, teacher: Completer | None
) -> Outcome:
    """Judge the trained student of a run.

    Args:
        recipe: the whole recipe.
        run: the run folder, in which the stages before this one are finished.
        work: this stage's working folder.
        progress: where to say how far it is.
        teacher: the local teacher, opened, to be timed beside the student; its answers are read
            from the run. `None` for an API teacher, whose speed was measured when it was asked.

    Raises:
        RunFolderError: an earlier stage's artifact is missing or empty.
        MissingExtraError: the student needs a package that is not installed.
    """
    return asyncio.run(_run_evaluate(recipe, run, work, progress, teacher))


async def _run_evaluate(
    recipe: Recipe, run: RunFolder, work: Path, progress: Progress, teacher: Completer | None
) -> Outcome:
    judged = load_sets(recipe, run)
    baselines = fit_baselines(recipe, run)
    how = Resampling(recipe.evaluate.confidence, recipe.evaluate.resamples, recipe.seed)
    student = _open_student(recipe, run.stage("train") / "student")
    twin_folder = run.stage("train") / "twin" / "student"
    twin = _open_student(recipe, twin_folder) if twin_folder.exists() else None
    try:
        answers: dict[str, dict[str, Answers]] = {}
        for one in judged:
            found = answers.setdefault(one.name, {})
            for name, completer in ((STUDENT, student), (TWIN, twin)):
                if completer is not None:
                    found[name] = await ask(
                        completer, one, recipe, folder=work / ANSWERS, progress=progress, name=name
                    )
            for name, baseline in baselines.items():
                found[name] = baseline_answers(recipe.task, baseline, one.queries)
        with progress.bar("intervals", len(judged), "sets") as bar:
            compared: dict[str, Comparison] = {}
            for one in judged:
                compared[one.name] = compare(recipe.task, one, answers[one.name], how)
                bar.advance()
        main = judged[0]
        verdict = judge(compared[main.name], main, recipe.evaluate.margin, how)
        evaluation = Evaluation(
            main=main.name,
            sets=tuple(compared[one.name].result for one in judged),
            gate=GateResult(**verdict._asdict()),
            teacher=_teacher_facts(recipe, teacher, run),
            student=_facts(student, recipe.student.source),
            twin=_facts(twin, recipe.student.source) if twin is not None else None,
            notes=_notes(judged),
        )
        write_json(work / EVALUATION, evaluation.model_dump(mode="json"))
        write_records(
            work / PREDICTIONS,
            (
                line
                for one in judged
                for line in predictions_of(recipe, one, answers[one.name], compared[one.name])
            ),
        )
        speed = await measure_candidates(
            recipe,
            run,
            main.queries,
            student=student,
            teacher=teacher,
            baselines=baselines,
            progress=progress,
        )
        write_json(work / SPEED, speed.model_dump(mode="json"))
    finally:
        await student.aclose()
        if twin is not None:
            await twin.aclose()
    return Outcome(
        summary={
            "verdict": evaluation.gate.verdict,
            "set": main.name,
            "n": evaluation.main_set.n,
            "teacher": round(evaluation.main_set.candidates[TEACHER].score.estimate, 4),
            "student": round(evaluation.main_set.candidates[STUDENT].score.estimate, 4),
        },
        measured=frozenset({SPEED}),
    )


def _open_student(recipe: Recipe, folder: Path) -> Completer:
    module = require("stillhouse.models.student", "train", "evaluating a student")
    student: Completer = module.open_student(
        folder,
        recipe.task,
        recipe.student.head,
        recipe.evaluate.batch_size,
        recipe.train.device,
    )
    return student


def _facts(completer: Completer, name: str) -> ModelFacts:
    """Under the recipe's name: a folder's path is not the same in two runs."""
    info = completer.info
    return ModelFacts(
        name=name,
        revision=info.revision,
        parameters=info.parameters,
        size_bytes=info.size_bytes,
    )


def _teacher_facts(recipe: Recipe, teacher: Completer | None, run: RunFolder) -> ModelFacts:
    if teacher is not None:
        return _facts(teacher, recipe.teacher.title(recipe.task.kind))
    answers = read_records(run.stage("ask") / "completions.jsonl", Completion)
    revision = next((completion.revision for completion in answers), "")
    return ModelFacts(name=recipe.teacher.title(recipe.task.kind), revision=revision)


def _notes(judged: tuple[EvaluationSet, ...]) -> tuple[str, ...]:
    notes: list[str] = []
    if judged[0].reference == "teacher":
        notes.append(
            "no golden set: the teacher's own answers are the reference, its score is 1 by "
            "definition, and the student's score is its agreement with the teacher"
        )
    for one in judged:
        name = one.name.replace("_", "-")
        if one.left_out:
            notes.append(
                f"{name}: {one.left_out} queries without an answer from the teacher are left out"
            )
        if one.groups is not None:
            notes.append(
                f"{name}: near-duplicates stay together, so intervals draw "
                f"{len(set(one.groups))} groups, not {len(one.queries)} samples"
            )
    return tuple(notes)


def predictions_of(
    recipe: Recipe, judged: EvaluationSet, others: Mapping[str, Answers], compared: Comparison
) -> list[Prediction]:
    """What everyone said to each query of a set, a line a query."""
    everyone = {TEACHER: judged.teacher, **others}
    lines: list[Prediction] = []
    for index, query in enumerate(judged.queries):
        beliefs: dict[str, tuple[float, ...]] = {}
        for name, answers in everyone.items():
            if answers.probabilities is not None:
                row = answers.probabilities[index]
                if np.isfinite(row).all():
                    beliefs[name] = tuple(round(float(p), 6) for p in row)
        lines.append(
            Prediction(
                set=judged.name,
                id=query.id,
                text=recipe.task.varying_text(query),
                reference=judged.references[index],
                answers={name: answers.texts[index] for name, answers in everyone.items()},
                probabilities=beliefs,
                agreement=compared.agreement[index],
            )
        )
    return lines
