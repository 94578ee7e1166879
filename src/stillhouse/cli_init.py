"""`stillhouse init`: a recipe to begin with. Thin."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.core.errors import UserError
from stillhouse.scaffold import scaffold


class Kind(StrEnum):
    """Task kinds that `init` can scaffold."""

    classification = "classification"
    extraction = "extraction"
    generation = "generation"


def init(
    kind: Annotated[Kind, typer.Argument(help="What the task is.")] = Kind.classification,
    out: Annotated[Path, typer.Option("--out", help="Where to write it.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe for a kind of task."""
    if out.exists():
        raise UserError(str(out), "exists already", action="choose another name with --out")
    try:
        out.write_text(scaffold(kind.value), encoding="utf-8")
    except OSError as error:
        raise UserError(
            "--out", f"{out} cannot be written: {error.strerror}", action="choose another place"
        ) from None
    typer.echo(f"{out}: written; put your files in place, then: stillhouse run {out}")
