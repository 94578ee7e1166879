"""`stillhouse signals ...`: commands about a captured signal cache. Thin.

Knows no command's inside. `stillhouse capture` is a stage, beside the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from stillhouse.cli_options import AsJson
from stillhouse.core.optional import require
from stillhouse.pipeline import read_run_recipe

EXIT_OFF: Final = 1

signals_app = typer.Typer(
    name="signals",
    help="Look into the teacher signals that `stillhouse capture` wrote.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@signals_app.callback()
def _group() -> None:
    """Look into the teacher signals that `stillhouse capture` wrote."""


@signals_app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder with a capture.")],
    sample: Annotated[int, typer.Option("--sample", min=1, help="Examples of each set.")] = 32,
    most: Annotated[
        float | None,
        typer.Option("--most", min=0.0, help="Fail where the mean KL (nats) is above this."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what was stored with what the teacher says now."""
    module = require("stillhouse.train.verify_signals", "train", "verifying signals")
    found = module.verify_run(folder, read_run_recipe(folder), sample)
    if as_json:
        typer.echo(json.dumps({"sets": [one.model_dump(mode="json") for one in found]}, indent=2))
    else:
        for line in module.verified_lines(found):
            typer.echo(line)
    if most is not None and any(one.mean_kl is not None and one.mean_kl > most for one in found):
        raise typer.Exit(EXIT_OFF)
