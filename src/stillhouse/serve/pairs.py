"""What those say to each other who score pairs of answers, and what a judge is asked.

Knows no judge and no scorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from stillhouse.core.records import Message
from stillhouse.serve.policy import Blocked, JudgeTrust


class Answered(NamedTuple):
    """Both answers to one request. `student` None: it gave none."""

    task: str
    request: str
    shadow: str
    messages: tuple[Message, ...]
    teacher: str
    student: str | None


class Preferred(NamedTuple):
    """Scores of a pair: a judge's are 1 and 0, or a half each."""

    student: float
    teacher: float


class Compares(Protocol):
    """A judge."""

    async def compare(self, pairs: Sequence[Answered]) -> list[Preferred | None]:
        """Which of both answers is better; `None` where the judge was not read."""

    async def tested(self) -> JudgeTrust | Blocked | None:
        """What its preferences are worth; `None`: it does not answer now."""
