"""Requests as they were answered live: what the gateway's log gives to watching and retraining.

Frozen records and one Protocol. Knows no database and no statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

from pydantic import Field

from stillhouse.core.records import Message, Record


class LiveAnswer(Record):
    """What one model said to a request, seen by the client or not."""

    id: str = Field(description="Of the request, or of the shadow answer.")
    text: str | None = Field(default=None, description="None: it failed, or no text was kept.")
    error: str | None = None
    confidence: float | None = Field(
        default=None, description="Probability that it is acceptable; of students that are gated."
    )
    latency_ms: float = Field(ge=0)
    cost_usd: float = Field(default=0, ge=0)
    score: float | None = Field(
        default=None, ge=0, le=1, description="Its newest outcome, of whatever kind."
    )
    score_kind: str | None = None
    corrected: str | None = Field(default=None, description="The right answer, as a user gave it.")


class LiveRow(Record):
    """One request with its answers: the teacher's, the student's, or both (a pair).

    A pair is a request that the teacher answered and its shadow answer, or a student's answer that
    was not sure enough and the teacher's instead (`fell_back`).
    """

    id: str
    at: float = Field(description="Unix seconds at which it came in.")
    written_at: float = Field(default=0, description="Unix seconds at which it was stored.")
    task: str
    tenant: str
    unit: str = Field(description="Hash of user, conversation or request.")
    user: str | None = Field(default=None, description="Pseudonym.")
    messages: tuple[Message, ...] = Field(
        default=(), description="Redacted; empty where no text was kept."
    )
    seen: Literal["teacher", "student"] = Field(description="Whose answer the client saw.")
    arm: str = Field(description="As in serve.records.Arm; teacher_only is the unbiased slice.")
    stage: int = Field(default=0, ge=0)
    fell_back: bool = False
    status: int = 200
    student_name: str | None = Field(default=None, description="Which student, where it is known.")
    teacher: LiveAnswer | None = None
    student: LiveAnswer | None = None
    teacher_cost_usd: float = Field(
        default=0, ge=0, description="What the teacher's price is for the tokens that were used."
    )

    @property
    def is_pair(self) -> bool:
        """Whether both gave a text."""
        return (
            self.teacher is not None
            and self.student is not None
            and self.teacher.text is not None
            and self.student.text is not None
        )


class LiveRows(Protocol):
    """A task's requests."""

    def rows(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[LiveRow]:
        """In the order of `at`, then of `id`.

        Args:
            since: Unix seconds of `at`, included.
            until: likewise, left out.
        """

    def ids(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[str]:
        """Ids of all requests that are held, of those too that cannot be read and are no row: what
        is not among them was deleted. As `rows`, in no order."""

    def newest(self, task: str, count: int) -> list[LiveRow]:
        """The last so many, oldest first."""
