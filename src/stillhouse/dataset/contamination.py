"""Contamination of the golden set, both ways.

Towards training: an example whose query is in the golden set, or nearly so, is taken out. Towards
the golden set: its queries that the traffic or the labelled set (which tunes the teacher) knows are
reported, since a score on those may be too good. Texts are compared as in `duplicates`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from stillhouse.core.duplicates import matches
from stillhouse.core.records import Example, LabelledQuery, Query, Rejection
from stillhouse.core.tasks import Task

REASON: Final = "contamination_golden"


class Decontaminated(NamedTuple):
    """Examples without those that the golden set holds, and the report.

    `golden_in_traffic` and `golden_in_labelled` list the golden queries' ids. The first is of
    examples that were taken out, so that none of it was trained on; the second is of texts that a
    tuned teacher may have seen.
    """

    examples: list[Example]
    rejections: list[Rejection]
    golden_in_traffic: list[str]
    golden_in_labelled: list[str]

    def as_json(self) -> dict[str, object]:
        """The report's section."""
        return {
            "examples_removed": len(self.rejections),
            "golden_in_traffic": self.golden_in_traffic,
            "golden_in_labelled": self.golden_in_labelled,
        }


def decontaminate(
    task: Task,
    examples: Sequence[Example],
    golden: Sequence[LabelledQuery],
    labelled: Sequence[LabelledQuery],
    threshold: float,
) -> Decontaminated:
    """Take golden texts out of the examples, and look for them in the labelled set."""
    golden_texts = [task.varying_text(query) for query in golden]
    found = matches([task.varying_text(e.to_query()) for e in examples], golden_texts, threshold)
    rejections = [
        Rejection(
            query_id=examples[index].id,
            reason=REASON,
            detail=f"the same text as golden query {golden[other].id}, or nearly so",
            messages=examples[index].messages,
        )
        for index, other in sorted(found.items())
    ]
    # Seen from the golden side: several golden queries may be near one example.
    in_traffic = _known(task, golden, [examples[index].to_query() for index in found], threshold)
    in_labelled = _known(task, golden, labelled, threshold)
    return Decontaminated(
        [example for index, example in enumerate(examples) if index not in found],
        rejections,
        [golden[index].id for index in sorted(in_traffic)],
        [golden[index].id for index in sorted(in_labelled)],
    )


def _known(
    task: Task, golden: Sequence[LabelledQuery], others: Sequence[Query], threshold: float
) -> Mapping[int, int]:
    return matches(
        [task.varying_text(query) for query in golden],
        [task.varying_text(query) for query in others],
        threshold,
    )
