"""One model alone in a process of its own: `python -m stillhouse.compress.probe SPEC.json`.

Opens a student, answers one query, says so on standard output, then answers all queries at once and
says how much memory the process had at its peak. The parent (`footprint`) reads the clock. Imports
only what answering needs, so that the figures are of the model and its runtime.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from stillhouse.core.heads import Head
from stillhouse.core.machine import peak_rss_mb
from stillhouse.core.records import Query, Record
from stillhouse.core.tasks import Task
from stillhouse.models.artefact_student import open_any
from stillhouse.models.completer import Sampling

ANSWERED: Final = "answered"
STATUS: Final = Path("/proc/self/status")


class ProbeSpec(Record):
    """What to open and what to ask it."""

    folder: str
    task: Task
    head: Head
    batch_size: int
    device: str
    max_tokens: int
    labels: tuple[str, ...]
    json_schema: dict[str, JsonValue] | None
    seed: int
    queries: tuple[Query, ...]


def probe(spec: ProbeSpec) -> None:
    """Answer, and print one line after the first answer and one at the end."""
    sampling = Sampling(
        max_tokens=spec.max_tokens,
        labels=spec.labels,
        json_schema=spec.json_schema,
        seed=spec.seed,
    )

    async def run() -> None:
        student = open_any(Path(spec.folder), spec.task, spec.head, spec.batch_size, spec.device)
        try:
            await student.complete(spec.queries[0], sampling)
            print(ANSWERED, flush=True)
            await asyncio.gather(*(student.complete(query, sampling) for query in spec.queries))
            print(json.dumps({"peak_rss_mb": round(own_peak_mb(), 1)}), flush=True)
        finally:
            await student.aclose()

    asyncio.run(run())


def own_peak_mb() -> float:
    """Highest resident memory of this program, MiB.

    Linux hands the peak of the process that started a program on to it in `ru_maxrss`; the high
    water mark in /proc is this program's own.
    """
    try:
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return peak_rss_mb()


if __name__ == "__main__":
    probe(ProbeSpec.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
