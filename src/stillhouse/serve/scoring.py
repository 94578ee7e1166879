"""Scores of pairs as they are answered, by a task's scorer or a judge, before anything is redacted.

Stands before the log: requests pass through it. A teacher's answer is remembered until its shadow
answer comes; then both are scored outside the request's way, and only the scores are stored. What
is remembered is bounded, and what waits is lost with the process. Knows no statistics.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from stillhouse.core.gateway_log import GatewayCall
from stillhouse.core.optional import require
from stillhouse.core.records import Message
from stillhouse.core.scorers import Scorer, scorers_for
from stillhouse.serve.answer_text import answer_text, asked
from stillhouse.serve.evidence_sections import EvidenceSection
from stillhouse.serve.gateway_sections import TaskSection
from stillhouse.serve.pairs import Answered, Compares, Preferred
from stillhouse.serve.policy import GOLD_SHARE, Blocked, JudgeTrust
from stillhouse.serve.records import Outcome, OutcomeKind, Served
from stillhouse.serve.seams import Log
from stillhouse.serve.upstream import Upstream

REMEMBERED: Final = 10_000  # teachers' answers
REMEMBERED_CHARS: Final = 64_000_000
WAITING: Final = 10_000  # pairs
TURN: Final = 64  # pairs of one turn
PAUSE_S: Final = 0.5
TRY_S: Final = 30.0  # until a judge that did not answer is tested again
_UNTRIED: Final = Blocked("the judge is being tested on its gold set")


class Scoring:
    """`seams.Log` that scores on the way.

    Args:
        log: where requests and outcomes go.
        tasks: of gateway.yaml.
    """

    def __init__(self, log: Log, tasks: Mapping[str, TaskSection]) -> None:
        self._log = log
        self._evidence: dict[str, EvidenceSection] = {}
        self._scorers: dict[str, Scorer] = {}
        self._alpha: dict[str, float] = {}
        for name, task in tasks.items():
            found = task.experiment.evidence
            if found is None or found.task is None or not scores_pairs(task):
                continue
            self._evidence[name] = found
            self._alpha[name] = task.experiment.alpha / found.attempts * GOLD_SHARE
            if found.source == "scorer":
                self._scorers[name] = scorers_for(found.task)[0]
        self._teachers: OrderedDict[str, tuple[tuple[Message, ...], str]] = OrderedDict()
        self._chars = 0
        self._waiting: deque[Answered] = deque(maxlen=WAITING)
        self._unsaved: list[Outcome] = []
        self._judges: dict[str, Compares] = {}
        self._trust: dict[str, JudgeTrust | Blocked] = {
            name: _UNTRIED for name, one in self._evidence.items() if one.judge is not None
        }
        self.lost = 0

    def offer(self, call: GatewayCall, served: Served, weight: int | None = None) -> bool:
        """See `Log`."""
        taken = self._log.offer(call, served, weight)
        if taken and served.task in self._evidence:
            self._notice(call, served)
        return taken

    def outcome(self, outcome: Outcome) -> None:
        """See `Log`."""
        self._log.outcome(outcome)

    def scores(self, outcomes: Sequence[Outcome]) -> int:
        """See `Log`."""
        return self._log.scores(outcomes)

    def owner(self, request: str) -> str | None:
        """See `Log`."""
        return self._log.owner(request)

    def trust(self, task: str) -> JudgeTrust | Blocked | None:
        """What a task's judge is worth; `None`: it has none."""
        return self._trust.get(task)

    async def run(self, upstreams: Mapping[str, Upstream]) -> None:
        """Score what comes, until cancelled."""
        for name, evidence in self._evidence.items():
            if evidence.judge is not None:
                # Not before: what it stands on takes long to import.
                judging = require("stillhouse.serve.judging", "serve", "a judge")
                upstream = upstreams[evidence.judge.upstream]
                self._judges[name] = judging.PairJudge(
                    evidence.judge, evidence.task, upstream, self._alpha[name]
                )
        clock = asyncio.get_running_loop().time
        try_at = clock()
        while True:
            if clock() >= try_at:
                await self._try()
                try_at = clock() + TRY_S
            await self.flush()
            await asyncio.sleep(PAUSE_S)

    async def _try(self) -> None:
        """Test the judges that are not tested yet."""
        for name, judge in self._judges.items():
            if self._trust[name] is _UNTRIED:
                self._trust[name] = await judge.tested() or _UNTRIED

    async def flush(self) -> None:
        """Score all that waits."""
        while self._waiting:
            count = min(TURN, len(self._waiting))
            jobs = [self._waiting.popleft() for _ in range(count)]
            await asyncio.to_thread(self._score, [j for j in jobs if j.task in self._scorers])
            for name, judge in self._judges.items():
                await self._judge(name, judge, [job for job in jobs if job.task == name])

    def _notice(self, call: GatewayCall, served: Served) -> None:
        if served.shadow_of is not None:
            known = self._teachers.pop(served.shadow_of, None)
            if known is None:
                return
            messages, teacher = known
            self._chars -= len(teacher)
            self.lost += len(self._waiting) == WAITING
            student = None if served.error else answer_text(call.response)
            if not self._wanted(served):
                return
            self._waiting.append(
                Answered(served.task, served.shadow_of, served.id, messages, teacher, student)
            )
        elif served.variant == "teacher" and not served.error and not served.fell_back:
            text = answer_text(call.response)
            if text is None or served.arm == "treatment":
                return
            judged = served.task not in self._scorers
            self._teachers[served.id] = (asked(call.request) if judged else (), text)
            self._chars += len(text)
            while len(self._teachers) > REMEMBERED or self._chars > REMEMBERED_CHARS:
                _, (_, old) = self._teachers.popitem(last=False)
                self._chars -= len(old)

    def _wanted(self, served: Served) -> bool:
        """Whether the judge is asked: by unit, so that a user is judged whole or not at all."""
        judge = self._evidence[served.task].judge
        if judge is None or judge.share >= 1:
            return True
        digest = blake2b(served.unit.encode(), digest_size=8, person=b"judged").digest()
        return int.from_bytes(digest, "big") < judge.share * 2**64

    def _score(self, jobs: Sequence[Answered]) -> None:
        scores: list[tuple[Answered, Preferred | None]] = []
        for job in jobs:
            score = self._scorers[job.task].score
            # An answer that the task cannot read does not agree with itself either.
            teacher = score(job.teacher, job.teacher)
            student = 0.0 if job.student is None else score(job.student, job.teacher)
            scores.append((job, Preferred(student, teacher)))
        self._keep(scores)

    async def _judge(self, name: str, judge: Compares, jobs: Sequence[Answered]) -> None:
        if not isinstance(self._trust[name], JudgeTrust):
            return
        asked_about = [job for job in jobs if job.student is not None and job.messages]
        found = await judge.compare(asked_about) if asked_about else []
        scores = list(zip(asked_about, found, strict=True))
        scores += [(job, Preferred(0.0, 1.0)) for job in jobs if job.student is None]
        await asyncio.to_thread(self._keep, scores)

    def _keep(self, scores: Sequence[tuple[Answered, Preferred | None]]) -> None:
        now, outcomes = time.time(), []
        for job, score in scores:
            if score is None:  # the judge was not read
                continue
            kind: OutcomeKind = "judge" if job.task in self._judges else "scorer"
            for request, value in ((job.request, score.teacher), (job.shadow, score.student)):
                outcomes.append(Outcome(request=request, kind=kind, score=value, at=now))
        self.lost += sum(score is None for _, score in scores)
        self._unsaved += outcomes
        try:
            stored = self._log.scores(self._unsaved) if self._unsaved else 0
        except SQLAlchemyError:  # the database is away: with the next ones, as long as they fit
            self.lost += max(0, len(self._unsaved) - 2 * WAITING) // 2
            del self._unsaved[: -2 * WAITING]
            return
        self.lost += (len(self._unsaved) - stored) // 2  # dropped by the log, or deleted
        self._unsaved.clear()


def scores_pairs(task: TaskSection) -> bool:
    """Whether a task's pairs are scored as they are answered."""
    found = task.experiment.evidence
    return found is not None and found.source != "feedback" and found.reference == "teacher"
