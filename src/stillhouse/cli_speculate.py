"""`stillhouse speculate`: the student as a draft of its teacher. Thin; knows no stage's inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import typer
from rich.console import Console

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
        rows = module.report_lines(report)
        width = max(len(name) for name, _ in rows)
        console = Console(soft_wrap=True, highlight=False)
        for name, value in rows:  # whole, however long: a table would cut the verdict off
            console.print(f"{name:<{width}} {value}", markup=False)
        console.print(f"configurations: {root / STAGE / 'serve'}", markup=False)
    if not report.passed:
        raise typer.Exit(EXIT_GATE)
