"""The demo's figures: run recipes/quickstart.yaml from nothing and keep what its report says.

    python benchmarks/quickstart.py [--run-dir DIR]

An existing run folder that is finished is read, not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine_line import save

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run, then save the figures the README shows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "benchmark-quickstart")
    run_dir = parser.parse_args().run_dir
    data = [sys.executable, "recipes/quickstart_data.py"]
    subprocess.run(data, cwd=ROOT, check=True)
    run = [sys.executable, "-m", "stillhouse", "run", "recipes/quickstart.yaml"]
    done = subprocess.run([*run, "--run-dir", str(run_dir)], cwd=ROOT, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(done.returncode)
    report: dict[str, Any] = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    check = json.loads((run_dir / "check" / "check.json").read_text(encoding="utf-8"))
    save(
        "quickstart",
        "python benchmarks/quickstart.py",
        {
            "teacher check": {"teacher": check["accuracy"], "tfidf": check["baseline"]["accuracy"]},
            "teacher": report["teacher"]["score"],
            "student": report["student"]["score"],
            "tfidf": report["baselines"]["tfidf"]["score"],
            "majority": report["baselines"]["majority"]["score"],
            "retention": report["retention"],
            "fidelity": report["fidelity"],
            "size": report["size"],
            "speed": report["speed"],
            "cost": report["cost"],
            "gate": report["gate"],
            "seconds": report["seconds"],
            "peak_rss_mb": report["peak_rss_mb"],
        },
    )


if __name__ == "__main__":
    main()
