"""All candidates on one set, side by side: scores, fidelity, calibration, paired comparisons.

Knows answers and references as arrays and texts; does not know files, models or speed.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.scorers import scorers_for
from stillhouse.core.statistics import (
    Interval,
    mcnemar_exact,
    paired_difference,
    paired_ratio,
    proportion,
)
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.evaluate.calibration import expected_calibration_error, reliability_curve
from stillhouse.evaluate.candidates import Answers, EvaluationSet
from stillhouse.evaluate.fidelity import agreement_scores, divergence
from stillhouse.evaluate.gate import Verdict, decide
from stillhouse.evaluate.metrics import Ints, Resampling, confusion, label_indices, macro_f1
from stillhouse.evaluate.results import (
    STUDENT,
    TEACHER,
    TFIDF,
    TWIN,
    Bin,
    CandidateResult,
    McNemarResult,
    SetResult,
)

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Comparison(NamedTuple):
    """A set's result, and the deciding scores per candidate that it rests on."""

    result: SetResult
    scores: Mapping[str, list[float]]
    agreement: list[float]


def compare(
    task: Task, judged: EvaluationSet, others: Mapping[str, Answers], how: Resampling
) -> Comparison:
    """Score the teacher and the other candidates (the student among them) on one set."""
    how = how._replace(groups=judged.groups)
    everyone = {TEACHER: judged.teacher, **others}
    decisive, *further = scorers_for(task)
    scores: dict[str, list[float]] = {}
    candidates: dict[str, CandidateResult] = {}
    for name, answers in everyone.items():
        pairs = list(zip(answers.texts, judged.references, strict=True))
        scores[name] = [decisive.score(a, r) for a, r in pairs]
        metrics = {s.name: _mean([s.score(a, r) for a, r in pairs], how) for s in further}
        candidates[name] = _candidate(
            task, judged, name, answers, scores=scores[name], metrics=metrics, how=how
        )
    result = SetResult(
        name=judged.name,
        reference=judged.reference,
        metric=decisive.name,
        n=len(judged.queries),
        candidates=candidates,
        retention=retention_of(scores[STUDENT], scores[TEACHER], how),
        soft_target_gain=_gain(scores, STUDENT, TWIN, how),
        teacher_over_tfidf=_gain(scores, TEACHER, TFIDF, how),
        mcnemar=_mcnemar(scores[STUDENT], scores[TEACHER]),
        labels=task.labels if isinstance(task, ClassificationTask) else (),
        confusions=_confusions(task, judged, others[STUDENT]),
    )
    agreement = agreement_scores(task, others[STUDENT].texts, judged.teacher.texts)
    return Comparison(result, scores, agreement)


def judge(comparison: Comparison, judged: EvaluationSet, margin: float, how: Resampling) -> Verdict:
    """The gate's verdict on the student of a comparison."""
    return decide(
        comparison.scores[STUDENT],
        comparison.scores[TEACHER],
        margin,
        judged.reference,
        how._replace(groups=judged.groups),
    )


def _candidate(
    task: Task,
    judged: EvaluationSet,
    name: str,
    answers: Answers,
    *,
    scores: Sequence[float],
    metrics: Mapping[str, Interval],
    how: Resampling,
) -> CandidateResult:
    unreadable = sum(task.parse(text).value is None for text in answers.texts)
    agree = None
    if name != TEACHER:
        agree = _mean(agreement_scores(task, answers.texts, judged.teacher.texts), how)
    result = CandidateResult(
        score=_mean(scores, how), metrics=metrics, unreadable=unreadable, agreement=agree
    )
    if not isinstance(task, ClassificationTask):
        return result
    truth, said = _indices(task, judged.references), _indices(task, answers.texts)
    known = truth >= 0
    updates: dict[str, object] = {}
    if known.any():
        f1 = macro_f1(truth[known], said[known], len(task.labels), _only(how, known))
        updates["metrics"] = {**metrics, "macro_f1": f1}
    p = answers.probabilities
    if p is not None:
        if name == TEACHER and judged.reference != "truth":
            return result.model_copy(update=updates)  # its own answers say nothing of its belief
        rows: Mask = known & _believed(p)
        if rows.any():
            some = _only(how, rows)
            updates["calibration_error"] = expected_calibration_error(p[rows], truth[rows], some)
            curve = reliability_curve(p[rows], truth[rows])
            updates["reliability"] = tuple(Bin(**b._asdict()) for b in curve)
        updates["divergence"] = (
            divergence_between(judged.teacher, p, how) if name != TEACHER else None
        )
    return result.model_copy(update=updates)


