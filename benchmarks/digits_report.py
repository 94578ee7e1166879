"""The table in docs/distiller.md and the picture of the temperature sweep, from digits.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.evaluate.plots import Series, line_chart

PAGE = Path(__file__).parents[1] / "docs" / "distiller.md"
BEGIN, END = "<!-- digits: from benchmarks/results/digits.json -->", "<!-- end of digits -->"
STYLE = """
svg { background: #fff } text { font: 13px sans-serif; fill: #333 } .tick { font-size: 11px }
.grid { stroke: #e4e4e4 } .axisline { stroke: #666 } .line { fill: none; stroke-width: 2 }
.line.student { stroke: #0b6e99 } .dot.student, .key.student { fill: #0b6e99 }
.line.teacher { stroke: #b3541e } .dot.teacher, .key.teacher { fill: #b3541e }
"""


def write_plot(result: Mapping[str, Any], path: Path) -> None:
    """Errors fewer than alone over T, a line a width, as an SVG file that stands by itself."""
    series: list[Series] = []
    for width, style in zip(_widths(result), ("student", "teacher"), strict=True):
        rows = [row for row in result["sweep"] if row["width"] == width]
        alone = next(row["errors"] for row in rows if row["T"] is None)
        points = [(row["T"], alone - row["errors"]) for row in rows if row["T"] is not None]
        series.append(Series(f"two layers of {width}", style, points))
    chart = line_chart(
        "Errors fewer than on labels alone, by distillation temperature",
        series,
        "distillation temperature T",
        "errors fewer than alone",
    )
    svg = str(chart).split("</svg>", 1)[0]
    keys = "".join(
        f'<circle class="key {s.style}" cx="{150 + 150 * n}" cy="14" r="5"/>'
        f'<text x="{160 + 150 * n}" y="18">{s.name}</text>'
        for n, s in enumerate(series)
    )
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="640" ', 1)
    svg = svg.replace("<title>", f"<style>{STYLE}</style><title>", 1)
    path.write_text(f"{svg}{keys}</svg>\n", encoding="utf-8")


def write_table(result: Mapping[str, Any]) -> None:
    """Put the figures between the two marks of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(result)}\n{END}{after}", encoding="utf-8")


def table(result: Mapping[str, Any]) -> str:
    """Markdown: ours, and the paper's on MNIST beside it."""
    gain, fewer = result["gain"], result["gain"]["fewer errors"]
    seeds = gain["per seed"]
    n = len(seeds)
    taught, alone = (sum(row[key] for row in seeds) / n for key in ("taught", "alone"))
    lines = [
        f"{result['data']}, {result['images']['train']:,} to train on, "
        f"{result['images']['test']:,} in the test; the paper's figures are on 60,000 and 10,000.",
        "",
        "| | errors | the paper's errors |",
        "|---|---|---|",
        f"| the large net | {result['teacher']['errors']:,} | 67 |",
        f"| the small net alone, mean of {n} seeds | {alone:,.1f} | 146 |",
        f"| the small net taught, mean of {n} seeds | {taught:,.1f} | 74 |",
        f"| fewer errors, paired by seed, 95% interval | {fewer['mean']:.1f} "
        f"({fewer['low']:.1f} to {fewer['high']:.1f}) | 72 (one run) |",
        *_rows(result["class omitted"], "a class omitted", ("206, 133 of 1,010", "109, 14")),
        *_rows(result["two classes shown"], "two classes shown", ("4,730", "1,320")),
        "",
        "Errors by T, mean of the sweep's seeds:",
        "",
    ]
    temperatures = [r["T"] for r in result["sweep"] if r["width"] == _widths(result)[0]]
    lines.append(
        "| | " + " | ".join("alone" if t is None else f"T {t:g}" for t in temperatures) + " |"
    )
    lines.append("|---" * (len(temperatures) + 1) + "|")
    for width in _widths(result):
        errors = [row["errors"] for row in result["sweep"] if row["width"] == width]
        lines.append(f"| two layers of {width} | " + " | ".join(f"{e:,.0f}" for e in errors) + " |")
    return "\n".join(lines)


def _rows(part: Mapping[str, Any], name: str, paper: Sequence[str]) -> list[str]:
    """Three lines of an omitted-class experiment, means over its seeds."""
    found = []
    for key, other in (
        ("as trained", paper[0]),
        ("bias from validation", "-"),
        ("bias best for test", paper[1]),
    ):
        rows = [row[key] for row in part["per seed"]]
        mean = {k: sum(row[k] for row in rows) / len(rows) for k in rows[0]}
        there = f"{mean['errors on them']:,.0f} of {mean['of']:,.0f} on what was not shown"
        found.append(
            f"| {name}, {key} ({mean['bias']:+.1f}) | {mean['errors']:,.0f}, {there} | {other} |"
        )
    return found


def _widths(result: Mapping[str, Any]) -> list[int]:
    return sorted({row["width"] for row in result["sweep"]})
