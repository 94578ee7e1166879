"""`stillhouse compress`: smaller forms of a student, each gated again. Knows no stage's inside.

Exit code 3: none of them passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from stillhouse.cli_options import EXIT_GATE, AsJson, Overrides, RecipePath, RunDir, opened
from stillhouse.cli_show import print_table, progress_of
from stillhouse.compress.verdicts import megabytes
from stillhouse.compressing import compress_recipe
from stillhouse.core.recipe_file import load_recipe
from stillhouse.evaluate import summary
from stillhouse.evaluate.compressed import BEST, CompressedTable


def compress(
    recipe: RecipePath,
    student: Annotated[
        Path | None,
        typer.Option("--student", help="Another student's folder; default: the run's own."),
    ] = None,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Bring the student into smaller forms (ONNX, GGUF), and gate each of them again."""
    loaded, root = opened(load_recipe, recipe, run_dir, overrides)
    found = compress_recipe(loaded, root, progress_of(as_json), student)
    if as_json:
        typer.echo(found.table.model_dump_json(indent=2))
    else:
        _show(found.table, found.folder)
    if found.table.best is None:
        raise typer.Exit(EXIT_GATE)


class _Row(NamedTuple):
    form: str
    gate: str
    size: str
    score: str
    kept: str
    agrees: str
    latency: str
    rate: str
    start: str
    memory: str


TITLES: Final = (
    "form",
    "gate",
    "on disk",
    "score",
    "kept of float",
    "agrees",
    "p50 / p95 ms",
    "queries/s",
    "cold start",
    "peak MiB",
)


def rows(table: CompressedTable) -> Iterator[_Row]:
    """The float student, then its artefacts."""
    for row in table.rows:
        own = row.sets[table.main]
        speed = row.speed
        latency = f"{_number(speed.latency_p50_ms)} / {_number(speed.latency_p95_ms)}"
        yield _Row(
            ("float student" if row.name == "student" else row.name)
            + (" *" if row.name == table.best else ""),
            row.verdict,
            f"{megabytes(row.size_bytes)} ({100 * row.size_ratio:.0f}%)",
            summary.share(own.score),
            "undefined" if row.retention_student is None else summary.share(row.retention_student),
            "" if own.agreement is None else f"{100 * own.agreement.estimate:.1f}%",
            f"{latency} ({summary.times(row.latency_speedup)})",
            f"{summary.count(speed.qps)} ({summary.times(row.throughput_speedup)})",
            f"{row.footprint.cold_start_s:.2f} s",
            f"{row.footprint.peak_rss_mb:,.0f}",
        )


def _show(table: CompressedTable, folder: Path) -> None:
    print_table(TITLES, rows(table))
    for name, line in summary.compressed_rows(table):
        typer.echo(f"{name}: {line}")
    for note in table.notes:
        typer.echo(f"note: {note}")
    place = folder / (BEST if table.best is not None else "")
    typer.echo(f"artefacts: {place}")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.3g}"
