"""`stillhouse pretrain`: a model trained on a corpus. Thin; knows no stage's inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stillhouse.cli_options import AsJson, Overrides, RecipePath, RunDir, opened
from stillhouse.cli_show import print_json, progress_of
from stillhouse.core.recipe_corpus_file import load_corpus_recipe
from stillhouse.pretrain import CORPUS_STAGES, pretrain_report, run_pretrain

LAST = CORPUS_STAGES[-1].name


def pretrain(
    recipe: RecipePath,
    until: Annotated[
        str,
        typer.Option(
            "--until", help=f"Last stage: {', '.join(one.name for one in CORPUS_STAGES)}."
        ),
    ] = LAST,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a student on a corpus under its teacher, and score both on texts nobody saw."""
    loaded, root = opened(load_corpus_recipe, recipe, run_dir, overrides)
    run_pretrain(loaded, root, progress_of(as_json), until)
    if until != LAST:
        return
    report = pretrain_report(loaded, root)
    if as_json:
        print_json(report)
        return
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(("", "teacher", "student", "before", "untaught", "kept")):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in figure_rows(report):
        table.add_row(*(escape(cell) for cell in row))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    fast = report["speed"]["times_as_fast"]
    sizes = report["parameters"]
    console.print(
        f"student: {sizes['student']:,} of {sizes['teacher']:,} parameters, "
        f"{fast['estimate']:.2f} times as fast ({fast['slowest']:.2f} to {fast['fastest']:.2f})"
    )
    console.print(f"report: {root / 'report.json'}; student: {report['student']}", markup=False)


def figure_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The figures of a report as lines of a table: one a measure, of all test texts, of each
    language, and of zero-shot questions."""
    rows: list[tuple[str, ...]] = []
    perplexity = "perplexity" if report["kind"] == "causal_lm" else "pseudo_perplexity"
    parts = {"": report["test"], **report["languages"]}
    for language, figures in parts.items():
        for measure, kept in (("accuracy", "accuracy"), (perplexity, "perplexity")):
            name = f"{language} {measure}".strip().replace("_", " ")
            rows.append((name, *_cells(figures, measure), _kept(figures, kept)))
    whole = report.get("whole_teacher")
    if whole is not None:
        for measure in ("accuracy", perplexity):
            of_all = whole["retention"] if measure == "accuracy" else None
            cells = [_shown(whole[measure], measure), "-", "-", "-", _shown(of_all, "accuracy")]
            rows.append((f"{measure}, all pieces".replace("_", " "), *cells))
    if report["zero_shot"] is not None:
        for measure in ("accuracy", "accuracy_by_bytes"):
            name = f"zero-shot {measure}".replace("_", " ")
            figures = report["zero_shot"]
            rows.append((name, *_cells(figures, measure), _kept(figures, measure)))
    return rows


def _cells(figures: Mapping[str, Any], measure: str) -> list[str]:
    return [
        "-" if name not in figures else _shown(figures[name][measure], measure)
        for name in ("teacher", "student", "start", "twin")
    ]


def _kept(figures: Mapping[str, Any], measure: str) -> str:
    return _shown(figures["student"]["retention"][measure], "accuracy")


def _shown(found: Mapping[str, Any] | None, measure: str) -> str:
    if found is None:
        return "-"
    share = measure.startswith("accuracy")
    numbers = [found[name] for name in ("estimate", "low", "high") if name in found]
    texts = [f"{100 * one:.1f}%" if share else f"{one:.4g}" for one in numbers]
    return texts[0] if len(texts) == 1 else f"{texts[0]} ({texts[1]} to {texts[2]})"
