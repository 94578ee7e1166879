"""The gate of a retrained student: against the teacher, the live student, and its own past.

- teacher: on the new window it is non-inferior to the teacher within the margin (`evaluate.gate`).
- incumbent: on the new window it is non-inferior to the live student within its margin, paired.
- every earlier window: it has not forgotten. It has where it lost more than `most` against the best
  live student on that window, and the loss is no chance: its one-sided bound at confidence
  1 - (1 - confidence) / windows lies above 0. So a student that forgot nothing is refused for
  forgetting, on any window, with probability of at most 1 - confidence; a loss that the set is too
  small to show passes, and is reported with its interval.

Scores are in [0, 1], paired by sample. Knows scores; no student, no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from stillhouse.core.records import Record
from stillhouse.core.statistics import Interval, non_inferiority, paired_difference
from stillhouse.evaluate.gate import MIN_BOOTSTRAP_UNITS, decide
from stillhouse.evaluate.metrics import Resampling

Against = Literal["teacher", "incumbent", "window", "error"]


class Check(Record):
    """One question of the gate and its answer. `difference` is the candidate minus the other; empty
    where the question is whether a threshold keeps the promised error."""

    against: Against
    window: str
    passed: bool
    said: str
    difference: Mapping[str, float | int] = Field(default_factory=dict)


class Compared(NamedTuple):
    """Paired scores of one window's held-out set; `groups` name samples that are alike."""

    window: str
    candidate: Sequence[float]
    other: Sequence[float]
    groups: Sequence[str] | None = None


class Margins(NamedTuple):
    """Absolute: 0.05 is 5 points."""

    teacher: float
    incumbent: float
    most_forgotten: float


def gate(
    candidate: Compared,
    incumbent: Compared | None,
    earlier: Sequence[Compared],
    margins: Margins,
    how: Resampling,
) -> tuple[Check, ...]:
    """All checks; the candidate passes where all of them do.

    Args:
        candidate: on the new window, `other` being the teacher.
        incumbent: on the new window, `other` being the live student; `None`: there is none.
        earlier: on each earlier window, `other` being the best live student on it.
        margins: what is allowed.
        how: `confidence` is one-sided.
    """
    checks = [_against_teacher(candidate, margins.teacher, how)]
    if incumbent is not None:
        checks.append(_against_incumbent(incumbent, margins.incumbent, how))
    checks += [_forgotten(one, margins.most_forgotten, len(earlier), how) for one in earlier]
    return tuple(checks)


def _against_teacher(pair: Compared, margin: float, how: Resampling) -> Check:
    found = decide(pair.candidate, pair.other, margin, "teacher", how._replace(groups=pair.groups))
    return Check(
        against="teacher",
        window=pair.window,
        passed=found.verdict == "pass",
        said=f"teacher, window {pair.window}: {found.reasons[0]}",
        difference=found.difference.to_json(),
    )


def _against_incumbent(pair: Compared, margin: float, how: Resampling) -> Check:
    found = non_inferiority(
        pair.candidate,
        pair.other,
        margin,
        how.confidence,
        resamples=how.resamples,
        seed=how.seed,
        groups=pair.groups,
    )
    enough = found.method == "tango" or _units(pair) >= MIN_BOOTSTRAP_UNITS
    low = 100 * found.difference.low
    relation = "above" if found.non_inferior else "not above"
    few = "" if enough else f"; {_units(pair)} independent samples are too few to say"
    return Check(
        against="incumbent",
        window=pair.window,
        passed=found.non_inferior and enough,
        said=f"live student, window {pair.window}: candidate minus live is "
        f"{100 * found.difference.estimate:+.1f} points; its {100 * how.confidence:g}% lower bound "
        f"{low:+.1f} is {relation} the margin of -{100 * margin:g} ({found.method}, "
        f"n = {found.difference.n}){few}",
        difference=found.difference.to_json(),
    )


def _forgotten(pair: Compared, most: float, windows: int, how: Resampling) -> Check:
    alpha = (1 - how.confidence) / windows
    change = paired_difference(
        pair.candidate,
        pair.other,
        1 - 2 * alpha,
        resamples=how.resamples,
        seed=how.seed,
        groups=pair.groups,
    )
    lost = -change.estimate > most and change.high < 0
    interval = f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    verdict = (
        f"it has forgotten more than {100 * most:g} points"
        if lost
        else f"more than {100 * most:g} points, but within chance"
        if -change.estimate > most
        else f"within {100 * most:g} points"
    )
    return Check(
        against="window",
        window=pair.window,
        passed=not lost,
        said=f"earlier window {pair.window}: {100 * change.estimate:+.1f} points {interval} "
        f"against the best live student, n = {change.n}: {verdict}",
        difference=change.to_json(),
    )


def _units(pair: Compared) -> int:
    return len(pair.candidate) if pair.groups is None else len(set(pair.groups))


def interval_of(difference: Mapping[str, float | int]) -> Interval:
    """A check's difference as an interval."""
    return Interval.model_validate(dict(difference))


def in_words(checks: Sequence[Check]) -> str:
    """The verdict for people: what failed, or that nothing did."""
    failed = [check.said for check in checks if not check.passed]
    if failed:
        return "refused: " + "; ".join(failed)
    return "passed: " + "; ".join(check.said for check in checks)
