"""Run folders and studies as the dashboard shows them. Knows files of a run; judges nothing.

Names in addresses are looked up among the folders that were found, so none leads anywhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from stillhouse.core.errors import StillhouseError
from stillhouse.evaluate.course import read_course
from stillhouse.evaluate.fallback_frontier import FallbackFrontier
from stillhouse.evaluate.studies import FrontierStudy
from stillhouse.monitor.dashboard.shown import CurveRowShown, RunShown
from stillhouse.monitor.state import task_folder

MOST_ROWS: Final = 600
MOST_CYCLES: Final = 200
_NUMBER: Final = re.compile(r"[0-9]+")
M = TypeVar("M", bound=BaseModel)


class RunFiles:
    """`sources.Runs` and `sources.Frontiers`.

    Args:
        runs: the run folder that each task's student came from.
        folder: loop.yaml's: cycles of retraining lie in TASK/cycles/N.
    """

    def __init__(self, runs: Mapping[str, Path], folder: Path, tasks: tuple[str, ...]) -> None:
        self._runs, self._folder, self._tasks = dict(runs), folder, tasks

    def listed(self) -> list[RunShown]:
        """See `sources.Runs`; the newest cycles first, then the first run."""
        return [_run(name, task, path) for name, (task, path) in self._places().items()]

    def run(self, name: str) -> RunShown | None:
        """See `sources.Runs`."""
        place = self._places().get(name)
        if place is None:
            return None
        task, path = place
        found = _run(name, task, path)
        problems = list(found.problems)
        rows: list[CurveRowShown] = []
        history = path / "train" / "history.json"
        try:
            if history.is_file():
                raw = json.loads(history.read_bytes())
                rows = [CurveRowShown.model_validate(row) for row in _thinned(raw)]
        except (OSError, ValueError, TypeError, AttributeError):
            problems.append("train/history.json cannot be read")
        course = None
        try:
            course = read_course(path / "train")
        except (OSError, StillhouseError):
            problems.append("train/convergence.json cannot be read")
        update = {"history": tuple(rows), "course": course, "problems": tuple(problems)}
        return found.model_copy(update=update)

    def studies(self) -> dict[str, FrontierStudy]:
        """See `sources.Frontiers`."""
        return self._each("frontier/frontier.json", FrontierStudy)

    def fallbacks(self) -> dict[str, FallbackFrontier]:
        """See `sources.Frontiers`."""
        return self._each("calibrate/frontier.json", FallbackFrontier)

    def _each(self, name: str, kind: type[M]) -> dict[str, M]:
        found = {}
        for run, (_, path) in self._places().items():
            try:
                found[run] = kind.model_validate_json((path / name).read_bytes())
            except (OSError, ValidationError):
                continue
        return found

    def _places(self) -> dict[str, tuple[str, Path]]:
        """Name -> (task, folder)."""
        found: dict[str, tuple[str, Path]] = {}
        for task in self._tasks:
            cycles = task_folder(self._folder, task) / "cycles"
            numbers = []
            if cycles.is_dir():
                numbers = [
                    one for one in cycles.iterdir() if _NUMBER.fullmatch(one.name) and one.is_dir()
                ]
            numbers.sort(key=lambda one: int(one.name), reverse=True)
            for one in numbers[:MOST_CYCLES]:
                found[f"{task}/cycles/{one.name}"] = (task, _run_folder(one))
            if task in self._runs and self._runs[task].is_dir():
                found[f"{task}/run"] = (task, self._runs[task])
        return found


def _run_folder(cycle: Path) -> Path:
    """A cycle's run lies in it, or is it."""
    return cycle / "run" if (cycle / "run").is_dir() else cycle


def _run(name: str, task: str, path: Path) -> RunShown:
    plain = RunShown(name=name, task=task, folder=path.name)
    report = path / "report.json"
    if not report.is_file():
        return plain
    try:
        raw: dict[str, Any] = json.loads(report.read_bytes())
        gate = raw.get("gate") or {}
        return RunShown.model_validate(
            plain.model_dump()
            | {
                "created": raw.get("created", ""),
                "verdict": gate.get("verdict", ""),
                "reasons": gate.get("reasons", ()),
                "student": (raw.get("student") or {}).get("score"),
                "teacher": (raw.get("teacher") or {}).get("score"),
                "retention": raw.get("retention"),
                "agreement": (raw.get("fidelity") or {}).get("agreement"),
                "metric": raw.get("metric", ""),
                "n": raw.get("n", 0),
                "cost": raw.get("cost") or {},
            }
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return plain.model_copy(update={"problems": ("report.json cannot be read",)})


def _thinned(rows: list[Any]) -> list[Any]:
    """At most about `MOST_ROWS`, those with a look at the held-out set and the last among them."""
    step = -(-len(rows) // MOST_ROWS)
    return [
        row
        for number, row in enumerate(rows)
        if step <= 1
        or number % step == 0
        or number == len(rows) - 1
        or row.get("held_out_agreement") is not None
    ][: 4 * MOST_ROWS]
