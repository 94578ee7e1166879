"""Where the names of a chart's points stand, so that they cover neither each other nor the points.

Knows pixels and lengths of names; draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

LETTER: Final = 7.2  # pixels of a letter of 13 px, at most
LINE: Final = 15  # of a line of text
APART: Final = 11  # from the point's middle

Box = tuple[float, float, float, float]  # left, right, top, bottom


class Named(NamedTuple):
    """A point with its whisker, in pixels; one without a name is only kept clear of."""

    x: float
    y: float
    top: float
    bottom: float
    radius: float
    name: str


class Place(NamedTuple):
    """Where a name stands: the point of its anchor."""

    x: float
    y: float
    anchor: Literal["start", "end"]


def places_of_names(
    marks: Sequence[Named], left: float, right: float, letter: float = LETTER
) -> list[Place]:
    """A place for each mark's name, clear of other names, points and whiskers where there is one.

    Args:
        marks: in the order in which their names take their places.
        left: names stand to the right of this.
        right: and to the left of this.
        letter: how wide a letter is, at most.
    """
    taken: list[Box] = []
    for mark in marks:
        r = mark.radius
        taken.append((mark.x - r, mark.x + r, mark.y - r, mark.y + r))
        taken.append((mark.x - 2, mark.x + 2, mark.top, mark.bottom))
    found = []
    for mark in marks:
        place, box = Place(mark.x + APART, mark.y + 5, "start"), None
        if mark.name:
            options = list(_options(mark, left, right, letter))
            if options:
                place, box = min(options, key=lambda one: _covered(one[1], taken))
        if box is not None:
            taken.append(box)
        found.append(place)
    return found


def _options(mark: Named, left: float, right: float, letter: float) -> Iterator[tuple[Place, Box]]:
    """Where a name may stand, the best first: beside its point, then above and below."""
    wide = letter * len(mark.name)
    for dy in (0, -LINE, LINE, -2 * LINE, 2 * LINE, -3 * LINE, 3 * LINE):
        y = mark.y + dy
        for side in (1, -1):
            start = mark.x + APART * side
            box = (start, start + wide) if side > 0 else (start - wide, start)
            if box[0] >= left and box[1] <= right:
                yield (
                    Place(start, y + 5, "start" if side > 0 else "end"),
                    (*box, y - LINE / 2, y + LINE / 2),
                )


def _covered(box: Box, taken: Sequence[Box]) -> int:
    """How many boxes another one touches."""
    return sum(
        box[0] < right and left < box[1] and box[2] < bottom and top < box[3]
        for left, right, top, bottom in taken
    )
