"""Teachers side by side on one labelled sample: scores, paired tests, agreement, complementarity.

Knows answers and true answers; does not know who was asked how, nor what is recommended.

Shapes: N samples, C classes, T teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.multiplicity import holm, paired_test
from stillhouse.core.scorers import scorers_for
from stillhouse.core.statistics import Interval, bootstrap_mean, paired_difference, proportion
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.evaluate.calibration import expected_calibration_error
from stillhouse.evaluate.candidates import Answers
from stillhouse.evaluate.fidelity import agreement_scores
from stillhouse.evaluate.metrics import Ints, Resampling, label_indices, macro_f1
from stillhouse.evaluate.teachers import Agreement, Complementarity, Difference

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Quality(NamedTuple):
    """How good one teacher's answers are."""

    score: Interval
    metrics: dict[str, Interval]
    unreadable: int
    calibration_error: Interval | None
    brier: Interval | None


def scores_of(task: Task, answers: Answers, references: Sequence[str]) -> list[float]:
    """The deciding score of each answer, shape [N]."""
    score = scorers_for(task)[0].score
    return [score(a, r) for a, r in zip(answers.texts, references, strict=True)]


def quality(task: Task, answers: Answers, references: Sequence[str], how: Resampling) -> Quality:
    """Scores, further metrics and calibration of one teacher."""
    decisive, *further = scorers_for(task)
    pairs = list(zip(answers.texts, references, strict=True))
    metrics = {s.name: mean([s.score(a, r) for a, r in pairs], how) for s in further}
    score = mean([decisive.score(a, r) for a, r in pairs], how)
    # An empty text is no answer at all: it is counted apart.
    unreadable = sum(text != "" and task.parse(text).value is None for text in answers.texts)
    if not isinstance(task, ClassificationTask):
        return Quality(score, metrics, unreadable, None, None)
    truth = indices(task, references)
    metrics["macro_f1"] = macro_f1(truth, indices(task, answers.texts), len(task.labels), how)
    if answers.probabilities is None:
        return Quality(score, metrics, unreadable, None, None)
    known: Mask = np.asarray(np.isfinite(answers.probabilities).all(axis=1))
    if not known.any():
        return Quality(score, metrics, unreadable, None, None)
    p, y = answers.probabilities[known], truth[known]
    groups = how.groups
    if groups is not None and not known.all():
        kept = [g for g, keep in zip(groups, known, strict=True) if keep]
        how = how._replace(groups=kept if 1 < len(set(kept)) < len(kept) else None)
    return Quality(
        score,
        metrics,
        unreadable,
        expected_calibration_error(p, y, how),
        _bootstrapped(brier_scores(p, y), how),
    )


def brier_scores(probabilities: Floats, truth: Ints) -> Floats:
    """sum_c (p_c - [c = truth])^2 per sample, shape [N]; 0 is best, 2 is worst (Brier 1950).

    How far soft targets are from the truth in the sense that bounds what a student can learn of
    them (Menon et al. 2021), which accuracy does not see.
    """
    right = np.zeros_like(probabilities)
    right[np.arange(len(truth)), truth] = 1.0
    found: Floats = ((probabilities - right) ** 2).sum(axis=1)
    return found


def differences(scores: Mapping[str, Sequence[float]], how: Resampling) -> tuple[Difference, ...]:
    """All pairs, tested on the same samples; p-values adjusted by Holm over all of them.

    All pairs, not only those with the best: which one is best was read off the same sample, and
    this family holds whichever it is.
    """
    pairs = list(combinations(scores, 2))
    tests = [paired_test(scores[a], scores[b], groups=how.groups, seed=how.seed) for a, b in pairs]
    adjusted = holm([test.p_value for test in tests])
    return tuple(
        Difference(
            a=a,
            b=b,
            difference=difference(scores[a], scores[b], how),
            p_value=test.p_value,
            p_holm=p_holm,
            significant=p_holm <= 1 - how.confidence,
            method=test.method,
        )
        for (a, b), test, p_holm in zip(pairs, tests, adjusted, strict=True)
    )


def beats_the_majority(
    task: Task,
    scores: Mapping[str, Sequence[float]],
    references: Sequence[str],
    how: Resampling,
) -> bool:
    """Whether some of these is significantly better than always saying the most frequent label.

    Holm over all of them. For tasks without closed labels there is no such answer: always true.
    """
    if not isinstance(task, ClassificationTask):
        return True
    truth = indices(task, references)
    constant = (truth == np.bincount(truth).argmax()).astype(np.float64)
    tests = [paired_test(s, constant, groups=how.groups, seed=how.seed) for s in scores.values()]
    adjusted = holm([test.p_value for test in tests])
    return any(
        p <= 1 - how.confidence and float(np.mean(one)) > constant.mean()
        for p, one in zip(adjusted, scores.values(), strict=True)
    )


