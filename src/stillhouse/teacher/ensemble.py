"""Several teachers as one: each is asked under its own name, and their answers are combined.

So an answer is paid once, whether the ensemble, a comparison or a run with that teacher alone wants
it. How answers become one is in `core.ensembles`. Knows recipe sections and answers; asks nobody
itself but through the completers it is given.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from stillhouse.core.ensembles import Combined, MemberAnswers, combine
from stillhouse.core.errors import TeacherError, UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_ensemble import OF_BELIEFS, Combine, combine_for
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.core.records import Completion, Query, Rejection
from stillhouse.core.tasks import Task
from stillhouse.models.completer import Completer, ModelInfo, Sampling
from stillhouse.teacher.ask import NO_ANSWER, AskResult
from stillhouse.teacher.build import open_teacher, teacher_sampling


class Member(NamedTuple):
    """One teacher of an ensemble, and its say."""

    section: TeacherSection
    weight: float
    info: ModelInfo


class Ensemble(NamedTuple):
    """An ensemble whose members are known."""

    name: str
    task: Task
    how: Combine
    members: tuple[Member, ...]

    @property
    def info(self) -> ModelInfo:
        """The members together: weights add up; notes name whose they are."""
        infos = [member.info for member in self.members]
        return ModelInfo(
            name=self.name,
            revision=self.revision([info.revision for info in infos]),
            parameters=_sum([info.parameters for info in infos]),
            size_bytes=_sum([info.size_bytes for info in infos]),
            gives_label_logprobs=self.how in OF_BELIEFS,
            local=all(info.local for info in infos),
            takes_seed=any(info.takes_seed for info in infos),
            notes={
                f"{info.name} {name}": note for info in infos for name, note in info.notes.items()
            },
        )

    def revision(self, revisions: Sequence[str]) -> str:
        """A hash of the members' names, revisions and weights, and of how they are combined."""
        parts = [
            [member.info.name, revision, member.weight]
            for member, revision in zip(self.members, revisions, strict=True)
        ]
        text = json.dumps([self.how, parts], ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]

    def combined(self, samples: Sequence[Sequence[Completion]]) -> Combined:
        """One answer of each member's samples to one query, in the members' order."""
        return combine(
            self.task,
            self.how,
            [
                MemberAnswers(said, member.section.signals, member.weight)
                for member, said in zip(self.members, samples, strict=True)
            ],
        )


