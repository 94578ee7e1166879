"""`best`: the name by which the chosen form of a student is found. Knows folders, no verdicts."""

from __future__ import annotations

import shutil
from pathlib import Path

from stillhouse.core.jsonl import disk_errors
from stillhouse.evaluate.compressed import BEST


def link_best(work: Path, best: str | None) -> None:
    """`best` leads to the artefact's folder; where the disk takes no link, it is a copy."""
    place = work / BEST
    with disk_errors(place):
        if place.is_symlink():
            place.unlink()
        elif place.exists():
            shutil.rmtree(place)
        if best is None:
            return
        try:
            place.symlink_to(best, target_is_directory=True)
        except OSError:
            shutil.copytree(work / best, place)
