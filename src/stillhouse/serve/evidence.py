"""The evidence of one stage: requests and their scores, as they come, become units and tests.

A unit (user, conversation or request) counts once a stage: with the mean of the scores that its
requests got within a fixed time from its first score, so that whoever asks often proves no more
than anybody else, and what is counted is never taken back. Units are taken in the order of their
first scores. Pure: rows and the time are passed in. Knows no database and no policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from stillhouse.core.anytime_compare import Comparison, Design, Side
from stillhouse.core.anytime_margin import Margin
from stillhouse.serve.gateway_sections import GuardrailsSection
from stillhouse.serve.guardrails import Guardrails, side_of
from stillhouse.serve.numbers import StageNumbers
from stillhouse.serve.records import ExperimentState, OutcomeKind, Scored, Served

HALVES: Final = 100_000  # scores of one answer that wait for the other's
MOST_UNITS: Final = 200_000  # of one test


@dataclass(frozen=True, slots=True)
class Rules:
    """How a stage is judged.

    `design` None: no score can tell anything here (feedback on unseen answers). `renews`: after
    `MOST_UNITS` the test begins again, the k-th time at alpha_worse / (k (k + 1)); else it ends.
    `falls_back`: a student that does not answer is replaced by the teacher.
    """

    margin: Margin
    design: Design | None
    kinds: frozenset[OutcomeKind]
    unit_s: float
    alpha: float
    alpha_worse: float
    teachers_per_student: float
    guardrails: GuardrailsSection
    alpha_guardrails: float
    falls_back: bool = True
    renews: bool = False


@dataclass(slots=True)
class _Open:
    """A unit whose time is not over: its requests' newest scores."""

    first_at: float
    side: Side
    scores: dict[str, tuple[float, float, float | None]] = field(default_factory=dict)


class _Half(NamedTuple):
    teacher: float | None = None
    shadow: Scored | None = None


