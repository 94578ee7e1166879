"""What is kept of a cycle: its state while it runs, its line in the journal, its window's requests.

Frozen records; their keys are stable. Knows no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field, JsonValue

from stillhouse.core.records import Query, Record
from stillhouse.retrain.verdict import Check
from stillhouse.serve.gate_file import Consistency

Step = Literal[
    "window",
    "choose",
    "ask",
    "train",
    "calibrate",
    "evaluate",
    "gate",
    "register",
    "offer",
    "decide",
    "end",
    "done",
]
STEPS: Final[tuple[Step, ...]] = (
    "window",
    "choose",
    "ask",
    "train",
    "calibrate",
    "evaluate",
    "gate",
    "register",
    "offer",
    "decide",
    "end",
    "done",
)
Outcome = Literal["promoted", "refused", "nothing"]


class WindowRow(Record):
    """One request of a window that can be learnt from, with what is known of its answers."""

    query: Query
    at: float
    teacher: str | None = Field(default=None, description="What the teacher said to it live.")
    student: str | None = None
    confidence: float | None = None
    price_usd: float = Field(default=0, ge=0, description="Of a teacher's answer to it.")


class Incumbent(Record):
    """The student that was live when the cycle began. `id` is the registry's; none: it is of the
    task's first run and not in the registry yet."""

    id: str | None = None
    folder: str
    digest: str


class Promise(Record):
    """What the gate of a cycle's student is to keep, fixed when the cycle begins.

    `like` says whose promise it is; `window`, `consistency` and `novelty` are how the gate looks,
    as in gate.json (`novelty`: whether it looks how near a request is to the training texts).
    """

    error: float
    delta: float
    on: Literal["window", "golden"] = "window"
    held_out: int = Field(description="Requests of the window that choose the threshold, at most.")
    acceptable: float | None = Field(
        default=None, description="Score from which an answer is; None: as the task has it."
    )
    window: int | None = None
    consistency: Consistency | None = None
    novelty: bool = False
    like: str = ""


class Regated(Record):
    """The gate that came of a cycle's student: threshold None where none keeps the error.

    `n` samples chose the threshold and `fitted` shaped the confidence; the student refused
    `refused` of both. `wanted`: about how many would have to choose it, where no threshold was
    found; None: no number is foreseen. `live_coverage` is what the live student's own gate.json
    says of it.
    """

    threshold: float | None
    coverage: float
    live_coverage: float | None = None
    n: int
    fitted: int
    refused: int = 0
    wanted: int | None = None
    stream_threshold: float | None = None
    stream_tokens: int | None = None
    said: str = ""


class Cycle(Record):
    """cycle.json: how far a cycle is, and all that later steps need. Written whole at each step."""

    number: int = Field(ge=1)
    task: str
    step: Step = Field(description="What is done next.")
    reason: str = Field(description="Why it began: once, every, alert ID.")
    started_at: float
    since: float = Field(description="Unix seconds; the window's requests came in from then on.")
    until: float
    incumbent: Incumbent | None = None
    spent_before_usd: float = 0.0
    answers_before: int = 0
    budget_usd: float | None = None
    window: Mapping[str, int] = Field(default_factory=dict, description="Requests by what became.")
    choice: Mapping[str, JsonValue] = Field(default_factory=dict)
    teacher: str = ""
    revisions: Mapping[str, int] = Field(default_factory=dict)
    asked: int = Field(default=0, description="Answers that were new, held-out ones among them.")
    usd: float = 0.0
    trained: Mapping[str, JsonValue] = Field(default_factory=dict)
    promise: Promise | None = Field(
        default=None, description="Of the student's gate; None: it needs none."
    )
    fallback: Regated | None = Field(default=None, description="The gate that came of it.")
    digest: str | None = Field(default=None, description="Of the trained student's files.")
    scores: Mapping[str, float] = Field(
        default_factory=dict, description="Of the candidate, by window."
    )
    live_scores: Mapping[str, float] = Field(
        default_factory=dict, description="Of the incumbent, by window."
    )
    checks: tuple[Check, ...] = ()
    candidate: str | None = Field(default=None, description="Its id in the registry.")
    offered_at: float | None = None
    outcome: Outcome | None = None
    keeps_window: bool = Field(
        default=False, description="Whether the next cycle begins where this one began."
    )
    verdict: str = ""

    @property
    def name(self) -> str:
        """`0007`: of its folder and of its window."""
        return name_of(self.number)


class CycleLine(Record):
    """One line of cycles.jsonl: a finished cycle."""

    number: int
    task: str
    reason: str
    started_at: float
    ended_at: float
    since: float
    until: float
    outcome: Outcome
    keeps_window: bool = Field(
        default=False, description="The next cycle begins where this one began."
    )
    verdict: str
    window: Mapping[str, int] = Field(default_factory=dict)
    asked: int = 0
    usd: float = 0.0
    examples: int = 0
    replayed: int = 0
    candidate: str | None = None
    parent: str | None = None
    incumbent: str | None = Field(default=None, description="Digest of who was live before.")
    live: str | None = Field(default=None, description="Digest of the student that is live now.")
    scores: Mapping[str, float] = Field(
        default_factory=dict, description="Row of the matrix: the live student's, by window."
    )
    candidate_scores: Mapping[str, float] = Field(default_factory=dict)
    incumbent_scores: Mapping[str, float] = Field(default_factory=dict)
    average_forgetting: float | None = None
    backward_transfer: float | None = None
    checks: tuple[Check, ...] = ()
    promise: Promise | None = None
    fallback: Regated | None = None
    revisions: Mapping[str, int] = Field(default_factory=dict)


class HeldOut(Record):
    """A request that judges or calibrates students: its query and the teacher's answer. Never
    trained on."""

    query: Query
    answer: str


def name_of(number: int) -> str:
    """A cycle's folder and window; 0 is the task's first run."""
    return f"{number:04d}"
