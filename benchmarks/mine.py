"""Mine a log with known tasks in it: seconds, memory, and what is found against what was planted.

    python benchmarks/mine.py [--lines 100000] [--seed 0]

The log has twelve tasks of four programs' kinds (labels, JSON, text, tools) in four formats, and
personal data in one text of seven (tests/planted_log.py). Mining runs in a process of its own, so
that its peak memory is its own; the labels are held against the planted ones by the adjusted Rand
index (Hubert and Arabie 1985).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from machine_line import save
from sklearn.metrics import adjusted_rand_score

from stillhouse.core.progress import Silent
from stillhouse.traffic.mine import MineOptions, mine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from planted_log import write_logs

KINDS = {
    "routing": "classification",
    "sentiment": "classification",
    "moderation": "classification",
    "intent": "classification",
    "order": "extraction",
    "contact": "extraction",
}


def peak_mb() -> float:
    """Peak memory of this process since it was started, MiB (ru_maxrss would be the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def child(folder: Path) -> None:
    """Mine the folder's logs; print labels and figures as JSON."""
    files = json.loads((folder / "files.json").read_text())
    before = peak_mb()
    began = time.perf_counter()
    mined = mine(MineOptions(tuple(Path(file) for file in files), folder / "tasks"), Silent())
    seconds = time.perf_counter() - began
    used = {"seconds": seconds, "rss_mb": peak_mb(), "rss_mb_before": before}
    (folder / "result.json").write_text(
        json.dumps({**used, "labels": mined.labels.tolist(), "report": mined.report.model_dump()})
    )


def measured(lines: int, seed: int) -> dict[str, Any]:
    """Write a log, mine it in a child process, compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted = write_logs(folder, lines, seed)
        (folder / "files.json").write_text(json.dumps([str(file) for file in planted.files]))
        megabytes = sum(file.stat().st_size for file in planted.files) / 1e6
        subprocess.run([sys.executable, __file__, "--child", name], check=True)
        result = json.loads((folder / "result.json").read_text())
    labels, tasks = result["labels"], result["report"]["tasks"]
    pairs = Counter(zip(planted.truth, labels, strict=True))
    found = {}
    for truth, size in Counter(planted.truth).most_common():
        label, count = max(
            ((label, n) for (task, label), n in pairs.items() if task == truth), key=lambda x: x[1]
        )
        found[truth] = {
            "requests": size,
            "share in its task": round(count / size, 4),
            "kind": tasks[label]["kind"] if label >= 0 else None,
            "kind is right": label >= 0 and tasks[label]["kind"] == KINDS.get(truth, "generation"),
            "distillability": round(tasks[label]["distillability"]["score"], 3),
        }
    return {
        "lines": lines,
        "log_mb": round(megabytes, 1),
        "seconds": round(result["seconds"], 1),
        "lines_per_second": round(lines / result["seconds"]),
        "peak_rss_mb": round(result["rss_mb"]),
        "rss_mb_before_reading": round(result["rss_mb_before"]),
        "tasks planted": len(set(planted.truth)),
        "tasks found": len(tasks),
        "adjusted_rand_index": round(adjusted_rand_score(planted.truth, labels), 5),
        "kinds right": sum(one["kind is right"] for one in found.values()),
        "personal data replaced": result["report"]["redacted"],
        "recommended first": tasks[0]["name"],
        "per task": found,
    }


def main() -> None:
    """Mine, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child)
        return
    half = measured(arguments.lines // 2, arguments.seed)
    whole = measured(arguments.lines, arguments.seed)
    kept = ("lines", "log_mb", "seconds", "peak_rss_mb", "adjusted_rand_index")
    save(
        "mine",
        f"python benchmarks/mine.py --lines {arguments.lines} --seed {arguments.seed}",
        {**whole, "half the log": {key: half[key] for key in kept}},
    )


if __name__ == "__main__":
    main()
