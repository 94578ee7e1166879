"""The command line: thin. One subcommand a stage of `run`, plus init, doctor, report and schema.

Exit codes: 0 done, 1 failed, 2 user error, 3 ran but the gate says no; of `monitor check` 4 where a
warning holds and 5 where something critical does. Knows no command: `cli_table` says where one is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from stillhouse import __version__
from stillhouse.cli_options import EXIT_FAILED, EXIT_USER
from stillhouse.cli_table import Commands
from stillhouse.core.errors import StillhouseError, UserError

EXIT_INTERRUPTED: Final = 130

app = typer.Typer(
    name="stillhouse",
    cls=Commands,
    help="Distil an expensive teacher into a small student, and prove what it kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Distil an expensive teacher into a small student, and prove what it kept."""
    if show:
        typer.echo(f"stillhouse {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; foreseen errors are one line on standard error."""
    sys.exit(_guarded(lambda: app(standalone_mode=True)))


def _guarded(call: Callable[[], Any]) -> int:
    try:
        call()
    except UserError as error:
        return _fail(error, EXIT_USER)
    except StillhouseError as error:
        return _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from what is finished", err=True)
        return EXIT_INTERRUPTED
    return 0


def _fail(error: StillhouseError, code: int) -> int:
    if "--json" in sys.argv:
        told = {"error": {"kind": type(error).__name__, "message": str(error)}}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
    typer.echo(f"error: {error}", err=True)
    return code
