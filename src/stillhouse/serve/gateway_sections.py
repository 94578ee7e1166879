"""Sections of gateway.yaml: upstreams, tasks, limits, deadlines, keys, log.

Strict: an unknown key is an error. Knows no file and no server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from stillhouse.core.heads import Head
from stillhouse.core.recipe_section import Section
from stillhouse.core.tasks import Task
from stillhouse.serve.evidence_sections import EvidenceSection
from stillhouse.serve.records import StageKind

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _plain_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be http://HOST/... or https://HOST/...")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must hold no user, password, query or fragment; keys go in a variable")
    return value.rstrip("/")


class ListenSection(Section):
    """Where clients reach the gateway."""

    host: str = Field(default="127.0.0.1", description="Any but loopback needs client keys.")
    port: int = Field(default=8080, ge=0, le=65535)
    drain_s: float = Field(
        default=30, gt=0, description="Time that open requests get after SIGTERM."
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that answer; more than one share their states through log.url.",
    )


class AdminSection(Section):
    """The admin API and metrics: their own port and key. Left out: there is no admin API."""

    host: str = "127.0.0.1"
    port: int = Field(default=8081, ge=0, le=65535)
    key_env: str = Field(
        default="STILLHOUSE_ADMIN_KEY", description="Environment variable with the admin key."
    )
    dashboard: bool = Field(
        default=True, description="Pages at /dashboard, where there is a log.url to show."
    )
    loop: Path | None = Field(
        default=None, description="The loop.yaml whose alerts, runs and students they show."
    )


class TelemetrySection(Section):
    """Where metrics are sent by OpenTelemetry's protocol. Left out: nowhere."""

    otlp: str = Field(description="Address of a collector: http://127.0.0.1:4318")
    headers_env: str | None = Field(
        default=None, description="Environment variable with its headers: name=value,name=value"
    )
    every_s: float = Field(default=60, ge=1)

    @field_validator("otlp")
    @classmethod
    def _address(cls, value: str) -> str:
        return _plain_url(value)


class DeadlinesSection(Section):
    """How long is waited for an upstream, in seconds."""

    connect_s: float = Field(default=5, gt=0)
    first_token_s: float = Field(
        default=60, gt=0, description="Until a stream's first piece; of a stream alone."
    )
    between_tokens_s: float = Field(
        default=30, gt=0, description="Between the pieces of an answer once it has begun."
    )
    total_s: float = Field(
        default=300,
        gt=0,
        description="For its answer, retries included. A request takes no longer than the longest "
        "of those that may answer it.",
    )


class LimitsSection(Section):
    """What a request may be. More than this is refused with 4xx."""

    body_bytes: int = Field(default=4_000_000, ge=1)
    json_depth: int = Field(default=64, ge=1, le=500)
    messages: int = Field(default=1000, ge=1, description="Messages of one request.")
    max_tokens: int = Field(default=200_000, ge=1, description="Of an answer, as the client asks.")
    n: int = Field(default=16, ge=1, description="Answers of one request.")
    answer_bytes: int = Field(default=32_000_000, ge=1, description="Of an upstream's answer.")
    open_requests: int = Field(
        default=2048, ge=1, description="Requests in work at a time; more get 503."
    )
    connections: int = Field(
        default=4096, ge=1, description="Of clients, a port; more are closed at once."
    )


class RetrySection(Section):
    """Asking again before the first byte, and how much of it the whole traffic may cause."""

    attempts: int = Field(
        default=2, ge=1, le=5, description="Tries of one request, first included."
    )
    budget: float = Field(
        default=0.1, ge=0, le=1, description="Retries as a share of all requests, at most."
    )
    pause_s: float = Field(default=0.05, ge=0, description="Before the second try; then doubled.")


class BreakerSection(Section):
    """When an upstream counts as down."""

    failures: int = Field(default=5, ge=1, description="One after another that open it.")
    open_s: float = Field(default=10, gt=0, description="Until one request may try again.")


class QueueSection(Section):
    """How many requests an upstream gets at a time, and how many wait for it."""

    concurrent: int = Field(default=256, ge=1)
    waiting: int = Field(default=512, ge=0, description="More are refused with 429.")
    wait_s: float = Field(default=10, gt=0, description="Longer is refused with 503.")


