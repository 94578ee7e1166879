"""What the gateway's parts say to each other: assignments, requests, outcomes, states, decisions.

Frozen records without behaviour. Knows no server, no database and no statistics.

Words: a `task` is what a client names as the model; its two `variant`s are teacher and student. A
`unit` is who is assigned and counted as one (user, else conversation, else request). The `stage` of
an experiment says how much of the traffic the student answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import Field, JsonValue

from stillhouse.core.records import Record

Variant = Literal["teacher", "student"]
Route = Literal["chat", "completions", "embeddings", "messages"]
# teacher_only: the slice that the teacher always answers; control and treatment: the two arms of an
# A/B test; shadow: the teacher answers, and the student is asked unseen; incumbent: the running
# student's own traffic while a new one climbs, evidence of neither
Arm = Literal["teacher_only", "control", "treatment", "shadow", "incumbent"]
StageKind = Literal["off", "shadow", "canary", "full"]
Action = Literal[
    "advance",
    "hold",
    "roll_back",
    "kill",
    "revive",
    "approve",
    "wait",
    "retry",
    "offer",
    "withdraw",
    "promote",
    "reload",
]
OutcomeKind = Literal["scorer", "judge", "feedback", "corrected", "delayed"]


class Assignment(Record):
    """Who answers one request, decided before anybody is asked."""

    task: str
    unit: str = Field(description="Hash of the user, conversation or request.")
    arm: Arm
    variant: Variant
    shadowed: bool = Field(default=False, description="The student is asked too, unseen.")
    stage: int = Field(ge=0, description="Number of the stage in the experiment's plan.")
    version: int = Field(ge=0, description="Of the experiment's state that decided.")
    student: str | None = Field(
        default=None, description="Name of the running student; None: gateway.yaml's."
    )
    candidate: str | None = Field(
        default=None,
        description="Name of the new one that climbs: it has the arms treatment and shadow.",
    )


class StudentFolder(Record):
    """A student that came by the admin API: a folder that all gateways on a database open."""

    name: str = Field(min_length=1, description="In log, states and answers.")
    path: str = Field(description="Absolute, without symbolic links.")
    fingerprint: str = Field(description="Of its files, as the first gateway opened them.")
    gate: str | None = Field(
        default=None, description="Its gate.json, or in its place (serve/seats.py)."
    )
    threshold: float | None = Field(
        default=None, description="As in the state; None: all its answers are shown."
    )

    @property
    def identity(self) -> str:
        """What evidence is of (`ExperimentState.student`)."""
        return f"{self.name}:{self.fingerprint}"


class ExperimentState(Record):
    """Where one task's migration stands; changed only by compare and swap of `version`."""

    task: str
    version: int = Field(default=0, ge=0)
    stage: int = Field(default=0, ge=0, description="Number in the plan.")
    kind: StageKind = "off"
    share: float = Field(
        default=0, ge=0, le=1, description="Of the traffic that the student takes."
    )
    since: float = Field(default=0, description="Unix seconds at which the stage began.")
    killed: bool = Field(default=False, description="The kill switch: the teacher answers all.")
    waiting: bool = Field(default=False, description="An advance waits for approval.")
    threshold: float | None = Field(
        default=None, description="Confidence below which the teacher answers; None: no fallback."
    )
    counts_from: int = Field(
        default=0, ge=0, description="Version from which on requests are evidence of this stage."
    )
    attempt: int = Field(default=1, ge=1, description="How often it began at the first stage.")
    held: bool = Field(default=False, description="It does not advance until an admin says so.")
    student: str | None = Field(
        default=None, description="Upstream and model of the student that the evidence is of."
    )
    serving: StudentFolder | None = Field(
        default=None, description="The running student; None: gateway.yaml's."
    )
    candidate: Candidate | None = Field(
        default=None, description="The new student that all of the above is about."
    )


class Candidate(Record):
    """A new student that climbs beside the running one."""

    folder: StudentFolder
    since: float = Field(description="Unix seconds at which it was offered.")
    before: ExperimentState = Field(
        description="The running student's state, which stays its own and comes back."
    )


class Served(Record):
    """One request as it was answered: what the log holds beside the bodies (`core.gateway_log`)."""

    id: str
    at: float = Field(description="Unix seconds at which it came in.")
    task: str
    tenant: str
    unit: str
    user: str | None = Field(default=None, description="Pseudonym of who asked, for deletion.")
    arm: Arm
    variant: Variant = Field(description="Who gave the answer that the client saw.")
    stage: int = Field(ge=0)
    version: int = Field(ge=0)
    upstream: str
    fingerprint: str | None = Field(
        default=None, description="Of the student's files, where the gateway opened them itself."
    )
    fell_back: bool = False
    confidence: float | None = None
    features: Mapping[str, float] = Field(
        default_factory=dict, description="That the confidence was made of; to calibrate it anew."
    )
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    cost_usd: float = Field(default=0, ge=0)
    teacher_cost_usd: float = Field(
        default=0, ge=0, description="What the teacher's price is for these tokens."
    )
    latency_ms: float = Field(ge=0)
    first_token_ms: float | None = Field(default=None, ge=0)
    status: int
    error: str | None = None
    shadow_of: str | None = Field(
        default=None, description="A shadow answer: id of the request that it was asked beside."
    )


class Outcome(Record):
    """What came of one answer; a request may have several."""

    request: str
    kind: OutcomeKind
    score: float = Field(ge=0, le=1)
    at: float
    corrected: str | None = None
    detail: Mapping[str, JsonValue] = Field(default_factory=dict)


class Scored(NamedTuple):
    """One outcome beside the request that it is of."""

    served: Served
    outcome: Outcome


class Pair(Record):
    """Student and teacher on one request, each with its score in [0, 1]."""

    request: str
    unit: str
    at: float
    teacher: float = Field(ge=0, le=1)
    student: float = Field(ge=0, le=1, description="Of the student arm: with its fallbacks.")
    bare: float | None = Field(default=None, ge=0, le=1, description="Of the student alone.")


class Decision(Record):
    """One line of the audit log: what was decided about an experiment, and on what numbers."""

    at: float
    task: str
    action: Action
    from_stage: int
    to_stage: int
    reason: str
    numbers: Mapping[str, JsonValue] = Field(default_factory=dict)
    by: str = Field(default="policy", description="The policy, or the name of an admin's key.")
    student: str | None = Field(default=None, description="Name of the new student it is about.")


ExperimentState.model_rebuild()
