"""`stillhouse images`: a net for images, taught by a larger one. Thin; knows no stage's inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from stillhouse.cli_options import AsJson, Overrides, RecipePath, RunDir, opened
from stillhouse.cli_show import print_json, print_rows, progress_of
from stillhouse.core.recipe_images_file import load_image_recipe
from stillhouse.images import run_images


def images(
    recipe: RecipePath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Teach a small net for images at several T, and score it beside its teacher."""
    loaded, root = opened(load_image_recipe, recipe, run_dir, overrides)
    report = run_images(loaded, root, progress_of(as_json))
    if as_json:
        print_json(report)
        return
    print_rows(figure_rows(report))
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"report: {root / 'report.json'}; student: {report['student']}", markup=False)


def figure_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of a report as (name, value) rows."""
    rows = [(f"{name} accuracy", _percent(report["accuracy"][name])) for name in report["accuracy"]]
    rows.append(("retention", _percent(report["retention"])))
    rows.append(("agreement", _percent(report["agreement"])))
    if "gain_of_teaching" in report:
        rows.append(("gain of teaching", _percent(report["gain_of_teaching"])))
    for row in report["by_T"]:
        name = "alone" if row["T"] is None else f"T {row['T']:g}"
        kept = " (kept)" if row["T"] == report["chosen_T"] else ""
        rows.append(
            (f"errors, {name}{kept}", f"{row['errors']:.1f} of {report['test']:,}; divergence "
             f"{row['divergence']:.4f} nats")
        )  # fmt: skip
    sizes, fast = report["parameters"], report["speed"]["times_as_fast"]
    rows.append(("parameters", f"{sizes['student']:,} of {sizes['teacher']:,}"))
    rows.append(
        ("speed", f"{fast['estimate']:.1f} times ({fast['slowest']:.1f} to {fast['fastest']:.1f})")
    )
    return rows


def _percent(found: Mapping[str, float]) -> str:
    numbers = [found[name] for name in ("estimate", "low", "high")]
    return "{:.1%} ({:.1%} to {:.1%})".format(*numbers)
