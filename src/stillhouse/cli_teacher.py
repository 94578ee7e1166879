"""`stillhouse teacher ...`: commands about teachers, beside the stages of a run. Thin.

A further command is one more function with `@teacher_app.command()`. Knows no command's inside.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Final

import typer

from stillhouse.cli_options import AsJson, Overrides, RecipePath, RunDir, opened
from stillhouse.cli_run import STAGE_COMMANDS
from stillhouse.cli_show import print_table, progress_of
from stillhouse.core.recipe_file import load_recipe
from stillhouse.evaluate.teacher_page import closing_lines, table_rows
from stillhouse.teacher.retirement import lifecycle_of
from stillhouse.teacher_compare import FOLDER, compare_teachers

EXIT_GONE: Final = 2

teacher_app = typer.Typer(
    name="teacher",
    help="Choose a teacher, and look after it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@teacher_app.callback()
def _group() -> None:
    """Choose a teacher, and look after it."""


@teacher_app.command()
def compare(
    recipe: RecipePath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare teachers and ensembles on the labelled sample, and say which to take."""
    loaded, root = opened(load_recipe, recipe, run_dir, overrides)
    found = compare_teachers(loaded, root, progress_of(as_json))
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    titles = ("teacher", found.metric, "against the best", "ECE", "$/1,000", "p50", "probe")
    print_table(titles, table_rows(found))
    for line in closing_lines(found):
        typer.echo(line)
    typer.echo(f"page: {root / FOLDER / 'compare.html'}")


@teacher_app.command()
def check(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Ask the provider whether the teacher still exists, and warn of its retirement."""
    found = lifecycle_of(load_recipe(recipe, overrides or []).teacher)
    warning = found.warning(datetime.now(UTC).date())
    if as_json:
        typer.echo(json.dumps({**found.model_dump(mode="json"), "warning": warning}, indent=2))
    elif warning is not None:
        typer.echo(f"{'GONE' if found.exists is False else 'WARNING'}: {warning}", err=True)
    else:
        state = "exists" if found.exists else "cannot be asked about"
        typer.echo(f"{found.model}: {state} ({found.source}); no retirement is announced")
    if found.exists is False:
        raise typer.Exit(EXIT_GONE)


# `stillhouse tune` is about the student.
teacher_app.command("tune")(STAGE_COMMANDS["tune"])
