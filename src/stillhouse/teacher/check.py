"""The check before money is spent: how good is the teacher on queries with true answers?

Beside it stands what a linear model reaches on the same labels: a teacher that does not beat it is
not worth distilling. Knows labelled queries and answers; decides nothing, warns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from pydantic import JsonValue

from stillhouse.core.answers import agreed
from stillhouse.core.optional import late
from stillhouse.core.progress import Progress
from stillhouse.core.records import Completion, LabelledQuery, Record
from stillhouse.core.split import near_groups, unit_hash
from stillhouse.core.statistics import Interval, wilson
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.teacher.answers import problem_of, require_usable
from stillhouse.teacher.ask import AskResult

FOLDS: Final = 5


class BaselineCheck(Record):
    """The linear baseline's accuracy, and what it was trained on."""

    accuracy: Interval
    trained_on: int
    how: Literal["separate", "cross_validated"]


class LabelBias(Record):
    """How often a label is true, and how often the teacher says it (`predicted`)."""

    true: int
    predicted: int


class TeacherCheck(Record):
    """What check.json holds. `accuracy` is `None` where the task has no single true answer.

    An answer that is missing or cannot be used counts as wrong. `n` queries were asked.
    """

    teacher: str
    revision: str
    task_kind: str
    n: int
    accuracy: Interval | None = None
    unusable: Interval | None = None
    no_answer: int = 0
    first_problem: str | None = None
    labels: Mapping[str, LabelBias] | None = None
    baseline: BaselineCheck | None = None
    better_than_baseline: bool | None = None
    notes: tuple[str, ...] = ()


def check_teacher(
    task: Task,
    teacher: str,
    revision: str,
    queries: Sequence[LabelledQuery],
    asked: AskResult,
    *,
    training: Sequence[LabelledQuery],
    confidence: float,
    seed: int,
    progress: Progress,
) -> TeacherCheck:
    """Score a teacher's answers to labelled queries.

    Args:
        task: classification or extraction; for generation nothing can be scored.
        teacher: its name, as the recipe gives it.
        revision: of its weights.
        queries: the check set, with true answers.
        asked: what the teacher said to them.
        training: labelled queries the teacher was tuned on, to train the baseline on as well;
            empty: the baseline is cross-validated on the check set.
        confidence: of the intervals.
        seed: of the folds and the baseline.
        progress: where the warning goes.

    Raises:
        UserError: none of the answers can be used.
        ValueError: there is no query.
    """
    if not queries:
        raise ValueError("queries: at least one is needed to check a teacher")
    answers = asked.completions_by_query
    every = [completion for query in queries for completion in answers.get(query.id, ())]
    require_usable(task, teacher, every)
    problems = [problem for c in every if (problem := problem_of(task, c)) is not None]
    found = [_agreed_value(task, answers.get(query.id, ())) for query in queries]
    truth = [task.parse(query.reference).value for query in queries]
    right = sum(
        guess is not None and guess == true for guess, true in zip(found, truth, strict=True)
    )
    accuracy = None if task.kind == "generation" else wilson(right, len(queries), confidence)
    result = TeacherCheck(
        teacher=teacher,
        revision=revision,
        task_kind=task.kind,
        n=len(queries),
        accuracy=accuracy,
        unusable=wilson(len(problems), len(every), confidence) if every else None,
        no_answer=len(asked.failures),
        first_problem=problems[0] if problems else None,
    )
    if isinstance(task, ClassificationTask):
        baseline = linear_baseline(task, queries, training, confidence=confidence, seed=seed)
        assert accuracy is not None
        result = result.model_copy(
            update={
                "labels": _label_bias(task, found, truth),
                "baseline": baseline,
                "better_than_baseline": None
                if baseline is None
                else accuracy.estimate > baseline.accuracy.estimate,
            }
        )
    _tell(result, progress)
    return result


def linear_baseline(
    task: ClassificationTask,
    queries: Sequence[LabelledQuery],
    training: Sequence[LabelledQuery],
    *,
    confidence: float,
    seed: int,
) -> BaselineCheck | None:
    """TF-IDF and logistic regression on the same true labels; `None` with fewer than two texts.

    Without a separate training part: 5-fold cross-validated, equal chats in one fold.
    """
    texts = [task.input_text(query) for query in queries]
    truth = [_label(task, query) for query in queries]
    linear = late("stillhouse.models.tfidf")
    if training:
        model = linear.TfidfBaseline(
            task.labels,
            [task.input_text(query) for query in training],
            [_label(task, query) for query in training],
            seed,
        )
        guesses = model.predict_probabilities(texts).argmax(axis=1)
        right = sum(task.labels[g] == t for g, t in zip(guesses, truth, strict=True))
        return BaselineCheck(
            accuracy=wilson(right, len(texts), confidence),
            trained_on=len(training),
            how="separate",
        )
    fold_of = _folds(queries, seed)
    if len(set(fold_of)) < 2:
        return None
    right = 0
    for fold in sorted(set(fold_of)):
        inside = np.array([f == fold for f in fold_of])
        rest = np.flatnonzero(~inside)
        model = linear.TfidfBaseline(
            task.labels, [texts[i] for i in rest], [truth[i] for i in rest], seed
        )
        held = np.flatnonzero(inside)
        guesses = model.predict_probabilities([texts[i] for i in held]).argmax(axis=1)
        right += sum(task.labels[g] == truth[i] for g, i in zip(guesses, held, strict=True))
    return BaselineCheck(
        accuracy=wilson(right, len(texts), confidence),
        trained_on=len(texts) - len(texts) // FOLDS,
        how="cross_validated",
    )


def _agreed_value(task: Task, completions: Sequence[Completion]) -> JsonValue:
    answer = agreed(task, completions)
    return None if answer is None else task.parse(answer.text).value


def _folds(queries: Sequence[LabelledQuery], seed: int) -> list[int]:
    keys = near_groups(queries)
    order = sorted(set(keys), key=lambda key: (unit_hash(key, seed), key))
    fold = {key: index % FOLDS for index, key in enumerate(order)}
    return [fold[key] for key in keys]


def _label(task: ClassificationTask, query: LabelledQuery) -> str:
    return str(task.parse(query.reference).value)


def _label_bias(
    task: ClassificationTask, found: Sequence[object], truth: Sequence[object]
) -> dict[str, LabelBias]:
    predicted, true = Counter(found), Counter(truth)
    return {label: LabelBias(true=true[label], predicted=predicted[label]) for label in task.labels}


def _tell(check: TeacherCheck, progress: Progress) -> None:
    if check.accuracy is None:
        return
    score = _percent(check.accuracy)
    if check.baseline is None:
        progress.say(f"teacher {check.teacher}: {score} right on {check.n} labelled queries")
        return
    other = _percent(check.baseline.accuracy)
    if check.better_than_baseline:
        progress.say(
            f"teacher {check.teacher}: {score} right on {check.n} labelled queries, "
            f"linear baseline {other}"
        )
        return
    progress.say(
        f"WARNING: teacher {check.teacher} is right on {score} of {check.n} labelled queries, no "
        f"better than the linear baseline's {other}: tune it, choose another, or mend the prompt"
    )


def _percent(interval: Interval) -> str:
    return f"{interval.estimate:.1%} ({interval.low:.1%} to {interval.high:.1%})"
