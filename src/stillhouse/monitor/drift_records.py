"""What drift detection is given, and what it finds: frozen records, no arithmetic.

A reference and a window are sequences of `Observation`. Canaries are prompts that are asked again.
`DriftReport.persistence` is the only state between windows: keep it as JSON and hand it in again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import Field, FiniteFloat, JsonValue

from stillhouse.core.records import Record
from stillhouse.models.embedders import Vectors

Cause = Literal["input_shift", "teacher_drift", "student_decay", "none"]
Family = Literal["input", "answers", "teacher", "student", "context"]

# Texts to unit vectors [N, H], such as `models.embedders.Embedder.embed`.
Embed = Callable[[Sequence[str]], Vectors]


class Observation(Record):
    """One request as it is compared. What is `None` is left out of the tests that need it."""

    id: str
    at: FiniteFloat = Field(description="Unix seconds.")
    text: str | None = Field(default=None, description="What the user asked; None: not kept.")
    length: int | None = Field(default=None, ge=0, description="Words of the text.")
    language: str | None = None
    confidence: float | None = Field(default=None, ge=0, le=1, description="The student's.")
    student_answer: str | None = Field(
        default=None, description="Its label, or canonical form; None for free text."
    )
    teacher_answer: str | None = None
    agreement: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Of student and teacher; only of pairs that were not chosen by the student's "
        "sureness (not of fallbacks).",
    )
    divergence: FiniteFloat | None = Field(default=None, ge=0, description="Likewise, in nats.")
    latency_ms: FiniteFloat | None = Field(default=None, ge=0)


# How many windows back, to the requests of each, oldest first; `None`: not all of them are there.
Earlier = Callable[[int], Sequence[Sequence[Observation]] | None]


class Canary(Record):
    """A frozen prompt that a model was asked again."""

    id: str
    prompt: str = ""
    frozen: str = Field(description="What it said when the prompt was frozen.")
    now: str
    likeness: float = Field(ge=0, le=1, description="Of `now` to `frozen`; labels: 0 or 1.")
    floor: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Likeness of two answers given when it was frozen: what noise alone changes. "
        "None: not measured, taken as 1.",
    )


class TestResult(Record):
    """One test of one window."""

    __test__ = False  # not a test case

    name: str
    family: Family
    measure: str = Field(description="What `effect` is.")
    statistic: FiniteFloat
    p: float = Field(ge=0, le=1)
    p_corrected: float = Field(
        ge=0, le=1, description="Holm, over the window's tests; over those of windows together."
    )
    effect: FiniteFloat
    low: FiniteFloat = Field(description="95% interval of the effect.")
    high: FiniteFloat
    least: FiniteFloat = Field(description="Effect that counts.")
    share: FiniteFloat | None = Field(
        default=None,
        description="Of the classifier: share of requests of another kind; from least.share on the "
        "effect counts too.",
    )
    n_reference: int
    n_window: int
    signal: bool = Field(description="Significant after correction, and the effect counts.")
    persists: bool = Field(description="Signalled in enough of the last windows.")


class Persistence(Record):
    """Which tests signalled in the last windows, oldest first. Windows without a test are left
    out of its row."""

    history: Mapping[str, tuple[bool, ...]] = Field(default_factory=dict)
    leaning: Mapping[str, int] = Field(
        default_factory=dict,
        description="Windows in a row, this one the last, in which a test of inputs was "
        "significant by itself.",
    )

    def after(self, signals: Mapping[str, bool], out_of: int) -> Persistence:
        """With one more window, and no more than `out_of` of each test."""
        found = dict(self.history)
        for name, signal in signals.items():
            found[name] = (*found.get(name, ()), signal)[-out_of:]
        return self.model_copy(update={"history": found})

    def leant(self, leans: Mapping[str, bool]) -> Persistence:
        """With one more window; a test that does not lean, or was not made, begins anew."""
        found = {
            name: self.leaning.get(name, 0) + 1 for name, leans_now in leans.items() if leans_now
        }
        return self.model_copy(update={"leaning": found})

    def begun_anew(self) -> Persistence:
        """No test leans: what comes is compared with something else, or follows a gap."""
        return self.model_copy(update={"leaning": {}})

    def holds(self, name: str, needed: int) -> bool:
        """Whether a test signalled in its last window and in `needed` of those kept."""
        row = self.history.get(name, ())
        return bool(row) and row[-1] and sum(row) >= needed


class StreamChange(Record):
    """A place where a stream changed its mean, as a stream detector sees it. No alarm by itself."""

    stream: str
    detector: Literal["adwin", "page_hinkley"]
    id: str = Field(description="Of the request at which it was noticed.")
    at: FiniteFloat
    before: FiniteFloat = Field(description="Mean of the reference.")
    after: FiniteFloat = Field(description="Mean from there on.")


class Example(Record):
    """A row that shows what changed."""

    id: str
    text: str
    score: FiniteFloat = Field(
        description="How typical it is of the change; the highest come first."
    )
    before: str | None = Field(default=None, description="Answer expected, or frozen.")
    now: str | None = None


class CauseFinding(Record):
    """A cause with what speaks for it; the strongest comes first in a report."""

    cause: Cause
    strength: FiniteFloat = Field(description="Largest effect over the effect that counts.")
    tests: tuple[str, ...]
    summary: str
    action: str
    examples: tuple[Example, ...] = ()


class DriftReport(Record):
    """What is known of one window."""

    alarm: bool
    cause: Cause
    summary: str
    action: str
    evidence: Mapping[str, JsonValue]
    examples: tuple[Example, ...] = ()
    causes: tuple[CauseFinding, ...] = Field(default=(), description="All that persist, ranked.")
    suspected: tuple[CauseFinding, ...] = Field(
        default=(), description="Those that signalled in this window and do not persist yet."
    )
    tests: tuple[TestResult, ...] = ()
    streams: tuple[StreamChange, ...] = ()
    problems: tuple[str, ...] = Field(
        default=(), description="Of the data: too few rows, clocks that went back; never an alarm."
    )
    persistence: Persistence = Persistence()
    since: float | None = Field(default=None, description="`at` of the window's first row.")
    until: float | None = Field(default=None, description="`at` of its last row.")
    n_reference: int = 0
    n_window: int = 0