def divergence_between(teacher: Answers, p: Floats, how: Resampling) -> Interval | None:
    """Mean KL(teacher || p) in nats, over the samples on which both are known; n counts them."""
    if teacher.probabilities is None:
        return None
    rows = _believed(np.hstack([teacher.probabilities, p]))
    if not rows.any():
        return None
    return divergence(teacher.probabilities[rows], p[rows], _only(how, rows))


def _believed(p: Floats) -> Mask:
    """Samples whose belief is known."""
    return np.asarray(np.isfinite(p).all(axis=1), dtype=np.bool_)


def _only(how: Resampling, rows: Mask) -> Resampling:
    """The same resampling on some of the samples."""
    if how.groups is None or rows.all():
        return how
    kept = [g for g, keep in zip(how.groups, rows, strict=True) if keep]
    return how._replace(groups=kept if 1 < len(set(kept)) < len(kept) else None)


def _mean(scores: Sequence[float], how: Resampling) -> Interval:
    return proportion(
        scores, how.confidence, resamples=how.resamples, seed=how.seed, groups=how.groups
    )


def retention_of(top: Sequence[float], bottom: Sequence[float], how: Resampling) -> Interval | None:
    """Mean score over mean score, paired; `None` where the lower one is 0."""
    if sum(bottom) <= 0:
        return None
    return paired_ratio(
        top, bottom, how.confidence, resamples=how.resamples, seed=how.seed, groups=how.groups
    )


def _gain(
    scores: Mapping[str, Sequence[float]], a: str, b: str, how: Resampling
) -> Interval | None:
    if a not in scores or b not in scores:
        return None
    return paired_difference(
        scores[a],
        scores[b],
        how.confidence,
        resamples=how.resamples,
        seed=how.seed,
        groups=how.groups,
    )


def _mcnemar(student: Sequence[float], teacher: Sequence[float]) -> McNemarResult | None:
    if any(score not in (0.0, 1.0) for score in (*student, *teacher)):
        return None
    test = mcnemar_exact(student, teacher)
    return McNemarResult(p_value=test.p_value, student_only=test.only_a, teacher_only=test.only_b)


def _indices(task: ClassificationTask, texts: Sequence[str]) -> Ints:
    values = [task.parse(text).value for text in texts]
    return label_indices(task.labels, [v if isinstance(v, str) else None for v in values])


def _confusions(
    task: Task, judged: EvaluationSet, student: Answers
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Counts as ROWS_by_COLUMNS; samples whose row is no label are left out."""
    if not isinstance(task, ClassificationTask):
        return {}
    teacher_said = _indices(task, judged.teacher.texts)
    student_said = _indices(task, student.texts)
    tables = {"teacher_by_student": (teacher_said, student_said)}
    if judged.reference == "truth":
        truth = _indices(task, judged.references)
        tables["truth_by_student"] = (truth, student_said)
        tables["truth_by_teacher"] = (truth, teacher_said)
    found: dict[str, tuple[tuple[int, ...], ...]] = {}
    for name, (rows, columns) in tables.items():
        known = rows >= 0
        if known.any():
            counts = confusion(rows[known], columns[known], len(task.labels))
            found[name] = tuple(tuple(int(x) for x in row) for row in counts)
    return found
