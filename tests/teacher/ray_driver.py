"""A driver that asks over a cluster and is killed after so many batches.

Usage: ray_driver.py MODEL ADDRESS STORE QUERIES BATCHES
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.core.progress import Silent, Ticker
from stillhouse.core.recipe_asking import RaySection
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.core.records import Message, Query
from stillhouse.models.completer import Sampling
from stillhouse.teacher.ask import AskResult
from stillhouse.teacher.ray_ask import RayTeacher
from stillhouse.teacher.store import AnswerStore

BATCH = 8
WORDS = ("gripping", "wonderful", "warm", "dull", "boring", "tired", "lifeless")
DRAWN = Sampling(n=2, max_tokens=24, sampling_temperature=1.0, logprobs=3, seed=4)


class AfterBatches(Silent):
    """Calls `act` after so many batches."""

    def __init__(self, batches: int, act: object) -> None:
        self.left, self.act = batches, act

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str) -> Iterator[Ticker]:
        """A bar that counts."""
        yield self  # type: ignore[misc]

    def advance(self, count: float = 1) -> None:
        """One batch more is kept."""
        self.left -= 1
        if self.left == 0:
            self.act()  # type: ignore[operator]

    def note(self, text: str) -> None:
        """Nothing."""


def chats(count: int) -> list[Query]:
    """Queries of different lengths; each chat comes once."""
    return [
        Query(
            id=f"q{i}",
            messages=(
                Message(
                    role="user", content=f"a {WORDS[i % 7]} film {i}" + " and the story" * (i % 4)
                ),
            ),
        )
        for i in range(count)
    ]


def teacher_section(model: Path, address: str) -> TeacherSection:
    """The tiny teacher on two actors."""
    return TeacherSection(
        model=f"hf:{model}", ray=RaySection(address=address, actors=2, batch_size=BATCH)
    )


async def ask_all(
    model: Path,
    address: str,
    store: Path,
    queries: list[Query],
    *,
    sampling: Sampling = DRAWN,
    progress: Silent | None = None,
) -> AskResult:
    """One run, from opening to leaving."""
    progress = progress or Silent()
    teacher = RayTeacher(teacher_section(model, address), None, progress)
    try:
        with AnswerStore(store) as answers:
            result = await teacher.ask(
                queries, sampling, answers, progress=progress, title="asking"
            )
            return result._replace(completions_by_query=dict(result.completions_by_query))
    finally:
        await teacher.aclose()


if __name__ == "__main__":
    model, address, store, count, batches = sys.argv[1:]
    killed = AfterBatches(int(batches), lambda: os.kill(os.getpid(), signal.SIGKILL))
    asyncio.run(ask_all(Path(model), address, Path(store), chats(int(count)), progress=killed))
