"""Small plots as inline SVG: lines, points, heat maps, intervals. No script, no font, no request.

Colours come from CSS classes of the page, so that light and dark follow the reader's setting. Each
plot has a title and a description for screen readers. Knows numbers and names, not what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from markupsafe import Markup

from stillhouse.evaluate.chart_names import Named, places_of_names

WIDTH: Final = 480
HEIGHT: Final = 300
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 14, 46
LETTER: Final = 9.0  # of names, at the size that they have on a phone


class Series(NamedTuple):
    """A named line or set of points; `style` is a CSS class (`teacher`, `student`, ...)."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


class Mark(NamedTuple):
    """A labelled point with a vertical interval. `x` is `None` where it is not known."""

    name: str
    style: str
    x: float | None
    y: float
    low: float
    high: float


class _Axis(NamedTuple):
    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False  # only whole numbers are ticks

    def at(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else self[:2]
        value = math.log10(value) if self.log else value
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    diagonal: bool = False,
    unit_square: bool = False,
) -> Markup:
    """Lines with dots. `unit_square` fixes both axes to [0, 1], `diagonal` draws y = x.

    Raises:
        ValueError: no points.
    """
    drawn = [s for s in series if s.points]
    if not drawn:
        raise ValueError("a chart needs at least one point")
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    across = _span([0, 1] if unit_square else xs, WIDTH, horizontal=True)
    across = across._replace(whole=not unit_square and all(x == round(x) for x in xs))
    up = _span([0, 1] if unit_square else [*ys, 0.0], HEIGHT, horizontal=False)
    body = [_frame(across, up, x_label, y_label)]
    if diagonal:
        body.append(_line([(0, 0), (1, 1)], across, up, "guide"))
    for s in drawn:
        body.append(_line(s.points, across, up, f"line {s.style}"))
        for x, y in s.points:
            body.append(
                Markup(
                    '<circle class="dot {}" cx="{}" cy="{}" r="4"><title>{}</title></circle>'
                ).format(s.style, _px(across.at(x)), _px(up.at(y)), f"{s.name}: {_n(x)}, {_n(y)}")
            )
    about = "; ".join(
        f"{s.name}: from {_n(s.points[0][1])} to {_n(s.points[-1][1])}" for s in drawn
    )
    return _svg(title, about, body, HEIGHT) + _legend(drawn)


def cost_chart(title: str, marks: Sequence[Mark], x_label: str, y_label: str) -> Markup:
    """Points with vertical intervals over a logarithmic x axis.

    What costs nothing stands at the left edge, what costs nobody knows at the right, both said so.

    Raises:
        ValueError: no marks.
    """
    if not marks:
        raise ValueError("a chart needs at least one point")
    known = [m.x for m in marks if m.x is not None and m.x > 0]
    low = 10 ** math.floor(math.log10(min(known))) if known else 0.1
    high = 10 ** math.ceil(math.log10(max(known))) if known else 1.0
    first, last = LEFT + 16, WIDTH - RIGHT - 16
    room = 40 if any(m.x == 0 for m in marks) else 0
    across = _Axis(low, max(high, low * 10), first + room, last, log=True)
    up = _span(
        [bound for m in marks for bound in (m.low, m.high)], HEIGHT, horizontal=False, pad=0.08
    )
    body = [_frame(across, up, x_label, y_label, percent=True)]
    ordered = sorted(marks, key=lambda m: -m.y)
    named = []
    for mark in ordered:
        x = across.at(mark.x) if mark.x else first if mark.x == 0 else last
        note = mark.name + ("" if mark.x else " (free)" if mark.x == 0 else " (cost unknown)")
        named.append(Named(x, up.at(mark.y), up.at(mark.high), up.at(mark.low), 7.0, note))
    places = places_of_names(named, LEFT, WIDTH, LETTER)
    for mark, (x, y, *_, note), place in zip(ordered, named, places, strict=True):
        body.append(
            Markup(
                '<g class="{}"><line class="whisker" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<circle class="dot {}" cx="{}" cy="{}" r="6"/>'
                '<text x="{}" y="{}" text-anchor="{}">{}</text></g>'
            ).format(
                mark.style,
                _px(x),
                _px(x),
                _px(up.at(mark.low)),
                _px(up.at(mark.high)),
                mark.style,
                _px(x),
                _px(y),
                _px(place.x),
                _px(place.y),
                place.anchor,
                note,
            )
        )
    about = "; ".join(f"{m.name}: {100 * m.y:.1f}%" for m in marks)
    return _svg(title, about, body, HEIGHT)


