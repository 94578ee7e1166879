"""Folders that look like students, for tests of the registry: a few small files each."""

from __future__ import annotations

import itertools
from pathlib import Path

from stillhouse.retrain.registry import Entry, Registry


def student_folder(folder: Path, name: str) -> Path:
    """Files whose contents follow from the name."""
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text(f'{{"name": "{name}"}}')
    (folder / "sub" / "weights.bin").write_bytes(name.encode() * 50)
    return folder


def opened(root: Path) -> Registry:
    """A registry whose clock ticks once a call."""
    ticks = itertools.count(1000)
    return Registry(root, clock=lambda: float(next(ticks)))


def added(registry: Registry, name: str, task: str = "mail", parent: str | None = None) -> Entry:
    """A student of that name, added."""
    place = registry.root.parent / "made" / task / name
    if not place.exists():
        student_folder(place, f"{task}/{name}")
    return registry.add(place, task=task, lineage={"name": name}, metrics={}, parent=parent)
