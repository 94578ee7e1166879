"""The report: report.json as strict models. Its keys are stable; docs/report.md explains each.

Knows the shape of a report; does not compute or draw it. Ratios are student over teacher. A key
whose value cannot be known is null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue

from stillhouse.core.statistics import Interval
from stillhouse.evaluate.compressed import CompressedTable
from stillhouse.evaluate.drafted import Drafted
from stillhouse.evaluate.results import (
    GateResult,
    MachineFacts,
    McNemarResult,
    Result,
    SetResult,
)


class ModelReport(Result):
    """Teacher or student on the main set."""

    name: str = Field(description="The model as the recipe names it.")
    revision: str = Field(description="Exact version of its weights or of the provider's model.")
    parameters: int | None = Field(description="All weights, tied ones once; null if unpublished.")
    score: Interval = Field(description="The deciding metric on the main set.")
    macro_f1: Interval | None = Field(description="Closed labels only.")
    calibration_error: Interval | None = Field(
        description="ECE in [0, 1], 15 bins; null without class probabilities."
    )


class TwinReport(Result):
    """The student's shape trained on hard teacher labels alone."""

    score: Interval
    soft_target_gain: Interval = Field(description="Student minus twin, paired.")


class BaselineReport(Result):
    """A baseline trained on the same teacher answers."""

    score: Interval


class Baselines(Result):
    """Null for tasks without closed labels."""

    majority: BaselineReport | None
    tfidf: BaselineReport | None


class Fidelity(Result):
    """How closely the student follows the teacher, right or wrong."""

    agreement: Interval = Field(description="Share of equal answers (generation: mean ROUGE-L).")
    divergence: Interval | None = Field(
        description="Mean KL(teacher || student), nats per sample, T = 1; null without beliefs."
    )


class Size(Result):
    """Weights."""

    ratio: float | None = Field(description="Student parameters over teacher parameters.")
    teacher_bytes: int | None = Field(description="On disk.")
    student_bytes: int | None = Field(description="On disk.")


class SpeedReport(Result):
    """Throughput in queries/s, latency in ms at one query at a time."""

    teacher_qps: float | None
    student_qps: float | None
    ratio: float | None = Field(description="Student queries/s over teacher queries/s.")
    teacher_qps_repeats: tuple[float, ...]
    student_qps_repeats: tuple[float, ...]
    teacher_latency_p50_ms: float | None
    teacher_latency_p95_ms: float | None
    student_latency_p50_ms: float | None
    student_latency_p95_ms: float | None
    teacher_source: str = Field(description="Measured beside the student, or when it was asked.")
    queries: int = Field(description="Queries submitted at once in each repeat.")


class Cost(Result):
    """USD per 1,000 queries; local models at the machine's hourly price, kept busy."""

    teacher_usd_per_1k: float | None
    student_usd_per_1k: float | None
    ratio: float | None = Field(description="Student cost over teacher cost.")
    machine_usd_per_hour: float
    machine_price_source: str
    teacher_answers_usd: float = Field(description="What this run paid for teacher answers.")


class Point(Result):
    """A candidate in the quality-against-cost plot."""

    name: str
    score: Interval
    usd_per_1k: float | None
    qps: float | None
    parameters: int | None


class DatasetCounts(Result):
    """How many samples there were."""

    train: int
    held_out: int
    golden: int | None
    rejected: Mapping[str, int] = Field(description="Rejections by reason.")


class Report(Result):
    """report.json."""

    format: Literal[1] = Field(default=1, description="Raised when a key changes its meaning.")
    name: str = Field(description="The recipe's name.")
    created: str = Field(description="When it was evaluated: UTC, ISO 8601.")
    task: str = Field(description="The task's name.")
    kind: Literal["classification", "extraction", "generation"]
    metric: str = Field(description="The deciding metric: accuracy, field_f1 or rouge_l.")
    reference: Literal["golden", "teacher"] = Field(
        description="golden: the user's true answers. teacher: no golden set, so the teacher's own."
    )
    n: int = Field(description="Samples of the main set.")
    teacher: ModelReport
    student: ModelReport
    twin: TwinReport | None
    baselines: Baselines
    retention: Interval | None = Field(description="Student score over teacher score, paired.")
    fidelity: Fidelity
    mcnemar: McNemarResult | None
    gate: GateResult
    size: Size
    speed: SpeedReport
    cost: Cost
    seconds: Mapping[str, float] = Field(description="`total` and one key a stage.")
    peak_rss_mb: float = Field(description="Highest resident memory of any stage, MiB.")
    candidates: tuple[Point, ...] = Field(description="Everyone, on the main set.")
    sets: Mapping[Literal["golden", "held_out"], SetResult | None]
    teacher_check: Mapping[str, JsonValue] | None = Field(
        description="check.json: the teacher on the labelled set before money was spent."
    )
    dataset: DatasetCounts
    machine: MachineFacts = Field(description="Where it was evaluated.")
    versions: Mapping[str, str] = Field(description="Packages the figures rest on.")
    compress: CompressedTable | None = Field(
        default=None, description="The student's smaller forms; null without the compress stage."
    )
    speculate: Drafted | None = Field(
        default=None, description="The student as a draft of its teacher; null without the stage."
    )
    notes: tuple[str, ...] = Field(description="How the sets are to be read.")
    warnings: tuple[str, ...] = Field(description="What weakens the figures above.")


def report_schema_text() -> str:
    """The JSON Schema of report.json, as docs/report.schema.json holds it."""
    schema = Report.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Stillhouse report"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
