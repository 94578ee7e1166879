"""What the compress stage finds out, as strict records: compress/table.json.

One row an artefact, beside the float student it was made from. Knows the shape of the results, and
reads them back; the stage itself (`stillhouse.compress`) computes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json
from stillhouse.core.statistics import Interval
from stillhouse.evaluate.results import (
    CandidateResult,
    CandidateSpeed,
    GateResult,
    MachineFacts,
    Result,
    SetName,
)

TABLE: Final = "table.json"
PREDICTIONS: Final = "predictions.jsonl"
BEST: Final = "best"


class Footprint(Result):
    """One model alone in a fresh process."""

    cold_start_s: float = Field(description="Process start to first answer, median.")
    cold_starts: tuple[float, ...] = Field(description="Each start, in order.")
    peak_rss_mb: float = Field(
        description="Highest resident memory, MiB, all speed queries at once; median."
    )


class CompressedRow(Result):
    """The float student, or one artefact made from it."""

    name: str = Field(description="The format, or student for the float parent.")
    folder: str = Field(description="Below the stage's folder; empty for the student.")
    kind: Literal["onnx", "executorch", "gguf", "genai", "hf"]
    precision: str = Field(description="Of the weights.")
    size_bytes: int = Field(description="All files that answering needs.")
    size_ratio: float = Field(description="Over the float student's.")
    sets: Mapping[SetName, CandidateResult] = Field(
        description="Score, agreement with the teacher, divergence from it, on each set."
    )
    retention_teacher: Interval | None = Field(description="Score over the teacher's, paired.")
    retention_student: Interval | None = Field(
        description="Score over the float student's, paired."
    )
    agreement_student: Interval = Field(description="Share of the float student's answers.")
    divergence_student: Interval | None = Field(
        description="Mean KL(float student || this), nats per sample; null without beliefs."
    )
    against_teacher: GateResult
    against_student: GateResult | None = Field(description="null for the student itself.")
    speed: CandidateSpeed
    tokens_per_s: float | None = Field(description="Written tokens/s at qps; text students.")
    latency_speedup: float | None = Field(description="Float p50 over this p50, one at a time.")
    throughput_speedup: float | None = Field(description="This queries/s over the float one's.")
    footprint: Footprint
    gain: Interval | None = Field(
        default=None,
        description="Of a form whose student was distilled further on its grid: score less that "
        "of the same form without, paired; null for all others.",
    )
    verdict: Literal["pass", "fail"]
    sentence: str = Field(description="The verdict in one line, with its figures.")


class CompressedTable(Result):
    """table.json."""

    format: Literal[1] = 1
    name: str = Field(description="The recipe's name.")
    created: str = Field(description="UTC, ISO 8601.")
    main: SetName = Field(description="The set the gate is about.")
    metric: str
    reference: Literal["truth", "teacher"]
    n: int
    teacher: Interval = Field(description="The teacher's score on the main set.")
    teacher_qps: float | None = Field(description="As evaluated; not timed beside the artefacts.")
    teacher_size_bytes: int | None
    rows: tuple[CompressedRow, ...] = Field(description="The float student first.")
    left_out: Mapping[str, str] = Field(default_factory=dict, description="Format: why.")
    best: str | None = Field(description="Smallest, then fastest, that passes; null: none.")
    margin_teacher: float
    margin_student: float
    min_speedup: float
    speed_by: Literal["latency", "throughput"]
    queries: int = Field(description="Queries submitted at once in each turn.")
    notes: tuple[str, ...] = ()
    machine: MachineFacts
    versions: Mapping[str, str]

    @property
    def student(self) -> CompressedRow:
        """The float parent."""
        return self.rows[0]

    @property
    def artefacts(self) -> tuple[CompressedRow, ...]:
        """All but the parent."""
        return self.rows[1:]

    @property
    def chosen(self) -> CompressedRow | None:
        """The row that `best` names."""
        return next((row for row in self.artefacts if row.name == self.best), None)

    @property
    def chain(self) -> tuple[float | None, float | None]:
        """Teacher to the chosen artefact: times the queries/s, times smaller on disk."""
        chosen = self.chosen
        if chosen is None:
            return None, None
        faster = (
            chosen.speed.qps / self.teacher_qps if chosen.speed.qps and self.teacher_qps else None
        )
        smaller = self.teacher_size_bytes / chosen.size_bytes if self.teacher_size_bytes else None
        return faster, smaller


def read_table(folder: Path) -> CompressedTable:
    """The table of a finished compress stage.

    Raises:
        RunFolderError: missing or damaged.
    """
    path = folder / TABLE
    try:
        return CompressedTable.model_validate(read_json(path))
    except ValidationError as error:
        raise RunFolderError(f"{path}: is damaged ({error.errors()[0]['msg']})") from None
