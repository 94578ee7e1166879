"""Arguments, options and exit codes that several commands share. Knows no command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, Generic, NamedTuple, Protocol, TypeVar

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe (YAML).")]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="Run folder; default: runs/NAME of the recipe.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
EXIT_FAILED: Final = 1
EXIT_USER: Final = 2
EXIT_GATE: Final = 3  # it ran, and the gate says no
RUNS: Final = Path("runs")


class Named(Protocol):
    """A recipe of any kind."""

    @property
    def name(self) -> str:
        """What its run folder is called, where none is given."""


R = TypeVar("R", bound=Named)


class Opened(NamedTuple, Generic[R]):
    """A recipe, read and checked, and the folder that it is run in."""

    recipe: R
    root: Path


def opened(
    load: Callable[[Path, Sequence[str]], R],
    recipe: Path,
    run_dir: Path | None,
    overrides: Sequence[str] | None,
) -> Opened[R]:
    """Read a recipe by `load`, as its command's options say.

    Raises:
        RecipeError: the file or an override is wrong.
    """
    loaded = load(recipe, overrides or ())
    return Opened(loaded, run_dir or RUNS / loaded.name)
