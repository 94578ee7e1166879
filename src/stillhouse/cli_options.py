"""Arguments and options that several commands share. Knows no command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe (YAML).")]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="Run folder; default: runs/NAME of the recipe.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
