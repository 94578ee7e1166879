"""Cuts a stream of requests into windows: by count, by hours, or whichever comes first.

A window is an interval of `at` that no later window shares, so that it can be read again. Where a
window holds more requests than are kept, whole units are left out by hash, which bends no mean.
Knows rows and times; no figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from stillhouse.core.hashing import unit_hash
from stillhouse.core.live import LiveRow
from stillhouse.core.loop_monitor import WindowSection

HOUR_S = 3600.0


class Window(NamedTuple):
    """Requests with since <= at < until. `rows` are those kept, the share `kept` of all units."""

    since: float
    until: float
    rows: list[LiveRow]
    requests: int
    kept: float = 1.0
    empties: int = 0  # windows without a request that it stands for


class _Growing:
    """A window that is being filled."""

    def __init__(self, since: float, most: int) -> None:
        self.since, self._most = since, most
        self._rows: list[LiveRow] = []
        self.requests = 0
        self.last = -math.inf
        self._kept = 1.0

    def add(self, row: LiveRow) -> None:
        self.requests += 1
        self.last = row.at
        if self._kept < 1 and unit_hash(row.unit, 0) >= self._kept:
            return
        self._rows.append(row)
        while len(self._rows) > self._most and self._kept > 2**-20:
            self._kept /= 2
            self._rows = [one for one in self._rows if unit_hash(one.unit, 0) < self._kept]

    def ended(self, until: float, empties: int = 0) -> Window:
        return Window(self.since, until, self._rows, self.requests, self._kept, empties)


def windows(
    rows: Iterable[LiveRow], section: WindowSection, since: float | None, until: float
) -> Iterator[Window]:
    """The complete windows; what comes after the last of them is left for the next check.

    Windows without a request, by hours, come as one that counts them.

    Args:
        rows: in the order of `at`, from `since` on.
        since: where the last window ended; `None`: at the first request.
        until: all requests before it are there.
    """
    length = None if section.hours is None else section.hours * HOUR_S
    window: _Growing | None = None if since is None else _Growing(since, section.most)
    for row in rows:
        if row.at >= until:
            break
        if window is None:
            window = _Growing(row.at, section.most)
        # Requests of one instant stay together: a window is an interval of time.
        if section.requests is not None and window.requests >= section.requests:
            if row.at > window.last:
                end = math.nextafter(window.last, math.inf)
                yield window.ended(end)
                window = _Growing(end, section.most)
        if length is not None and row.at >= window.since + length:
            for one in _by_hours(window, length, row.at):
                yield one
                window = _Growing(one.until, section.most)
        window.add(row)
    if window is None:
        return
    if section.requests is not None and window.requests >= section.requests:
        end = math.nextafter(window.last, math.inf)
        yield window.ended(end)
        window = _Growing(end, section.most)
    if length is not None and until >= window.since + length:
        yield from _by_hours(window, length, until)


def _by_hours(window: _Growing, length: float, at: float) -> Iterator[Window]:
    """The windows that end at or before `at`: the one being filled, and the empty ones after."""
    begin = window.since
    if window.requests:
        begin += length
        yield window.ended(begin)
    count = int((at - begin) // length)
    if count > 0:
        yield _Growing(begin, 1).ended(begin + count * length, empties=count)


class Gathered(NamedTuple):
    """Requests that are kept, of how many."""

    rows: list[LiveRow]
    requests: int


def gathered(rows: Iterable[LiveRow], most: int) -> Gathered:
    """All of them, or, where they are too many, those of some units, by hash."""
    window = _Growing(0.0, most)
    for row in rows:
        window.add(row)
    found = window.ended(0.0)
    return Gathered(found.rows, found.requests)


def in_bounds(
    rows: Iterable[LiveRow], bounds: Iterable[tuple[float, float]], most: int
) -> Iterator[Gathered]:
    """The requests of each (since, until), both in rising order; those between are left out."""
    source = iter(rows)
    waiting = next(source, None)
    for since, until in bounds:
        window = _Growing(since, most)
        while waiting is not None and waiting.at < until:
            if waiting.at >= since:
                window.add(waiting)
            waiting = next(source, None)
        found = window.ended(until)
        yield Gathered(found.rows, found.requests)
