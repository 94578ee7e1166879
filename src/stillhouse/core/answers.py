"""What the teacher said to one query, where it was asked several times.

One rule for the check, the dataset and the evaluation sets, so that all mean the same answer.
Knows completions and the task; does not know which answers a quality check keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stillhouse.core.records import Completion
from stillhouse.core.tasks import Task, canonical_json


def agreed(task: Task, completions: Sequence[Completion]) -> Completion | None:
    """The first sample that gives the most frequent answer (ties: the earliest), else `None`.

    Samples that were refused or that the task cannot read have no vote.
    """
    votes: list[tuple[str, Completion]] = []
    for completion in sorted(completions, key=lambda c: c.sample):
        value = task.parse(completion.text).value
        if value is not None and completion.finish_reason not in ("refusal", "content_filter"):
            votes.append((canonical_json(value), completion))
    if not votes:
        return None
    counts = Counter(answer for answer, _ in votes)
    return max(votes, key=lambda vote: counts[vote[0]])[1]
