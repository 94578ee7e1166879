"""Cold start and peak memory of a student, each time in a fresh process.

Cold start: from the start of the process to its first answer, imports and loading included; files
are in the disk cache then, as on a machine that served before. Knows processes and the probe; not
what the student is.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from stillhouse.compress.probe import ANSWERED, ProbeSpec
from stillhouse.core.errors import StillhouseError
from stillhouse.core.jsonl import void, write_atomic
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Query
from stillhouse.evaluate.candidates import sampling_for
from stillhouse.evaluate.compressed import Footprint

START_TIMEOUT_S: Final = 900.0


def probe_spec(recipe: Recipe, folder: Path, device: str, queries: Sequence[Query]) -> ProbeSpec:
    """A student of a recipe, and what it is asked as evaluation asks it."""
    sampling = sampling_for(recipe)
    schema = sampling.json_schema
    return ProbeSpec.model_validate(
        {
            "folder": str(folder.resolve()),
            "task": recipe.task,
            "head": recipe.student.head,
            "batch_size": recipe.evaluate.batch_size,
            "device": device,
            "max_tokens": sampling.max_tokens,
            "labels": sampling.labels,
            "json_schema": None if schema is None else dict(schema),
            "seed": sampling.seed,
            "queries": queries,
        }
    )


def measure_footprint(
    spec: ProbeSpec, starts: int, *, clock: Callable[[], float] = time.perf_counter
) -> Footprint:
    """Start `starts` processes, one after the other, each of which opens the student and answers.

    Raises:
        StillhouseError: a process fails; its last line is in the message.
    """
    seconds: list[float] = []
    peaks: list[float] = []
    with tempfile.TemporaryDirectory(prefix="stillhouse-probe-") as place:
        path = Path(place) / "spec.json"
        text = spec.model_dump_json()
        write_atomic(path, lambda handle: void(handle.write(text)))
        for _ in range(starts):
            began = clock()
            with (Path(place) / "stderr").open("w+", encoding="utf-8") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-m", "stillhouse.compress.probe", str(path)],
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
                stop = threading.Timer(START_TIMEOUT_S, process.kill)
                stop.start()
                try:
                    assert process.stdout is not None
                    # Not `communicate`: it would pass over what `readline` has buffered.
                    first = process.stdout.readline().strip()
                    took = clock() - began
                    rest = process.stdout.read()
                    process.wait()
                finally:
                    stop.cancel()
                    process.kill()
                    process.wait()
                    if process.stdout is not None:
                        process.stdout.close()
                errors.seek(0)
                said = errors.read().strip().splitlines()
            if process.returncode != 0 or first != ANSWERED:
                reason = said[-1] if said else f"exit code {process.returncode}"
                raise StillhouseError(
                    f"{spec.folder}: does not answer in a process of its own: {reason}"
                )
            seconds.append(took)
            peaks.append(float(json.loads(rest.strip().splitlines()[-1])["peak_rss_mb"]))
    return Footprint(
        cold_start_s=round(statistics.median(seconds), 3),
        cold_starts=tuple(round(one, 3) for one in seconds),
        peak_rss_mb=round(statistics.median(peaks), 1),
    )
