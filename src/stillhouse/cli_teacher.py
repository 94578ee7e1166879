"""`stillhouse teacher ...`: what is asked about teachers, beside asking them. Thin."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.core.recipe_file import load_recipe
from stillhouse.teacher.retirement import lifecycle_of

EXIT_GONE = 2

teacher_app = typer.Typer(
    name="teacher",
    help="Look at a teacher: does it still exist, which one is best.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@teacher_app.callback()
def _group() -> None:
    """Look at a teacher: does it still exist, which one is best."""


@teacher_app.command("check")
def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe (YAML).")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for machines.")
    ] = False,
) -> None:
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
