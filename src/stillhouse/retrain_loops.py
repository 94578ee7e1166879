"""loop.yaml's tasks as loops that can be run: its log, registry, gateway and recipes opened.

Knows files and the parts of a loop; takes no step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.live import LiveRows
from stillhouse.core.loop_file import LoopFile, load_loop
from stillhouse.core.loop_retrain import RetrainSection
from stillhouse.core.loop_sections import LoopTask
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import load_recipe
from stillhouse.evaluate.metrics import Resampling
from stillhouse.monitor.state import task_folder
from stillhouse.retrain.cycle import begun
from stillhouse.retrain.cycle_choose import Nothing, Plan, planned, said_of, window_of
from stillhouse.retrain.cycle_files import TaskFolder
from stillhouse.retrain.gateway_standing import AdminGateway
from stillhouse.retrain.loop import Loop
from stillhouse.retrain.registry import Registry
from stillhouse.retrain.seams import Gateway
from stillhouse.retrain_admin import opened_admin
from stillhouse.retraining import PipelineWorkshop
from stillhouse.serve.gateway_file import GatewayFile, load_gateway
from stillhouse.serve.gateway_sections import FallbackSection
from stillhouse.traffic.read import read_labelled


class Look(NamedTuple):
    """What a cycle that begins now would do: counts of its window, and its plan or why none."""

    task: str
    window: dict[str, int]
    plan: Plan | None
    said: str


def open_loops(
    path: Path,
    task: str | None,
    progress: Progress,
    *,
    clock: Callable[[], float] = time.time,
    live: LiveRows | None = None,
    apart: Callable[[str, StillhouseError], None] | None = None,
) -> list[Loop]:
    """The tasks of a loop.yaml, or the one that is named.

    Args:
        path: loop.yaml.
        task: the gateway's name of one.
        progress: bars and lines.
        clock: Unix seconds.
        live: the log; `None`: the database that the gateway's file names.
        apart: hears of a task that cannot be opened, and the others are; `None`, or with one task
            alone, it is raised.

    Raises:
        UserError: a file, key or folder that cannot be used.
    """
    file = load_loop(path)
    if task is not None and task not in file.tasks:
        raise UserError(
            "TASK", f"is not in {path}", value=task, action=f"name one of: {', '.join(file.tasks)}"
        )
    gateway = load_gateway(Path(file.gateway))
    rows = live if live is not None else _log_of(gateway, Path(file.gateway))
    found = []
    wanted = {name: one for name, one in file.tasks.items() if task in (None, name)}
    for name, section in wanted.items():
        try:
            found.append(_loop(file, name, section, gateway, rows, progress=progress, clock=clock))
        except StillhouseError as error:
            if apart is None or len(wanted) == 1:
                raise
            apart(name, error)
    return found


def look(loop: Loop) -> Look:
    """What the next cycle would do; nothing is written, asked or paid."""
    unfinished = loop.files.unfinished()
    if unfinished is not None:
        said = f"cycle {unfinished.name} is unfinished and would go on with: {unfinished.step}"
        return Look(loop.name, dict(unfinished.window), None, said)
    lines = loop.files.journal()
    cycle = begun(loop, lines, "dry run")
    window = window_of(loop, cycle, lines)
    usable = window.counts.get("usable", 0)
    if usable < loop.section.min_requests:
        said = f"{usable:,} usable requests, fewer than min_requests: nothing would be done"
        return Look(loop.name, window.counts, None, said)
    try:
        plan = planned(loop, cycle, lines, window.rows)
    except Nothing as why:
        return Look(loop.name, window.counts, None, f"{why}: nothing would be done")
    return Look(loop.name, window.counts, plan, said_of(plan))


def _loop(
    file: LoopFile,
    name: str,
    task: LoopTask,
    gateway: GatewayFile,
    rows: LiveRows,
    *,
    progress: Progress,
    clock: Callable[[], float],
) -> Loop:
    if name not in gateway.tasks:
        raise UserError(
            f"tasks.{name}",
            f"is no task of {file.gateway}",
            action=f"name one of: {', '.join(gateway.tasks)}",
        )
    recipe = load_recipe(Path(task.recipe))
    first = None if task.run is None else Path(task.run)
    if first is not None and not first.is_dir():
        raise UserError(f"tasks.{name}.run", "there is no such folder", value=str(first))
    files = TaskFolder(task_folder(Path(file.folder), name))
    section, fallback = task.retrain, gateway.tasks[name].fallback
    _check_fallback(name, section, fallback, golden=recipe.traffic.golden is not None)
    how = Resampling(recipe.evaluate.confidence, recipe.evaluate.resamples, recipe.seed)
    return Loop(
        name=name,
        section=section,
        workshop=PipelineWorkshop(recipe, section, files.root, first, progress),
        live=rows,
        registry=Registry(Path(file.registry), clock),
        files=files,
        progress=progress,
        clock=clock,
        how=how,
        margin=recipe.evaluate.margin,
        near_duplicate=recipe.dataset.near_duplicate,
        first_run=first,
        gateway=_gateway(gateway, section.gateway_url, file) if section.gateway else None,
        calibrator=fallback.calibrator,
        climbs_ungated=fallback.ungated != "teacher",
        golden=_golden_rows(recipe),
        seed=recipe.seed,
    )


def _golden_rows(recipe: Recipe) -> int | None:
    path = recipe.traffic.golden
    return None if path is None else len(read_labelled(Path(path), recipe.task).queries)


def _check_fallback(
    name: str, section: RetrainSection, fallback: FallbackSection, *, golden: bool
) -> None:
    where, own = f"tasks.{name}.retrain.fallback", section.fallback
    if own.on == "golden" and not golden:
        raise UserError(
            f"{where}.on", "is golden, and the recipe has no golden set", action="write window"
        )
    gated = fallback.calibrator is not None and fallback.ungated == "teacher"
    if section.gateway and own.calibrate == "never" and gated:
        raise UserError(
            f"{where}.calibrate",
            "is never, and the gateway, which has a calibrator, lets no student climb without one",
            action="write auto, or fallback.ungated: shown into gateway.yaml",
        )


def _gateway(gateway: GatewayFile, url: str | None, file: LoopFile) -> Gateway:
    if gateway.admin is None:
        raise UserError(
            "retrain.gateway",
            f"{file.gateway} has no admin section, so nobody can be offered a student",
            action="give it one, or set retrain.gateway: false",
        )
    return AdminGateway(opened_admin(gateway.admin, url))


def _log_of(gateway: GatewayFile, path: Path) -> LiveRows:
    if gateway.log.url is None:
        raise UserError(
            str(path), "has no log.url: there is no traffic to learn from", action="give it one"
        )
    tables = require("stillhouse.serve.tables", "serve", "reading the log")
    module = require("stillhouse.serve.live_rows", "serve", "reading the log")
    rows: LiveRows = module.StoredRows(tables.open_database(gateway.log.url))
    return rows
