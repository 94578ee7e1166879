"""tasks.html: one self-contained page about the tasks in a log; and the same as a terminal table.

Chooses what is shown and in which words; figures come from the report, layout from the template.
Everything is inline: the page asks no server for anything.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment
from rich.console import Console
from rich.table import Table

from stillhouse.core.page import page_environment
from stillhouse.core.statistics import Interval
from stillhouse.traffic.tasks_report import MinedTask, TasksReport

SHOWN_LABELS: Final = 12
SHOWN_ROWS: Final = 40
TABLE_WIDTH: Final = 120
TO_FILL_IN: Final = "teacher.terms, and what its comments ask for"
PARTS: Final = ("closedness", "agreement", "brevity", "narrowness", "volume")


def render_tasks(report: TasksReport, recipes: Mapping[str, str]) -> str:
    """The whole page as HTML text; `recipes` holds the YAML of each recommended task by name."""
    return (
        _environment()
        .get_template("tasks.html")
        .render(
            r=report,
            sentence=sentence(report),
            recipes=recipes,
            best=next((task for task in report.tasks if task.recommended), None),
            top_value=max((task.value or 0.0 for task in report.tasks), default=0.0),
            parts=PARTS,
            shown_labels=SHOWN_LABELS,
            to_fill_in=TO_FILL_IN,
            known=known_usd(report),
        )
    )


def sentence(report: TasksReport) -> str:
    """The recommendation in one or two sentences."""
    best = next((task for task in report.tasks if task.recommended), None)
    if best is None:
        return "No task of this log is worth distilling: too rare, too varied, or more than text."
    cost = best.usd_per_month if best.usd_per_month is not None else best.usd
    span = "a month" if best.usd_per_month is not None else "in this log"
    spent = f"It costs {usd(cost)} {span}" if cost is not None else "Its price is not known"
    what = {
        "classification": f"its answers are {len(best.answers.labels)} labels",
        "extraction": "its answers are JSON of one schema",
        "generation": "its answers are free text",
    }[best.kind]
    return (
        f"Distil {best.name} first. {spent}, {100 * best.share:.0f}% of all requests, and {what}."
    )


def known_usd(report: TasksReport) -> str | None:
    """`at least $2.10 a month` where the price of only a part is known; `None` of none or all."""
    monthly = report.window.days is not None
    known = [
        value
        for task in report.tasks
        if (value := task.usd_per_month if monthly else task.usd) is not None
    ]
    if report.usd is not None or not known:
        return None
    return f"at least {usd(sum(known))}"


def usd(value: float | None) -> str:
    """USD with enough digits to tell small sums apart; `unknown` for `None`."""
    if value is None:
        return "unknown"
    if value == 0 or value >= 1:
        return f"${value:,.2f}" if 0 < value < 100 else f"${value:,.0f}"
    return f"${value:.{1 - math.floor(math.log10(value))}f}"


def interval_text(interval: Interval | None) -> str:
    """`98% [96, 99]`, or a dash."""
    if interval is None:
        return "–"
    return f"{100 * interval.estimate:.0f}% [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def tokens(value: float) -> str:
    """`1.2M`, `34K`, `210`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def tasks_table(report: TasksReport) -> Table:
    """The ranked tasks for a terminal."""
    monthly = report.window.days is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("task", overflow="fold", min_width=20)
    table.add_column("kind", no_wrap=True)
    for name in (
        "a day" if monthly else "requests",
        "tokens in",
        "out",
        "USD/month" if monthly else "USD",
        "distils",
        "agrees with itself",
    ):
        table.add_column(name, justify="right", no_wrap=len(name) < 12)
    for task in report.tasks[:SHOWN_ROWS]:
        rate = task.requests_per_day if monthly else float(task.requests)
        mark = "~" if task.tokens_estimated > 0 else ""
        table.add_row(
            "*" if task.recommended else "",
            task.name,
            task.kind,
            f"{rate:,.0f}",
            mark + tokens(task.prompt_tokens),
            mark + tokens(task.completion_tokens),
            usd(task.usd_per_month if monthly else task.usd),
            f"{task.distillability.score:.2f}",
            interval_text(task.self_agreement),
            style="bold" if task.recommended else None,
        )
    return table


def show_tasks(report: TasksReport, out: Path, as_json: bool) -> None:
    """Print the table, what to know before relying on it, and where the files are; or the JSON."""
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    if as_json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
        return
    console.print(tasks_table(report))
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    console.print(sentence(report), markup=False)
    console.print(f"page: {out / 'tasks.html'}", markup=False)
    best = next((task for task in report.tasks if task.recommended), None)
    if best is not None and best.recipe is not None:
        recipe = out / best.recipe
        console.print(f"next: fill in {recipe}: {TO_FILL_IN}; then", markup=False)
        console.print(f"      stillhouse plan {recipe}", markup=False)
        console.print(f"      stillhouse run {recipe}", markup=False)


def label_rows(task: MinedTask) -> list[tuple[str, float]]:
    """The most frequent labels with their shares."""
    return [(label.label, label.share) for label in task.answers.labels[:SHOWN_LABELS]]


@cache
def _environment() -> Environment:
    environment = page_environment("stillhouse.traffic")
    environment.filters.update(
        usd=usd, interval=interval_text, tokens=tokens, label_rows=label_rows
    )
    return environment
