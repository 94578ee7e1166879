"""Sessions of the dashboard that were signed out of, for all processes on one database.

Knows sessions as digests; no cookie and no key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from stillhouse.serve.states import insert_new
from stillhouse.serve.tables import SIGNED_OUT, answering


class StoredSignedOut:
    """`monitor.dashboard.access.SignedOut` over a database; all of it blocks."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = engine, clock

    def add(self, session: str, until: float) -> None:
        """See `SignedOut`. Those that are over by themselves go.

        Raises:
            StoreError: the database does not answer.
        """
        with answering(), self._engine.begin() as connection:
            connection.execute(sa.delete(SIGNED_OUT).where(SIGNED_OUT.c.until <= self._clock()))
            connection.execute(
                insert_new(self._engine, SIGNED_OUT).values(session=session, until=until)
            )

    def known(self) -> Mapping[str, float]:
        """See `SignedOut`.

        Raises:
            StoreError: the database does not answer.
        """
        query = sa.select(SIGNED_OUT.c.session, SIGNED_OUT.c.until)
        with answering(), self._engine.connect() as connection:
            return {row.session: row.until for row in connection.execute(query)}
