"""The server's seams over a database: states, keys and the traffic log.

Knows gateway.yaml and how the parts are put together; decides nothing about a request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from sqlalchemy.engine import Engine

from stillhouse.core.errors import UserError
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.in_memory import HashAssigner, ListedKeys, ThresholdGate
from stillhouse.serve.keys import StoredKeys
from stillhouse.serve.migration import first_state
from stillhouse.serve.private import Pseudonyms, Redact
from stillhouse.serve.records import Decision
from stillhouse.serve.seams import Keys, Parts, Principal
from stillhouse.serve.states import StoredStates
from stillhouse.serve.stored_calls import call_lines, delete_before, delete_user
from stillhouse.serve.tables import StoreError, open_database
from stillhouse.serve.traffic_log import LogCounts, TrafficLog

Redactors = Callable[[Sequence[str] | None], Redact]
DAY_S: Final = 86_400.0
FLUSH_S: Final = 5.0
SWEEP_S: Final = 3600.0  # between two looks for what is too old


class EitherKeys:
    """The keys of gateway.yaml, and those of the database."""

    def __init__(self, *sources: Keys) -> None:
        self._sources = sources

    def check(self, presented: str) -> Principal | None:
        """See `Keys`; every source is asked, whichever knows the key."""
        found = [source.check(presented) for source in self._sources]
        return next((one for one in found if one is not None), None)


class StoredKept:
    """`seams.KeptCalls` over a database."""

    def __init__(self, engine: Engine, log: TrafficLog, pseudonyms: Pseudonyms) -> None:
        self._engine = engine
        self._log = log
        self._pseudonyms = pseudonyms

    def forget(self, tenant: str, user: str) -> tuple[int, int]:
        """See `KeptCalls`. What waits in this gateway's queue is written first, and deleted too.

        Raises:
            StoreError: it could not be written in time.
        """
        if not self._log.flush(FLUSH_S):
            raise StoreError("requests wait that cannot be written now")
        return delete_user(self._engine, self._pseudonyms.of(tenant, user))

    def lines(self, task: str | None, since: float | None) -> Iterator[str]:
        """See `KeptCalls`."""
        return call_lines(self._engine, task, since)


class StoredParts:
    """Parts over one database; `refresh` keeps them up with other gateways.

    Args:
        file: with `log.url`.
        pseudonyms: what stands for users.
        redact: of the kinds that the file names.
        now: Unix seconds; when experiments begin that have not begun.

    Raises:
        UserError: an experiment stands at a stage that the file no longer has.
        StoreError: the database cannot be reached.
    """

    def __init__(
        self, file: GatewayFile, pseudonyms: Pseudonyms, redact: Redactors, now: float
    ) -> None:
        assert file.log.url is not None
        self._engine: Engine = open_database(file.log.url)
        self._retention = file.log.retention_days
        self._swept = 0.0
        self._one = threading.Lock()
        self._states = StoredStates(self._engine)
        self._keys = StoredKeys(self._engine)
        begin(self._states, file, now)
        self._log = TrafficLog(
            self._engine,
            pseudonyms,
            redact=redact(file.log.redact),
            sample=file.log.sample,
            capacity=file.log.queue,
        )
        keys: list[Keys] = [ListedKeys(file.clients)] if file.clients else []
        keys += [self._keys] if file.keys_in_store else []
        thresholds = {
            name: task.fallback.threshold
            for name, task in file.tasks.items()
            if task.fallback.threshold is not None
        }
        self.parts = Parts(
            assigner=HashAssigner(file.tasks),
            states=self._states,
            log=self._log,
            keys=EitherKeys(*keys) if keys else None,
            gate=ThresholdGate(thresholds) if thresholds else None,
            key_store=self._keys if file.keys_in_store else None,
            calls=StoredKept(self._engine, self._log, pseudonyms),
        )

    def refresh(self, now: float) -> None:
        """Read what other gateways and admins changed; now and then delete what is too old. Blocks.

        Args:
            now: Unix seconds.
        """
        with self._one:
            self._states.refresh()
            self._keys.refresh()
            if self._retention is not None and now - self._swept >= SWEEP_S:
                self._swept = now
                delete_before(self._engine, now - self._retention * DAY_S)

    def close(self) -> LogCounts:
        """Write what waits and let the database go. Blocks."""
        counts = self._log.close()
        self._engine.dispose()
        return counts


def begin(states: StoredStates, file: GatewayFile, now: float) -> None:
    """Give every task with a student a state, and carry into states what the file says otherwise.

    The stage that an experiment has reached stays; its share, kind and threshold are the file's.
    Of gateways that start together one writes, and the others see it.

    Raises:
        UserError: a state is at a stage that the plan does not have.
    """
    for name, task in file.tasks.items():
        if task.student is None:
            continue
        plan, old = task.experiment.stages, states.get(name)
        if old.stage >= len(plan):
            raise UserError(
                f"tasks.{name}.experiment.stages",
                f"the experiment stands at stage {old.stage}",
                value=f"{len(plan)} stages",
                action="give the plan as many stages, or roll the experiment back first",
            )
        first = first_state(
            name, plan[old.stage :], now, student=True, threshold=task.fallback.threshold
        )
        new = first.model_copy(
            update={
                "version": old.version + 1,
                "stage": old.stage,
                "since": old.since if old.version else now,
                "killed": old.killed,
                "waiting": old.waiting,
            }
        )
        same = ("kind", "share", "threshold")
        if old.version and all(getattr(old, key) == getattr(new, key) for key in same):
            continue
        reason = "gateway.yaml says otherwise" if old.version else "the experiment begins"
        decision = Decision(
            at=now,
            task=name,
            action="hold",
            from_stage=old.stage,
            to_stage=old.stage,
            reason=reason,
            numbers={key: getattr(new, key) for key in same},
            by="gateway.yaml",
        )
        states.swap(old.version, new, decision)
