"""A model as a judge: a score for one answer, or which of two is better, both orders asked.

Works through a function that asks, so that the same judge can draw on a store of paid answers or
on a completer alone. It never learns who gave an answer. Knows prompts and verdicts; whether the
judge can be trusted is `core.judging`'s arithmetic, what is done about it is its caller's.

Zheng et al. (2023), Judging LLM-as-a-judge (order swap); Liu et al. (2023), G-Eval (expected
score).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from stillhouse.core.beliefs import class_probabilities
from stillhouse.core.errors import TeacherError
from stillhouse.core.judging import PairOutcome, joined
from stillhouse.core.records import Completion, Query
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.models.completer import Completer, ModelInfo, Sampling
from stillhouse.models.judge_prompts import (
    CHOICES,
    SCORES,
    choice_query,
    read_choice,
    read_score,
    score_query,
)

# Asks queries of distinct ids and gives the completions by id; one without an answer is left out.
Asker = Callable[[Sequence[Query], Sampling], Awaitable[Mapping[str, Sequence[Completion]]]]

TOP_LOGPROBS: Final = 20
SCORE_DIGITS: Final = 4
_SCORE_TASK: Final = ClassificationTask(kind="classification", labels=SCORES)


class Answer(NamedTuple):
    """One answer to judge."""

    query: Query
    text: str


class Pair(NamedTuple):
    """Two answers to one query, to compare."""

    query: Query
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class JudgeForm:
    """How a judge is asked.

    `criteria` is the user's own words of what counts; with `explain` the judge reasons before its
    verdict. Without it, a model whose likelihoods or logprobs can be read gives the expected score
    sum_k k p(k) over 1 to 5 (G-Eval), which has far fewer ties than the digit alone.
    """

    task: Task
    criteria: str | None = None
    explain: bool = False
    sampling_temperature: float = 0.0
    max_tokens: int = 16
    seed: int = 0

    def sampling(self, info: ModelInfo, closed: Sequence[str]) -> Sampling:
        """How one verdict out of `closed` is drawn from a model."""
        likelihoods = info.gives_label_logprobs and not self.explain
        logprobs = info.gives_logprobs and not self.explain and not likelihoods
        return Sampling(
            max_tokens=self.max_tokens,
            sampling_temperature=self.sampling_temperature,
            logprobs=TOP_LOGPROBS if logprobs and closed == SCORES else 0,
            labels=() if self.explain else tuple(closed),
            seed=self.seed,
        )


class Judge:
    """Scores answers and compares pairs.

    Args:
        ask: how its questions are put to the model.
        info: the model.
        form: how it is asked.
    """

    def __init__(self, ask: Asker, info: ModelInfo, form: JudgeForm) -> None:
        self._ask = ask
        self._info = info
        self._form = form

    async def score(self, answers: Sequence[Answer]) -> list[float | None]:
        """A score from 1 to 5 for each answer; `None` where the verdict was not had or not read."""
        form = self._form
        asked = [
            score_query(form.task, answer.query, answer.text, form.criteria, form.explain)
            for answer in answers
        ]
        found = await self._ask(_distinct(asked), form.sampling(self._info, SCORES))
        return [self._score_of(found.get(query.id, ())) for query in asked]

    async def compare(self, pairs: Sequence[Pair]) -> list[PairOutcome]:
        """What both orders of each pair said together. Equal texts are a tie without asking."""
        form = self._form
        asked = [
            None
            if pair.first.strip() == pair.second.strip()
            else tuple(
                choice_query(form.task, pair.query, shown, form.criteria, form.explain)
                for shown in ((pair.first, pair.second), (pair.second, pair.first))
            )
            for pair in pairs
        ]
        questions = [query for both in asked if both is not None for query in both]
        found = await self._ask(_distinct(questions), form.sampling(self._info, CHOICES))
        outcomes: list[PairOutcome] = []
        for both in asked:
            if both is None:
                outcomes.append("tie")
                continue
            said = [found.get(query.id, ()) for query in both]
            places = [read_choice(one[0], form.explain) if one else None for one in said]
            outcomes.append(joined(*places))
        return outcomes

    def _score_of(self, completions: Sequence[Completion]) -> float | None:
        if not completions:
            return None
        stated = read_score(completions[0], self._form.explain)
        if stated is None or self._form.explain:
            return stated
        belief = class_probabilities(_SCORE_TASK, completions[:1], "logprobs")
        if belief is None:
            return stated
        expected = math.fsum(int(k) * p for k, p in zip(SCORES, belief, strict=True))
        return round(expected, SCORE_DIGITS)


def win_shares(outcomes: Mapping[tuple[int, int], PairOutcome], count: int) -> list[float | None]:
    """Share of comparisons that each of `count` answers won, a tie one half (Copeland's rule).

    `None` where none of an answer's comparisons was read. Following the position is a tie.
    """
    points = [0.0] * count
    played = [0] * count
    for (first, second), outcome in outcomes.items():
        if outcome == "unreadable":
            continue
        won = {"first": 1.0, "second": 0.0}.get(outcome, 0.5)
        points[first] += won
        points[second] += 1.0 - won
        played[first] += 1
        played[second] += 1
    return [p / n if n else None for p, n in zip(points, played, strict=True)]


def completer_asker(completer: Completer, concurrency: int = 16) -> Asker:
    """Ask a completer directly: nothing is stored, a query it cannot answer is left out."""

    async def ask(queries: Sequence[Query], sampling: Sampling) -> dict[str, Sequence[Completion]]:
        found: dict[str, Sequence[Completion]] = {}
        waiting = iter(queries)

        async def work(waiting: Iterator[Query]) -> None:
            for query in waiting:
                try:
                    found[query.id] = await completer.complete(query, sampling)
                except TeacherError:
                    continue

        await asyncio.gather(*(work(waiting) for _ in range(concurrency)))
        return found

    return ask


def _distinct(queries: Sequence[Query]) -> list[Query]:
    return list({query.id: query for query in queries}.values())
