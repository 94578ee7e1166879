"""`stillhouse monitor ...`: is the student still as good, and what changed. Thin.

Exit codes of `check`: 0 nothing is wrong, 4 a warning holds, 5 something critical does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from stillhouse.cli_options import AsJson
from stillhouse.monitor.check import Checked
from stillhouse.monitor.records import Figure, WindowReport
from stillhouse.monitoring import check_tasks, freeze_canaries

EXIT_WARNING: Final = 4
EXIT_CRITICAL: Final = 5
SHOWN_WINDOWS: Final = 10

monitor_app = typer.Typer(
    name="monitor",
    help="Watch a student in production: fidelity, drift and its cause, alerts.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
LoopPath = Annotated[Path, typer.Argument(metavar="LOOP_YAML", help="See docs/monitor.md.")]


@monitor_app.callback()
def _group() -> None:
    """Watch a student in production: fidelity, drift and its cause, alerts."""


@monitor_app.command("check")
def check_command(
    loop: LoopPath,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="This task alone; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge the windows since the last check; alerts are kept and delivered."""
    found = check_tasks(loop, task or ())
    if as_json:
        typer.echo(json.dumps({"tasks": [as_object(one) for one in found]}, indent=2))
    else:
        for one in found:
            show(one)
    code = exit_code(found)
    if code:
        raise typer.Exit(code)


@monitor_app.command()
def freeze(
    loop: LoopPath,
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task of the file.")],
    again: Annotated[bool, typer.Option("--again", help="Replace those that there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Choose canary prompts and keep what teacher and student say to them now."""
    done = freeze_canaries(loop, task, again=again)
    if as_json:
        typer.echo(json.dumps({**done._asdict(), "notes": list(done.notes)}, indent=2))
        return
    typer.echo(f"{done.path}: {done.canaries} canaries, the teacher asked twice")
    for note in done.notes:
        typer.echo(f"note: {note}")


def exit_code(found: list[Checked]) -> int:
    """Of the worst that holds in any task."""
    held = {one.severity for one in found}
    if "critical" in held:
        return EXIT_CRITICAL
    return EXIT_WARNING if "warning" in held else 0


def as_object(found: Checked) -> dict[str, object]:
    """One task's check, as JSON holds it."""
    return {
        "task": found.task,
        "severity": found.severity,
        "windows": [one.model_dump(mode="json", exclude_none=True) for one in found.reports],
        "alerts": [one.model_dump(mode="json", exclude_none=True) for one in found.alerts],
        "undelivered": found.undelivered,
        "more": found.more,
    }


def show(found: Checked) -> None:
    """One task's check, for people."""
    console = Console(soft_wrap=True, highlight=False)
    if found.reports:
        table = Table(title=f"{found.task}: {len(found.reports)} windows judged", box=None)
        for title in ("window", "requests", "agreement", "accuracy", "fallback", "found"):
            table.add_column(title, justify="left" if title == "found" else "right")
        for report in found.reports[-SHOWN_WINDOWS:]:
            table.add_row(*cells(report))
        console.print(table)
    else:
        typer.echo(f"{found.task}: no window is complete since the last check")
    for line in lines(found):
        typer.echo(line)


def cells(report: WindowReport) -> tuple[str, ...]:
    """A window's row."""
    flagged = [one.cause for one in report.findings if one.flagged]
    return (
        str(report.number),
        f"{report.requests:,}",
        told(report.figure("agreement", "random")),
        told(report.figure("accuracy", "judged")),
        told(report.figure("fallback_rate", "student")),
        ", ".join(flagged) or "-",
    )


def told(figure: Figure | None) -> str:
    """A share with its interval."""
    if figure is None or figure.interval is None:
        return "-"
    low, high = 100 * figure.interval.low, 100 * figure.interval.high
    return f"{100 * figure.interval.estimate:.1f}% ({low:.1f} to {high:.1f}, n {figure.n})"


def lines(found: Checked) -> Iterator[str]:
    """What stands below the table."""
    for alert in found.alerts:
        yield f"{alert.severity.upper()} {alert.kind}: {alert.summary}"
        yield f"  cause: {alert.cause}; do: {alert.action}"
    if found.undelivered:
        yield f"{found.undelivered} alerts wait to be delivered: tried again at the next check"
    if found.more:
        yield "more windows are left: run the check again"
    yield f"{found.task}: {found.severity or 'fine'}"
