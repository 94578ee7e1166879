"""Which students a gateway has open now, as the states of its tasks say: running ones and new ones.

What a state names is opened beside what runs, and asked from the moment it is open; what no state
names any more is closed once nobody uses it. A gateway that cannot open a student goes on with what
it has and says why. Runs on the event loop. Knows no statistics and no plan.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.ask import Ask
from stillhouse.serve.candidates import without_candidate
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.inheriting import inherited_gate, problem_of
from stillhouse.serve.records import ExperimentState, StudentFolder
from stillhouse.serve.seams import Parts
from stillhouse.serve.seats import Inherited, Seat, allowed, opened, section_of
from stillhouse.serve.student_upstream import StudentUpstream
from stillhouse.serve.upstream import Upstream

AGAIN_S: Final = 30.0  # until what could not be opened is tried again
_ALL: Final = "all that it says is shown"
_REMEDY: Final = "Put a gate.json of stillhouse calibrate that keeps it into its folder."
_LOG: Final = logging.getLogger("stillhouse.serve")
_Key = tuple[str, str]  # task and name


class _Problem(NamedTuple):
    folder: StudentFolder
    why: str
    again_at: float


class Roster:
    """All students of one gateway.

    Args:
        upstreams: of gateway.yaml; its students are not started yet.
    """

    def __init__(self, file: GatewayFile, parts: Parts, upstreams: Mapping[str, Upstream]) -> None:
        self._file, self._parts, self._upstreams = file, parts, upstreams
        self._states = parts.states
        self._most = file.limits.answer_bytes
        self._tasks = {name: one for name, one in file.tasks.items() if one.student is not None}
        self._always = {task.teacher for task in file.tasks.values()}
        for task in self._tasks.values():
            evidence = task.experiment.evidence
            if evidence is not None and evidence.judge is not None:
                self._always.add(evidence.judge.upstream)
        self._own: dict[str, Seat] = {}  # gateway.yaml's
        self._running: dict[str, Seat] = {}
        self._open: dict[_Key, Seat] = {}  # of folders
        self._held: set[_Key] = set()
        self._opening: dict[_Key, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._problems: dict[_Key, _Problem] = {}
        self._started: set[str] = set()  # students of gateway.yaml
        self._locks = {name: asyncio.Lock() for name in file.tasks}

    async def start(self) -> dict[str, str]:
        """Open what runs. The students of gateway.yaml that do, by task, as evidence knows them.

        Raises:
            UserError: one cannot be opened.
        """
        for name, task in self._tasks.items():
            assert task.student is not None
            self._own[name] = Seat(self._upstreams[task.student], self._parts.gate)
            self._running[name] = self._own[name]
        serving = {name: self._states.get(name).serving for name in self._tasks}
        needed = {task.student for name, task in self._tasks.items() if serving[name] is None}
        needed |= self._always
        own = {
            name: one
            for name, one in self._upstreams.items()
            if isinstance(one, StudentUpstream) and name in needed
        }
        self._started = set(own)
        found = await asyncio.gather(
            *(one.start() for one in own.values()),
            *(self._resume(name, one) for name, one in serving.items() if one is not None),
            return_exceptions=True,
        )
        for problem in found:
            if problem is not None:
                raise problem
        return {
            name: f"{task.student}:{own[task.student].pool.fingerprint}"
            for name, task in self._tasks.items()
            if serving[name] is None and task.student in own
        }

    def teacher(self, task: str) -> Upstream:
        """Who answers as the teacher."""
        return self._upstreams[self._file.tasks[task].teacher]

    def seen(self, state: ExperimentState) -> ExperimentState:
        """The state as this gateway goes by it: without a candidate that is not open here."""
        climbing = state.candidate
        if climbing is None or (state.task, climbing.folder.name) in self._open:
            return state
        return without_candidate(state)

    @contextmanager
    def seated(self, ask: Ask, *, beside: bool = False) -> Iterator[Seat | None]:
        """The student of a request, which is not closed meanwhile; `None`: the task has none, or
        the new one that was to be asked beside is gone.

        Args:
            beside: it is asked unseen.
        """
        place = ask.assignment
        seat: Seat | None = None
        if place.candidate is not None and (beside or place.arm == "treatment"):
            seat = self._open.get((ask.name, place.candidate))
            if seat is None and beside:
                yield None
                return
        if seat is None and place.student is not None:
            seat = self._open.get((ask.name, place.student))
        if seat is None:
            seat = self._running.get(ask.name)
        if seat is None:
            yield None
            return
        ask.seat = seat
        with seat.used():
            yield seat

    def threshold(self, ask: Ask) -> float | None:
        """Below which the teacher answers instead of a request's student; `None`: nowhere."""
        if ask.seat is not None and ask.seat.folder is not None:
            return ask.seat.folder.threshold
        state = self._states.get(ask.name)
        return (state if state.candidate is None else state.candidate.before).threshold

    def label(self, ask: Ask) -> str:
        """A request's student in metrics: whatever folder it is of, one of few names."""
        own = str(ask.task.student)
        new = ask.assignment.candidate is not None and ask.assignment.arm == "treatment"
        return f"{own}:candidate" if new else own

    def spare(self, task: str) -> bool:
        """Whether both of a task's models have room for what can wait."""
        seat = self._running.get(task)
        return self.teacher(task).slots.spare and (seat is None or seat.upstream.slots.spare)

    def breakers(self) -> dict[str, str]:
        """State of each upstream's breaker; a student that runs in another's stead, under the
        other's name."""
        found = {name: one.breaker.state for name, one in self._upstreams.items()}
        for name, task in self._tasks.items():
            found[str(task.student)] = self._running[name].upstream.breaker.state
        for name, task in self._tasks.items():
            climbing = self._states.get(name).candidate
            seat = None if climbing is None else self._open.get((name, climbing.folder.name))
            if climbing is not None:
                down = "open" if seat is None else seat.upstream.breaker.state
                found[f"{task.student}:candidate"] = down
        return found

    @contextmanager
    def offering(self, task: str, seat: Seat) -> Iterator[None]:
        """A seat that no state names yet is not closed meanwhile."""
        assert seat.folder is not None
        key = (task, seat.folder.name)
        self._open[key] = seat
        self._held.add(key)
        try:
            yield
        finally:
            self._held.discard(key)
            self.follow()

    def lock(self, task: str) -> asyncio.Lock:
        """One student of a task is offered at a time."""
        return self._locks[task]

    async def open(
        self, task: str, path: str, name: str, *, refined: bool = False, climbs: bool = False
    ) -> Seat:
        """Open a student of a folder; no state names it yet.

        Args:
            refined: it is the running one in a newer version, whose gate goes on where the folder
                has none. Of another one no gate does that was calibrated for whom it replaces.
            climbs: it is a candidate.

        Raises:
            ApiError: 422: it may not be opened, or cannot be; or it would climb and answer nothing.
        """
        roots = () if self._file.students is None else self._file.students.roots
        if not roots:
            text = "gateway.yaml has no students.roots: no student may be brought here."
            raise ApiError(422, text, code="no_roots")
        folder = await asyncio.to_thread(allowed, Path(path), roots)
        if not Path(path).is_absolute() or folder is None:
            text = "path must be a folder below one of gateway.yaml's students.roots, in full."
            raise ApiError(422, text, code="outside_roots", param="path")
        if name in self._upstreams:
            raise ApiError(409, f"{name} is an upstream's name.", code="conflict", param="name")
        if (task, name) in self._open:
            raise ApiError(409, f"{name} is open already.", code="conflict", param="name")
        section, running = self._tasks[task], self._running[task]
        try:
            gate = inherited_gate(
                section, self._parts.gate, self._states.get(task), running.folder, refined=refined
            )
            seat = await self._opened(task, folder, name, gate)
        except StillhouseError as error:
            text = f"The student cannot be opened: {error}"
            raise ApiError(422, text, code="cannot_open") from None
        assert seat.folder is not None
        problem = problem_of(section, seat.folder)
        if problem is not None and climbs:
            await seat.close()
            raise ApiError(422, f"{name} cannot climb: {problem}. {_REMEDY}", code="no_gate")
        if problem is not None:
            _LOG.warning("%s: %s: %s: the teacher answers for it", task, name, problem)
        elif seat.gate is None and running.gate is not None and running.gate.plan(task) is not None:
            _LOG.warning("%s: %s has no gate.json, and none is fitted to it: %s", task, name, _ALL)
        return seat

    def follow(self) -> None:
        """Go after the states: open what they name, switch to it, close what none names."""
        for name in self._tasks:
            state = self._states.get(name)
            climbing = None if state.candidate is None else state.candidate.folder
            wanted = [one for one in (state.serving, climbing) if one is not None]
            for folder in wanted:
                self._want(name, folder)
            own = self._own[name]
            if state.serving is not None:
                seat = self._open.get((name, state.serving.name))
                if seat is not None and seat.folder == state.serving:
                    self._running[name] = seat
            elif not isinstance(own.upstream, StudentUpstream) or (
                own.upstream.name in self._started
            ):
                self._running[name] = own
            names = {one.name for one in wanted}
            for key in [key for key in self._problems if key[0] == name and key[1] not in names]:
                del self._problems[key]
            for key, seat in list(self._open.items()):
                if key[0] != name or key in self._held or seat is self._running[name]:
                    continue
                if seat.folder not in wanted:
                    del self._open[key]
                    self._retire(seat)
        self._retire_own()

    @property
    def brought(self) -> bool:
        """Whether any state names a student that came by the admin API."""
        states = [self._states.get(name) for name in self._tasks]
        return any(one.serving is not None or one.candidate is not None for one in states)

    def report(self) -> dict[str, Any]:
        """What is open here, by task, as other gateways may read it."""
        found: dict[str, Any] = {}
        for name in self._tasks:
            folder = self._running[name].folder
            found[name] = {
                "running": None if folder is None else folder.name,
                "open": sorted(key[1] for key in self._open if key[0] == name),
                "problems": {
                    key[1]: one.why for key, one in self._problems.items() if key[0] == name
                },
            }
        return found

    async def close(self) -> None:
        """End all processes. What they have is lost: wait for it before."""
        for one in self._opening.values():
            one.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        own = [one for one in self._upstreams.values() if isinstance(one, StudentUpstream)]
        await asyncio.gather(
            *(one.close() for one in own), *(seat.close() for seat in self._open.values())
        )

    async def _resume(self, task: str, folder: StudentFolder) -> None:
        """Open what ran before this gateway was started."""
        try:
            seat = await self._again(task, folder)
        except StillhouseError as error:
            raise UserError(
                f"tasks.{task}",
                f"its student {folder.name}, which was promoted, cannot be opened: {error}",
                action="put its folder back, or take its root out of students.roots to begin with "
                "gateway.yaml's student",
            ) from None
        self._open[task, folder.name] = seat
        self._running[task] = seat

    def _want(self, task: str, folder: StudentFolder) -> None:
        key = (task, folder.name)
        seat, problem = self._open.get(key), self._problems.get(key)
        if (seat is not None and seat.folder == folder) or key in self._opening:
            return
        now = asyncio.get_running_loop().time()
        if problem is not None and problem.folder == folder and now < problem.again_at:
            return
        self._opening[key] = asyncio.create_task(self._bring(task, folder))

    async def _bring(self, task: str, folder: StudentFolder) -> None:
        """Open a student that another gateway was given."""
        key = (task, folder.name)
        try:
            seat = await self._again(task, folder)
        except StillhouseError as error:
            again = asyncio.get_running_loop().time() + AGAIN_S
            self._problems[key] = _Problem(folder, str(error), again)
            _LOG.warning("%s: the student %s cannot be opened here: %s", task, folder.name, error)
        else:
            self._problems.pop(key, None)
            before = self._open.get(key)
            self._open[key] = seat
            if before is not None:
                self._retire(before)
        finally:
            del self._opening[key]
        self.follow()

    async def _again(self, task: str, folder: StudentFolder) -> Seat:
        """The same student as another gateway, or this one before, has opened."""
        roots = () if self._file.students is None else self._file.students.roots
        path = Path(folder.path)
        if await asyncio.to_thread(allowed, path, roots) != path:
            raise UserError(folder.path, "is gone, or below none of gateway.yaml's students.roots")
        inherited: Inherited | None = None
        if folder.gate is not None:
            inherited = Inherited(folder.gate, self._parts.gate, folder.threshold)
        seat = await self._opened(task, path, folder.name, inherited, folder.fingerprint)
        if seat.folder != folder:
            await seat.close()
            raise UserError(folder.path, "has another gate.json than the gateway that opened it")
        return seat

    async def _opened(
        self,
        task: str,
        path: Path,
        name: str,
        inherited: Inherited | None,
        known: str | None = None,
    ) -> Seat:
        like = self._file.upstreams[str(self._tasks[task].student)]
        section = await asyncio.to_thread(section_of, like, path, name)
        upstream = StudentUpstream(name, section, self._most)
        upstream.pool.fingerprint = known
        return await opened(task, upstream, path, inherited)

    def _retire(self, seat: Seat) -> None:
        """Close it once nobody uses it."""
        self._end([seat])

    def _end(self, seats: Sequence[Seat]) -> None:
        async def end() -> None:
            for seat in seats:
                await seat.idle(seat.upstream.section.deadlines.total_s)
            await seats[0].close()

        task = asyncio.create_task(end())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _retire_own(self) -> None:
        """Close students of gateway.yaml that run nowhere any more."""
        used = {seat.upstream.name for seat in self._running.values()} | self._always
        for name in self._started - used:
            self._started.discard(name)
            self._end([seat for seat in self._own.values() if seat.upstream.name == name])
