"""`stillhouse simulate`: what a gateway.yaml's plan would do with logged traffic. Thin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stillhouse.cli_options import AsJson
from stillhouse.core.errors import UserError
from stillhouse.core.optional import require


def simulate(  # noqa: PLR0917 - options
    log: Annotated[
        str, typer.Argument(metavar="LOG_OR_DB", help="The gateway's database, or JSONL of pairs.")
    ],
    policy: Annotated[
        Path, typer.Option("--policy", metavar="GATEWAY_YAML", help="The plan that is tried.")
    ],
    task: Annotated[str | None, typer.Option("--task", help="Where the file has several.")] = None,
    days: Annotated[float, typer.Option("--days", min=0.01, help="That money is of.")] = 30.0,
    per_day: Annotated[
        float | None,
        typer.Option("--per-day", min=1.0, help="Requests a day; default: as logged."),
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", min=20, max=5000)] = 300,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write the log's pairs there, without texts.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Foresee savings and risks of a plan on logged traffic, before it is turned on."""
    part = require("stillhouse.serve.simulate", extra="serve", needed_for="the simulation")
    pairs_of = require("stillhouse.serve.logged_pairs", extra="serve", needed_for="the simulation")
    files = require("stillhouse.serve.gateway_file", extra="serve", needed_for="the simulation")
    name, section = _task(files.load_gateway(policy).tasks, task)
    pairs = pairs_of.read_pairs(log, name, section.experiment.evidence)
    if export is not None:
        pairs_of.write_pairs(export, pairs)
    asked = part.Asked(repetitions=repetitions, seed=seed, days=days, per_day=per_day)
    found = part.simulate(name, section, pairs, asked)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = Console()
    console.print(_stages(found))
    for line in lines(found):
        typer.echo(line)


def _task(tasks: Any, wanted: str | None) -> tuple[str, Any]:
    able = {
        name: one
        for name, one in tasks.items()
        if one.student is not None and one.experiment.evidence is not None
    }
    if wanted is not None and wanted not in tasks:
        raise UserError("--task", "is not in the file", value=wanted, action=", ".join(tasks))
    if wanted is not None and wanted not in able:
        raise UserError(
            f"tasks.{wanted}",
            "has no student with an experiment.evidence section",
            action="write what tells whether the student is good enough (docs/evidence.md)",
        )
    if wanted is None and len(able) != 1:
        raise UserError(
            "--task",
            f"is needed: the file has {len(able)} tasks with an experiment.evidence section",
            action=", ".join(able) or "see docs/evidence.md",
        )
    name = wanted or next(iter(able))
    return name, able[name]


def _stages(found: Any) -> Table:
    table = Table(title=f"{found.task}: {found.pairs:,} pairs of {found.units:,} units")
    for title in ("stage", "reached", "advances", "rolled back", "holds", "requests", "days"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage in found.stages:
        kind = f"{stage.stage} {stage.kind}"
        if stage.kind == "canary":
            kind += f" {100 * stage.share:g}%"
        spread = "-"
        if stage.requests is not None:
            low, middle, high = stage.requests
            spread = f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"
        shares = (stage.reached, stage.advanced, stage.rolled_back, stage.undecided)
        days = "-" if stage.days is None else f"{stage.days:.1f}"
        table.add_row(kind, *(f"{100 * one:.0f}%" for one in shares), spread, days)
    return table


def lines(found: Any) -> Iterator[str]:
    """What stands below the table."""
    yield (
        f"quality: teacher {_interval(found.teacher)}, student's arm {_interval(found.student)} "
        f"(the student alone {100 * found.bare:.1f}%, it answers {100 * found.answered:.0f}%)"
    )
    side = "better than it must be" if found.slack.estimate > 0 else "worse than is allowed"
    yield f"the student's arm is {100 * abs(found.slack.estimate):.1f} points {side}"
    yield (
        f"outcome: reaches the last stage {100 * found.reaches_last:.0f}%, rolled back "
        f"{100 * found.rolled_back:.0f}%, undecided {100 * found.undecided:.0f}%"
    )
    if found.days is not None:
        low, middle, high = found.days
        yield f"time to the last stage: {middle:.1f} days ({low:.1f} to {high:.1f})"
    if found.at_margin_advances is None:
        yield "risk: the log has no answers on one side of the margin, so none can be foreseen"
    else:
        yield (
            "risk: a student exactly at the margin would advance wrongly in "
            f"{100 * found.at_margin_advances:.1f}%, and reach the last stage in "
            f"{100 * found.at_margin_reaches_last:.1f}%"
        )
    money = found.money
    low, mean, high = money.saved
    yield (
        f"money over {money.days:g} days, {money.requests:,} requests: teacher alone "
        f"{money.teacher_only:,.2f} USD, saved {mean:,.2f} USD ({low:,.2f} to {high:,.2f})"
    )
    yield (
        f"per 1,000 requests: teacher {money.per_1000_teacher:.4g} USD, student's arm "
        f"{money.per_1000_student:.4g} USD"
    )
    for note in found.notes:
        yield f"note: {note}"


def _interval(one: Any) -> str:
    return f"{100 * one.estimate:.1f}% ({100 * one.low:.1f} to {100 * one.high:.1f})"
