"""What the evaluate stage finds out, as strict records: evaluation.json, speed.json, predictions.

Knows the shape of results; does not compute them. The report (`report`) is built from these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from stillhouse.core.records import Record
from stillhouse.core.statistics import Interval

SetName = Literal["golden", "held_out"]
TEACHER, STUDENT, TWIN, TFIDF, MAJORITY = "teacher", "student", "twin", "tfidf", "majority"


class Result(BaseModel):
    """Base of results: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Bin(Result):
    """One bin of a reliability curve: samples whose confidence lies in (low, high]."""

    low: float
    high: float
    n: int = Field(ge=1)
    confidence: float
    accuracy: float


class CandidateResult(Result):
    """One candidate on one set. Agreement and divergence are against the teacher."""

    score: Interval = Field(description="The deciding metric against the set's reference.")
    metrics: Mapping[str, Interval] = Field(
        default_factory=dict, description="Further metrics against the reference, by name."
    )
    unreadable: int = Field(default=0, description="Answers the task could not read; they score 0.")
    agreement: Interval | None = Field(default=None, description="Share of the teacher's answers.")
    divergence: Interval | None = Field(
        default=None, description="Mean KL(teacher || candidate), nats per sample, T = 1."
    )
    calibration_error: Interval | None = Field(
        default=None, description="ECE, 15 equal-width bins, against the reference."
    )
    reliability: tuple[Bin, ...] = Field(default=(), description="The curve behind the ECE.")


class McNemarResult(Result):
    """Exact McNemar test of student against teacher."""

    p_value: float = Field(ge=0, le=1)
    student_only: int = Field(description="Samples only the student has right.")
    teacher_only: int = Field(description="Samples only the teacher has right.")


class GateResult(Result):
    """The gate's verdict; `difference.low` is the one-sided bound compared with -margin."""

    verdict: Literal["pass", "fail"]
    margin: float = Field(gt=0, lt=1, description="Absolute: 0.05 is 5 points.")
    difference: Interval = Field(description="Student minus teacher; two one-sided bounds.")
    confidence: float = Field(description="One-sided confidence of the bound.")
    method: str = Field(description="tango, bootstrap or cluster bootstrap.")
    reference: Literal["truth", "teacher"]
    reasons: tuple[str, ...]


class SetResult(Result):
    """All candidates on one set."""

    name: SetName
    reference: Literal["truth", "teacher"]
    metric: str = Field(description="Name of the deciding metric.")
    n: int = Field(ge=1)
    candidates: Mapping[str, CandidateResult]
    retention: Interval | None = Field(description="Student over teacher; null if teacher is 0.")
    soft_target_gain: Interval | None = Field(
        default=None, description="Student minus hard-label twin, paired; null without a twin."
    )
    teacher_over_tfidf: Interval | None = Field(
        default=None, description="Teacher minus TF-IDF baseline, paired."
    )
    mcnemar: McNemarResult | None = Field(default=None, description="For scores of 0 and 1 only.")
    labels: tuple[str, ...] = ()
    confusions: Mapping[str, tuple[tuple[int, ...], ...]] = Field(
        default_factory=dict,
        description="ROWS_by_COLUMNS: counts; a last column holds answers that name no label.",
    )


class ModelFacts(Result):
    """What is known of a model's weights; null where only the provider knows."""

    name: str
    revision: str
    parameters: int | None = None
    size_bytes: int | None = None


class Evaluation(Result):
    """evaluation.json: everything that two runs with one seed have in common."""

    main: SetName = Field(description="The set that the headline figures and the gate are about.")
    sets: tuple[SetResult, ...] = Field(min_length=1)
    gate: GateResult
    teacher: ModelFacts
    student: ModelFacts
    twin: ModelFacts | None = None
    notes: tuple[str, ...] = Field(default=(), description="What a reader must know of the sets.")

    @property
    def main_set(self) -> SetResult:
        """The set named by `main`."""
        return next(s for s in self.sets if s.name == self.main)


class CandidateSpeed(Result):
    """How fast one candidate is, and what 1,000 queries cost on it."""

    qps: float | None = Field(default=None, description="Median over repeats, queries/s.")
    repeats: tuple[float, ...] = ()
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    usd_per_1k: float | None = None
    source: str = Field(description="measured here, from the asking of the teacher, or unknown.")


class MachineFacts(Result):
    """Where a run was evaluated."""

    processor: str
    cores: int
    memory_gb: float
    system: str
    python: str


class SpeedResult(Result):
    """speed.json: what differs between machines and runs."""

    created: str = Field(description="UTC, ISO 8601.")
    machine: MachineFacts
    versions: Mapping[str, str]
    queries: int = Field(description="Queries submitted at once in each repeat.")
    candidates: Mapping[str, CandidateSpeed]
    machine_usd_per_hour: float
    machine_price_source: str


class Prediction(Record):
    """One line of predictions.jsonl: what each candidate answered to one query.

    `probabilities` are class probabilities in the order of the task's labels, where known.
    """

    set: SetName
    id: str
    text: str
    reference: str
    answers: dict[str, str]
    probabilities: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    agreement: float
