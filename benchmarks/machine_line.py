"""What every result in this folder carries: machine, date, command, versions."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.core.machine import package_versions, this_machine

RESULTS = Path(__file__).parent / "results"


def save(name: str, command: str, result: Mapping[str, Any]) -> None:
    """Write results/NAME.json and print it."""
    RESULTS.mkdir(exist_ok=True)
    whole = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": this_machine()._asdict(),
        "versions": package_versions("stillhouse", "torch", "transformers", "numpy"),
        **result,
    }
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
