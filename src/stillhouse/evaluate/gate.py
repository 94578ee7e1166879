"""The gate: may this student replace its teacher?

One rule: the student passes if it is non-inferior within the margin on the reference set. Knows
paired scores and whose answers they were scored against; does not know models, files or costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from stillhouse.core.statistics import Interval, non_inferiority
from stillhouse.evaluate.metrics import Resampling

Reference = Literal["truth", "teacher"]

MIN_BOOTSTRAP_UNITS: Final = 30  # below this, bootstrap bounds are known to be too narrow


class Verdict(NamedTuple):
    """`difference` is student minus teacher; `difference.low` is the bound that was compared."""

    verdict: Literal["pass", "fail"]
    margin: float
    difference: Interval
    confidence: float
    method: str
    reference: Reference
    reasons: tuple[str, ...]


def decide(
    student: Sequence[float],
    teacher: Sequence[float],
    margin: float,
    reference: Reference,
    how: Resampling,
) -> Verdict:
    """Pass if the one-sided lower bound of student minus teacher lies above -margin.

    Args:
        student: scores in [0, 1], one a sample.
        teacher: the teacher's scores of the same samples. Against its own answers they are all 1,
            and the question becomes whether the student agrees often enough.
        margin: absolute, 0.05 is 5 points.
        reference: whose answers both were scored against.
        how: `confidence` is one-sided here.

    Raises:
        ValueError: see `non_inferiority`.
    """
    result = non_inferiority(
        student,
        teacher,
        margin,
        how.confidence,
        resamples=how.resamples,
        seed=how.seed,
        groups=how.groups,
    )
    units = len(student) if how.groups is None else len(set(how.groups))
    too_few = result.method != "tango" and units < MIN_BOOTSTRAP_UNITS
    passed = result.non_inferior and not too_few
    bound, points = 100 * result.difference.low, 100 * margin
    relation = "above" if result.non_inferior else "not above"
    reasons = [
        f"student minus teacher is {100 * result.difference.estimate:+.1f} points; its "
        f"{100 * how.confidence:g}% lower bound {bound:+.1f} is {relation} the margin of "
        f"-{points:g} ({result.method}, n = {result.difference.n})"
    ]
    if reference == "teacher":
        reasons.append(
            "the teacher's own answers were the reference: this says how often the student agrees, "
            "not how often it is right; a golden set would tell"
        )
    if too_few:
        what = "samples" if how.groups is None else "groups of near-duplicates"
        reasons.append(
            f"{units} {what} are too few for a bootstrap bound; at least {MIN_BOOTSTRAP_UNITS} "
            "are needed"
        )
    if not result.non_inferior and result.difference.estimate > -margin:
        reasons.append("the estimate lies within the margin: more samples may settle it")
    return Verdict(
        verdict="pass" if passed else "fail",
        margin=margin,
        difference=result.difference,
        confidence=how.confidence,
        method=result.method,
        reference=reference,
        reasons=tuple(reasons),
    )
