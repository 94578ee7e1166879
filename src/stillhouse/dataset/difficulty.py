"""How hard each query is, by what there is to tell: belief, disagreement, or length.

One measure for all queries, so that they compare; a higher value is harder. Knows answers, not
which of them were kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from stillhouse.core.answers import agreed
from stillhouse.core.beliefs import class_probabilities
from stillhouse.core.records import Completion, Query
from stillhouse.core.tasks import ClassificationTask, GenerationTask, Task, canonical_json
from stillhouse.dataset.report_numbers import entropy

# A measure is taken if it is there for this share of the queries.
ENOUGH: Final = 0.5
BELIEF: Final = "entropy of the teacher's belief, nats"
DISAGREEMENT: Final = "disagreement among the samples"
LENGTH: Final = "words of the query"


class Difficulty(NamedTuple):
    """The measure, and its value by query; those it says nothing of are left out."""

    measure: str
    values: Mapping[str, float]


def difficulty_of(
    task: Task,
    signals: str,
    queries: Sequence[Query],
    completions: Mapping[str, Sequence[Completion]],
    shares: Mapping[str, float],
) -> Difficulty:
    """The difficulty of each query.

    Args:
        task: the task.
        signals: `teacher.signals`, for the belief.
        queries: all of them.
        completions: their answers, by query.
        shares: agreement by query, where the selection looked at it.
    """
    found: dict[str, float] = {}
    if isinstance(task, ClassificationTask):
        for query in queries:
            belief = class_probabilities(task, completions.get(query.id, ()), signals)
            if belief is not None:
                found[query.id] = entropy(belief)
        if len(found) >= ENOUGH * len(queries):
            return Difficulty(BELIEF, found)
    found = {
        query.id: 1.0 - share
        for query in queries
        if (share := _share(task, completions.get(query.id, ()), shares.get(query.id))) is not None
    }
    if len(found) >= ENOUGH * len(queries):
        return Difficulty(DISAGREEMENT, found)
    words = {query.id: float(len(task.varying_text(query).split())) for query in queries}
    return Difficulty(LENGTH, words)


def _share(task: Task, samples: Sequence[Completion], known: float | None) -> float | None:
    """Share of the samples that give the most frequent answer, unless a better one is known."""
    if known is not None:
        return known
    if len(samples) < 2 or isinstance(task, GenerationTask):
        return None
    most = agreed(task, samples)
    if most is None:
        return 0.0
    answer = canonical_json(task.parse(most.text).value)
    same = [s for s in samples if canonical_json(task.parse(s.text).value) == answer]
    return len(same) / len(samples)
