"""`stillhouse store ...`: the answers of a run, frozen, exported and imported. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.teacher import archive

store_app = typer.Typer(
    name="store", help="Freeze, export and import the answers of a run.", no_args_is_help=True
)
StorePath = Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="Run folder, or a store.")]


@store_app.command("freeze")
def store_freeze(place: StorePath) -> None:
    """Take no more answers: the store is a fixed teacher, for teacher.model: replay:RUN_OR_FILE."""
    typer.echo(archive.freeze(place))


@store_app.command("export")
def store_export(
    place: StorePath,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    teacher: Annotated[str | None, typer.Option("--teacher", help="This teacher's alone.")] = None,
) -> None:
    """Write the answers to one frozen file, for replay:FILE or for import."""
    typer.echo(archive.export(place, out, teacher))


@store_app.command("import")
def store_import(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="An exported file.")],
    place: StorePath,
) -> None:
    """Add an export's answers to a run: they are not asked again, and cost it nothing."""
    typer.echo(archive.import_answers(source, place))
