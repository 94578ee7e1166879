"""`stillhouse tune`: search a recipe's training settings. Thin; knows no stage's inside."""

from __future__ import annotations

import typer

from stillhouse.cli_options import AsJson, Overrides, RecipePath, RunDir, opened
from stillhouse.cli_show import print_table, progress_of
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
    loaded, root = opened(load_recipe, recipe, run_dir, overrides)
    found = tune_recipe(loaded, root, progress_of(as_json))
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    print_table(("setting", "recipe", "best", "good trials", "importance"), rows(found))
    for line in lines(found):
        typer.echo(line)
    folder = root / FOLDER
    typer.echo(f"recipe: {folder / TUNED}; page: {folder / PAGE}")
    typer.echo(
        "train it on all examples, with the answers that are there: "
        f"stillhouse run {folder / TUNED} --run-dir {folder / TUNED_RUN}"
    )