class PriceSection(Section):
    """USD per million tokens."""

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)


class UpstreamSection(Section):
    """One model server. Requests name tasks; never an address."""

    kind: Literal["openai", "anthropic"] = Field(
        default="openai", description="The API that it speaks."
    )
    base_url: str = Field(description="With its version: https://api.openai.com/v1")
    model: str = Field(min_length=1, description="The model's name there.")
    api_key_env: str | None = Field(
        default=None, description="Environment variable with its key; None: it needs none."
    )
    price: PriceSection = PriceSection(input=0, output=0)
    deadlines: DeadlinesSection = DeadlinesSection()
    retry: RetrySection = RetrySection()
    breaker: BreakerSection = BreakerSection()
    queue: QueueSection = QueueSection()

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        return _plain_url(value)


class StudentSection(Section):
    """A student in processes of the gateway's own: any folder that `run` or `compress` leaves."""

    kind: Literal["student"]
    path: Path = Field(description="The student's folder, seen from gateway.yaml.")
    model: str = Field(default="student", min_length=1, description="Its name in answers.")
    task: Task | None = Field(
        default=None, description="None: what the artefact, or the run that it lies in, says."
    )
    head: Head | None = Field(default=None, description="None: likewise.")
    workers: int = Field(default=1, ge=1, le=64, description="Processes, each with the student.")
    threads: int = Field(default=1, ge=1, description="Of each process.")
    device: str = Field(default="auto", description="Of students that transformers runs.")
    adapters: Path | None = Field(
        default=None,
        description="FOLDER/TASK/online of `stillhouse online`: its adapters of tenants or users. "
        "None: the shared student answers everybody.",
    )
    max_batch: int = Field(default=32, ge=1, le=1024, description="Requests answered at once.")
    max_wait_ms: float = Field(
        default=2, ge=0, le=1000, description="That a batch waits for the size of the last one."
    )
    max_tokens: int = Field(default=256, ge=1, description="Where the client does not say.")
    start_s: float = Field(default=120, gt=0, description="Until a process must be ready.")
    hang_s: float = Field(
        default=60, gt=0, description="Silence, with work, after which a process is killed."
    )
    price: PriceSection = PriceSection(input=0, output=0)
    deadlines: DeadlinesSection = DeadlinesSection()
    queue: QueueSection = QueueSection()


class StudentsSection(Section):
    """Students that the admin API may bring. Left out: it may bring none."""

    roots: tuple[Path, ...] = Field(
        min_length=1, description="Folders below which they may lie, seen from gateway.yaml."
    )


AnyUpstreamSection = Annotated[UpstreamSection | StudentSection, Field(discriminator="kind")]


class StageSection(Section):
    """One stage of an experiment's plan."""

    kind: StageKind
    share: float = Field(default=0, ge=0, le=1, description="Of the traffic, to the student.")
    min_requests: int = Field(default=500, ge=0, description="Before it may advance.")
    min_hours: float = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> StageSection:
        if self.kind == "canary" and self.share == 0:
            raise ValueError("a canary needs a share")
        if self.kind in ("off", "shadow") and self.share:
            raise ValueError(f"the student answers nobody at {self.kind}: leave share out")
        return self


class GuardrailsSection(Section):
    """Student against teacher: what rolls back at once. None: not watched."""

    latency_ratio: float | None = Field(default=2.0, gt=0, description="Of p95.")
    error_rate: float | None = Field(default=0.05, gt=0, le=1, description="More than teacher's.")
    cost_ratio: float | None = Field(default=1.0, gt=0)


class ExperimentSection(Section):
    """How the student takes over, and on what evidence."""

    stages: tuple[StageSection, ...] = (
        StageSection(kind="shadow"),
        StageSection(kind="canary", share=0.05),
        StageSection(kind="canary", share=0.25),
        StageSection(kind="full", share=1),
    )
    margin: float = Field(default=0.05, gt=0, lt=1, description="Quality that may be lost.")
    margin_kind: Literal["absolute", "relative"] = "relative"
    alpha: float = Field(default=0.05, gt=0, lt=1, description="Chance of a wrong advance.")
    teacher_only: float = Field(
        default=0.02, ge=0, lt=1, description="Slice that the teacher always answers."
    )
    shadow_share: float = Field(default=1, ge=0, le=1, description="Of shadowed requests.")
    candidate_pairs: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Of the running student's traffic, to the teacher while a new student climbs, "
        "which is compared with it there.",
    )
    sticky: Literal["user", "conversation", "request"] = "user"
    approval: bool = Field(default=False, description="An advance waits for an admin.")
    salt: str = Field(default="", description="Another salt assigns anew.")
    guardrails: GuardrailsSection = GuardrailsSection()
    evidence: EvidenceSection | None = Field(
        default=None, description="Without it stages change by an admin's hand alone."
    )

    @property
    def shadows_later(self) -> bool:
        """Whether the student is asked unseen beside the teacher at canary and full too."""
        return self.evidence is not None and self.evidence.seen == "pairs"


