"""`stillhouse speculate`: the student as a draft of its teacher. Thin; knows no stage's inside."""

from __future__ import annotations

from typing import Final

import typer
from rich.console import Console

from stillhouse.cli_options import EXIT_GATE, AsJson, Overrides, RecipePath, RunDir, opened
from stillhouse.cli_show import print_json, progress_of
from stillhouse.core.jsonl import read_json
from stillhouse.core.optional import require
from stillhouse.core.recipe_file import load_recipe
from stillhouse.pipeline import run_stages

STAGE: Final = "speculate"


def speculate(
    recipe: RecipePath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure the student as a draft of its teacher: acceptance, speed, losslessness."""
    loaded, root = opened(load_recipe, recipe, run_dir, overrides)
    run_stages(loaded, root, progress_of(as_json), last=STAGE)
    module = require("stillhouse.compress.speculate_report", "train", "speculative decoding")
    found = read_json(root / STAGE / "speculate.json")
    report = module.SpeculateReport.model_validate(found)
    if as_json:
        print_json(found)
    else:
        rows = module.report_lines(report)
        width = max(len(name) for name, _ in rows)
        console = Console(soft_wrap=True, highlight=False)
        for name, value in rows:  # whole, however long: a table would cut the verdict off
            console.print(f"{name:<{width}} {value}", markup=False)
        console.print(f"configurations: {root / STAGE / 'serve'}", markup=False)
    if not report.passed:
        raise typer.Exit(EXIT_GATE)
