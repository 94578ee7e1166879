"""Where each task's experiment stands, shared by all gateways on one database.

A state is replaced only where its version is still the one that the decision was made on, and the
decision is written in the same transaction: of two gateways that promote at once one wins, and the
audit log has one line for each version. Knows no policy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine

from stillhouse.serve.records import Decision, ExperimentState
from stillhouse.serve.tables import DECISIONS, STATES, StoreError


class Audited(NamedTuple):
    """One line of the audit log: a decision and the version of the state that it made."""

    version: int
    decision: Decision


def insert_new(engine: Engine, table: sa.Table) -> Any:
    """An INSERT that leaves a row alone that is there already."""
    kind = postgresql if engine.dialect.name == "postgresql" else sqlite
    return kind.insert(table).on_conflict_do_nothing()


class StoredStates:
    """`seams.States` over a database; `get` answers from memory, `refresh` reads what others did.

    How old memory may be is the caller's: it calls `refresh` every second or so.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, ExperimentState] = {}
        self.refresh()

    def get(self, task: str) -> ExperimentState:
        """The newest known state; a task without one is off."""
        return self._known.get(task) or ExperimentState(task=task)

    def refresh(self) -> None:
        """Read all states; blocks. Memory never goes back to an older version.

        Raises:
            StoreError: one is no state that this version knows; the others are read, and of it
                what was known stays.
        """
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(STATES.c.task, STATES.c.body)).all()
        strange: list[str] = []
        for task, body in rows:
            try:
                self._keep(ExperimentState.model_validate_json(body))
            except ValidationError:
                strange.append(task)
        if strange:
            raise StoreError(
                f"the stored state of {', '.join(sorted(strange))} cannot be read: it is damaged, "
                "or of another version of Stillhouse"
            )

    def swap(self, old_version: int, new: ExperimentState, decision: Decision) -> bool:
        """Replace a state if its version is still `old_version`; blocks. False: another was first.

        Raises:
            ValueError: the new version does not follow the old, or the decision is of another task.
        """
        if new.version != old_version + 1 or decision.task != new.task:
            raise ValueError("a new state follows its old version, with a decision on its own task")
        values = {"version": new.version, "body": new.model_dump_json()}
        with self._engine.begin() as connection:
            won = connection.execute(
                sa.update(STATES)
                .where(STATES.c.task == new.task, STATES.c.version == old_version)
                .values(**values)
            ).rowcount
            if not won and old_version == 0:
                first = insert_new(self._engine, STATES).values(task=new.task, **values)
                won = len(connection.execute(first.returning(STATES.c.task)).all())
            if won:
                connection.execute(
                    sa.insert(DECISIONS).values(
                        task=new.task,
                        version=new.version,
                        at=decision.at,
                        body=decision.model_dump_json(),
                    )
                )
        if won:
            self._keep(new)
        else:
            self.refresh()
        return bool(won)

    def audit(self, task: str) -> list[Audited]:
        """All decisions on a task, oldest first."""
        query = (
            sa.select(DECISIONS.c.version, DECISIONS.c.body)
            .where(DECISIONS.c.task == task)
            .order_by(DECISIONS.c.version)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [Audited(version, Decision.model_validate_json(body)) for version, body in rows]

    def last(self, task: str) -> Decision | None:
        """The newest decision on a task; blocks."""
        query = (
            sa.select(DECISIONS.c.body)
            .where(DECISIONS.c.task == task)
            .order_by(DECISIONS.c.version.desc())
            .limit(1)
        )
        with self._engine.connect() as connection:
            body = connection.execute(query).scalar()
        return None if body is None else Decision.model_validate_json(body)

    def _keep(self, state: ExperimentState) -> None:
        known = self._known.get(state.task)
        if known is None or known.version < state.version:
            self._known[state.task] = state
