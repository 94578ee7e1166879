"""What `stillhouse teacher compare` finds out, as strict records: compare.json.

The keys are stable and documented in docs/teachers.md. Knows the shape of results; computes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue

from stillhouse.core.statistics import Interval
from stillhouse.evaluate.results import CandidateSpeed, Result

By = Literal["teacher", "tfidf", "recipe"]


class ProbeResult(Result):
    """A small student trained on one teacher's answers, judged on the labelled sample."""

    score: Interval = Field(description="The deciding metric against the true answers.")
    trained_on: int = Field(ge=1, description="Traffic queries with an answer that can be read.")


class TeacherResult(Result):
    """One teacher or ensemble on the labelled sample."""

    model: str = Field(description="As the recipe names it.")
    revision: str
    members: tuple[str, ...] = Field(default=(), description="Of an ensemble, by name.")
    combine: str | None = Field(default=None, description="How an ensemble's answers become one.")
    score: Interval = Field(description="The deciding metric; no or no readable answer scores 0.")
    metrics: Mapping[str, Interval] = Field(description="Further metrics, by name.")
    no_answer: int = Field(description="Labelled queries without an answer.")
    unreadable: int = Field(description="Answers that the task cannot read.")
    calibration_error: Interval | None = Field(description="ECE, 15 equal-width bins.")
    brier: Interval | None = Field(
        description="Mean of sum_c (p_c - y_c)^2, from 0 to 2: how good its soft targets are."
    )
    speed: CandidateSpeed = Field(description="Cost, latency and throughput.")
    probes: Mapping[str, ProbeResult] = Field(
        default_factory=dict, description="By the probe student: tfidf, recipe."
    )


class Difference(Result):
    """Two teachers, or their probe students, on the same labelled queries."""

    a: str
    b: str
    difference: Interval = Field(description="a minus b; not adjusted for their number.")
    p_value: float
    p_holm: float = Field(description="Adjusted for all pairs of this family.")
    significant: bool = Field(description="p_holm is at most 1 - confidence.")
    method: str = Field(description="mcnemar or sign_flip.")


class Agreement(Result):
    """How often each says what the other says, right or wrong. Rows and columns as `names`."""

    names: tuple[str, ...]
    agreement: tuple[tuple[float, ...], ...] = Field(
        description="Share of equal answers; for free text, mean ROUGE-L."
    )
    kappa: tuple[tuple[float | None, ...], ...] | None = Field(
        description="Cohen's kappa over queries both answered readably; closed labels only."
    )
    both_wrong: tuple[tuple[float, ...], ...] | None = Field(
        description="Share of queries on which both score below 1/2."
    )


class Complementarity(Result):
    """What several teachers could reach together."""

    of: tuple[str, ...]
    oracle: Interval = Field(description="Mean of the best score: at least one is right.")
    best: str = Field(description="The member that scores highest.")
    gain: Interval = Field(description="Oracle minus the best member, paired.")
    all_agree: Interval | None = Field(description="Share on which all give the same answer.")
    score_where_all_agree: Interval | None = Field(description="Null where they never do.")


class Recommendation(Result):
    """Which teacher, and why."""

    teacher: str
    by: By = Field(description="Judged by the teachers' answers, or by a probe student's.")
    best: str = Field(description="The highest score; not always worth its price.")
    not_worse: tuple[str, ...] = Field(description="Not significantly worse than the best.")
    firm: bool = Field(
        description="Even the lower end of its difference from the best is inside the margin."
    )
    reasons: tuple[str, ...]
    section: Mapping[str, JsonValue] = Field(description="The recipe's teacher section for it.")


class TeacherComparison(Result):
    """compare.json."""

    format: Literal[1] = 1
    name: str
    task: str
    kind: str
    created: str = Field(description="UTC, ISO 8601.")
    metric: str
    n: int = Field(ge=1, description="Labelled queries.")
    confidence: float
    margin: float = Field(description="evaluate.margin: what counts as firm.")
    teachers: Mapping[str, TeacherResult]
    failed: Mapping[str, str] = Field(description="Teachers that could not be compared, and why.")
    differences: tuple[Difference, ...] = Field(description="All pairs, by their own answers.")
    probe_differences: Mapping[str, tuple[Difference, ...]] = Field(
        description="All pairs, by their probe students."
    )
    agreement: Agreement
    complementarity: tuple[Complementarity, ...]
    baseline: Interval | None = Field(
        description="TF-IDF and logistic regression, cross-validated on the labelled sample."
    )
    recommendation: Recommendation
    usd_paid: float = Field(description="What the answers used cost, whenever they were paid.")
    notes: tuple[str, ...]
    versions: Mapping[str, str]
