"""Scatter plots of a search's trials as inline SVG. No script, no font, no request.

Colours come from CSS classes of the page. Knows points and names, not what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from markupsafe import Markup

WIDTH: Final = 480
HEIGHT: Final = 240
LEFT, RIGHT, TOP, BOTTOM = 80, 18, 14, 44
CLIP: Final = 3.0  # values further above the lowest than so many times the median's distance


class Dot(NamedTuple):
    """A point, its CSS class, and a title for the pointer. `x` of choices is their number."""

    x: float
    y: float
    style: str
    title: str


def scatter(
    title: str,
    dots: Sequence[Dot],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    names: Sequence[str] = (),
    line: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Dots over a range, or over the columns `names`; `line` is drawn beneath them.

    What is far above the rest is drawn at the upper edge, so that one trial that went off does not
    press all others into a line.

    Raises:
        ValueError: no dots.
    """
    if not dots:
        raise ValueError("a plot needs at least one dot")
    heights = sorted(dot.y for dot in dots)
    lowest, middle = heights[0], heights[len(heights) // 2]
    top = min(heights[-1], lowest + CLIP * (middle - lowest)) if middle > lowest else heights[-1]
    if top <= lowest:
        top = lowest + max(abs(lowest), 1e-6) * 0.1
    xs = [dot.x for dot in dots] + [x for x, _ in line]
    low, high = (-0.5, len(names) - 0.5) if names else (min(xs), max(xs))
    if high <= low:
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)

    def across(x: float) -> float:
        a, b, at = (math.log(low), math.log(high), math.log(x)) if log else (low, high, x)
        return LEFT + 8 + (at - a) / (b - a) * (WIDTH - LEFT - RIGHT - 16)

    def up(y: float) -> float:
        share = (min(y, top) - lowest) / (top - lowest)
        return HEIGHT - BOTTOM - 8 - share * (HEIGHT - TOP - BOTTOM - 16)

    parts = [_frame(x_label, y_label)]
    for y in (lowest, (lowest + top) / 2, top):
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(LEFT, WIDTH - RIGHT, up(y), up(y), LEFT - 6, up(y) + 5, f"{y:.4g}")
        )
    middle_x = math.sqrt(low * high) if log else (low + high) / 2
    if all(x == round(x) for x in xs) and not log:
        middle_x = float(round(middle_x))
    marks = (
        [(float(at), name) for at, name in enumerate(names)]
        if names
        else [(x, f"{x:.3g}") for x in (low, middle_x, high)]
    )
    for x, text in marks:
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                across(x), HEIGHT - BOTTOM + 18, _cut(text, max(4, 56 // max(1, len(marks))))
            )
        )
    if line:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        parts.append(Markup('<polyline class="line student" points="{}"/>').format(path))
    for dot in dots:
        parts.append(
            Markup(
                '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>'
            ).format(dot.style, across(dot.x), up(dot.y), dot.title)
        )
    about = f"{len(dots)} points; {y_label} from {lowest:.4g} to {heights[-1]:.4g}"
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title><desc>{}</desc>'
        "{}</svg>"
    ).format(WIDTH, HEIGHT, title, title, about, Markup("").join(parts))


def _frame(x_label: str, y_label: str) -> Markup:
    return Markup(
        '<line class="axisline" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>'
        '<text class="axis" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>'
    ).format(
        LEFT,
        WIDTH - RIGHT,
        HEIGHT - BOTTOM,
        HEIGHT - BOTTOM,
        (LEFT + WIDTH - RIGHT) / 2,
        HEIGHT - 6,
        x_label,
        (TOP + HEIGHT - BOTTOM) / 2,
        y_label,
    )


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1] + "…"
