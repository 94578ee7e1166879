"""An experiment as a person is shown it, read from the database without a gateway's own memory.

JSON values as they are stored; knows no statistics and no page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from stillhouse.serve.records import ExperimentState
from stillhouse.serve.tables import COURSES, DECISIONS, STATES

MOST_POINTS: Final = 1500
MOST_DECISIONS: Final = 200


def read_states(engine: Engine) -> dict[str, ExperimentState]:
    """By task; tasks that never had one are left out."""
    with engine.connect() as connection:
        bodies = connection.execute(sa.select(STATES.c.body)).scalars().all()
    found = [ExperimentState.model_validate_json(body) for body in bodies]
    return {state.task: state for state in found}


def read_points(engine: Engine, task: str, since: float | None, most: int) -> list[dict[str, Any]]:
    """Looks at a task's stages, flat, oldest first.

    Args:
        since: of the stage that began then alone; `None`: of all stages.
        most: the newest so many.
    """
    query = sa.select(COURSES.c.body).where(COURSES.c.task == task)
    if since is not None:
        query = query.where(COURSES.c.since == since)
    # In the order of the key, so that nothing is sorted.
    query = query.order_by(COURSES.c.since.desc(), COURSES.c.at.desc()).limit(most)
    with engine.connect() as connection:
        bodies = connection.execute(query).scalars().all()
    return [_flat(json.loads(body)) for body in reversed(bodies)]


def read_decisions(engine: Engine, task: str, most: int = MOST_DECISIONS) -> list[dict[str, Any]]:
    """Lines of the audit log, newest first."""
    query = (
        sa.select(DECISIONS.c.body)
        .where(DECISIONS.c.task == task)
        .order_by(DECISIONS.c.version.desc())
        .limit(most)
    )
    with engine.connect() as connection:
        return [json.loads(body) for body in connection.execute(query).scalars()]


def _flat(point: Mapping[str, Any]) -> dict[str, Any]:
    numbers = point.get("numbers") or {}
    return {**numbers, **{name: value for name, value in point.items() if name != "numbers"}}
