"""Which of one query's accepted answers is kept, and whether any is sure enough.

In this order: agreement of the samples, agreement of several teachers, the judge, and the best of
what is left. These filters are soft: an answer they reject is well formed, and may come back where
a cluster of queries would else vanish (`floors`). Knows one query at a time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stillhouse.core.answers import agreed
from stillhouse.core.judgements import Judgement
from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.records import Completion, Query, Rejection
from stillhouse.core.tasks import Task
from stillhouse.dataset.agreement import Agreement, ensemble_agreement, self_consistency


class Accepted(NamedTuple):
    """A completion that passed all checks, and its canonical text."""

    completion: Completion
    text: str


class JudgementKey(NamedTuple):
    """Which completion a judgement is of."""

    query_id: str
    model: str
    sample: int


Judgements = Mapping[JudgementKey, Judgement]


class Candidate(NamedTuple):
    """The best answer to a query of which soft filters left none.

    `rank` orders candidates, the best first: judge's score, agreement, likelihood.
    """

    answer: Accepted
    failed: str
    rank: tuple[float, float, float]


@dataclass(slots=True)
class Selected:
    """What came of one query: the kept answer, or the best of those that only failed softly.

    `share` is the agreement of the best answer, where several were drawn and it was looked at.
    """

    kept: Accepted | None = None
    candidate: Candidate | None = None
    rejections: list[Rejection] = field(default_factory=list)
    share: float | None = None


def select(  # noqa: PLR0917 - what a selection needs
    task: Task,
    section: DatasetSection,
    query: Query,
    accepted: Sequence[Accepted],
    drawn: Sequence[Completion],
    judgements: Judgements,
    said: Sequence[str],
    teachers: int,
) -> Selected:
    """Select among the accepted answers to one query.

    Args:
        task: the task.
        section: the recipe's dataset section.
        query: the query.
        accepted: its answers that passed all checks, by sample.
        drawn: all its answers.
        judgements: of the judge, where there is one.
        said: what each of several teachers says (`agreement.voices`).
        teachers: how many were asked.
    """
    result = Selected()
    if not accepted:
        return result
    work = _Work(task, section, query, judgements, result, list(accepted))
    if section.consistency is not None:
        found = self_consistency(task, [a.text for a in work.pool], max(len(drawn), len(accepted)))
        result.share = found.share
        work.shares = dict(zip(map(_identity, work.pool), found.shares, strict=True))
        if not work.require_agreement(found, section.consistency, "consistency", "minority"):
            return result
    if section.agreement is not None:
        found = ensemble_agreement(task, [a.text for a in work.pool], said, teachers)
        result.share = found.share
        work.shares = dict(zip(map(_identity, work.pool), found.shares, strict=True))
        if not work.require_agreement(found, section.agreement, "agreement", "minority"):
            return result
    if section.judge is not None and section.judge.mode == "pointwise":
        if not work.require_judged_good(section.judge.min_score):
            return result
    result.kept = work.best()
    return result


def likelihood(task: Task, completion: Completion) -> float | None:
    """Mean log-probability of an answer's tokens, or of its label, in nats; `None` where unknown.

    The mean, not the sum: a sum prefers short answers whatever they say.
    """
    if completion.label_logprobs is not None:
        return completion.label_logprobs.get(str(task.parse(completion.text).value))
    if not completion.logprobs:
        return None
    return math.fsum(token.logprob for token in completion.logprobs) / len(completion.logprobs)


def key_of(completion: Completion) -> JudgementKey:
    """The key under which a completion's judgement is found."""
    return JudgementKey(completion.query_id, completion.model, completion.sample)


def _identity(answer: Accepted) -> tuple[str, int]:
    return answer.completion.model, answer.completion.sample


