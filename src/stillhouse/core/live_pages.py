"""What a person is shown of live traffic: one page of requests, and what an hour of a task came to.

Frozen records. Knows no database and no page.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from stillhouse.core.live import LiveRow
from stillhouse.core.records import Record


class Asked(NamedTuple):
    """Which requests are wanted; `None` and False: all.

    `id`: this request, or the one that a shadow answer of this id is of. `user`: a pseudonym.
    `below`: only requests whose student was less sure than this. `differing`: only those where
    teacher and student said different things.
    """

    task: str | None = None
    variant: Literal["teacher", "student"] | None = None
    user: str | None = None
    id: str | None = None
    below: float | None = None
    differing: bool = False


class Place(NamedTuple):
    """A place in the log, newest first: what comes after it is older."""

    at: float
    id: str


class RowsPage(NamedTuple):
    """Some requests, newest first.

    `next`: where the next page begins; `None`: there are no more. `looked_at`: how many requests
    were looked at; a search ends after so many, found or not, and goes on from `next`.
    """

    rows: tuple[LiveRow, ...]
    next: Place | None
    looked_at: int


class Hour(Record):
    """What a task's requests of one hour came to, by who answered; shadow answers apart."""

    task: str
    hour: int = Field(description="Unix seconds over 3,600, rounded down.")
    variant: Literal["teacher", "student"]
    shadow: bool = Field(description="Asked beside the answer that the client saw.")
    requests: int = Field(ge=0)
    fell_back: int = Field(ge=0, description="The student was not sure enough.")
    failed: int = Field(ge=0, description="Status 429 or 500 and above.")
    cost_usd: float = Field(ge=0)
    teacher_cost_usd: float = Field(ge=0, description="What the teacher's price was for them.")
    latency_ms: float = Field(ge=0, description="The sum.")
