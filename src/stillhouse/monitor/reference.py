"""What windows are compared with: the run's held-out set, or the first windows of a student.

Knows predictions of a run and samples of windows; opens no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from stillhouse.core.records import Record
from stillhouse.core.statistics import Interval
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.evaluate.fidelity import agreement_scores
from stillhouse.evaluate.results import STUDENT, TEACHER, Prediction
from stillhouse.monitor.figures import mean_interval
from stillhouse.monitor.samples import Judged, Pair
from stillhouse.monitor.segments import Item, Segmenter


class Reference(Record):
    """Agreement and accuracy that were. Segments by `KIND:NAME`."""

    source: Literal["run", "windows"]
    student: str | None = Field(default=None, description="Whose; None: not known.")
    run: str | None = Field(default=None, description="Tells one run's predictions from another's.")
    agreement: Interval | None = None
    accuracy: Interval | None = None
    segments: Mapping[str, Interval] = Field(default_factory=dict)


def reference_of_run(
    task: Task,
    predictions: Sequence[Prediction],
    groups: Mapping[str, str],
    segmenter: Segmenter,
    least: int,
) -> Reference | None:
    """The student's agreement with the teacher on the held-out set, at the time.

    Args:
        groups: near-duplicates of the held-out samples, by id.
        segmenter: of texts and the teacher's labels; the set knows no tenants.
        least: samples of a segment, else it has no reference.
    """
    held = [
        one
        for one in predictions
        if one.set == "held_out" and STUDENT in one.answers and TEACHER in one.answers
    ]
    if not held:
        return None
    teacher = [one.answers[TEACHER] for one in held]
    scores = agreement_scores(task, [one.answers[STUDENT] for one in held], teacher)
    units = [groups.get(one.id, one.id) for one in held]
    items = []
    for one, said in zip(held, teacher, strict=True):
        value = task.parse(said).value if isinstance(task, ClassificationTask) else None
        items.append(Item(one.text, None, None if value is None else str(value)))
    parts: dict[str, list[int]] = {}
    for index, keys in enumerate(segmenter.of(items)):
        for key in keys:
            parts.setdefault(key, []).append(index)
    segments = {
        key: found
        for key, members in parts.items()
        if len(members) >= least
        and (found := mean_interval([scores[i] for i in members], [units[i] for i in members]))
    }
    return Reference(
        source="run",
        run=_digest(held),
        agreement=mean_interval(scores, units),
        segments=segments,
    )


def _digest(predictions: Sequence[Prediction]) -> str:
    digest = hashlib.sha256()
    for one in predictions:
        digest.update(f"{one.id}\n{one.answers[STUDENT]}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def reference_of_windows(
    pairs: Sequence[Pair],
    judged: Sequence[Judged],
    segments: Mapping[str, Sequence[Pair]],
    *,
    student: str | None,
    least: int,
    least_segment: int,
) -> Reference:
    """What the first windows of a student showed; too few samples are no reference."""
    return Reference(
        source="windows",
        student=student,
        agreement=mean_interval([p.agreement for p in pairs], [p.unit for p in pairs])
        if len(pairs) >= least
        else None,
        accuracy=mean_interval([j.score for j in judged], [j.unit for j in judged])
        if len(judged) >= least
        else None,
        segments={
            key: found
            for key, members in segments.items()
            if len(members) >= least_segment
            and (found := mean_interval([p.agreement for p in members], [p.unit for p in members]))
        },
    )


def together(run: Reference | None, windows: Reference | None) -> Reference | None:
    """The run's where it says something, else that of the first windows."""
    if run is None or windows is None:
        return run or windows
    return run.model_copy(
        update={
            "agreement": run.agreement or windows.agreement,
            "accuracy": run.accuracy or windows.accuracy,
            "segments": {**windows.segments, **run.segments},
        }
    )