def heat_map(
    title: str,
    rows: Sequence[Sequence[int]],
    labels: Sequence[str],
    row_name: str,
    column_name: str,
) -> Markup:
    """Counts as shaded cells, shaded by their share of the row. Columns may be one more than rows.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a heat map needs at least one row")
    extra = len(rows[0]) > len(rows) and any(row[-1] for row in rows)
    columns = [*labels, "unreadable"] if extra else list(labels)
    left, top = 118, 56
    cell_w = (WIDTH - left - 4) / len(columns)
    cell_h = max(26.0, min(64.0, cell_w))
    height = top + cell_h * len(rows) + 8
    room_x, room_y = max(3, int(cell_w / 8)), 13
    body = [
        Markup('<text class="axis" x="{}" y="16" text-anchor="middle">{} →</text>').format(
            _px(left + (WIDTH - left) / 2), column_name
        ),
        Markup('<text class="axis" x="4" y="{}">{} ↓</text>').format(_px(top - 12), row_name),
    ]
    for j, name in enumerate(columns):
        body.append(
            Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
                _px(left + (j + 0.5) * cell_w), _px(top - 12), _cut(name, room_x)
            )
        )
    for i, row in enumerate(rows):
        y = top + i * cell_h
        total = sum(row)
        body.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(
                left - 8, _px(y + cell_h / 2 + 5), _cut(labels[i], room_y)
            )
        )
        for j, _ in enumerate(columns):
            part = row[j] / total if total else 0.0
            body.append(
                Markup(
                    '<rect class="cell {}" x="{}" y="{}" width="{}" height="{}" '
                    'style="fill-opacity:{}"/>'
                    '<text class="count" x="{}" y="{}" text-anchor="middle">{}</text>'
                ).format(
                    "same" if i == j else "other",
                    _px(left + j * cell_w),
                    _px(y),
                    _px(cell_w - 2),
                    _px(cell_h - 2),
                    f"{0.06 + 0.6 * part:.3f}",
                    _px(left + (j + 0.5) * cell_w),
                    _px(y + cell_h / 2 + 5),
                    f"{row[j]:,}",
                )
            )
    hits = sum(row[i] for i, row in enumerate(rows))
    total = sum(sum(row) for row in rows)
    about = f"{hits} of {total} lie on the diagonal, where {row_name} and {column_name} agree"
    return _svg(title, about, body, height)


def gate_chart(title: str, estimate: float, low: float, high: float, margin: float) -> Markup:
    """Student minus teacher with its interval, beside zero and the margin; in points."""
    height = 104
    edge = 1.15 * max(abs(low), abs(high), margin)
    axis = _Axis(-edge, edge, 20, WIDTH - 20)
    y = 46
    style = "pass" if low > -margin else "fail"
    body = [
        Markup('<rect class="forbidden" x="{}" y="22" width="{}" height="48"/>').format(
            axis.start, _px(axis.at(-margin) - axis.start)
        ),
        Markup('<line class="axisline" x1="{}" x2="{}" y1="70" y2="70"/>').format(
            axis.start, axis.end
        ),
        _upright(axis.at(0), 22, 70, "guide"),
        _upright(axis.at(-margin), 22, 70, "limit"),
        Markup('<line class="whisker {}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            style, _px(axis.at(low)), _px(axis.at(high)), y, y
        ),
        _upright(axis.at(low), y - 9, y + 9, f"whisker {style}"),
        Markup('<circle class="dot {}" cx="{}" cy="{}" r="6"/>').format(
            style, _px(axis.at(estimate)), y
        ),
        # Each to its own side: however near the two lines are, their names do not meet.
        Markup('<text x="{}" y="88" text-anchor="end">margin -{}</text>').format(
            _px(max(axis.at(-margin) + 4, 90)), _n(100 * margin)
        ),
        Markup('<text x="{}" y="88" text-anchor="start">equal</text>').format(
            _px(max(axis.at(0) - 4, 98))
        ),
        Markup('<text class="axis" x="{}" y="14" text-anchor="middle">{}</text>').format(
            WIDTH / 2, "student worse  ←  points  →  student better"
        ),
    ]
    about = (
        f"student minus teacher is {100 * estimate:+.1f} points, from {100 * low:+.1f} to "
        f"{100 * high:+.1f}; the margin is -{_n(100 * margin)}"
    )
    return _svg(title, about, body, height)


def _svg(title: str, about: str, body: Iterable[Markup], height: float) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title><desc>{}</desc>'
        "{}</svg>"
    ).format(WIDTH, _px(height), title, title, about, Markup("").join(body))


def _legend(series: Sequence[Series]) -> Markup:
    if len(series) < 2:
        return Markup("")
    items = Markup("").join(
        Markup('<li><span class="key {}"></span>{}</li>').format(s.style, s.name) for s in series
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def _frame(
    across: _Axis, up: _Axis, x_label: str, y_label: str, *, percent: bool = False
) -> Markup:
    """Axes, grid lines and their numbers."""
    parts: list[Markup] = []
    heights = _ticks(up)
    digits = next((d for d in (0, 1, 2) if _differ(heights, d)), 3)
    for y in heights:
        text = f"{100 * y:.{digits}f}%" if percent else _n(y)
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
            ).format(
                LEFT,
                WIDTH - RIGHT,
                _px(up.at(y)),
                _px(up.at(y)),
                LEFT - 7,
                _px(up.at(y) + 5),
                text,
            )
        )
    for x in _ticks(across):
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                _px(across.at(x)), HEIGHT - BOTTOM + 18, _usd(x) if across.log else _n(x)
            )
        )
        if across.log:
            parts.append(_upright(across.at(x), TOP, HEIGHT - BOTTOM, "grid"))
    parts.append(
        Markup(
            '<line class="axisline" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>'
            '<text class="axis" transform="translate(14 {}) rotate(-90)" text-anchor="middle">{}'
            "</text>"
        ).format(
            LEFT,
            WIDTH - RIGHT,
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM,
            (LEFT + WIDTH - RIGHT) / 2,
            HEIGHT - 8,
            x_label,
            (TOP + HEIGHT - BOTTOM) / 2,
            y_label,
        )
    )
    return Markup("").join(parts)


def _span(values: Sequence[float], size: float, *, horizontal: bool, pad: float = 0.0) -> _Axis:
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    room = pad * (high - low)
    if horizontal:
        return _Axis(low - room, high + room, LEFT, size - RIGHT)
    return _Axis(low - room, high + room, size - BOTTOM, TOP)


def _ticks(axis: _Axis) -> list[float]:
    """About five round numbers, or the powers of ten of a logarithmic axis."""
    if axis.log:
        first, last = round(math.log10(axis.low)), round(math.log10(axis.high))
        return [10.0**power for power in range(first, last + 1, max(1, (last - first + 3) // 4))]
    rough = (axis.high - axis.low) / 5
    power = 10 ** math.floor(math.log10(rough))
    round_ones = (1, 2, 5, 10) if axis.whole else (1, 2, 2.5, 5, 10)
    step = next(m * power for m in round_ones if m * power >= rough * 0.999)
    step = max(1.0, step) if axis.whole else step
    first = math.ceil(axis.low / step - 1e-9)
    last = math.floor(axis.high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _differ(values: Sequence[float], digits: int) -> bool:
    """Whether the values are what so many digits of percent say: no tick may lie on another's."""
    return all(abs(round(100 * v, digits) - 100 * v) < 1e-9 for v in values)


def _line(points: Sequence[tuple[float, float]], across: _Axis, up: _Axis, style: str) -> Markup:
    path = " ".join(f"{_px(across.at(x))},{_px(up.at(y))}" for x, y in points)
    return Markup('<polyline class="{}" points="{}"/>').format(style, path)


def _upright(x: float, top: float, bottom: float, style: str) -> Markup:
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        style, _px(x), _px(x), _px(top), _px(bottom)
    )


def _px(value: float) -> str:
    return f"{value:.1f}"


def _n(value: float) -> str:
    return f"{value:,.4g}"


def _usd(power_of_ten: float) -> str:
    return f"${power_of_ten:.{max(0, -round(math.log10(power_of_ten)))}f}"


def _cut(text: str, chars: int) -> str:
    """Shortened to fit; escaped by the caller's `format`."""
    return text if len(text) <= chars else text[: max(1, chars - 1)] + "…"
