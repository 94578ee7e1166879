"""Contenders side by side: each in a process of its own, their repeats interleaved.

A worker builds its inputs, says so, and then runs once for each line it is sent; it answers with
seconds and, at the end, with the peak of its resident memory over what the inputs took. Only one
runs at a time, in an order drawn anew for each round. Knows nothing of what is measured.
"""

from __future__ import annotations

import ctypes
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ANSWER = "answer "  # how a line begins that is one; contenders print others too
STATUS = Path("/proc/self/status")
CACHE = Path(__file__).parents[1] / ".cache"


def peer_python(name: str, *pins: str) -> Path:
    """The interpreter of a peer's own environment, .cache/NAME; made where these pins are not."""
    folder = CACHE / name
    done = folder / "pins.txt"
    wanted = "\n".join(pins)
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for pin in pins:  # in this order: torch before what depends on it
            subprocess.run([str(folder / "bin" / "pip"), "install", "-q", pin], check=True)
        done.write_text(wanted, encoding="utf-8")
    return folder / "bin" / "python"


def resident_mib(field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (highest) of this process, in MiB."""
    lines = STATUS.read_text().splitlines()
    return next(float(x.split()[1]) for x in lines if x.startswith(f"{field}:")) / 1024


def serve(run: Callable[[], Mapping[str, Any]]) -> None:
    """A worker's main loop: one `run` for each line read, timed on wall and CPU."""
    ctypes.CDLL(None).malloc_trim(0)  # what building the inputs left behind goes back
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    start = resident_mib("VmRSS")
    print(ANSWER + json.dumps({"ready": start}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        found = dict(run())
        print(
            ANSWER
            + json.dumps(
                {
                    **found,
                    "seconds": time.perf_counter() - wall,
                    "cpu_seconds": time.process_time() - cpu,
                    "added_mib": resident_mib("VmHWM") - start,
                    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                }
            ),
            flush=True,
        )


class Worker:
    """A contender's process."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def run(self) -> dict[str, Any]:
        """Have it run once."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                return answer
        raise RuntimeError(f"a contender ended with status {self._process.wait()}")


def interleaved(
    commands: Mapping[str, Sequence[str]], rounds: int, *, warm_up: int = 1, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """All answers of each contender, but for those of the first `warm_up` rounds."""
    order = random.Random(seed)
    workers: dict[str, Worker] = {}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    try:
        for name, command in commands.items():
            workers[name] = Worker(command)
        for number in range(warm_up + rounds):
            names = list(commands)
            order.shuffle(names)
            for name in names:
                answer = workers[name].run()
                if number >= warm_up:
                    found[name].append(answer)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def summary(answers: Sequence[Mapping[str, Any]], clock: str = "seconds") -> dict[str, float]:
    """Median, fastest and slowest time, and the memory added."""
    times = [answer[clock] for answer in answers]
    return {
        "median_s": float(np.median(times)),
        "min_s": min(times),
        "max_s": max(times),
        "added_mib": max(answer["added_mib"] for answer in answers),
    }


def speedup(
    slow: Sequence[Mapping[str, Any]], fast: Sequence[Mapping[str, Any]], clock: str = "seconds"
) -> dict[str, float]:
    """Ratio of times, paired by round: median, lowest, highest."""
    ratios = [a[clock] / b[clock] for a, b in zip(slow, fast, strict=True)]
    return {"median": float(np.median(ratios)), "low": min(ratios), "high": max(ratios)}