class StageEvidence:
    """What is known of one stage of one experiment.

    Args:
        state: the experiment's; requests of another stage, or of versions before
            `state.counts_from`, are not counted.
    """

    def __init__(self, rules: Rules, state: ExperimentState) -> None:
        self._rules = rules
        self._state = state
        placed = state.serving if state.candidate is None else state.candidate.folder
        self._student = None if placed is None else placed.name
        self._guardrails = Guardrails(
            rules.guardrails, rules.alpha_guardrails, state.kind, rules.teachers_per_student
        )
        self._requests = 0
        self._halves: dict[str, _Half] = {}
        self._open: dict[str, _Open] = {}
        self._closed: set[str] = set()
        self._round = 0
        self._bare_units, self._bare_sum = 0, 0.0
        self._comparison = self._new_comparison()

    def counts(self, served: Served) -> bool:
        """Whether a request belongs to the stage."""
        state = self._state
        return (
            served.task == state.task
            and served.stage == state.stage
            and served.version >= state.counts_from
            and served.at >= state.since
            and served.arm != "incumbent"
            and (self._student is None or served.variant != "student" or self._own(served))
        )

    def _own(self, served: Served) -> bool:
        """Whether the student's answer is of the student that the stage is of: not of one that runs
        beside it, nor of its version before."""
        return served.upstream == self._student

    def serve(self, rows: Iterable[Served]) -> None:
        """Take requests as they were answered."""
        for served in rows:
            if self.counts(served):
                self._requests += served.shadow_of is None
                self._guardrails.take(served)

    def score(self, rows: Iterable[Scored]) -> None:
        """Take outcomes, oldest first."""
        for row in rows:
            design, served = self._rules.design, row.served
            if design is None or row.outcome.kind not in self._rules.kinds:
                continue
            if not self.counts(served) or served.unit in self._closed:
                continue
            if design == "pairs":
                self._half(row)
            elif (side := side_of(served, self._state.kind)) is not None:
                score = row.outcome.score
                own = score if served.variant == "student" else None
                self._keep(row, served.id, side, (score, score, own))

    def close(self, now: float) -> None:
        """Take the units whose time is over."""
        over = [
            (unit.first_at, name)
            for name, unit in self._open.items()
            if unit.first_at + self._rules.unit_s <= now
        ]
        for _, name in sorted(over):
            if self._comparison.n >= MOST_UNITS and not self._renewed():
                self._open.clear()
                return
            unit = self._open.pop(name)
            self._closed.add(name)
            scores = list(unit.scores.values())
            student = sum(one[0] for one in scores) / len(scores)
            teacher = sum(one[1] for one in scores) / len(scores)
            if self._rules.design == "pairs":
                self._comparison.pair(student, teacher)
            else:
                self._comparison.unit(unit.side, student if unit.side == "student" else teacher)
            bare = [one[2] for one in scores if one[2] is not None]
            if bare and (self._rules.design == "pairs" or unit.side == "student"):
                self._bare_units += 1
                self._bare_sum += sum(bare) / len(bare)

    def numbers(self) -> StageNumbers:
        """All of it."""
        test, needed = self._comparison, self._comparison.needed()
        low, high = test.bounds()
        requests = None
        if needed.values is not None and test.n:
            requests = round(needed.values * self._requests / test.n)
        return StageNumbers(
            design=self._rules.design,
            requests=self._requests,
            students=test.count("student"),
            teachers=test.count("teacher"),
            open_units=len(self._open),
            values=test.n,
            student=test.mean("student"),
            teacher=test.mean("teacher"),
            bare=self._bare_sum / self._bare_units if self._bare_units else None,
            slack=test.slack,
            equal=test.equal,
            low=low,
            high=high,
            better=test.better,
            worse=test.worse,
            p_better=test.p_better,
            p_worse=test.p_worse,
            alpha=self._rules.alpha,
            alpha_worse=self._rules.alpha_worse,
            needed=needed.verdict,
            needed_requests=requests,
            full=test.n >= MOST_UNITS,
            guardrails=self._guardrails.readings(),
        )

    def _half(self, row: Scored) -> None:
        """One score of a pair; with the other there it is kept."""
        served, is_shadow = row.served, row.served.shadow_of is not None
        if not is_shadow and served.variant != "teacher":
            return
        key = served.shadow_of or served.id
        old = self._halves.get(key, _Half())
        new = old._replace(shadow=row) if is_shadow else old._replace(teacher=row.outcome.score)
        self._halves[key] = new
        if len(self._halves) > HALVES:
            del self._halves[next(iter(self._halves))]
        if new.teacher is None or new.shadow is None:
            return
        shadow, bare = new.shadow.served, new.shadow.outcome.score
        gave_way = shadow.fell_back or (shadow.error is not None and self._rules.falls_back)
        student = new.teacher if gave_way else bare
        self._keep(row, key, "student", (student, new.teacher, bare))

    def _keep(
        self, row: Scored, request: str, side: Side, scores: tuple[float, float, float | None]
    ) -> None:
        at, name = row.outcome.at, row.served.unit
        unit = self._open.setdefault(name, _Open(at, side))
        # A user who moved between arms stays where they were first; what comes late comes too late.
        if unit.side == side and at <= unit.first_at + self._rules.unit_s:
            if request in unit.scores or self._rules.unit_s or not unit.scores:
                unit.scores[request] = scores

    def _renewed(self) -> bool:
        """Begin the test again, where a stage has no end."""
        if not self._rules.renews:
            return False
        self._round += 1
        self._closed.clear()
        self._comparison = self._new_comparison()
        return True

    def _new_comparison(self) -> Comparison:
        k = self._round + 1
        share = 1 / (k * (k + 1)) if self._rules.renews else 1.0
        return Comparison(
            self._rules.margin,
            self._rules.design or "pairs",
            self._rules.alpha,
            self._rules.alpha_worse * share,
            self._rules.teachers_per_student,
        )
