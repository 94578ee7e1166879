"""The dashboard put together: its pages over the gateway's database, watching's files, runs and the
registry. Knows where each lies; draws and decides nothing.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from sqlalchemy.engine import Engine
from starlette.types import Receive, Scope, Send

from stillhouse.core.errors import UserError
from stillhouse.core.live_pages import Asked, Hour, Place, RowsPage
from stillhouse.core.loop_file import LoopFile, load_loop
from stillhouse.monitor.dashboard.app import Dashboard
from stillhouse.monitor.dashboard.online_files import OnlineFiles
from stillhouse.monitor.dashboard.run_files import RunFiles
from stillhouse.monitor.dashboard.shown import DecisionShown, ExperimentShown, NumbersShown
from stillhouse.monitor.dashboard.sources import ConflictError, Sources
from stillhouse.monitor.dashboard.watch_files import WatchFiles
from stillhouse.retrain import registry_records as students
from stillhouse.retrain.gateway_admin import GatewayAdmin, address_of
from stillhouse.retrain.gateway_follow import Admin, follow
from stillhouse.retrain.registry import Registry
from stillhouse.retrain.registry_gate import gate_words
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.candidates import about
from stillhouse.serve.experiment_pages import (
    MOST_POINTS,
    read_decisions,
    read_points,
    read_states,
)
from stillhouse.serve.gateway_file import SHORTEST_ADMIN_KEY, GatewayFile, load_gateway
from stillhouse.serve.gateway_sections import LOOPBACK
from stillhouse.serve.hours import (
    DAY_H,
    HOUR_S,
    newest_latencies,
    read_days,
    read_hours,
    read_totals,
)
from stillhouse.serve.log_pages import LogPages
from stillhouse.serve.migration import changed
from stillhouse.serve.presence import StoredPresence
from stillhouse.serve.records import ExperimentState
from stillhouse.serve.signed_out import StoredSignedOut
from stillhouse.serve.states import StoredStates
from stillhouse.serve.tables import answering, open_database

KEY_VARIABLE: Final = "STILLHOUSE_ADMIN_KEY"
OLD_S: Final = 300.0
NO_LOOK: Final = "no answer of this stage was looked at yet"
P = ParamSpec("P")
R = TypeVar("R")


def _asked(call: Callable[P, R]) -> Callable[P, R]:
    """A database that is away is an error of ours, without what was asked."""

    @functools.wraps(call)
    def asking(*args: P.args, **more: P.kwargs) -> R:
        with answering():
            return call(*args, **more)

    return asking


class StoredUsage:
    """`sources.Usage` over the log's sums. What is days old is read every few minutes."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = engine, clock
        self._old: tuple[float, int, Sequence[Hour]] | None = None

    @_asked
    def totals(self) -> Sequence[Hour]:
        """See `sources.Usage`."""
        now, old = self._clock(), self._old
        if old is None or not 0 <= now - old[0] < OLD_S:
            until = int(now // HOUR_S) - 2 * DAY_H
            old = self._old = (now, until, read_totals(self._engine, None, until))
        return [*old[2], *read_totals(self._engine, old[1], None)]

    @_asked
    def days(self, since: int) -> Sequence[Hour]:
        """See `sources.Usage`."""
        return read_days(self._engine, since)

    @_asked
    def hours(self, task: str | None, since: int) -> Sequence[Hour]:
        """See `sources.Usage`."""
        return read_hours(self._engine, task, since)

    @_asked
    def latencies(self, task: str, count: int) -> Sequence[float]:
        """See `sources.Usage`."""
        return newest_latencies(self._engine, task, count)


class StoredTraffic:
    """`sources.Traffic` over the log."""

    def __init__(self, engine: Engine) -> None:
        self._pages = LogPages(engine)

    @_asked
    def page(self, asked: Asked, after: Place | None = None, count: int = 25) -> RowsPage:
        """See `sources.Traffic`."""
        return self._pages.page(asked, after, count)


class StoredExperiments:
    """`sources.Experiments` over the database; gateways follow what is done within a second."""

    def __init__(self, engine: Engine, file: GatewayFile) -> None:
        self._engine, self._file = engine, file

    @_asked
    def now(self) -> Mapping[str, ExperimentShown]:
        """See `sources.Experiments`."""
        states = read_states(self._engine)
        return {
            task: self._shown(task, state, read_points(self._engine, task, state.since, 1))
            for task in self._file.tasks
            for state in [states.get(task) or ExperimentState(task=task)]
        }

    @_asked
    def whole(self, task: str) -> ExperimentShown:
        """See `sources.Experiments`."""
        state = read_states(self._engine).get(task) or ExperimentState(task=task)
        points = read_points(self._engine, task, None, MOST_POINTS)
        own = [one for one in points if one.get("since") == state.since]
        decisions = [DecisionShown.model_validate(o) for o in read_decisions(self._engine, task)]
        return self._shown(task, state, own[-1:]).model_copy(
            update={
                "course": tuple(NumbersShown.model_validate(one) for one in points),
                "decisions": tuple(decisions),
            }
        )

    @_asked
    def act(self, task: str, action: str, *, reason: str, by: str, version: int) -> None:
        """See `sources.Experiments`."""
        states = StoredStates(self._engine)
        state = states.get(task)
        conflict = ConflictError("version", f"{task} has been changed meanwhile", value=version)
        if state.version != version:
            raise conflict
        name = about(state)
        if action == "approve" and name is not None:
            missing = StoredPresence(self._engine).missing(task, name, time.time())
            if missing:
                raise UserError(f"tasks.{task}", f"not yet: {'; '.join(missing)}")
        plan = self._file.tasks[task].experiment.stages
        try:
            new, decision = changed(state, plan, action, reason, time.time())
        except ApiError as error:
            raise UserError(f"tasks.{task}", str(error.message)) from None
        if not states.swap(version, new, decision.model_copy(update={"by": by})):
            raise conflict

    def _shown(
        self, task: str, state: ExperimentState, points: Sequence[Mapping[str, object]]
    ) -> ExperimentShown:
        section = self._file.tasks[task]
        newest = points[-1] if points else None
        plain = state.model_dump(mode="json")
        plain["candidate"] = about(state)
        if state.serving is not None:
            plain["student"] = state.serving.name
        return ExperimentShown.model_validate(
            {
                **plain,
                "task": task,
                "has_student": section.student is not None,
                "margin": section.experiment.margin,
                "margin_kind": section.experiment.margin_kind,
                "plan": [one.model_dump() for one in section.experiment.stages],
                "words": NO_LOOK if newest is None else newest["words"],
                "numbers": newest,
            }
        )


class RegisteredStudents:
    """`sources.Students` over a registry's folder; the gateway follows its moves.

    Args:
        admin: the gateway's admin API; `None`: nobody is told.
    """

    def __init__(self, root: Path, admin: Admin | None) -> None:
        self._registry, self._admin = Registry(root), admin

    def entries(self, task: str | None = None) -> Sequence[students.Entry]:
        """See `sources.Students`."""
        return self._registry.entries(task)

    def gates(self, task: str) -> Mapping[str, str]:
        """See `sources.Students`."""
        return {one.id: gate_words(self._registry, one) for one in self._registry.entries(task)}

    def history(self, task: str) -> Sequence[students.Move]:
        """See `sources.Students`."""
        return self._registry.history(task)

    def version(self, task: str) -> int:
        """See `sources.Students`."""
        return self._registry.version(task)

    @property
    def follows(self) -> bool:
        """See `sources.Students`."""
        return self._admin is not None

    def promote(self, ref: str, *, reason: str, by: str, version: int) -> str | None:
        """See `sources.Students`."""
        try:
            entry = self._registry.promote(ref, reason=reason, by=by, version=version)
        except students.ConflictError as error:
            raise ConflictError(error.field, error.problem) from None
        return self._followed(entry, reason)

    def roll_back(self, task: str, *, reason: str, by: str, version: int) -> str | None:
        """See `sources.Students`."""
        try:
            entry = self._registry.roll_back(task, reason=reason, by=by, version=version)
        except students.ConflictError as error:
            raise ConflictError(error.field, error.problem) from None
        return self._followed(entry, reason)

    def _followed(self, entry: students.Entry, reason: str) -> str | None:
        if self._admin is None:
            return None
        found = follow(self._admin, self._registry, entry, reason)
        return None if found.done else found.said


class OpenDashboard:
    """The application, and the database that it reads; `close` lets that go."""

    def __init__(self, engine: Engine, app: Dashboard) -> None:
        self._engine, self._app = engine, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await self._app(scope, receive, send)

    def stop(self) -> None:
        """End the open streams; on the event loop."""
        self._app.stop()

    def close(self) -> None:
        """Let the database go."""
        self._engine.dispose()


def beside_gateway(file: GatewayFile, key: str) -> OpenDashboard | None:
    """The dashboard on a gateway's admin port; `None`: the gateway keeps nothing to show, or
    `admin.dashboard` is off.

    Raises:
        UserError: admin.loop cannot be used.
    """
    if file.log.url is None or file.admin is None or not file.admin.dashboard:
        return None
    loop = None if file.admin.loop is None else load_loop(file.admin.loop)
    return opened(file, loop, key)


def of_loop(path: Path, host: str) -> tuple[OpenDashboard, bool]:
    """The dashboard of a loop.yaml, by itself; and whether it has a key.

    Args:
        host: that it will be reached by.

    Raises:
        UserError: a file cannot be used; a key that no header may hold; no key, or a short
            one, and the host is not loopback.
        StoreError: the database cannot be reached.
    """
    loop = load_loop(path)
    file = load_gateway(Path(loop.gateway))
    if file.log.url is None:
        raise UserError(
            "log.url",
            "is not set, so there is nothing to show",
            action=f"name a database in {loop.gateway}",
        )
    key = os.environ.get(KEY_VARIABLE, "").strip() or None
    if host not in LOOPBACK and (key is None or len(key) < SHORTEST_ADMIN_KEY):
        raise UserError(
            KEY_VARIABLE,
            f"must be set, of {SHORTEST_ADMIN_KEY} characters or more: --host is not loopback",
            action="make one with: openssl rand -hex 32",
        )
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UserError(
            KEY_VARIABLE,
            "holds what no key may hold",
            action="make one with: openssl rand -hex 32",
        )
    return opened(file, loop, key), key is not None


def _admin(file: GatewayFile) -> GatewayAdmin | None:
    """The gateway's admin API, where it has one and its key is known here."""
    section = file.admin
    key = "" if section is None else os.environ.get(section.key_env, "").strip()
    if section is None or not key or not section.port:
        return None
    return GatewayAdmin(address_of(section.host, section.port), key)


def opened(file: GatewayFile, loop: LoopFile | None, key: str | None) -> OpenDashboard:
    """The dashboard over a gateway's database (`log.url`), and a loop.yaml where there is one."""
    assert file.log.url is not None
    engine = open_database(file.log.url)
    tasks = tuple(file.tasks)
    folder = None if loop is None else Path(loop.folder)
    runs = None
    if loop is not None and folder is not None:
        places = {n: Path(one.run) for n, one in loop.tasks.items() if one.run is not None}
        runs = RunFiles(places, folder, tasks)
    registry = None if loop is None else Path(loop.registry)
    sources = Sources(
        tasks=tasks,
        usage=StoredUsage(engine),
        traffic=StoredTraffic(engine),
        experiments=StoredExperiments(engine, file),
        watch=None if folder is None else WatchFiles(folder),
        runs=runs,
        frontiers=runs,
        online=None if folder is None else OnlineFiles(folder),
        students=None if registry is None else RegisteredStudents(registry, _admin(file)),
    )
    signed_out = StoredSignedOut(engine)
    return OpenDashboard(engine, Dashboard(sources, key, signed_out=signed_out))
