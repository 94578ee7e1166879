"""`stillhouse plan`: what a recipe of any kind will take, before it is done. Thin.

Knows no plan's inside.
"""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse.cli_options import EXIT_USER, AsJson, Overrides, RecipePath, RunDir, opened
from stillhouse.cli_show import print_json, print_rows, progress_of
from stillhouse.core.errors import UserError
from stillhouse.core.recipe_corpus_file import load_corpus_recipe
from stillhouse.core.recipe_file import kind_of, load_recipe
from stillhouse.core.recipe_images_file import load_image_recipe
from stillhouse.plan import FEWEST, make_plan, plan_lines
from stillhouse.plan_nets import corpus_plan_lines, image_plan_lines, plan_corpus, plan_images


def plan(
    recipe: RecipePath,
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=FEWEST, help="Ask so many queries first (paid, kept)."),
    ] = None,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say what asking and training will cost, take and give, before it is done."""
    kind, progress = kind_of(recipe), progress_of(as_json)
    if kind != "traffic" and sample is not None:
        raise UserError("--sample", f"a recipe with {kind} asks nobody", action="leave it out")
    refused = False
    if kind == "corpus":
        found = plan_corpus(*opened(load_corpus_recipe, recipe, run_dir, overrides), progress)
        rows = corpus_plan_lines(found)
    elif kind == "images":
        found = plan_images(*opened(load_image_recipe, recipe, run_dir, overrides))
        rows = image_plan_lines(found)
    else:
        planned = make_plan(*opened(load_recipe, recipe, run_dir, overrides), sample, progress)
        found, rows = planned.plan.model_dump(mode="json"), plan_lines(planned)
        refused = planned.sample_refused
    if as_json:
        print_json(found)
    else:
        print_rows(rows)
    if refused:
        raise typer.Exit(EXIT_USER)
