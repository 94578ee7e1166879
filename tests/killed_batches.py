"""Ask by batch in processes that are killed: at named points, or when somebody kills them.

Usage: killed_batches.py URL FOLDER PROVIDER QUERIES OPTIONS POINT... OPTIONS is a JSON object of
keys of the recipe's teacher. Each POINT is one process: `none` runs to its end, a name dies there
by SIGKILL, a number is killed after so many seconds. Prints how each ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillhouse.core.optional import late
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_teacher import Price, PricesSection, TeacherSection
from stillhouse.core.records import Message, Query
from stillhouse.models.completer import Sampling
from stillhouse.teacher.ask import ask
from stillhouse.teacher.batch_ask import Clock
from stillhouse.teacher.batch_build import ask_batches
from stillhouse.teacher.batch_journal import BatchJournal, Event
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.group_commit import GroupCommit
from stillhouse.teacher.store import AnswerStore

MODELS = {"openai": "openai:gpt-4.1", "anthropic": "anthropic:claude-haiku-4-5"}
PRICES = PricesSection(models={"*": Price(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0)})
SAMPLING = Sampling(max_tokens=30)
# Before or after the event of this name is written; `joining` is halfway through the answers.
POINTS = (
    "before intended", "after intended", "before sending", "after sending", "before submitted",
    "after submitted", "before fetched", "after fetched", "joining", "before joined",
    "after joined",
)  # fmt: skip


def queries(count: int) -> list[Query]:
    return [
        Query(id=f"q{i}", messages=(Message(role="user", content=f"text {i}"),))
        for i in range(count)
    ]


def section_of(url: str, provider: str, **batch: Any) -> TeacherSection:
    suffix = "/v1" if provider == "openai" else ""
    return TeacherSection.model_validate(
        {
            "model": MODELS[provider], "base_url": url + suffix, "retries": 6,
            "batch": {"poll_s": 0.02, "pilot": 1, "rounds": 50, **batch},
        }
    )  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    when, _, name = point.partition(" ")
    if point == "joining":
        put = GroupCommit.flush

        def counted(self: GroupCommit[Any]) -> None:
            # Half of what waits is written, then the power goes.
            if len(self._pending) > 2:
                self._pending = self._pending[: len(self._pending) // 2]
                put(self)
                die()
            put(self)

        GroupCommit.flush = counted  # type: ignore[method-assign]
        return
    write = BatchJournal.write

    def watched(self: BatchJournal, event: Event) -> None:
        if event.event == name and when == "before":
            die()
        write(self, event)
        if event.event == name:
            die()

    BatchJournal.write = watched  # type: ignore[method-assign]


async def run(url: str, folder: Path, provider: str, count: int, **options: Any) -> None:
    section = section_of(url, provider, **options.get("batch", {}))
    section = section.model_copy(update={k: v for k, v in options.items() if k != "batch"})
    completer = open_teacher(section, PRICES)
    try:
        with AnswerStore(folder / "answers.jsonl") as store:
            batched = await ask_batches(
                completer, queries(count), SAMPLING, store, folder / "batches", section=section,
                prices=PRICES, progress=Silent(), clock=Clock(settle_s=0.3),
            )  # fmt: skip
            await ask(
                completer, queries(count), SAMPLING, store, concurrency=4, prices=PRICES,
                budget_usd=batched.held.budget_left(section.budget_usd),
            )  # fmt: skip
    finally:
        await completer.aclose()


def in_process(work: Callable[[], None], point: str) -> int:
    """Do it in a forked process; the status it ended with, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            if point in POINTS:
                arm(point)
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if point not in POINTS and point != "none":
        time.sleep(float(point))
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    the_url, the_folder, the_provider, the_count, the_options, *points = sys.argv[1:]
    options = json.loads(the_options)
    late(f"stillhouse.teacher.batch_{the_provider}")  # once, for all that are forked

    def whole() -> None:
        asyncio.run(run(the_url, Path(the_folder), the_provider, int(the_count), **options))

    for one in points:
        status = in_process(whole, one)
        print(f"{one}: {status}", flush=True)
