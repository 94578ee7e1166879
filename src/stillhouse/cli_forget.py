"""`stillhouse forget`: a user removed from runs. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli_options import AsJson
from stillhouse.cli_show import print_json
from stillhouse.forget import forget_user, told


def forget(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of them.")
    ],
    user: Annotated[str, typer.Option("--user", help="The user, as the traffic names them.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed; change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a user's records, and name every dataset and student that used them."""
    results = forget_user(user, folders, dry_run=dry_run)
    if as_json:
        print_json(
            {"dry_run": dry_run, "runs": [result.model_dump(mode="json") for result in results]}
        )
        return
    for line in told(results, dry_run=dry_run):
        typer.echo(line)
