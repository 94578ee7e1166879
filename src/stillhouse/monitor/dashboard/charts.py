"""Charts as data: what `static/charts.js` draws, and the same figures as a table.

Pure. Knows no source and no drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from stillhouse.monitor.dashboard import pages

MOST_POINTS: Final = 600
Colour = Literal["teacher", "student", "twin", "tfidf", "quiet", "pass", "fail", "note"]
Point = tuple[float, float]


class Series(NamedTuple):
    """One line, or dots alone. `band`: (x, low, high)."""

    name: str
    colour: Colour
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    dots: bool = False
    dashed: bool = False
    labels: Sequence[str] = ()


class Level(NamedTuple):
    """A line across."""

    name: str
    at: float
    colour: Colour = "quiet"


class Chart(NamedTuple):
    """Ready for a page: `spec` for the script, `head` and `rows` for the table."""

    title: str
    spec: Mapping[str, Any]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    x_kind: Literal["time", "value", "log"] = "value",
    y_kind: Literal["share", "usd", "count", "value"] = "value",
    levels: Sequence[Level] = (),
) -> Chart | None:
    """A chart of what there is; `None`: there is nothing."""
    drawn = [_thinned(one) for one in series if one.points]
    if not drawn:
        return None
    spec = {
        "title": title,
        "x": {"name": x, "kind": x_kind},
        "y": {"name": y, "kind": y_kind},
        "series": [_plain(one) for one in drawn],
        "levels": [one._asdict() for one in levels if math.isfinite(one.at)],
    }
    x_words: Callable[[float], str] = pages.when if x_kind == "time" else _number
    y_words = {"share": pages.share, "usd": pages.usd, "count": pages.count, "value": _number}[
        y_kind
    ]
    return Chart(title, spec, *_table(drawn, x, x_words, y_words))


def _plain(one: Series) -> dict[str, Any]:
    return {
        "name": one.name,
        "colour": one.colour,
        "points": [list(point) for point in one.points],
        "band": [list(point) for point in one.band],
        "dots": one.dots,
        "dashed": one.dashed,
        "labels": list(one.labels),
    }


def _thinned(one: Series) -> Series:
    step = -(-len(one.points) // MOST_POINTS)
    if step <= 1:
        return one
    kept = {one.points[k][0] for k in range(0, len(one.points), step)} | {one.points[-1][0]}
    return one._replace(
        points=[point for point in one.points if point[0] in kept],
        band=[point for point in one.band if point[0] in kept],
        labels=(),
    )


def _table(
    series: Sequence[Series],
    x: str,
    x_words: Callable[[float], str],
    y_words: Callable[[float], str],
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    labelled = any(one.labels for one in series)
    head = [*(["name"] if labelled else []), x]
    places = sorted({point[0] for one in series for point in one.points})
    cells: list[dict[float, str]] = []
    names: dict[float, str] = {}
    for one in series:
        head.append(one.name)
        cells.append({px: y_words(py) for px, py in one.points})
        names |= {point[0]: label for point, label in zip(one.points, one.labels, strict=False)}
        if one.band:
            head.append(f"{one.name}: low to high")
            cells.append({px: f"{y_words(low)} to {y_words(high)}" for px, low, high in one.band})
    rows = tuple(
        (*([names.get(px, "")] if labelled else []), x_words(px), *(c.get(px, "") for c in cells))
        for px in places
    )
    return tuple(head), rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
