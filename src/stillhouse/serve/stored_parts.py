"""The server's seams over a database: states, keys and the traffic log.

Knows gateway.yaml and how the parts are put together; decides nothing about a request.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.models.adapter_files import forget_user
from stillhouse.serve.batches import BatchWork
from stillhouse.serve.candidates import is_last, withdrawn
from stillhouse.serve.courses import Lease
from stillhouse.serve.gates import gate_of, threshold_of
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.gateway_sections import StudentSection, TaskSection
from stillhouse.serve.in_memory import HashAssigner, ListedKeys
from stillhouse.serve.inheriting import gated_anew
from stillhouse.serve.keys import StoredKeys
from stillhouse.serve.migration import first_state, with_student
from stillhouse.serve.presence import StoredPresence
from stillhouse.serve.private import Pseudonyms, Redact
from stillhouse.serve.records import Decision, ExperimentState, StudentFolder
from stillhouse.serve.seams import Keys, Parts, Principal
from stillhouse.serve.seats import NO_GATE, OF_FILE
from stillhouse.serve.stages import at_stage, share_at
from stillhouse.serve.states import StoredStates
from stillhouse.serve.stored_calls import call_lines, delete_before, delete_user
from stillhouse.serve.stored_records import Unreadable
from stillhouse.serve.tables import StoreError, open_database
from stillhouse.serve.traffic_log import LogCounts, TrafficLog
from stillhouse.serve.watching import student_of, watch_stored

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
    """`seams.KeptCalls` over a database.

    Args:
        adapters: folders of online learning that users may have a part in.
    """

    def __init__(
        self,
        engine: Engine,
        log: TrafficLog,
        pseudonyms: Pseudonyms,
        adapters: Sequence[Path] = (),
    ) -> None:
        self._engine = engine
        self._log = log
        self._pseudonyms = pseudonyms
        self._adapters = tuple(adapters)

    def forget(self, tenant: str, user: str) -> tuple[int, int]:
        """See `KeptCalls`. What waits in this gateway's queue is written first, and deleted too;
        adapters that the user may have a part in answer no more.

        Raises:
            StoreError: it could not be written in time; or the rows are gone, but adapters cannot
                be put aside.
        """
        if not self._log.flush(FLUSH_S):
            raise StoreError("requests wait that cannot be written now")
        whose = self._pseudonyms.of(tenant, user)
        gone = delete_user(self._engine, whose)
        try:
            for root in self._adapters:
                forget_user(root, tenant, whose)
        except RunFolderError as error:
            raise StoreError(f"the rows are gone, but adapters still answer: {error}") from None
        return gone

    def lines(self, task: str | None, since: float | None) -> Iterator[str]:
        """See `KeptCalls`."""
        return call_lines(self._engine, task, since)


def adapters_of(file: GatewayFile) -> list[Path]:
    """Folders of online learning whose adapters a gateway's students answer with."""
    sections = [one for one in file.upstreams.values() if isinstance(one, StudentSection)]
    return [one.adapters for one in sections if one.adapters is not None]


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
        self._work = None if file.batches is None else BatchWork(self._engine)
        self._batches_kept_s = 0.0 if file.batches is None else file.batches.retention_days * DAY_S
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
        self._lease = Lease(self._engine, "evidence")
        self._presence = StoredPresence(self._engine)
        unreadable = Unreadable()
        watched = watch_stored(
            file,
            self._engine,
            self._states,
            self._log,
            self._lease,
            presence=self._presence,
            unreadable=unreadable,
        )
        self._controller = watched.controller
        self.parts = Parts(
            assigner=HashAssigner(file.tasks),
            states=self._states,
            log=watched.log,
            scores=watched.scores,
            experiments=watched.controller,
            keys=EitherKeys(*keys) if keys else None,
            gate=gate_of(file),
            key_store=self._keys if file.keys_in_store else None,
            calls=StoredKept(self._engine, self._log, pseudonyms, adapters_of(file)),
            pseudonym=pseudonyms.of,
            batches=self._work,
            presence=self._presence,
            last=self._states.last,
            unreadable=unreadable.take,
        )

    def refresh(self, now: float) -> None:
        """Read what other gateways and admins changed; now and then delete what is too old. Blocks.

        Args:
            now: Unix seconds.

        Raises:
            StoreError: a state cannot be read; all else is done.
        """
        with self._one:
            self._keys.refresh()  # first: a key that was revoked is refused whatever else fails
            strange: StoreError | None = None
            try:
                self._states.refresh()
            except StoreError as error:
                strange = error
            self._controller.tick(now)
            if now - self._swept >= SWEEP_S:
                self._swept = now
                self._sweep(now)
            if strange is not None:
                raise strange

    def _sweep(self, now: float) -> None:
        if self._retention is not None:
            delete_before(self._engine, now - self._retention * DAY_S)
        if self._work is not None:
            self._work.sweep(now, self._batches_kept_s)

    def close(self) -> LogCounts:
        """Write what waits and let the database go. Blocks."""
        counts = self._log.close()
        with contextlib.suppress(SQLAlchemyError):  # it ends by itself
            self._lease.give_back()
            self._presence.leave()
        self._engine.dispose()
        return counts


