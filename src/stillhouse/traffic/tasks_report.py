"""tasks.json: what mining found, as typed records. The keys are stable; docs/traffic.md.

Knows the figures; not how they are found or shown.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, JsonValue

from stillhouse.core.records import Record
from stillhouse.core.statistics import Interval

VERSION = 1


class LogSummary(Record):
    """One log file as it was read."""

    path: str
    format: str | None
    calls: int


class Window(Record):
    """The time the log covers. `days` is what monthly figures are scaled by; `None`: not known."""

    first: str | None
    last: str | None
    days: float | None


class LabelShare(Record):
    """One answer of a closed set, and its share of the answers."""

    label: str
    share: float


class Answers(Record):
    """What the answers of a task are like, from `n` of them.

    `closedness` in [0, 1] (docs/traffic.md); `covered`: the share that fits labels or schema;
    lengths are in tokens.
    """

    n: int
    distinct: int
    entropy_bits: float | None
    median_tokens: float
    p95_tokens: float
    closedness: float
    covered: float
    labels: tuple[LabelShare, ...] = ()
    json_schema: dict[str, JsonValue] | None = None


class Distillability(Record):
    """How well the task should distil, in [0, 1], and the parts of the mean (`None`: unknown)."""

    score: float
    closedness: float
    brevity: float
    agreement: float | None
    narrowness: float
    volume: float
    text_only: bool


class TaskExample(Record):
    """One request and its answer, redacted and shortened."""

    text: str
    answer: str | None


class Prompt(Record):
    """The fixed part of the requests. `system` is `None` where there is none or it varies.

    `system_like` is then one of the system prompts.
    """

    system: str | None
    system_like: str | None = None
    prompt: str
    few_shot: bool
    dialogue: bool


class MinedTask(Record):
    """One task. USD figures are `None` where a price is not known."""

    name: str
    kind: str
    recommended: bool
    reasons: tuple[str, ...]
    requests: int
    share: float
    requests_per_day: float | None
    distinct_inputs: int
    failed: int
    cached: int
    models: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int
    tokens_estimated: float = Field(description="Share of requests whose tokens the log lacks.")
    usd: float | None
    usd_per_month: float | None
    value: float | None = Field(description="usd_per_month (else usd) times distillability.")
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    answers: Answers
    self_agreement: Interval | None
    distillability: Distillability
    prompt: Prompt
    tools: tuple[str, ...]
    examples: tuple[TaskExample, ...]
    recipe: str | None = None
    traffic: str | None = None


class Unpriced(Record):
    """A model whose requests could not be priced."""

    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


class TasksReport(Record):
    """All of tasks.json. `tasks` are in order of rank; `other` counts requests of no task."""

    version: int = VERSION
    logs: tuple[LogSummary, ...]
    calls: int
    skipped: Mapping[str, int]
    rejected: Mapping[str, int]
    renamed_ids: int
    redacted: Mapping[str, int]
    redaction: tuple[str, ...]
    window: Window
    usd: float | None
    usd_per_month: float | None
    unpriced: tuple[Unpriced, ...]
    tasks: tuple[MinedTask, ...]
    other: int
    notes: tuple[str, ...]
    files: Mapping[str, str] = Field(
        default_factory=dict, description="Hash of each recipe and traffic file as it was written."
    )
