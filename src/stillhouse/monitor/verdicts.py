"""Samples put to the test: agreement, accuracy and confidence against what they should be.

A test's examples are the answers that were wrong, the worst first. Knows samples and bounds; the
correction for many tests is `bounds.corrected`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from pydantic import JsonValue

from stillhouse.core.live import LiveRow
from stillhouse.core.statistics import Interval
from stillhouse.core.tasks import Task
from stillhouse.monitor.bounds import Tested, fallen, moments, overconfident
from stillhouse.monitor.figures import FEW, mean_interval
from stillhouse.monitor.samples import Judged, Pair, input_text

EXAMPLES: Final = 20  # of a finding; an alert shows fewer


class Level(NamedTuple):
    """What a figure should be: not below the reference by more than `drop`, nor below `least`."""

    reference: Interval | None
    drop: float
    least: float | None = None


def agreement_tested(
    task: Task, what: str, key: str, pairs: Sequence[Pair], level: Level
) -> Tested | None:
    """Whether student and teacher agree less than they should."""
    scores, units = [pair.agreement for pair in pairs], [pair.unit for pair in pairs]
    interval = mean_interval(scores, units)
    if interval is None:
        return None
    tested = fallen(
        what,
        key,
        "fidelity",
        moments(scores, units),
        interval,
        reference=level.reference,
        drop=level.drop,
        least=level.least,
    )
    wrong = sorted(
        (pair for pair in pairs if pair.agreement < 1),
        key=lambda pair: (pair.agreement, -(pair.confidence or 0.0), -pair.row.at),
    )
    return _with_examples(tested, task, (pair.row for pair in wrong))


def accuracy_tested(task: Task, judged: Sequence[Judged], level: Level) -> Tested | None:
    """Whether the student's answers that were judged are worse than they should be."""
    scores, units = [one.score for one in judged], [one.unit for one in judged]
    interval = mean_interval(scores, units)
    if interval is None:
        return None
    tested = fallen(
        "accuracy of the student's judged answers",
        "accuracy:outcomes",
        "accuracy",
        moments(scores, units),
        interval,
        reference=level.reference,
        drop=level.drop,
        least=level.least,
    )
    return _with_examples(tested, task, _wrong(judged))


def confidence_tested(
    task: Task, what: str, key: str, samples: Sequence[Pair] | Sequence[Judged], bound: float
) -> Tested | None:
    """Whether the student is surer than it is right."""
    known = [(one, one.confidence) for one in samples if one.confidence is not None]
    units = [one.unit for one, _ in known]
    if len(set(units)) < FEW:
        return None
    gaps = [sure - one.right for one, sure in known]
    interval = mean_interval(gaps, units)
    if interval is None:
        return None
    tested = overconfident(what, key, moments(gaps, units), interval, bound)
    return _with_examples(tested, task, _wrong([one for one, _ in known]))


def _wrong(samples: Iterable[Pair | Judged]) -> list[LiveRow]:
    """The surest of the wrong ones first, then the newest."""
    found = [one for one in samples if one.right < 1]
    found.sort(key=lambda one: (-(one.confidence or 0.0), -one.row.at))
    return [one.row for one in found]


def _with_examples(tested: Tested | None, task: Task, rows: Iterable[LiveRow]) -> Tested | None:
    if tested is None:
        return None
    shown = tuple(example_of(task, row) for row, _ in zip(rows, range(EXAMPLES), strict=False))
    return tested._replace(finding=tested.finding.model_copy(update={"examples": shown}))


def example_of(task: Task, row: LiveRow) -> Mapping[str, JsonValue]:
    """A request as an example: by its id and time it is found, and struck, again."""
    corrected = [a.corrected for a in (row.student, row.teacher) if a is not None and a.corrected]
    found: dict[str, JsonValue] = {
        "request": row.id,
        "at": row.at,
        "text": input_text(task, row),
        "student": None if row.student is None else row.student.text,
        "teacher": None if row.teacher is None else row.teacher.text,
        "corrected": corrected[0] if corrected else None,
        "confidence": None if row.student is None else row.student.confidence,
    }
    return {name: value for name, value in found.items() if value is not None}