def begin(states: StoredStates, file: GatewayFile, now: float) -> None:
    """Give every task with a student a state, and carry into states what the file says otherwise.

    The stage that an experiment has reached stays; its share, kind and threshold are the file's,
    and where they change its evidence begins anew. Another student begins at the first stage. A
    student that came by the admin API stays, and one that climbs climbs on, as long as its folder
    lies below the file's roots; without a gate it is closed or shown as the file says now, and does
    not climb closed. Of gateways that start together one writes, and the others see it.

    Raises:
        UserError: a state is at a stage that the plan does not have.
    """
    for name, task in file.tasks.items():
        if task.student is None:
            continue
        plan, old = task.experiment.stages, states.get(name)
        if old.candidate is not None:
            _begin_beside(states, file, old, now)
            old = states.get(name)
        if old.candidate is not None:
            continue
        if old.stage >= len(plan):
            raise UserError(
                f"tasks.{name}.experiment.stages",
                f"the experiment stands at stage {old.stage}",
                value=f"{len(plan)} stages",
                action="give the plan as many stages, or roll the experiment back first",
            )
        serving = old.serving if _below(file, old.serving) else None
        if serving is not None:
            serving = gated_anew(task, old, serving)
        first = first_state(
            name, plan[old.stage :], now, student=True, threshold=_threshold(task, serving)
        )
        student = student_of(file, task) or (None if old.serving else old.student)
        if serving is not None:
            student = old.student
        new = first.model_copy(
            update={
                "version": old.version + 1,
                "stage": old.stage,
                "since": old.since if old.version else now,
                "killed": old.killed,
                "waiting": old.waiting,
                "counts_from": old.version + 1,
                "attempt": old.attempt,
                "held": old.held,
                "student": student,
                "serving": serving,
            }
        )
        reason = "gateway.yaml says otherwise" if old.version else "the experiment begins"
        left = serving is None and old.serving is not None
        if old.version and (old.student not in (None, student) or left):
            # What is known is of another student.
            afresh = at_stage(old, plan, 0, now) | {"attempt": 1}
            new, reason = new.model_copy(update=afresh), "another student: it begins again"
        same = ("kind", "share", "threshold", "student", "serving")
        if old.version and all(getattr(old, key) == getattr(new, key) for key in same):
            continue
        decision = Decision(
            at=now,
            task=name,
            action="hold",
            from_stage=old.stage,
            to_stage=new.stage,
            reason=reason,
            numbers={key: getattr(new, key) for key in same[:-1]},
            by="gateway.yaml",
        )
        states.swap(old.version, new, decision)


def _begin_beside(
    states: StoredStates, file: GatewayFile, old: ExperimentState, now: float
) -> None:
    """The same while a new student climbs: of its stage, and of the running student's."""
    task, climbing = file.tasks[old.task], old.candidate
    assert climbing is not None
    plan, before = task.experiment.stages, climbing.before
    folder = gated_anew(task, old, climbing.folder)
    why = ""
    if not (_below(file, climbing.folder) and _below(file, old.serving)):
        why = "its folder, or the running student's, lies below none of students.roots"
    elif max(old.stage, before.stage) >= len(plan) or is_last(plan, old.stage):
        why = "gateway.yaml's plan has not that stage any more"
    elif folder.gate == NO_GATE:
        why = "it has no gate.json, and none is fitted to it"
    if why:
        new, decision = withdrawn(old, "withdraw", why, now, by="gateway.yaml")
        states.swap(old.version, new, decision)
        return

    def planned(state: ExperimentState, threshold: float | None) -> ExperimentState:
        stage = plan[state.stage]
        update = {"kind": stage.kind, "share": share_at(stage), "threshold": threshold}
        return state.model_copy(update=update)

    serving = None if before.serving is None else gated_anew(task, old, before.serving)
    before = planned(before, _threshold(task, serving)).model_copy(update={"serving": serving})
    own = None if before.serving is not None else student_of(file, task)
    if own is not None and before.student not in (None, own):
        another, _ = with_student(before, plan, own, now)
        before = another.model_copy(update={"version": before.version})
    beside = climbing.model_copy(update={"before": before, "folder": folder})
    new = planned(old, folder.threshold).model_copy(
        update={"version": old.version + 1, "candidate": beside, "serving": before.serving}
    )
    if (new.kind, new.share, folder) != (old.kind, old.share, climbing.folder):
        new = new.model_copy(update={"counts_from": new.version})
    elif beside == climbing:
        return
    decision = Decision(
        at=now,
        task=old.task,
        action="hold",
        from_stage=old.stage,
        to_stage=new.stage,
        reason="gateway.yaml says otherwise",
        numbers={"kind": new.kind, "share": new.share, "running": before.kind},
        by="gateway.yaml",
        student=climbing.folder.name,
    )
    states.swap(old.version, new, decision)


def _below(file: GatewayFile, folder: StudentFolder | None) -> bool:
    """Whether a student's folder is of those that the file allows."""
    if folder is None:
        return True
    roots = () if file.students is None else file.students.roots
    return any(Path(folder.path).is_relative_to(root.resolve()) for root in roots)


def _threshold(task: TaskSection, serving: StudentFolder | None) -> float | None:
    """Of the running student."""
    return threshold_of(task) if serving is None or serving.gate == OF_FILE else serving.threshold
