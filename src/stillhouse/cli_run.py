"""`stillhouse run`, `report`, and a command for each stage of a run. Thin; knows no stage's inside.

Exit code 3: it ran, and the gate says no.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from stillhouse.cli_options import EXIT_GATE, AsJson, Overrides, RecipePath, RunDir, opened
from stillhouse.cli_show import print_json, print_rows, progress_of
from stillhouse.core.recipe_file import load_recipe
from stillhouse.evaluate.report import Report
from stillhouse.evaluate.summary import summary_rows
from stillhouse.pipeline import report_of, run_stages
from stillhouse.stages import STAGES, Stage


def run(
    recipe: RecipePath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run every stage that is not up to date, and write report.json and report.html."""
    loaded, root = opened(load_recipe, recipe, run_dir, overrides)
    run_stages(loaded, root, progress_of(as_json))
    _show_report(report_of(root), root, as_json)


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    as_json: AsJson = False,
) -> None:
    """Write the report of a finished run anew, and print its figures."""
    _show_report(report_of(folder), folder, as_json)


def _stage_command(stage: Stage) -> Callable[..., None]:
    def command(
        recipe: RecipePath,
        run_dir: RunDir = None,
        overrides: Overrides = None,
        as_json: AsJson = False,
    ) -> None:
        loaded, root = opened(load_recipe, recipe, run_dir, overrides)
        results = run_stages(loaded, root, progress_of(as_json), last=stage.name)
        if as_json:
            print_json(
                {
                    result.name: {
                        "skipped": result.skipped,
                        "seconds": result.manifest.seconds,
                        "cost_usd": result.manifest.cost_usd,
                        "summary": dict(result.manifest.summary),
                    }
                    for result in results
                }
            )

    command.__doc__ = f"Run up to this stage: {stage.caption}."
    return command


STAGE_COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    stage.name: _stage_command(stage) for stage in STAGES
}


def _show_report(made: Report, root: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(made.model_dump_json(indent=2))
    else:
        print_rows(summary_rows(made))
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"report: {root / 'report.html'}", markup=False)
    if made.gate.verdict != "pass":
        raise typer.Exit(EXIT_GATE)
