"""All answers through the checks and the selection: one example a query, or its reasons.

Knows queries and their answers; repeats, contamination and clusters come after (`build`, `floors`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stillhouse.core.beliefs import class_probabilities
from stillhouse.core.errors import UserError
from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.records import Completion, Example, Message, Query, Rejection
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.dataset.agreement import voices
from stillhouse.dataset.checks import check_completion
from stillhouse.dataset.select import (
    Accepted,
    Candidate,
    Judgements,
    Selected,
    likelihood,
    select,
)
from stillhouse.dataset.validators import Validators


class Judged(NamedTuple):
    """Examples of the queries that have a kept answer, in their order, and all rejections.

    `completions` counts all answers, `accepted_completions` those that passed the checks;
    `by_query` is both of each answered query, (accepted, all).
    `candidates` hold, by query, the best answer of those that only soft filters rejected, `shares`
    how far its samples agreed, where that was looked at, and `own` what the teacher itself says
    where the example holds a true answer in its place.
    """

    examples: list[Example]
    rejections: list[Rejection]
    completions: int
    accepted_completions: int
    by_query: list[tuple[int, int]]
    candidates: Mapping[str, Candidate]
    shares: Mapping[str, float]
    own: Mapping[str, str] = {}


class ExampleMaker(NamedTuple):
    """Makes an example of a query and its kept answer."""

    task: Task
    signals: str
    completions: Mapping[str, Sequence[Completion]]

    def make(self, query: Query, kept: Accepted, reference: str | None = None) -> Example:
        """The example; with `reference`, the true answer in place of the teacher's."""
        text = kept.text if reference is None else reference
        labels = isinstance(self.task, ClassificationTask)
        return Example(
            id=query.id,
            messages=(*query.messages, Message(role="assistant", content=text)),
            task=query.task or self.task.name,
            group="",
            teacher=kept.completion.model,
            teacher_revision=kept.completion.revision,
            label=text if labels else None,
            reference=reference,
            label_probabilities=self.belief(query),
        )

    def belief(self, query: Query) -> tuple[float, ...] | None:
        """The teacher's class probabilities; `None` where there are none to read."""
        if not isinstance(self.task, ClassificationTask):
            return None
        return class_probabilities(self.task, samples_of(self.completions, query), self.signals)


def samples_of(completions: Mapping[str, Sequence[Completion]], query: Query) -> list[Completion]:
    """A query's answers by sample."""
    return sorted(completions.get(query.id, ()), key=lambda c: c.sample)


def accept(
    task: Task,
    section: DatasetSection,
    signals: str,
    *,
    queries: Sequence[Query],
    completions: Mapping[str, Sequence[Completion]],
    failures: Sequence[Rejection] = (),
    truth: Mapping[str, str] | None = None,
    judgements: Judgements | None = None,
    members: Mapping[str, Sequence[Completion]] | None = None,
) -> Judged:
    """Check all answers and select one a query.

    `members` are the answers of an ensemble's members, by query; without them, `dataset.agreement`
    is asked of the models that `completions` are of.

    Where `truth` has the query's true answer, the example holds that and no soft filter is asked;
    its class probabilities are the teacher's all the same.

    Raises:
        UserError: a filter cannot work on these answers (no logprobs, one teacher alone), or the
            user's function failed on all.
    """
    everyone = completions if members is None else members
    teachers = _require_able(task, section, completions, everyone)
    validators = Validators(section.validators)
    plain = section.model_copy(
        update={"consistency": None, "agreement": None, "judge": None, "best_of": "none"}
    )
    maker = ExampleMaker(task, signals, completions)
    found = Judged([], list(failures), 0, 0, [], candidates := {}, shares := {})
    failed = {failure.query_id for failure in failures}
    seen = passed = 0
    own: dict[str, str] = {}
    for query in queries:
        samples = samples_of(completions, query)
        seen += len(samples)
        if not samples and query.id not in failed:
            found.rejections.append(
                Rejection(
                    query_id=query.id,
                    reason="unanswered",
                    detail="the teacher gave no answer",
                    messages=query.messages,
                )
            )
        accepted: list[Accepted] = []
        for completion in samples:
            verdict = check_completion(task, query, completion, section, validators)
            if isinstance(verdict, Rejection):
                found.rejections.append(verdict)
            else:
                accepted.append(Accepted(completion, verdict.text))
        passed += len(accepted)
        if samples:
            found.by_query.append((len(accepted), len(samples)))
        reference = (truth or {}).get(query.id)
        selected: Selected = select(
            task,
            section if reference is None else plain,
            query,
            accepted,
            samples,
            judgements or {},
            _voices(task, section, query, everyone, validators),
            teachers,
        )
        found.rejections.extend(selected.rejections)
        if selected.kept is not None:
            found.examples.append(maker.make(query, selected.kept, reference))
            if reference is not None:
                own[query.id] = selected.kept.text
        if selected.candidate is not None:
            candidates[query.id] = selected.candidate
        if selected.share is not None:
            shares[query.id] = selected.share
    if validators.function is not None:
        validators.function.require_working()
    return found._replace(completions=seen, accepted_completions=passed, own=own)


def _voices(
    task: Task,
    section: DatasetSection,
    query: Query,
    members: Mapping[str, Sequence[Completion]],
    validators: Validators,
) -> list[str]:
    """What each teacher says to a query, of its answers that pass the checks."""
    if section.agreement is None:
        return []
    found = []
    for completion in samples_of(members, query):
        verdict = check_completion(task, query, completion, section, validators)
        if not isinstance(verdict, Rejection):
            found.append((completion.model, verdict.text))
    return voices(task, found)


def _require_able(
    task: Task,
    section: DatasetSection,
    completions: Mapping[str, Sequence[Completion]],
    members: Mapping[str, Sequence[Completion]],
) -> int:
    """Refuse filters that these answers can never satisfy; gives how many teachers there are."""
    every = [completion for samples in completions.values() for completion in samples]
    models = {completion.model for samples in members.values() for completion in samples}
    if section.consistency is not None and completions:
        if max(map(len, completions.values())) < 2:
            raise UserError(
                "dataset.consistency",
                "needs several answers to a query, and there is one to each",
                value=section.consistency,
                action="raise teacher.samples; for an ensemble use dataset.agreement",
            )
    if section.agreement is not None and len(models) < 2:
        raise UserError(
            "dataset.agreement",
            "needs answers of several teachers, and there are those of one",
            value=next(iter(models), None),
            action="leave it out, or use dataset.consistency with teacher.samples",
        )
    if section.best_of == "likelihood" and every:
        if all(likelihood(task, completion) is None for completion in every):
            raise UserError(
                "dataset.best_of",
                "likelihood needs the log-probabilities of the answers, and no answer has them",
                value=section.best_of,
                action="use best_of: judge or none, or a teacher that gives logprobs",
            )
    return len(models)
