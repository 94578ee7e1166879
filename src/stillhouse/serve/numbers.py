"""What is known of a stage, in numbers and in words. Knows no test and no database."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.core.anytime_compare import Design
from stillhouse.core.records import Record
from stillhouse.serve.guardrails import Reading


class StageNumbers(Record):
    """One look at a stage's evidence.

    Slack is by how much the student's arm is better than it must be: 0 is exactly at the margin,
    `equal` what a student as good as its teacher would have. `low` and `high` are bounds that hold
    at all looks together.
    """

    design: Design | None = Field(description="None: scores cannot tell anything at this stage.")
    requests: int = Field(description="Answered at this stage.")
    students: int = Field(description="Units of the student's arm that were scored.")
    teachers: int
    open_units: int = Field(description="Units whose time is not over.")
    values: int = Field(description="Pairs, or blocks of the two arms, that were tested.")
    student: float | None = Field(
        description="Mean score of the student's arm, fallbacks included."
    )
    teacher: float | None
    bare: float | None = Field(description="Of the student alone.")
    slack: float | None
    equal: float
    low: float | None
    high: float | None
    better: bool = Field(description="It is shown that no more than the margin is lost.")
    worse: bool = Field(description="It is shown that more than the margin is lost.")
    p_better: float
    p_worse: float
    alpha: float
    alpha_worse: float
    needed: Literal["better", "worse"] = Field(description="What more requests would likely show.")
    needed_requests: int | None = Field(description="How many more; None: nothing points there.")
    full: bool = Field(default=False, description="So many units that more are not taken.")
    guardrails: tuple[Reading, ...] = ()

    @property
    def tripped(self) -> tuple[Reading, ...]:
        """Guardrails that the student broke."""
        return tuple(one for one in self.guardrails if one.tripped)


def in_words(numbers: StageNumbers) -> str:
    """What the numbers say, for people."""
    if numbers.tripped:
        return "; ".join(map(_guardrail_words, numbers.tripped))
    if numbers.design is None:
        return "at this stage nobody sees the student's answers, so nobody scores them"
    if not numbers.values:
        waiting = f", {numbers.open_units:,} units wait" if numbers.open_units else ""
        return f"no scores of both yet{waiting}"
    scores = (
        f"student {_percent(numbers.student)}, teacher {_percent(numbers.teacher)} "
        f"of {numbers.values:,} {'pairs' if numbers.design == 'pairs' else 'blocks'}"
    )
    if numbers.better:
        return f"{scores}: good enough (p {numbers.p_better:.3g} <= {numbers.alpha:.3g})"
    if numbers.worse:
        return (
            f"{scores}: worse than allowed (p {numbers.p_worse:.3g} <= {numbers.alpha_worse:.3g})"
        )
    if numbers.full:
        return f"{scores}: so many could not tell; it lies at the margin"
    if numbers.needed_requests is None:
        return f"{scores}: close to the margin; no number of requests in sight would tell"
    verdict = "good enough" if numbers.needed == "better" else "worse than allowed"
    return (
        f"{scores}: not known yet; likely to be shown {verdict} "
        f"by about {_rounded(numbers.needed_requests):,} more requests"
    )


def _guardrail_words(one: Reading) -> str:
    if one.name == "latency_ratio":
        seen = f"p95 {one.student or 0:,.0f} ms, teacher {one.teacher or 0:,.0f} ms"
        return f"too slow: {seen}, at most {one.limit:g} times is allowed"
    if one.name == "cost_ratio":
        seen = f"{one.student or 0:.3g} USD a request, teacher {one.teacher or 0:.3g} USD"
        return f"too dear: {seen}, at most {one.limit:g} times is allowed"
    seen = f"{_percent(one.student)} of requests, teacher {_percent(one.teacher)}"
    return f"too many failures: {seen}, at most {_percent(one.limit)} more is allowed"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _rounded(number: int) -> int:
    """To two digits."""
    size = max(0, len(str(number)) - 2)
    return int(round(number, -size))
