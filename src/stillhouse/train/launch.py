"""Train one student in several processes: start them, show what they say, pass on what went wrong.

The stage's process starts torch's elastic launcher, which starts `stillhouse.train.worker` once a
GPU. The job is a file in the student's folder; the workers write what one process would have
written. Should this process be killed, the workers end with it: two runs never write one folder.
Knows processes and files; trains nothing itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.progress import Progress, Ticker
from stillhouse.core.recipe_distributed import DistributedSection

JOB: Final = "job.json"
ERROR: Final = "error.json"
LOG: Final = "workers.log"
AGENT: Final = "stillhouse.train.agent"
WORKER: Final = "stillhouse.train.worker"


def arguments(section: DistributedSection, folder: Path) -> list[str]:
    """torchrun's arguments; the same on each machine."""
    several = (
        [f"--nnodes={section.nodes}", f"--rdzv-endpoint={section.rendezvous}"]
        if section.nodes > 1
        else ["--standalone", "--nnodes=1"]
    )
    where = [] if section.nodes == 1 else ["--rdzv-backend=c10d", f"--rdzv-id={folder.name}"]
    return [
        *several,
        *where,
        f"--nproc-per-node={section.processes}",
        "-m",
        WORKER,
        str(folder),
    ]


def train_in_processes(
    section: DistributedSection, job: Mapping[str, Any], folder: Path, progress: Progress
) -> None:
    """Run the workers of a job to their end.

    Args:
        section: the recipe's `train.distributed`.
        job: what `worker` reads.
        folder: the student's; gets what one process would have written. `workers.log` holds what
            the processes wrote to standard error, and is removed when all went well.
        progress: shows what the first worker reports.

    Raises:
        UserError, StillhouseError: as a worker raised it, or a worker died.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    write_json(folder / JOB, dict(job))
    threads = max(1, (os.cpu_count() or 1) // section.processes)
    log = folder / LOG
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", AGENT, str(os.getpid()), *arguments(section, folder)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
        )
        try:
            assert process.stdout is not None
            with process.stdout:
                relay(process.stdout, progress)
            process.wait()
        except BaseException:
            process.terminate()
            process.wait(30)
            raise
    if process.returncode == 0:
        for path in (folder / JOB, log):
            path.unlink(missing_ok=True)
        return
    if (folder / ERROR).exists():
        error = read_json(folder / ERROR)
        raise _Passed(str(error["text"])) if error["user"] else StillhouseError(str(error["text"]))
    raise StillhouseError(
        f"a training process ended before its work was done (see {log}); run again: training goes "
        "on from its last checkpoint"
    )


class _Passed(UserError):
    """A worker's user error, in its words."""

    def __init__(self, text: str) -> None:
        StillhouseError.__init__(self, text)


class Lines:
    """A `Progress` that writes what it is told to standard output, a JSON object a line."""

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str) -> Iterator[Ticker]:
        """A bar, opened and closed by lines."""
        _tell(open=title, total=total, unit=unit)
        yield _LineTicker()
        _tell(close=title)

    def say(self, text: str) -> None:
        """A line for people."""
        _tell(say=text)


class _LineTicker:
    def advance(self, count: float = 1) -> None:
        _tell(advance=count)

    def note(self, text: str) -> None:
        _tell(note=text)


def _tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


def relay(lines: Iterable[str], progress: Progress) -> None:
    """Do with `progress` what `Lines` was told; other lines are no concern of ours."""
    with ExitStack() as bars:
        ticker: Ticker | None = None
        for line in lines:
            try:
                what = json.loads(line)
            except ValueError:
                continue
            if not isinstance(what, dict):
                continue
            if "say" in what:
                progress.say(str(what["say"]))
            elif "open" in what:
                bar = progress.bar(str(what["open"]), what["total"], str(what["unit"]))
                ticker = bars.enter_context(bar)
            elif "close" in what:
                bars.close()
                ticker = None
            elif ticker is not None and "advance" in what:
                ticker.advance(float(what["advance"]))
            elif ticker is not None and "note" in what:
                ticker.note(str(what["note"]))
