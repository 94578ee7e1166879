"""One of several training processes: `torchrun ... -m stillhouse.train.worker FOLDER`.

Reads `job.json` in the student's folder and does what one process would do; the first process
writes the files. On several machines this is started on each, with the folder on a disk they share
(docs/distributed.md). Knows a folder.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.train.agent import die_with_parent
from stillhouse.train.distil import Job, distil, read_data
from stillhouse.train.launch import ERROR, JOB, Lines
from stillhouse.train.ranks import is_main


def main(folder: Path) -> int:
    """Train; the exit status."""
    die_with_parent(os.getppid(), signal.SIGKILL)
    if torch.cuda.is_available():  # before a teacher is put anywhere
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        distil(_job(folder), folder, Lines() if is_main() else Silent())
    except StillhouseError as error:
        if is_main() or not (folder / ERROR).exists():
            write_json(folder / ERROR, {"user": isinstance(error, UserError), "text": str(error)})
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _job(folder: Path) -> Job:
    found: dict[str, Any] = read_json(folder / JOB)
    recipe = Recipe.model_validate(found["recipe"])
    return Job(
        recipe,
        read_data(Path(found["dataset"]), recipe),
        None if found["tuned"] is None else Path(found["tuned"]),
        float(found["alpha"]),
        str(found["title"]),
        None if found["signals"] is None else Path(found["signals"]),
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
