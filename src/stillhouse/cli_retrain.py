"""`stillhouse retrain`: distil tasks again, once, at intervals or by alerts. Thin.

Exit code 3: a candidate was refused. What is wrong with one task keeps no other from its cycle; the
exit code is then 2 or 1, as for that task alone. A cycle that waits (the teacher is down: 1; a
candidate climbs the gateway's stages: 0) goes on where it was with the same command.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from stillhouse.cli_options import EXIT_FAILED, EXIT_USER, AsJson
from stillhouse.cli_show import progress_of
from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.loop_retrain import duration_s
from stillhouse.retrain.cycle import run_cycle
from stillhouse.retrain.cycle_choose import facts_of
from stillhouse.retrain.cycle_records import Cycle
from stillhouse.retrain.daemon import watch
from stillhouse.retrain.loop import Loop
from stillhouse.retrain_loops import Look, look, open_loops

EXIT_REFUSED: Final = 3


def retrain(  # noqa: PLR0917 - typer's way
    loop: Annotated[Path, typer.Argument(metavar="LOOP_YAML", help="What is watched and how.")],
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="One task; default: all.")
    ] = None,
    every: Annotated[
        str | None, typer.Option("--every", help="Run on, a cycle so often: 7d, 12h.")
    ] = None,
    on_alert: Annotated[
        bool, typer.Option("--on-alert", help="Run on, a cycle where an alert asks for one.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what a cycle would do; ask and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Distil again from live traffic, and promote the student that proves better."""
    if dry_run and (every is not None or on_alert):
        raise UserError("--dry-run", "is for one cycle", action="leave out --every and --on-alert")
    progress = progress_of(as_json)
    failed: list[StillhouseError] = []

    def apart(name: str, error: StillhouseError) -> None:
        failed.append(error)
        if as_json:
            told = {"kind": type(error).__name__, "message": str(error)}
            typer.echo(json.dumps({"task": name, "error": told}, ensure_ascii=False))
        typer.echo(f"error: task {name}: {error}", err=True)

    loops = open_loops(loop, task, progress, apart=None if dry_run else apart)
    if dry_run:
        _show_looks([look(one) for one in loops], as_json)
        return
    if loops and (every is not None or on_alert):
        _watch(loops, every, on_alert=on_alert)
        return
    cycles = []
    for one in loops:
        try:
            cycle = run_cycle(one, "once")
        except StillhouseError as error:
            if len(loops) == 1 and not failed:
                raise
            apart(one.name, error)
            continue
        cycles.append(cycle)
        typer.echo(cycle.model_dump_json() if as_json else _told(cycle))
    if failed:
        mistaken = any(isinstance(error, UserError) for error in failed)
        raise typer.Exit(EXIT_USER if mistaken else EXIT_FAILED)
    if any(cycle.outcome == "refused" for cycle in cycles):
        raise typer.Exit(EXIT_REFUSED)


def _watch(loops: list[Loop], every: str | None, *, on_alert: bool) -> None:
    every_s: float | None = None
    if every is not None:
        try:
            every_s = duration_s(every)
        except ValueError as error:
            raise UserError("--every", str(error), value=every) from None
    with _until_terminated() as stopped:
        try:
            watch(loops, every_s=every_s, on_alert=on_alert, wait=stopped.wait)
        except KeyboardInterrupt:
            if not stopped.is_set():
                raise
    typer.echo("stopped: an unfinished cycle goes on at the next start")


@contextmanager
def _until_terminated() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; it ends the cycle at work, which goes on at the next start."""
    stopped = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        stopped.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def _told(cycle: Cycle) -> str:
    head = f"{cycle.task}, cycle {cycle.name}"
    if cycle.step != "done":
        return f"{head}: {cycle.candidate} climbs the gateway's stages; run this again to look"
    return f"{head}: {cycle.verdict}"


def _show_looks(looks: list[Look], as_json: bool) -> None:
    for one in looks:
        if as_json:
            plan = None if one.plan is None else facts_of(one.plan)
            facts = {"task": one.task, "window": one.window, "plan": plan, "said": one.said}
            typer.echo(json.dumps(facts, ensure_ascii=False))
            continue
        counts = ", ".join(f"{name} {count:,}" for name, count in one.window.items())
        typer.echo(f"{one.task}: window: {counts or 'empty'}; {one.said}")
