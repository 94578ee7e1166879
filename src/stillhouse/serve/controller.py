"""Moves experiments: reads what is new, asks the policy, swaps states, keeps the course.

Blocks: runs in a thread, every few seconds, on one gateway at a time where several share a
database. Two that run at once still never promote twice: a state is swapped only where its version
is the one that was decided on. Knows no statistics: those are `evidence` and `policy`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from stillhouse.core.errors import StillhouseError
from stillhouse.serve.candidates import about
from stillhouse.serve.courses import CoursePoint, Courses
from stillhouse.serve.evidence import StageEvidence
from stillhouse.serve.feeds import Feed
from stillhouse.serve.gateway_sections import TaskSection
from stillhouse.serve.migration import with_student
from stillhouse.serve.numbers import StageNumbers
from stillhouse.serve.policy import (
    Blocked,
    JudgeTrust,
    carried_out,
    decide,
    rules_of,
    why_it_holds,
)
from stillhouse.serve.records import Decision, ExperimentState, Scored
from stillhouse.serve.seams import States

EVERY_S: Final = 5.0
PAGES: Final = 20  # of rows in one turn; the next goes on
GROWTH: Final = 1.05  # of values, until the next point of the course
POINT_S: Final = 3600.0
_LOG: Final = logging.getLogger("stillhouse.serve")

Later = Callable[[Sequence[Scored]], None]


class Sources(NamedTuple):
    """Where the controller reads and writes.

    `feed` of a task from a time on. `leads`: whether this gateway is the one that works. `trust` of
    a task's judge; `None`: there is no judge. `corrected` scores answers that clients corrected.
    `missing`: which gateways have not opened a student of a task.
    """

    states: States
    courses: Courses
    feed: Callable[[str, float], Feed]
    audit: Callable[[str], Sequence[Decision]]
    leads: Callable[[float], bool] = lambda now: True
    trust: Callable[[str], JudgeTrust | Blocked | None] = lambda task: None
    corrected: Mapping[str, Later] = {}
    missing: Callable[[str, str, float], Sequence[str]] = lambda task, name, now: ()


_Key = tuple[int, float, int, JudgeTrust | Blocked | None]


class _Stage:
    """One task's stage as far as it is read."""

    def __init__(self, key: _Key, evidence: StageEvidence, feed: Feed) -> None:
        self.key = key
        self.evidence = evidence
        self.feed = feed
        self.last: CoursePoint | None = None
        self.behind: list[Scored] = []


