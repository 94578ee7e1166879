"""Which gateways live and what students each has open, told to one another through the database.

A gateway that was killed is forgotten after `LIVES_S`. Knows no process and no plan.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine

from stillhouse.serve.tables import LEASES

EVERY_S: Final = 5.0  # without news
LIVES_S: Final = 20.0  # without a word
FORGOTTEN_S: Final = 3600.0
_PREFIX: Final = "gateway "
Report = Mapping[str, Any]


class Presence(Protocol):
    """All of it may block."""

    def tell(self, report: Report, now: float) -> None:
        """What this gateway has open (`Roster.report`)."""

    def missing(self, task: str, name: str, now: float) -> list[str]:
        """Gateways that live and have not opened a student of a task, and why."""


class MemoryPresence:
    """Of one gateway without a database."""

    def __init__(self) -> None:
        self._report: Report = {}

    def tell(self, report: Report, now: float) -> None:
        """See `Presence`."""
        self._report = report

    def missing(self, task: str, name: str, now: float) -> list[str]:
        """See `Presence`."""
        return _missing([("the gateway", self._report)], task, name)


class StoredPresence:
    """Over the database that gateways share, in the table of leases."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._id = f"{_PREFIX}{uuid.uuid4().hex}"
        self._shown = f"{socket.gethostname()}:{os.getpid()}"
        self._last: tuple[str, float] = ("", -EVERY_S)

    def tell(self, report: Report, now: float) -> None:
        """See `Presence`."""
        told = json.dumps({"gateway": self._shown, "tasks": report}, sort_keys=True)
        if told == self._last[0] and 0 <= now - self._last[1] < EVERY_S:
            return
        kind = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        values = {"holder": told, "until": now + LIVES_S}
        own = kind.insert(LEASES).values(name=self._id, **values)
        gone = sa.and_(LEASES.c.name.startswith(_PREFIX), LEASES.c.until < now - FORGOTTEN_S)
        with self._engine.begin() as connection:
            connection.execute(own.on_conflict_do_update(index_elements=["name"], set_=values))
            connection.execute(sa.delete(LEASES).where(gone))
        self._last = told, now

    def missing(self, task: str, name: str, now: float) -> list[str]:
        """See `Presence`."""
        query = sa.select(LEASES.c.holder).where(
            LEASES.c.name.startswith(_PREFIX), LEASES.c.until >= now
        )
        with self._engine.connect() as connection:
            told = [json.loads(holder) for holder in connection.execute(query).scalars()]
        return _missing([(one["gateway"], one["tasks"]) for one in told], task, name)

    def leave(self) -> None:
        """It lives no more."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(LEASES).where(LEASES.c.name == self._id))


def _missing(reports: Sequence[tuple[str, Report]], task: str, name: str) -> list[str]:
    if not reports:
        return [f"no gateway has told yet that {name} is open"]
    found = []
    for gateway, report in reports:
        own = report.get(task, {})
        if name not in own.get("open", ()):
            why = own.get("problems", {}).get(name, "not yet")
            found.append(f"{gateway} has not opened {name}: {why}")
    return sorted(found)
