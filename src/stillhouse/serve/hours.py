"""Sums of the traffic log by task and hour, kept up by the log's writer in its own transaction.

They outlive the requests that they are of: what was saved is still known when texts are deleted.
Knows no request format and no page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from stillhouse.core.live_pages import Hour
from stillhouse.serve.stored_records import NO_CALL
from stillhouse.serve.tables import CALLS, HOURS

HOUR_S: Final = 3600
DAY_H: Final = 24
# Writers of one database add to rows of their own, so that none waits for another's commit.
SLOTS: Final = 8
_KEY: Final = ("task", "hour", "variant", "shadow", "slot")
_SUMS: Final = ("requests", "fell_back", "failed", "cost_usd", "teacher_cost_usd", "latency_ms")


def failed(status: int) -> bool:
    """Whether a request got no answer by no fault of its client."""
    return status >= 500 or status == 429


def sums_of(rows: Sequence[Mapping[str, Any]], slot: int) -> list[dict[str, Any]]:
    """What to add for rows of `CALLS` with their figures beside: one row a group.

    In the order of the key: two writers never wait for each other crosswise.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        served = row["figures"]
        shadow = int(row["shadow_of"] is not None)
        key = (row["task"], int(row["at"] // HOUR_S), row["variant"], shadow, slot)
        one = found.get(key)
        if one is None:
            one = found[key] = dict(zip(_KEY, key, strict=True)) | dict.fromkeys(_SUMS, 0)
        one["requests"] += 1
        one["fell_back"] += bool(served["fell_back"])
        one["failed"] += failed(served["status"])
        for name in ("cost_usd", "teacher_cost_usd", "latency_ms"):
            one[name] += served[name]
    return [found[key] for key in sorted(found)]


def add(connection: Connection, sums: Sequence[Mapping[str, Any]]) -> None:
    """Add to the table, in the caller's transaction."""
    if sums:
        connection.execute(_adding(connection.dialect.name), list(sums))


@lru_cache
def _adding(dialect: str) -> Any:
    """An INSERT that adds to a row that is there already."""
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(HOURS)
    more = {name: HOURS.c[name] + insert.excluded[name] for name in _SUMS}
    return insert.on_conflict_do_update(index_elements=list(_KEY), set_=more)


def read_hours(engine: Engine, task: str | None = None, since: int | None = None) -> list[Hour]:
    """Hours in their order.

    Args:
        since: the first hour (Unix seconds over 3,600).
    """
    key = [HOURS.c[name] for name in _KEY[:-1]]
    query = sa.select(*key, *(sa.func.sum(HOURS.c[name]).label(name) for name in _SUMS))
    if task is not None:
        query = query.where(HOURS.c.task == task)
    if since is not None:
        query = query.where(HOURS.c.hour >= since)
    query = query.group_by(*key).order_by(HOURS.c.hour, *key)
    with engine.connect() as connection:
        return [Hour(**row) for row in connection.execute(query).mappings()]


def read_days(engine: Engine, since: int) -> list[Hour]:
    """Days (UTC) as their first hours, from the day of an hour on."""
    day = (HOURS.c.hour - HOURS.c.hour % DAY_H).label("hour")
    key = [HOURS.c.task, day, HOURS.c.variant, HOURS.c.shadow]
    query = sa.select(*key, *(sa.func.sum(HOURS.c[name]).label(name) for name in _SUMS))
    query = query.where(HOURS.c.hour >= since - since % DAY_H).group_by(*key).order_by(day, *key)
    with engine.connect() as connection:
        return [Hour(**row) for row in connection.execute(query).mappings()]


def read_totals(engine: Engine, since: int | None, until: int | None) -> list[Hour]:
    """Hours of each task together, under hour 0.

    Args:
        since: the first hour; `until`: the hour after the last.
    """
    key = [HOURS.c[name] for name in ("task", "variant", "shadow")]
    query = sa.select(*key, *(sa.func.sum(HOURS.c[name]).label(name) for name in _SUMS))
    if since is not None:
        query = query.where(HOURS.c.hour >= since)
    if until is not None:
        query = query.where(HOURS.c.hour < until)
    with engine.connect() as connection:
        rows = connection.execute(query.group_by(*key).order_by(*key)).mappings()
        return [Hour(hour=0, **row) for row in rows]


def newest_latencies(engine: Engine, task: str, count: int) -> list[float]:
    """Milliseconds that the last so many requests took, as clients saw them."""
    query = (
        sa.select(CALLS.c.served)
        .where(CALLS.c.task == task, CALLS.c.shadow_of.is_(None))
        .order_by(CALLS.c.at.desc())
        .limit(count)
    )
    with engine.connect() as connection:
        bodies = connection.execute(query).scalars().all()
    found = []
    for body in bodies:
        with suppress(*NO_CALL):  # a row that is no record
            found.append(float(json.loads(body)["latency_ms"]))
    return found
