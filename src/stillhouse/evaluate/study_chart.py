"""One chart for studies, as a standalone SVG: whiskers, a fitted line with its band, levels.

It carries its own colours, light and dark, so that the file stands alone and looks the same in a
page. The x axis is logarithmic. Knows numbers and names, not what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from markupsafe import Markup

from stillhouse.evaluate.chart_names import LINE, Named, places_of_names

WIDTH: Final = 720
HEIGHT: Final = 420
LEFT, RIGHT, TOP, BOTTOM = 66, 144, 18, 56  # names of levels stand on the right
STYLE: Final = """
.st text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#1a1f29}
.st .name{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}
.st .quiet{fill:#59616f}.st .grid{stroke:#dde1e7}.st .axis{stroke:#59616f}
.st .dot{fill:#c85a00}.st .whisker{stroke:#c85a00;stroke-width:2}
.st .fit{fill:none;stroke:#c85a00;stroke-width:2}.st .beyond{stroke-dasharray:6 5}
.st .band{fill:#c85a00;fill-opacity:.13}.st .teacher{stroke:#4257d0;stroke-width:1.6}
.st .gate{stroke:#b3261e;stroke-width:1.6;stroke-dasharray:7 4}
.st .ceiling{stroke:#59616f;stroke-width:1.2;stroke-dasharray:2 4}
.st .each .dot{fill:#fff;stroke:#c85a00;stroke-width:1.4}
.st .linear .dot{fill:#4d6b57}.st .linear .whisker{stroke:#4d6b57}
.st .fail .dot{fill:#fff;stroke:#c85a00;stroke-width:2}
.st .big .dot{fill:#4257d0}.st .big .whisker{stroke:#4257d0}
.st .chosen .dot{fill:#12714b;stroke:none}.st .chosen .whisker{stroke:#12714b;stroke-width:3}
.st .chosen text{font-weight:650}
@media (prefers-color-scheme:dark){
.st text{fill:#e8eaee}.st .name{stroke:#14171c}.st .quiet{fill:#a3abb8}
.st .grid{stroke:#343a45}.st .axis{stroke:#a3abb8}
.st .dot{fill:#ff9d4d}.st .whisker,.st .fit{stroke:#ff9d4d}.st .band{fill:#ff9d4d}
.st .teacher{stroke:#95a4ff}.st .gate{stroke:#ff8f86}.st .ceiling{stroke:#a3abb8}
.st .linear .dot{fill:#93c3a3}.st .linear .whisker{stroke:#93c3a3}
.st .fail .dot,.st .each .dot{fill:#14171c;stroke:#ff9d4d}.st .big .dot{fill:#95a4ff}
.st .big .whisker{stroke:#95a4ff}
.st .chosen .dot{fill:#63d3a2}.st .chosen .whisker{stroke:#63d3a2}}
""".replace("\n", "")


class Dot(NamedTuple):
    """A point with a vertical interval; `style` is one of `STYLE`'s, or empty; `name` is shown.

    `each` is one training of several, small beside their mean.
    """

    x: float
    y: float
    low: float
    high: float
    name: str = ""
    style: Literal["", "linear", "fail", "big", "chosen", "each"] = ""
    title: str = ""


class Level(NamedTuple):
    """A horizontal line with its name, of 18 letters or so."""

    name: str
    y: float
    style: Literal["teacher", "gate", "ceiling"]


class Bend(NamedTuple):
    """A point of the fitted line and its band."""

    x: float
    y: float
    low: float
    high: float
    beyond: bool


class Axes(NamedTuple):
    """What the axes are of, and how a number on the x axis is written."""

    x_label: str
    y_label: str
    x_text: Callable[[float], str]


class _Scale(NamedTuple):
    low: float
    high: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return LEFT + 14 + part * (WIDTH - LEFT - RIGHT - 28)

    def y(self, value: float) -> float:
        value = min(max(value, self.bottom), self.top)  # a band may end outside the picture
        part = (value - self.bottom) / (self.top - self.bottom)
        return HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)


def study_chart(
    title: str,
    dots: Sequence[Dot],
    axes: Axes,
    *,
    line: Sequence[Bend] = (),
    levels: Sequence[Level] = (),
) -> Markup:
    """The chart. Scores are shares in [0, 1] and shown in percent; x is above 0.

    Raises:
        ValueError: no dots.
    """
    if not dots:
        raise ValueError("a chart needs at least one point")
    scale = _scale(dots, line, levels)
    body = [
        Markup("<style>{}</style>").format(Markup(STYLE)),
        *_grid(scale, axes),
        *_fitted(line, scale),
        *_levels(levels, scale),
        *_dots(dots, scale),
    ]
    about = "; ".join(
        f"{dot.name or axes.x_text(dot.x)}: {_percent(dot.y)} "
        f"({_percent(dot.low)} to {_percent(dot.high)})"
        for dot in dots
    )
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="st" viewBox="0 0 {} {}" role="img" '
        'aria-label="{}"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(WIDTH, HEIGHT, title, title, about, Markup("").join(body))


def _scale(dots: Sequence[Dot], line: Sequence[Bend], levels: Sequence[Level]) -> _Scale:
    xs = [dot.x for dot in dots] + [bend.x for bend in line]
    low, high = min(xs), max(xs)
    if high / low < 1.5:
        low, high = low / 1.5, high * 1.5
    # The band beyond the data may be as wide as it likes: it does not flatten the rest.
    ys = [bound for dot in dots for bound in (dot.low, dot.high)]
    ys += [bend.y for bend in line] + [level.y for level in levels]
    bottom, top = min(ys), max(ys)
    room = max(0.02, 0.08 * (top - bottom))
    return _Scale(low, high, max(0.0, bottom - room), min(1.0 + room / 2, top + room))


def _grid(scale: _Scale, axes: Axes) -> Iterator[Markup]:
    step = next(
        s
        for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
        if (scale.top - scale.bottom) / s <= 7 or s == 0.2
    )
    digits = 1 if step < 0.01 else 0
    first, last = math.ceil(scale.bottom / step - 1e-9), math.floor(scale.top / step + 1e-9)
    for k in range(first, last + 1):
        if k * step > 1 + 1e-9:
            break
        y = scale.y(k * step)
        yield Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            '<text class="quiet" x="{}" y="{}" text-anchor="end">{}%</text>'
        ).format(
            LEFT,
            WIDTH - RIGHT,
            _px(y),
            _px(y),
            LEFT - 8,
            _px(y + 4),
            f"{100 * k * step:.{digits}f}",
        )
    floor = HEIGHT - BOTTOM
    for tick in _log_ticks(scale.low, scale.high):
        x = scale.x(tick)
        yield Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            '<text class="quiet" x="{}" y="{}" text-anchor="middle">{}</text>'
        ).format(_px(x), _px(x), TOP, floor, _px(x), floor + 19, axes.x_text(tick))
    yield Markup(
        '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        '<text class="quiet" x="{}" y="{}" text-anchor="middle">{}</text>'
        '<text class="quiet" transform="translate(16 {}) rotate(-90)" text-anchor="middle">{}'
        "</text>"
    ).format(
        LEFT,
        WIDTH - RIGHT,
        floor,
        floor,
        (LEFT + WIDTH - RIGHT) / 2,
        HEIGHT - 12,
        axes.x_label,
        (TOP + floor) / 2,
        axes.y_label,
    )


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with their double and fivefold where these leave room, or more."""
    decades = math.log10(high / low)
    steps: Sequence[float] = (1, 2, 5) if decades <= 3.2 else (1,)
    if decades < 0.7:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8)
    found = [
        step * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for step in steps
    ]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]


def _fitted(line: Sequence[Bend], scale: _Scale) -> Iterator[Markup]:
    if len(line) < 2:
        return
    up = [f"{_px(scale.x(b.x))},{_px(scale.y(b.high))}" for b in line]
    down = [f"{_px(scale.x(b.x))},{_px(scale.y(b.low))}" for b in reversed(line)]
    yield Markup('<polygon class="band" points="{}"/>').format(" ".join(up + down))
    seen = [b for b in line if not b.beyond]
    parts = ((seen, "fit"), ([*seen[-1:], *(b for b in line if b.beyond)], "fit beyond"))
    for part, style in parts:
        if len(part) > 1:
            path = " ".join(f"{_px(scale.x(b.x))},{_px(scale.y(b.y))}" for b in part)
            yield Markup('<polyline class="{}" points="{}"/>').format(style, path)


def _levels(levels: Sequence[Level], scale: _Scale) -> Iterator[Markup]:
    """Lines, each with its name to the right of it, as near to its height as the others leave."""
    ordered = sorted(levels, key=lambda one: -one.y)
    heights = [scale.y(level.y) + 4 for level in ordered]
    for k in range(1, len(heights)):
        heights[k] = max(heights[k], heights[k - 1] + LINE)
    # Pushed down from the first: half of it back up, so that all stand about their lines.
    spare = [at - scale.y(level.y) - 4 for at, level in zip(heights, ordered, strict=True)]
    shift = max(spare, default=0.0) / 2
    for level, at in zip(ordered, heights, strict=True):
        y = scale.y(level.y)
        yield Markup(
            '<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            '<text class="quiet" x="{}" y="{}">{}</text>'
        ).format(
            level.style,
            LEFT,
            WIDTH - RIGHT,
            _px(y),
            _px(y),
            WIDTH - RIGHT + 7,
            _px(at - shift),
            level.name,
        )


def _dots(dots: Sequence[Dot], scale: _Scale) -> Iterator[Markup]:
    marks = [
        Named(
            scale.x(dot.x),
            scale.y(dot.y),
            scale.y(dot.high),
            scale.y(dot.low),
            3.0 if dot.style == "each" else 7.0,
            dot.name,
        )
        for dot in dots
    ]
    for dot, place in zip(dots, places_of_names(marks, LEFT, WIDTH), strict=True):
        x, y = _px(scale.x(dot.x)), _px(scale.y(dot.y))
        yield Markup(
            '<g class="{}"><line class="whisker" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            '<circle class="dot" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
            '<text class="name" x="{}" y="{}" text-anchor="{}">{}</text></g>'
        ).format(
            dot.style,
            x,
            x,
            _px(scale.y(dot.low)),
            _px(scale.y(dot.high)),
            x,
            y,
            2.6 if dot.style == "each" else 5.5,
            dot.title or f"{dot.name} {_percent(dot.y)}",
            _px(place.x),
            _px(place.y),
            place.anchor,
            dot.name,
        )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _px(value: float) -> str:
    return f"{value:.1f}"
