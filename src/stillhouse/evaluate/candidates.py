"""Who is judged, on which samples: the evaluation sets and the candidates' answers to them.

Reads the run folder of earlier stages and asks students through the Completer seam. Knows no
metric and no verdict.

Shapes: N samples, C classes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from stillhouse.core.answers import agreed
from stillhouse.core.beliefs import class_probabilities
from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_records, write_records
from stillhouse.core.optional import late
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Example, LabelledQuery, Query
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.split import part_of, unit_hash
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.evaluate.results import MAJORITY, TFIDF, SetName
from stillhouse.models.baselines import Baseline, MajorityBaseline
from stillhouse.models.completer import Completer, Sampling

Item = TypeVar("Item", Query, LabelledQuery, Example)
Floats = npt.NDArray[np.float64]
CHUNK: Final = 512  # answers a killed evaluation keeps are written in pieces of this many


class Answers(NamedTuple):
    """What one candidate said to a set's queries, in their order.

    Rows of `probabilities` are NaN where a belief is not known; `None` where none is.
    """

    texts: tuple[str, ...]
    probabilities: Floats | None  # [N, C]


class EvaluationSet(NamedTuple):
    """Queries with references. `groups` is `None` where samples are independent.

    `left_out` queries had no answer from the teacher: nothing can be compared with it there.
    """

    name: SetName
    reference: Literal["truth", "teacher"]
    queries: tuple[Query, ...]
    references: tuple[str, ...]
    teacher: Answers
    groups: tuple[str, ...] | None
    left_out: int


def load_sets(recipe: Recipe, run: RunFolder) -> tuple[EvaluationSet, ...]:
    """The golden set (if there is one) and the held-out set, each with the teacher's answers.

    Raises:
        RunFolderError: the teacher answered no golden query, or neither set has samples.
    """
    sets = [s for s in (_golden(recipe, run), _held_out(recipe, run)) if s is not None]
    if not sets:
        raise RunFolderError(f"{run.root}: neither a golden nor a held-out sample to evaluate on")
    return tuple(sets)


def _golden(recipe: Recipe, run: RunFolder) -> EvaluationSet | None:
    path = run.stage("traffic") / "golden.jsonl"
    if not path.exists():
        return None
    queries = _at_most(list(read_records(path, LabelledQuery)), recipe)
    if not queries:
        return None
    answers: dict[str, list[Completion]] = {}
    source = run.stage("ask") / "golden_completions.jsonl"
    for completion in read_records(source, Completion):
        answers.setdefault(completion.query_id, []).append(completion)
    answered = [q for q in queries if q.id in answers]
    if not answered:
        raise RunFolderError(f"{source}: holds no teacher answer to the golden set")
    missing, queries = len(queries) - len(answered), answered
    return EvaluationSet(
        name="golden",
        reference="truth",
        queries=tuple(queries),
        references=tuple(q.reference for q in queries),
        teacher=answers_of(
            recipe.task, [answers[q.id] for q in queries], recipe.teacher.answer_signals
        ),
        groups=None,
        left_out=missing,
    )


def _held_out(recipe: Recipe, run: RunFolder) -> EvaluationSet | None:
    path = run.stage("dataset") / "held_out.jsonl"
    if not path.exists():
        return None
    examples = _at_most(list(read_records(path, Example)), recipe)
    if not examples:
        return None
    texts = tuple(e.label if e.label is not None else e.completion for e in examples)
    groups = tuple(e.group for e in examples)
    several = 1 < len(set(groups)) < len(groups)
    return EvaluationSet(
        name="held_out",
        reference="teacher",
        queries=tuple(e.to_query() for e in examples),
        references=texts,
        teacher=Answers(texts, _stack(recipe.task, [e.label_probabilities for e in examples])),
        groups=groups if several else None,
        left_out=0,
    )


def _at_most(items: list[Item], recipe: Recipe) -> list[Item]:
    """At most `evaluate.max_queries` of the items, chosen by seed and id, kept in order."""
    limit = recipe.evaluate.max_queries
    if limit is None or len(items) <= limit:
        return items
    chosen = sorted(items, key=lambda item: (unit_hash(item.id, recipe.seed), item.id))[:limit]
    kept = {item.id for item in chosen}
    return [item for item in items if item.id in kept]


def answers_of(task: Task, samples: Sequence[Sequence[Completion]], signals: str) -> Answers:
    """Answers and beliefs from each query's completions.

    Where a query was asked several times, the answer is the one that most samples give. Where none
    can be read, it is the first sample's text, which scores 0.
    """
    texts = tuple(_answer(task, completions) for completions in samples)
    if not isinstance(task, ClassificationTask):
        return Answers(texts, None)
    return Answers(texts, _stack(task, [class_probabilities(task, c, signals) for c in samples]))


def _answer(task: Task, completions: Sequence[Completion]) -> str:
    chosen = agreed(task, completions) or min(completions, key=lambda c: c.sample)
    return chosen.text


def _stack(task: Task, rows: Sequence[Sequence[float] | None]) -> Floats | None:
    if not isinstance(task, ClassificationTask) or all(row is None for row in rows):
        return None
    unknown = [float("nan")] * len(task.labels)
    return np.array([unknown if row is None else row for row in rows], dtype=np.float64)


def sampling_for(recipe: Recipe) -> Sampling:
    """How students are asked: one answer, the most likely one, within the task's form."""
    task = recipe.task
    return Sampling(
        max_tokens=recipe.teacher.max_tokens,
        labels=task.labels if task.kind == "classification" else (),
        json_schema=task.json_schema if task.kind == "extraction" else None,
        seed=recipe.seed,
    )


