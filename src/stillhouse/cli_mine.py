"""`stillhouse mine`: the task worth distilling, found in request logs. Thin."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli_options import AsJson
from stillhouse.cli_show import progress_of
from stillhouse.traffic.formats import FORMATS
from stillhouse.traffic.mine import mine as run_mine
from stillhouse.traffic.mine import mine_options
from stillhouse.traffic.redact import DEFAULT_KINDS
from stillhouse.traffic.tasks_page import show_tasks

Format = StrEnum("Format", {name: name for name in FORMATS})  # type: ignore[misc]


def mine(
    logs: Annotated[list[Path], typer.Argument(metavar="LOGS...", help="Log files or folders.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of the result.")] = Path("tasks"),
    log_format: Annotated[Format | None, typer.Option("--format", help="Of all logs.")] = None,
    redact: Annotated[
        str, typer.Option("--redact", help="Kinds of personal data to replace, or none.")
    ] = ",".join(DEFAULT_KINDS),
    price: Annotated[
        list[str] | None, typer.Option("--price", metavar="MODEL=IN,OUT", help="USD per Mtok.")
    ] = None,
    days: Annotated[float | None, typer.Option("--days", help="Days the logs cover.")] = None,
    min_requests: Annotated[int, typer.Option("--min-requests", help="That make a task.")] = 50,
    top: Annotated[int, typer.Option("--top", help="Recipes to write, at most.")] = 3,
    teacher: Annotated[str | None, typer.Option("--teacher", help="For the recipes.")] = None,
    repeats: Annotated[
        list[Path] | None, typer.Option("--repeats", help="Logs of inputs asked again.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the task worth distilling in request logs, and write its recipe."""
    options = mine_options(
        logs,
        out,
        log_format=log_format,
        redact=redact,
        price=price or (),
        days=days,
        min_requests=min_requests,
        top=top,
        teacher=teacher,
        repeats=repeats or (),
    )
    show_tasks(run_mine(options, progress_of(as_json)).report, out, as_json)
