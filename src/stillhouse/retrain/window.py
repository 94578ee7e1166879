"""A window of live traffic as it can be learnt from: read once, bounded, what is unusable counted.

The window ends when the cycle began and begins where the last one ended. Clocks are not trusted: a
request that is dated after the end is left for the next window, and one that was stored after the
last cycle had read, but is dated before, is late and still taken. Of more requests than the pool
holds, those of the lowest hash stay, which is a draw by chance. Knows live rows; no database.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Container
from typing import Final, NamedTuple

from pydantic import ValidationError

from stillhouse.core.errors import UserError
from stillhouse.core.hashing import unit_hash
from stillhouse.core.live import LiveRow, LiveRows
from stillhouse.core.records import Query, message_key
from stillhouse.core.tasks import Task
from stillhouse.retrain.cycle_records import WindowRow

LATE_S: Final = 86_400.0  # how much earlier than its end a window's late requests are looked for
FAILED: Final = 400
MOST_AHEAD_S: Final = 86_400.0


class Span(NamedTuple):
    """From when until when, Unix seconds; `read_before` is when the last window was read, if one
    was: what was stored since then is late, not old."""

    since: float
    until: float
    read_before: float | None


class Window(NamedTuple):
    """The pool in the order of time, and counts by what became of each request."""

    rows: list[WindowRow]
    counts: dict[str, int]


def span_of(now: float, longest_s: float, last_until: float | None) -> Span:
    """The window of a cycle that begins now.

    Raises:
        UserError: the clock stands before the end of the last window.
    """
    if last_until is not None and now <= last_until:
        raise UserError(
            "clock",
            f"stands {last_until - now:,.0f} s before the end of the last window",
            action="set the clock right, or wait until it is past that",
        )
    since = now - longest_s if last_until is None else max(last_until, now - longest_s)
    return Span(since, now, last_until)


def read_window(
    live: LiveRows,
    name: str,
    task: Task,
    span: Span,
    *,
    pool: int,
    seed: int,
    forgotten: Container[str] = (),
) -> Window:
    """Read the window's requests.

    Args:
        live: the log.
        name: the gateway's name of the task.
        task: the recipe's task; a query is of this.
        span: the window.
        pool: the most to keep.
        seed: of the draw.
        forgotten: users whose requests are left out.
    """
    counts: Counter[str] = Counter()
    kept: list[tuple[float, int, WindowRow]] = []  # a heap: the highest hash first
    chats: set[str] = set()
    begin = span.since if span.read_before is None else span.since - LATE_S
    for number, row in enumerate(live.rows(name, begin, span.until + MOST_AHEAD_S)):
        counts["read"] += 1
        why = _unusable(row, span, forgotten)
        if why is not None:
            counts[why] += 1
            continue
        found = _row(row, task)
        if found is None:
            counts["no_question"] += 1
            continue
        key = message_key(found.query.messages)
        if key in chats:
            counts["repeated"] += 1
            continue
        chats.add(key)
        counts["usable"] += 1
        draw = unit_hash(f"pool:{row.id}", seed)
        heapq.heappush(kept, (-draw, number, found))
        if len(kept) > pool:
            heapq.heappop(kept)
    counts["pool"] = len(kept)
    rows = [row for _, _, row in sorted(kept, key=lambda one: one[1])]
    return Window(rows, dict(counts))


def _unusable(row: LiveRow, span: Span, forgotten: Container[str]) -> str | None:
    if row.at >= span.until:
        return "dated_ahead"
    if row.at < span.since:
        late = span.read_before is not None and row.written_at > span.read_before
        if not late:
            return "before"
    if row.user is not None and row.user in forgotten:
        return "of_forgotten_users"
    if row.status >= FAILED:
        return "failed"
    return None if row.messages else "without_text"


def _row(row: LiveRow, task: Task) -> WindowRow | None:
    try:
        query = Query(id=row.id, messages=row.messages, task=task.name, user=row.user)
    except ValidationError:  # it ends with an answer
        return None
    if not task.varying_text(query).strip():
        return None
    return WindowRow(
        query=query,
        at=row.at,
        teacher=_usable(task, None if row.teacher is None else row.teacher.text),
        student=None if row.student is None else row.student.text,
        confidence=None if row.student is None else row.student.confidence,
        price_usd=row.teacher_cost_usd,
    )


def _usable(task: Task, text: str | None) -> str | None:
    """A teacher's answer that its task can read."""
    return None if text is None or task.parse(text).value is None else text