def agreement(
    task: Task, answers: Mapping[str, Answers], scores: Mapping[str, Sequence[float]]
) -> Agreement:
    """The T x T matrices. An answer that cannot be read agrees with nothing, itself aside."""
    names = tuple(answers)
    texts = [answers[name].texts for name in names]
    same = [
        [1.0 if a is b else float(np.mean(agreement_scores(task, a, b))) for b in texts]
        for a in texts
    ]
    wrong = [np.asarray(scores[name]) < 0.5 for name in names]
    kappa = None
    if isinstance(task, ClassificationTask):
        said = [indices(task, one) for one in texts]
        kappa = tuple(tuple(cohen_kappa(a, b, len(task.labels)) for b in said) for a in said)
    return Agreement(
        names=names,
        agreement=tuple(tuple(row) for row in same),
        kappa=kappa,
        both_wrong=None
        if task.kind == "generation"
        else tuple(tuple(float((a & b).mean()) for b in wrong) for a in wrong),
    )


def cohen_kappa(a: Ints, b: Ints, classes: int) -> float | None:
    """(p_o - p_e) / (1 - p_e): agreement beyond that of two who answer by their rates alone.

    Over samples that both answered (Cohen 1960). `None` without such a sample, or where both always
    say one and the same label.
    """
    both = (a >= 0) & (b >= 0)
    if not both.any():
        return None
    table = np.bincount(a[both] * classes + b[both], minlength=classes**2).reshape(classes, classes)
    shares = table / table.sum()
    chance = float(shares.sum(axis=1) @ shares.sum(axis=0))
    if chance >= 1.0:
        return None
    return (float(np.trace(shares)) - chance) / (1.0 - chance)


def complementarity(
    task: Task,
    of: Sequence[str],
    answers: Mapping[str, Answers],
    scores: Mapping[str, Sequence[float]],
    how: Resampling,
) -> Complementarity:
    """What the best answer of several teachers to each query would score, and where all agree."""
    table = np.array([scores[name] for name in of])
    best = max(of, key=lambda name: float(np.mean(scores[name])))
    top = table.max(axis=0)
    alike: Floats | None = None
    if task.kind != "generation":
        first = answers[of[0]].texts
        alike = np.min([agreement_scores(task, answers[name].texts, first) for name in of], axis=0)
    inside = alike == 1.0 if alike is not None else None
    some = how
    if inside is not None and how.groups is not None:
        kept = [g for g, keep in zip(how.groups, inside, strict=True) if keep]
        some = how._replace(groups=kept if 1 < len(set(kept)) < len(kept) else None)
    return Complementarity(
        of=tuple(of),
        oracle=mean(top, how),
        best=best,
        gain=_not_negative(difference(top, scores[best], how)),
        all_agree=None if alike is None else mean(alike, how),
        score_where_all_agree=mean(table[0][inside], some)
        if inside is not None and inside.any()
        else None,
    )


def _not_negative(gain: Interval) -> Interval:
    """The best answer to each query is never worse than one member's."""
    return gain.model_copy(update={"low": max(0.0, gain.low)})


def mean(scores: Sequence[float] | Floats, how: Resampling) -> Interval:
    """Mean with its interval."""
    return proportion(
        np.asarray(scores, dtype=np.float64),
        how.confidence,
        resamples=how.resamples,
        seed=how.seed,
        groups=how.groups,
    )


def difference(
    a: Sequence[float] | Floats, b: Sequence[float] | Floats, how: Resampling
) -> Interval:
    """mean(a) - mean(b), paired, with its interval."""
    return paired_difference(
        np.asarray(a, dtype=np.float64),
        np.asarray(b, dtype=np.float64),
        how.confidence,
        resamples=how.resamples,
        seed=how.seed,
        groups=how.groups,
    )


def indices(task: ClassificationTask, texts: Sequence[str]) -> Ints:
    """Index of the label each text names, shape [N]; -1 where it names none."""
    values = [task.parse(text).value for text in texts]
    return label_indices(task.labels, [v if isinstance(v, str) else None for v in values])


def _bootstrapped(values: Floats, how: Resampling) -> Interval:
    return bootstrap_mean(
        values, how.confidence, resamples=how.resamples, seed=how.seed, groups=how.groups
    )