async def ask(
    completer: Completer,
    judged: EvaluationSet,
    recipe: Recipe,
    *,
    folder: Path,
    progress: Progress,
    name: str,
) -> Answers:
    """A completer's answers to a set, kept in `folder` piece by piece, under the name given here.

    A killed evaluation reads the finished pieces back instead of asking again. Pieces are formed
    from the queries alone, so batches, and with them the answers, are the same either way.
    """
    return answers_of(
        recipe.task,
        [
            [completion]
            for completion in await ask_kept(
                completer, judged, recipe, folder=folder, progress=progress, name=name
            )
        ],
        "auto",
    )


async def ask_kept(
    completer: Completer,
    judged: EvaluationSet,
    recipe: Recipe,
    *,
    folder: Path,
    progress: Progress,
    name: str,
) -> list[Completion]:
    """The completions behind `ask`, one a query, in order."""
    sampling = sampling_for(recipe)
    completions: list[Completion] = []
    title = f"{name} answers {judged.name.replace('_', '-')}"
    with progress.bar(title, len(judged.queries), "queries") as bar:

        async def one(query: Query) -> Completion:
            completion = (await completer.complete(query, sampling))[0]
            bar.advance()
            return completion.model_copy(
                update={"model": name, "latency_ms": None, "cost_usd": None}
            )

        for number, piece in enumerate(_pieces(judged.queries)):
            path = folder / f"{name}.{judged.name}.{number:04d}.jsonl"
            if path.exists():
                bar.advance(len(piece))
            else:
                write_records(path, await asyncio.gather(*(one(query) for query in piece)))
            completions.extend(read_records(path, Completion))
    return completions


def _pieces(queries: Sequence[Query]) -> Iterator[Sequence[Query]]:
    for start in range(0, len(queries), CHUNK):
        yield queries[start : start + CHUNK]


def fit_baselines(recipe: Recipe, run: RunFolder) -> dict[str, Baseline]:
    """Majority and TF-IDF baselines, fitted on the student's own training examples.

    Empty for tasks without closed labels: neither baseline can write.
    """
    task = recipe.task
    if not isinstance(task, ClassificationTask):
        return {}
    every = list(read_records(run.stage("dataset") / "train.jsonl", Example))
    learnt = part_of(every, recipe.train.examples, recipe.training_seed)
    train = [e for e in learnt if e.label is not None]
    if not train:
        raise RunFolderError(f"{run.stage('dataset')}/train.jsonl: no example has a label")
    answers = [e.label for e in train if e.label is not None]
    texts = [task.varying_text(e.to_query()) for e in train]
    linear = late("stillhouse.models.tfidf")
    return {
        MAJORITY: MajorityBaseline(task.labels, answers),
        TFIDF: linear.TfidfBaseline(task.labels, texts, answers, recipe.seed),
    }


def baseline_answers(task: Task, baseline: Baseline, queries: Sequence[Query]) -> Answers:
    """What a baseline says to a set: its most probable label."""
    assert isinstance(task, ClassificationTask), "baselines know closed labels only"
    probabilities = baseline.predict_probabilities([task.varying_text(q) for q in queries])
    return Answers(tuple(task.labels[i] for i in probabilities.argmax(axis=1)), probabilities)
