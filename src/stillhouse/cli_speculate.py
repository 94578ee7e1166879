"""`stillhouse speculate`: the student as a draft of its teacher. Thin; knows no stage's inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stillhouse.cli_options import AsJson, Overrides, RecipePath, RunDir
from stillhouse.core.jsonl import read_json
from stillhouse.core.optional import require
from stillhouse.core.progress import Silent, Terminal
from stillhouse.core.recipe_file import load_recipe
from stillhouse.pipeline import run_stages

STAGE: Final = "speculate"
EXIT_GATE: Final = 3


def speculate(
    recipe: RecipePath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure the student as a draft of its teacher: acceptance, speed, losslessness."""
    loaded = load_recipe(recipe, overrides or [])
    root = run_dir or Path("runs") / loaded.name
    run_stages(loaded, root, Silent() if as_json else Terminal(), last=STAGE)
    module = require("stillhouse.compress.speculate_report", "train", "speculative decoding")
    found = read_json(root / STAGE / "speculate.json")
    report = module.SpeculateReport.model_validate(found)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in module.report_lines(report):
            table.add_row(name, escape(value))
        console = Console(soft_wrap=True, highlight=False)
        console.print(table)
        console.print(f"configurations: {root / STAGE / 'serve'}", markup=False)
    if not report.lossless or not report.faster:
        raise typer.Exit(EXIT_GATE)