class FallbackSection(Section):
    """When the other variant answers instead."""

    student_when_teacher_down: bool = True
    teacher_when_student_down: bool = True
    calibrator: Path | None = Field(
        default=None, description="File that turns a student's confidence into a probability."
    )
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Probability below which the teacher answers."
    )
    window_tokens: int = Field(
        default=16, ge=1, description="Of a stream that are held back until it is decided."
    )
    adapters: Literal["teacher", "shown"] | None = Field(
        default=None,
        description="Where a calibrator would judge an asker's own adapter, to which it was not "
        "fitted: the teacher answers, or the adapter's answer is shown, however sure. Needed with "
        "`calibrator` where the student has `adapters`.",
    )
    ungated: Literal["teacher", "shown"] = Field(
        default="teacher",
        description="Where students are gated by a calibrator and another comes that no gate is "
        "fitted to: the teacher answers for it, or its answers are shown, however sure.",
    )


class TaskSection(Section):
    """What clients name as the model."""

    teacher: str = Field(description="Name of an upstream.")
    student: str | None = Field(default=None, description="Name of an upstream.")
    experiment: ExperimentSection = ExperimentSection()
    fallback: FallbackSection = FallbackSection()
    shadows: int = Field(default=32, ge=0, description="Shadow calls at a time; more are dropped.")


class ClientKey(Section):
    """One client's key, as its SHA-256: printf %s KEY | sha256sum"""

    tenant: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[str, ...] = Field(
        default=("*",), description="Names of tasks, feedback, batches, or * for all."
    )

    @field_validator("tenant")
    @classmethod
    def _shown(cls, value: str) -> str:
        # A line break would let a user of one tenant be taken for another tenant's.
        if not value.isprintable():
            raise ValueError("must be printable")
        return value


class LogSection(Section):
    """The traffic log."""

    url: str | None = Field(
        default=None, description="sqlite:///FILE or postgresql://...; None: nothing is kept."
    )
    sample: float = Field(default=1, ge=0, le=1)
    retention_days: float | None = Field(default=30, gt=0)
    queue: int = Field(default=10_000, ge=1, description="Records that wait to be written.")
    redact: tuple[str, ...] | None = Field(
        default=None, description="Kinds of personal data; None: the usual ones."
    )


class BatchesSection(Section):
    """Files and batches; kept in the log's database. Left out: the gateway has neither."""

    file_bytes: int = Field(default=100_000_000, ge=1, description="Of one uploaded file.")
    tenant_bytes: int = Field(
        default=2_000_000_000, ge=1, description="Of a tenant's files together; more is refused."
    )
    uploads: int = Field(default=4, ge=1, description="Uploads at a time; more get 429.")
    requests: int = Field(default=50_000, ge=1, le=1_000_000, description="Lines of one batch.")
    unfinished: int = Field(
        default=20, ge=1, description="Batches of a tenant that are not done; more get 429."
    )
    running: int = Field(default=4, ge=1, le=100, description="Batches at a time, a gateway.")
    concurrent: int = Field(
        default=8, ge=1, description="Lines in work at a time, of all batches, a gateway."
    )
    live_most: int = Field(
        default=8,
        ge=0,
        description="Open live requests beyond which one line at a time goes on.",
    )
    attempts: int = Field(
        default=3, ge=1, le=20, description="Tries of a line that may have been paid for."
    )
    window_h: float = Field(default=24, gt=0, le=720, description="Until a batch expires.")
    retention_days: float = Field(
        default=30, gt=0, description="Files and ended batches are deleted after it, at the latest."
    )
