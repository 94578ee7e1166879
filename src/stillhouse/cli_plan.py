"""`stillhouse plan`: what a recipe of any kind will take, before it is done. Thin.

Knows no plan's inside.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stillhouse.cli_options import AsJson, Overrides, RecipePath, RunDir
from stillhouse.core.errors import UserError
from stillhouse.core.progress import Progress, Silent, Terminal
from stillhouse.core.recipe_corpus_file import load_corpus_recipe
from stillhouse.core.recipe_file import kind_of, load_recipe
from stillhouse.core.recipe_images_file import load_image_recipe
from stillhouse.plan import FEWEST, make_plan, plan_lines
from stillhouse.plan_nets import corpus_plan_lines, image_plan_lines, plan_corpus, plan_images

EXIT_USER: Final = 2


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
    given, kind = overrides or [], kind_of(recipe)
    progress: Progress = Silent() if as_json else Terminal()
    if kind != "traffic" and sample is not None:
        raise UserError("--sample", f"a recipe with {kind} asks nobody", action="leave it out")
    refused = False
    if kind == "corpus":
        corpus = load_corpus_recipe(recipe, given)
        found = plan_corpus(corpus, run_dir or Path("runs") / corpus.name, progress)
        rows = corpus_plan_lines(found)
    elif kind == "images":
        images = load_image_recipe(recipe, given)
        found = plan_images(images, run_dir or Path("runs") / images.name)
        rows = image_plan_lines(found)
    else:
        loaded = load_recipe(recipe, given)
        planned = make_plan(loaded, run_dir or Path("runs") / loaded.name, sample, progress)
        found, rows = planned.plan.model_dump(mode="json"), plan_lines(planned)
        refused = planned.sample_refused
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in rows:
            table.add_row(name, escape(value))
        Console(soft_wrap=True, highlight=False).print(table)
    if refused:
        raise typer.Exit(EXIT_USER)