class Controller:
    """All experiments of one gateway.

    Args:
        tasks: those of gateway.yaml, by name.
    """

    def __init__(self, tasks: Mapping[str, TaskSection], sources: Sources) -> None:
        self._tasks = {name: task for name, task in tasks.items() if task.student is not None}
        self._from = sources
        self._stages: dict[str, _Stage] = {}
        self._last = -math.inf

    def tick(self, now: float) -> list[Decision]:
        """Look at everything, if it is time; what was decided.

        Args:
            now: Unix seconds.
        """
        if now - self._last < EVERY_S and now >= self._last:
            return []
        self._last = now
        if not self._tasks or not self._from.leads(now):
            return []
        found = []
        for name, task in self._tasks.items():
            try:
                decision = self._look(name, task, now)
            except (SQLAlchemyError, StillhouseError):
                raise
            except Exception:
                # One task's rows that cannot be read must not keep states from being refreshed.
                _LOG.exception("%s: its evidence cannot be looked at", name)
                self._stages.pop(name, None)
                continue
            if decision is not None:
                found.append(decision)
        return found

    def view(self, name: str) -> dict[str, Any]:
        """What an admin is shown of an experiment, JSON values: state, plan, numbers in words, the
        course and all decisions."""
        state = self._from.states.get(name)
        course = self._from.courses.read(name)
        newest = next((one for one in reversed(course) if one.since == state.since), None)
        plan = self._tasks[name].experiment if name in self._tasks else None
        return {
            "task": name,
            "state": state.model_dump(mode="json"),
            "student": _running(self._tasks.get(name), state),
            "candidate": about(state),
            "plan": None if plan is None else plan.model_dump(mode="json", exclude={"salt"}),
            "words": "no answer of this stage was looked at yet"
            if newest is None
            else newest.words,
            "numbers": None if newest is None else newest.numbers.model_dump(mode="json"),
            "course": [
                {
                    "at": one.at,
                    "stage": one.stage,
                    "requests": one.numbers.requests,
                    "values": one.numbers.values,
                    "slack": one.numbers.slack,
                    "low": one.numbers.low,
                    "high": one.numbers.high,
                    "equal": one.numbers.equal,
                    "student": one.numbers.student,
                    "teacher": one.numbers.teacher,
                    "bare": one.numbers.bare,
                }
                for one in course
            ],
            "decisions": [one.model_dump(mode="json") for one in self._from.audit(name)],
        }

    def students(self, found: Mapping[str, str], now: float) -> None:
        """See `Experiments`."""
        for name, student in found.items():
            state = self._from.states.get(name)
            running = state if state.candidate is None else state.candidate.before
            if name not in self._tasks or student == running.student or running.serving is not None:
                continue
            new, decision = with_student(state, self._tasks[name].experiment.stages, student, now)
            self._from.states.swap(state.version, new, decision)

    def _look(self, name: str, task: TaskSection, now: float) -> Decision | None:
        state = self._from.states.get(name)
        if state.killed or state.kind == "off":
            self._stages.pop(name, None)
            return None
        trust = self._from.trust(name)
        key = (state.stage, state.since, state.counts_from, trust)
        stage = self._stages.get(name)
        if stage is None or stage.key != key:
            rules = rules_of(task, state, trust if isinstance(trust, JudgeTrust) else None)
            feed = self._from.feed(name, state.since)
            stage = self._stages[name] = _Stage(key, StageEvidence(rules, state), feed)
        read = self._read(name, stage)
        stage.evidence.close(now)
        numbers = stage.evidence.numbers()
        proposal = decide(state, task.experiment, numbers, now) if read else None
        if proposal is not None and proposal.action != "roll_back" and isinstance(trust, Blocked):
            proposal = None
        missing: Sequence[str] = ()
        if proposal is not None and proposal.action != "roll_back" and state.candidate is not None:
            missing = self._from.missing(name, state.candidate.folder.name, now)
            proposal = None if missing else proposal
        words = "; ".join([*missing, why_it_holds(state, task.experiment, numbers, now)])
        if isinstance(trust, Blocked):
            words = f"{trust.why}; {words}"
        point = CoursePoint(
            at=now,
            stage=state.stage,
            since=state.since,
            words=words if proposal is None else proposal.reason,
            numbers=numbers,
        )
        self._keep(name, stage, point, forced=proposal is not None)
        if proposal is None:
            return None
        new, decision = carried_out(state, task.experiment, proposal, numbers, now)
        if not self._from.states.swap(state.version, new, decision):
            return None
        _LOG.warning("%s: %s: %s", name, decision.action, decision.reason)
        return decision

    def _read(self, name: str, stage: _Stage) -> bool:
        """Take what is new; False: there is more."""
        for _ in range(PAGES):
            batch = stage.feed.read()
            stage.evidence.serve(batch.served)
            stage.evidence.score(batch.scored)
            stage.behind += [one for one in batch.scored if stage.evidence.counts(one.served)]
            if not batch.more:
                # Not before: what corrects an answer may be read sooner than that it was scored.
                if name in self._from.corrected:
                    self._from.corrected[name](stage.behind)
                stage.behind.clear()
                return True
        return False

    def _keep(self, name: str, stage: _Stage, point: CoursePoint, *, forced: bool) -> None:
        last = stage.last
        if not forced and last is not None:
            grown = point.numbers.values >= last.numbers.values * GROWTH + 1
            changed = point.numbers != last.numbers and point.at - last.at >= POINT_S
            if not grown and not changed and _verdict(point.numbers) == _verdict(last.numbers):
                return
        stage.last = point
        self._from.courses.add(name, point)


def _running(task: TaskSection | None, state: ExperimentState) -> str | None:
    """Name of the running student, as the log has it."""
    if state.serving is not None:
        return state.serving.name
    return None if task is None else task.student


def _verdict(numbers: StageNumbers) -> tuple[bool, bool, int]:
    return numbers.better, numbers.worse, len(numbers.tripped)
