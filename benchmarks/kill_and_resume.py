"""SIGKILL in each stage of the demo, then start again: the same answers, asked once each.

    python benchmarks/kill_and_resume.py [--run-dir DIR] [--against RUN]

The demo is started from nothing; as soon as a stage has been at work for some seconds its process
is killed, and the same command is given again, until every stage has been killed once. `--against`
names an uninterrupted run of the demo, whose answers must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from machine_line import save

from stillhouse.pipeline import read_run_recipe
from stillhouse.stages import stages_of

ROOT = Path(__file__).parents[1]
AT_WORK_S = {"ask": 40.0, "tune": 60.0, "train": 45.0, "check": 8.0, "evaluate": 10.0}
DEADLINE_S = 1800.0


def run_until(run_dir: Path, stage: str | None) -> int:
    """Start the demo; kill it when `stage` has been at work for a while. Gives the exit status."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "stillhouse",
            "run",
            "recipes/quickstart.yaml",
            "--run-dir",
            str(run_dir),
        ],
        cwd=ROOT,
    )
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        if stage is not None and (run_dir / f"{stage}.partial").exists():
            time.sleep(AT_WORK_S.get(stage, 0.05))
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    return process.wait()


def answers(run_dir: Path) -> dict[str, str]:
    """The teacher's answer to each query."""
    lines = (run_dir / "ask" / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["query_id"]: row["text"] for row in map(json.loads, lines)}


def main() -> None:
    """Kill in each stage, finish, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "benchmark-kill")
    parser.add_argument("--against", type=Path, default=ROOT / "runs" / "quickstart")
    arguments = parser.parse_args()
    run_dir = arguments.run_dir
    shutil.rmtree(run_dir, ignore_errors=True)
    killed = {}
    for stage in stages_of(read_run_recipe(arguments.against)):
        killed[stage.name] = run_until(run_dir, stage.name) == -signal.SIGKILL
    status = run_until(run_dir, None)
    stored = (run_dir / "store" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, stored) if "completions" in row]
    asked = Counter((row["teacher"], row["chat"], row["sampling"]) for row in rows)
    same = answers(run_dir) == answers(arguments.against)
    save(
        "kill_and_resume",
        "python benchmarks/kill_and_resume.py",
        {
            "killed in": killed,
            "exit status of the last start": status,
            "answers stored": len(rows),
            "asked more than once": sum(count > 1 for count in asked.values()),
            "answers equal those of an uninterrupted run": same,
        },
    )
    if status not in (0, 3) or not same or max(asked.values()) > 1:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