def member_recipes(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe with each member of its ensemble as the only teacher.

    Whether asking stops at a member that shows no beliefs is decided by how members are combined:
    a mean needs them, a vote does not, whatever the student is trained on.
    """
    needed = combine_for(recipe.task.kind, recipe.teacher.combine) in OF_BELIEFS
    train = recipe.train.model_copy(update={"alpha": 1.0 if needed else 0.0})
    for section in recipe.teacher.member_sections:
        yield recipe.model_copy(update={"teacher": section, "train": train})


def ensemble_of(recipe: Recipe, infos: Sequence[ModelInfo]) -> Ensemble:
    """The recipe's ensemble, once its members are open."""
    section = recipe.teacher
    parts = zip(section.member_sections, section.weights, infos, strict=True)
    how = combine_for(recipe.task.kind, section.combine)
    return Ensemble(section.model, recipe.task, how, tuple(Member(*part) for part in parts))


def combine_results(
    ensemble: Ensemble, results: Sequence[AskResult], queries: Sequence[Query]
) -> AskResult:
    """What the ensemble says to the queries, from what each of its members said.

    An ensemble costs the sum of its members: USD, and seconds, for they were asked in turn.

    Raises:
        UserError: a member answered, but none of its answers has a vote.
    """
    completions: dict[str, tuple[Completion, ...]] = {}
    failures: list[Rejection] = []
    votes = [0] * len(results)
    usual = [
        _first_revision(result, member.info)
        for result, member in zip(results, ensemble.members, strict=True)
    ]
    reasons = [{f.query_id: f.detail for f in result.failures} for result in results]
    for query in queries:
        samples = [result.completions_by_query.get(query.id, ()) for result in results]
        found = ensemble.combined(samples)
        for index in range(len(results)):
            votes[index] += index not in found.silent
        if found.text is None:
            failures.append(
                Rejection(
                    query_id=query.id,
                    reason=NO_ANSWER,
                    detail=_why(query.id, found, reasons),
                    messages=query.messages,
                )
            )
            continue
        revisions = [
            said[0].revision if said else known for said, known in zip(samples, usual, strict=True)
        ]
        completions[query.id] = (
            as_completion(ensemble, query.id, found, samples, ensemble.revision(revisions)),
        )
    for member, result, count in zip(ensemble.members, results, votes, strict=True):
        if result.completions_by_query and not count:
            raise UserError(
                f"teacher.members {member.info.name}",
                f"none of its {len(result.completions_by_query)} answers has a vote under "
                f"combine: {ensemble.how}",
                action="use combine: majority, or signals: samples with samples: 5 and "
                "sampling_temperature: 1"
                if ensemble.how in OF_BELIEFS
                else "say in task.system or task.prompt exactly what to answer",
            )
    asked = max(result.asked for result in results)
    return AskResult(
        completions_by_query=completions,
        failures=tuple(failures),
        usd=sum(result.usd for result in results),
        seconds=sum(result.seconds for result in results),
        asked=asked,
        reused=len(queries) - asked,
        usd_by_key={key: usd for result in results for key, usd in result.usd_by_key.items()},
    )


def as_completion(
    ensemble: Ensemble,
    query_id: str,
    found: Combined,
    samples: Sequence[Sequence[Completion]],
    revision: str,
) -> Completion:
    """The ensemble's completion: tokens and cost are the sum of its members', latency the most."""
    assert found.text is not None, "the caller looks at the problem first"
    every = [completion for said in samples for completion in said]
    known = [c.latency_ms for c in every if c.latency_ms is not None]
    costs = [c.cost_usd for c in every]
    labels = getattr(ensemble.task, "labels", ())
    return Completion(
        query_id=query_id,
        text=found.text,
        model=ensemble.name,
        revision=revision,
        prompt_tokens=_sum([c.prompt_tokens for c in every]),
        completion_tokens=_sum([c.completion_tokens for c in every]),
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        latency_ms=max(known, default=None),
        label_logprobs=None
        if found.probabilities is None
        else dict(zip(labels, map(_log, found.probabilities), strict=True)),
    )


def together_per_second(rates: Sequence[float | None]) -> float | None:
    """Queries/s of members asked in turn: 1 / sum(1 / rate); `None` where one is not known."""
    known = [rate for rate in rates if rate]
    return 1 / sum(1 / rate for rate in known) if len(known) == len(rates) else None


class EnsembleCompleter:
    """An ensemble that is asked live, all members at once: to time it, or to serve it.

    Each member is asked as the recipe says, whatever the sampling of the call; one answer a query.
    """

    def __init__(
        self, ensemble: Ensemble, completers: Sequence[Completer], samplings: Sequence[Sampling]
    ) -> None:
        self._ensemble, self._completers, self._samplings = ensemble, completers, samplings

    @property
    def info(self) -> ModelInfo:
        """The ensemble's."""
        return self._ensemble.info

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """Ask every member and combine.

        Raises:
            TeacherError: a member could not answer, or there is no quorum.
        """
        samples = await asyncio.gather(
            *(
                completer.complete(query, own)
                for completer, own in zip(self._completers, self._samplings, strict=True)
            )
        )
        found = self._ensemble.combined(samples)
        if found.text is None:
            raise TeacherError(f"{self._ensemble.name}, query {query.id}: {found.problem}")
        revision = self._ensemble.revision([said[0].revision for said in samples])
        return [as_completion(self._ensemble, query.id, found, samples, revision)]

    async def aclose(self) -> None:
        """Close all members."""
        for completer in self._completers:
            await completer.aclose()


def open_ensemble(recipe: Recipe) -> EnsembleCompleter:
    """Open all members of the recipe's ensemble.

    Raises:
        UserError, MissingExtraError: as `open_teacher`.
    """
    completers: list[Completer] = []
    samplings: list[Sampling] = []
    for one in member_recipes(recipe):
        completers.append(open_teacher(one.teacher, one.prices))
        samplings.append(teacher_sampling(one, completers[-1].info))
    return EnsembleCompleter(
        ensemble_of(recipe, [completer.info for completer in completers]), completers, samplings
    )


def _first_revision(result: AskResult, info: ModelInfo) -> str:
    return next(
        (said[0].revision for said in result.completions_by_query.values() if said), info.revision
    )


def _why(query_id: str, found: Combined, reasons: Sequence[Mapping[str, str]]) -> str:
    said = [
        f"member {index}: {reasons[index][query_id]}"
        for index in found.silent
        if query_id in reasons[index]
    ]
    return "; ".join([found.problem or "", *said])


def _sum(values: Sequence[int | None]) -> int | None:
    return None if None in values else sum(value for value in values if value is not None)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf
