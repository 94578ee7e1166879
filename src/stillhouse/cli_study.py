"""`stillhouse curve` and `stillhouse frontier`: several students of one recipe. Thin.

Knows no study's inside.
"""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse import study_curve, study_frontier
from stillhouse.cli_options import EXIT_GATE, AsJson, Overrides, RecipePath, RunDir, opened
from stillhouse.cli_show import print_table, progress_of
from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe_file import load_recipe
from stillhouse.evaluate.curve_page import curve_lines, curve_rows
from stillhouse.evaluate.frontier_page import frontier_lines, frontier_rows


def curve(
    recipe: RecipePath,
    *,
    sizes: Annotated[
        str, typer.Option("--sizes", metavar="N,N,...", help="Training examples; all: 1/16 to all.")
    ] = "all",
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Trainings of each size, by seed.")
    ] = 1,
    same_steps: Annotated[
        bool, typer.Option("--same-steps", help="As many optimizer steps for every size.")
    ] = False,
    point_usd: Annotated[
        float | None, typer.Option("--point-usd", min=0.0, help="What one point is worth to you.")
    ] = None,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train on more and more answers, and say how many more are worth paying for."""
    loaded, root = opened(load_recipe, recipe, run_dir, overrides)
    options = study_curve.Options(_numbers(sizes), repeats, same_steps, point_usd)
    study = study_curve.run_curve(loaded, root, options, progress_of(as_json))
    if as_json:
        typer.echo(study.model_dump_json(indent=2))
        return
    titles = ("examples", "seed", study.metric, "retention", "linear model", "gate", "training")
    print_table(titles, curve_rows(study))
    for line in curve_lines(study):
        typer.echo(line)
    typer.echo(f"page: {root / study_curve.FOLDER / 'curve.html'}")


def frontier(
    recipe: RecipePath,
    *,
    sizes: Annotated[
        str, typer.Option("--sizes", metavar="SIZE,...", help="light, medium, heavy or a share.")
    ] = ",".join(study_frontier.SIZES),
    students: Annotated[
        list[str] | None,
        typer.Option("--student", metavar="KEY=VALUE,...", help="One more, by keys of student."),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Trainings of each student, by seed.")
    ] = 1,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train students of several sizes, and say which is the cheapest that passes the gate."""
    loaded, root = opened(load_recipe, recipe, run_dir, overrides)
    wanted = [size.strip() for size in sizes.split(",") if size.strip()]
    variants = study_frontier.sized_variants(loaded, wanted, students or [])
    study = study_frontier.run_frontier(loaded, root, variants, progress_of(as_json), repeats)
    if as_json:
        typer.echo(study.model_dump_json(indent=2))
    else:
        titles = (
            "student",
            "parameters",
            study.metric,
            "retention",
            "gate (bound)",
            "speed",
            "$/1,000",
            "on disk",
        )
        print_table(titles, frontier_rows(study))
        for line in frontier_lines(study):
            typer.echo(line)
        typer.echo(f"page: {root / study_frontier.FOLDER / 'frontier.html'}")
    if study.chosen is None:
        raise typer.Exit(EXIT_GATE)


def _numbers(text: str) -> tuple[int, ...]:
    if text.strip() == "all":
        return ()
    try:
        return tuple(int(part.replace("_", "")) for part in text.split(",") if part.strip())
    except ValueError:
        raise RecipeError(
            "--sizes", "needs whole numbers, such as 1000,2000,5000", value=text
        ) from None