@dataclass(slots=True)
class _Work:
    """The answers still in play for one query."""

    task: Task
    section: DatasetSection
    query: Query
    judgements: Judgements
    result: Selected
    pool: list[Accepted]
    shares: Mapping[tuple[str, int], float] = field(default_factory=dict)

    def require_agreement(self, found: Agreement, least: float, reason: str, minority: str) -> bool:
        """Keep what enough others agree with; without such an answer, the query is out."""
        doubt = f" in the field {found.doubt}" if found.doubt else ""
        if found.share < least:
            detail = f"agreement {found.share:.2f}{doubt}, below {least:g}"
            self._out(reason, [detail] * len(self.pool), self.pool[found.best])
            return False
        kept = []
        for answer, share in zip(self.pool, found.shares, strict=True):
            if share >= least:
                kept.append(answer)
            else:
                self._reject(answer, minority, f"agreement {share:.2f}, below {least:g}")
        self.pool = kept
        return True

    def require_judged_good(self, least: float) -> bool:
        """Keep what the judge calls good; without such an answer, the query is out."""
        kept: list[Accepted] = []
        details: list[str] = []
        reasons: list[str] = []
        for answer in self.pool:
            judgement = self.judgements.get(key_of(answer.completion))
            if judgement is not None and judgement.good:
                kept.append(answer)
            score = None if judgement is None else judgement.score
            reasons.append("judge" if score is not None else "judge_unreadable")
            details.append(
                f"score {score:g}, below {least:g}"
                if score is not None
                else (judgement.detail if judgement else "") or "the judge said nothing of it"
            )
        if not kept:
            best = max(self.pool, key=self._rank)
            self._out("judge", details, best, reasons)
            return False
        good = set(map(_identity, kept))
        for answer, reason, detail in zip(self.pool, reasons, details, strict=True):
            if _identity(answer) not in good:
                self._reject(answer, reason, detail)
        self.pool = kept
        return True

    def best(self) -> Accepted:
        """The answer that `dataset.best_of` prefers; the rest lose to it."""
        how = self.section.best_of
        if how == "none":
            return self._most_agreed()
        at = 0 if how == "judge" else 2
        values = [self._rank(answer)[at] for answer in self.pool]
        # Equal values: what is agreed on more, then the earliest.
        order = [
            (value, self.shares.get(_identity(answer), 0.0), -position)
            for position, (value, answer) in enumerate(zip(values, self.pool, strict=True))
        ]
        winner = self.pool[-max(order)[2]]
        for answer, value in zip(self.pool, values, strict=True):
            if answer is not winner and answer.text != winner.text:
                self._reject(answer, "not_best", f"{how} {value:.3f}, another is better")
        return winner

    def _most_agreed(self) -> Accepted:
        """What the others agree with most, or most say; those that say otherwise lose to it."""
        if self.shares:
            winner = max(self.pool, key=lambda a: self.shares[_identity(a)])
        else:
            chosen = agreed(self.task, [a.completion for a in self.pool])
            winner = next(a for a in self.pool if a.completion is chosen)
        said = Counter(answer.text for answer in self.pool)
        for answer in self.pool:
            if answer.text == winner.text:
                continue
            if self.shares:
                own, best = (self.shares[_identity(a)] for a in (answer, winner))
                detail = f"agreement {own:.2f}, another has {best:.2f}"
            else:
                detail = (
                    f"said by {said[answer.text]} of {len(self.pool)} samples, what is kept by "
                    f"{said[winner.text]}"
                )
            self._reject(answer, "minority", detail)
        return winner

    def _rank(self, answer: Accepted) -> tuple[float, float, float]:
        judgement = self.judgements.get(key_of(answer.completion))
        score = None if judgement is None else judgement.score
        known = likelihood(self.task, answer.completion)
        return (
            -math.inf if score is None else score,
            self.shares.get(_identity(answer), 0.0),
            -math.inf if known is None else known,
        )

    def _out(
        self,
        failed: str,
        details: Sequence[str],
        best: Accepted,
        reasons: Sequence[str] | None = None,
    ) -> None:
        for answer, reason, detail in zip(
            self.pool, reasons or [failed] * len(self.pool), details, strict=True
        ):
            self._reject(answer, reason, detail)
        self.result.candidate = Candidate(best, failed, self._rank(best))

    def _reject(self, answer: Accepted, reason: str, detail: str) -> None:
        self.result.rejections.append(
            Rejection(
                query_id=self.query.id,
                reason=reason,
                detail=detail,
                messages=self.query.messages,
                completion=answer.completion,
            )
        )
