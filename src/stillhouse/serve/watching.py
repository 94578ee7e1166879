"""How the parts that watch experiments are put together, over a database or in memory.

Knows gateway.yaml; decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy.engine import Engine

from stillhouse.serve.controller import Controller, Sources
from stillhouse.serve.corrected import CorrectedScoring
from stillhouse.serve.courses import Lease, MemoryCourses, StoredCourses
from stillhouse.serve.feeds import MemoryFeed, StoredFeed
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.gateway_sections import StudentSection, TaskSection
from stillhouse.serve.in_memory import MemoryLog, MemoryStates
from stillhouse.serve.policy import Blocked, JudgeTrust
from stillhouse.serve.presence import Presence
from stillhouse.serve.scoring import Scoring, scores_pairs
from stillhouse.serve.seams import Log
from stillhouse.serve.states import StoredStates
from stillhouse.serve.stored_records import Unreadable
from stillhouse.serve.traffic_log import TrafficLog


class Watched(NamedTuple):
    """A log to write to, what scores on the way to it, and what moves experiments."""

    log: Log
    scores: Scoring | None
    controller: Controller


def feeds_of(file: GatewayFile) -> dict[str, MemoryFeed]:
    """A place for the rows of each task with a student."""
    return {name: MemoryFeed() for name, task in file.tasks.items() if task.student is not None}


def watch_memory(
    file: GatewayFile,
    states: MemoryStates,
    log: MemoryLog,
    feeds: Mapping[str, MemoryFeed],
    presence: Presence | None = None,
) -> Watched:
    """Without a database."""
    scores = _scores(file, log)
    sources = Sources(
        states=states,
        courses=MemoryCourses(),
        feed=lambda task, since: feeds[task],
        audit=lambda task: [one for one in states.decisions if one.task == task],
        trust=_no_judge if scores is None else scores.trust,
        missing=_nobody if presence is None else presence.missing,
    )
    return Watched(log if scores is None else scores, scores, Controller(file.tasks, sources))


def watch_stored(
    file: GatewayFile,
    engine: Engine,
    states: StoredStates,
    log: TrafficLog,
    lease: Lease,
    *,
    presence: Presence | None = None,
    unreadable: Unreadable | None = None,
) -> Watched:
    """Over a database that other gateways may share."""
    scores = _scores(file, log)
    sources = Sources(
        states=states,
        courses=StoredCourses(engine),
        feed=lambda task, since: StoredFeed(engine, task, since, unreadable),
        audit=lambda task: [one.decision for one in states.audit(task)],
        leads=lease.held,
        missing=_nobody if presence is None else presence.missing,
        trust=_no_judge if scores is None else scores.trust,
        corrected={
            name: CorrectedScoring(engine, log, evidence.task)
            for name, task in file.tasks.items()
            if (evidence := task.experiment.evidence) is not None
            and evidence.reference == "corrected"
            and evidence.task is not None
        },
    )
    return Watched(log if scores is None else scores, scores, Controller(file.tasks, sources))


def student_of(file: GatewayFile, task: TaskSection) -> str | None:
    """Which student a task has: what evidence is of. `None`: none, or one of the gateway's own,
    which says who it is once it has started."""
    section = None if task.student is None else file.upstreams[task.student]
    if section is None or isinstance(section, StudentSection):
        return None
    return f"{task.student}:{section.model}"


def _scores(file: GatewayFile, log: Log) -> Scoring | None:
    wanted = {name: task for name, task in file.tasks.items() if scores_pairs(task)}
    return Scoring(log, wanted) if wanted else None


def _nobody(task: str, name: str, now: float) -> list[str]:
    return []


def _no_judge(task: str) -> JudgeTrust | Blocked | None:
    return None
