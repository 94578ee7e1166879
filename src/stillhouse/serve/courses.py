"""What was known of an experiment over time, and which gateway works it out; on database or memory.

Knows no statistics and no policy.
"""

from __future__ import annotations

import uuid
from typing import Final, Protocol

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy.engine import Engine

from stillhouse.core.records import Record
from stillhouse.serve.numbers import StageNumbers
from stillhouse.serve.states import insert_new
from stillhouse.serve.tables import COURSES, LEASES

LEASE_S: Final = 30.0
MOST_POINTS: Final = 5000


class CoursePoint(Record):
    """One look at a stage."""

    at: float = Field(description="Unix seconds.")
    stage: int
    since: float = Field(description="When the stage began.")
    words: str
    numbers: StageNumbers


class Courses(Protocol):
    """Points of experiments; all of it may block."""

    def add(self, task: str, point: CoursePoint) -> None:
        """Keep a point; one that is there already is left alone."""

    def read(self, task: str) -> list[CoursePoint]:
        """The newest points, oldest first."""


class StoredCourses:
    """`Courses` over a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, task: str, point: CoursePoint) -> None:
        """See `Courses`."""
        row = {"task": task, "since": point.since, "at": point.at, "body": point.model_dump_json()}
        with self._engine.begin() as connection:
            connection.execute(insert_new(self._engine, COURSES), [row])

    def read(self, task: str) -> list[CoursePoint]:
        """See `Courses`."""
        query = (
            sa.select(COURSES.c.body)
            .where(COURSES.c.task == task)
            .order_by(COURSES.c.at.desc())
            .limit(MOST_POINTS)
        )
        with self._engine.connect() as connection:
            bodies = list(connection.execute(query).scalars())
        return [CoursePoint.model_validate_json(body) for body in reversed(bodies)]


class MemoryCourses:
    """`Courses` that are lost with the process."""

    def __init__(self) -> None:
        self._points: dict[str, list[CoursePoint]] = {}

    def add(self, task: str, point: CoursePoint) -> None:
        """See `Courses`."""
        points = self._points.setdefault(task, [])
        points.append(point)
        del points[:-MOST_POINTS]

    def read(self, task: str) -> list[CoursePoint]:
        """See `Courses`."""
        return list(self._points.get(task, ()))


class Lease:
    """Work that one of several gateways does: whoever holds the row, until its time is over.

    Two may believe to hold it for a moment (a paused process, clocks that differ); what they then
    do to a state is still done once, by compare and swap.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self._name = engine, name
        self._holder = uuid.uuid4().hex
        self._until = 0.0

    def held(self, now: float) -> bool:
        """Whether it is ours, taking or renewing it where that is due; blocks.

        Args:
            now: Unix seconds.
        """
        if now < self._until - LEASE_S / 2:
            return True
        until = now + LEASE_S
        values = {"holder": self._holder, "until": until}
        with self._engine.begin() as connection:
            won = connection.execute(
                sa.update(LEASES)
                .where(
                    LEASES.c.name == self._name,
                    sa.or_(LEASES.c.holder == self._holder, LEASES.c.until < now),
                )
                .values(**values)
            ).rowcount
            if not won:
                first = insert_new(self._engine, LEASES).values(name=self._name, **values)
                won = len(connection.execute(first.returning(LEASES.c.name)).all())
        self._until = until if won else 0.0
        return bool(won)

    def give_back(self) -> None:
        """Let another take it at once; blocks."""
        self._until = 0.0
        with self._engine.begin() as connection:
            connection.execute(
                sa.delete(LEASES).where(
                    LEASES.c.name == self._name, LEASES.c.holder == self._holder
                )
            )
