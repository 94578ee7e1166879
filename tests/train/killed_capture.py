"""Run a capture in a process that kills itself before the facts of its Nth shard are written.

Usage: killed_capture.py RECIPE.json DATASET_DIR WORK_DIR facts:N
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.models import signal_writer
from stillhouse.train.capture import run_capture


def main() -> None:
    """Never returns where there are enough shards."""
    recipe, dataset, work, death = sys.argv[1:]
    torch.set_num_threads(1)
    last = f"shard-{int(death.partition(':')[2]):05}.json"
    write_json = signal_writer.write_json

    def dying(path: Path, value: Any) -> None:
        if path.name == last:
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(path, value)

    signal_writer.write_json = dying
    loaded = Recipe.model_validate_json(Path(recipe).read_text())
    run_capture(loaded, Path(dataset), Path(work), Path(work), Silent())


if __name__ == "__main__":
    main()
