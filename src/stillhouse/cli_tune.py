"""`stillhouse tune`: search a recipe's training settings. Thin; knows no stage's inside."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from stillhouse.cli_options import AsJson, Overrides, RecipePath, RunDir
from stillhouse.core.progress import Silent, Terminal
from stillhouse.core.recipe_file import load_recipe
from stillhouse.evaluate.search_page import lines, rows
from stillhouse.tuning import FOLDER, PAGE, TUNED, TUNED_RUN, tune_recipe


def tune(
    recipe: RecipePath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Search the training settings; choose on a part of the training set, report on held-out."""
    loaded = load_recipe(recipe, overrides or [])
    root = run_dir or Path("runs") / loaded.name
    found = tune_recipe(loaded, root, Silent() if as_json else Terminal())
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("setting", "recipe", "best", "good trials", "importance"):
        table.add_column(title, overflow="fold")
    for row in rows(found):
        table.add_row(*row)
    Console(soft_wrap=True, highlight=False).print(table)
    for line in lines(found):
        typer.echo(line)
    folder = root / FOLDER
    typer.echo(f"recipe: {folder / TUNED}; page: {folder / PAGE}")
    typer.echo(
        "train it on all examples, with the answers that are there: "
        f"stillhouse run {folder / TUNED} --run-dir {folder / TUNED_RUN}"
    )
