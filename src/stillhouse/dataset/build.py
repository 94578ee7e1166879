"""From completions to a dataset: judge, decontaminate, deduplicate, split. No files.

Order matters and is fixed: the checks come first (a rejected answer is in no set), then golden
texts are taken out, then repeats, and the split is by near-duplicate group, so that no held-out
query has a near twin in training. Knows records; where they come from is the stage's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stillhouse.core.answers import agreed
from stillhouse.core.beliefs import class_probabilities
from stillhouse.core.duplicates import groups_of, normalised, repeats
from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.records import (
    SYNTHETIC,
    Completion,
    Example,
    LabelledQuery,
    Message,
    Query,
    Rejection,
)
from stillhouse.core.split import Split, split_by_group
from stillhouse.core.tasks import ClassificationTask, GenerationTask, Task
from stillhouse.dataset.checks import check_completion
from stillhouse.dataset.contamination import Decontaminated, decontaminate


class Judged(NamedTuple):
    """Examples of the queries that have an accepted answer, and all rejections.

    `completions` counts all answers, `accepted_completions` those that passed the checks;
    `examples` holds, of each query, the answer that most of those agree on.
    """

    examples: list[Example]
    rejections: list[Rejection]
    completions: int
    accepted_completions: int


class Dataset(NamedTuple):
    """What the dataset stage makes, before it is written.

    `examples` are in the order of the queries and carry their group; they are what is split.
    """

    judged: Judged
    contamination: Decontaminated
    repeated: list[Rejection]
    examples: list[Example]

    @property
    def rejections(self) -> list[Rejection]:
        """All of them: failures and rejected answers, then golden texts, then repeats."""
        return [*self.judged.rejections, *self.contamination.rejections, *self.repeated]

    @property
    def free(self) -> list[Example]:
        """Those that may be held out: with no true answer and no synthetic query in their group.

        The held-out part shows how well the student follows the teacher on the user's traffic.
        """
        pinned = {
            example.group
            for example in self.examples
            if example.reference is not None or example.id.startswith(SYNTHETIC)
        }
        return [example for example in self.examples if example.group not in pinned]

    def split(self, share: float, seed: int) -> Split[Example]:
        """(train, held-out), by group; `share` is of the `free` examples.

        A share of all would leave little unlabelled traffic to train on where most is labelled.

        Raises:
            ValueError: there is no free example.
        """
        free = self.free
        split = split_by_group(free, [example.group for example in free], share, seed)
        held_out = {example.id for example in split.second}
        return Split([e for e in self.examples if e.id not in held_out], split.second)


def build_dataset(
    task: Task,
    section: DatasetSection,
    signals: str,
    *,
    queries: Sequence[Query],
    completions: Mapping[str, Sequence[Completion]],
    failures: Sequence[Rejection] = (),
    labelled: Sequence[LabelledQuery] = (),
    golden: Sequence[LabelledQuery] = (),
    beliefs: bool = False,
) -> Dataset:
    """Make the examples; see the module.

    Args:
        task: the task.
        section: the recipe's dataset section.
        signals: `teacher.signals`, for the class probabilities.
        queries: the traffic; its order is the dataset's.
        completions: samples of each query, by query id.
        failures: queries that the teacher did not answer.
        labelled: the labelled set; where its queries are in the traffic, their true answers are
            what the student learns (not for generation: people's style is not the teacher's).
        golden: the golden set.
        beliefs: whether training needs class probabilities. Where most examples have them, those
            without are rejected; where most have none, it is the recipe that does not fit.
    """
    truth = (
        {}
        if isinstance(task, GenerationTask)
        else {query.as_traffic().id: query.reference for query in labelled}
    )
    judged = judge(
        task,
        section,
        signals,
        queries=queries,
        completions=completions,
        failures=failures,
        truth=truth,
    )
    if beliefs:
        judged = _with_beliefs(judged)
    clean = decontaminate(task, judged.examples, golden, labelled, section.near_duplicate)
    grouped = _with_groups(task, clean.examples, section.near_duplicate)
    kept, repeated = _without_repeats(task, grouped, section.near_duplicate)
    return Dataset(judged, clean, repeated, kept)


def judge(
    task: Task,
    section: DatasetSection,
    signals: str,
    *,
    queries: Sequence[Query],
    completions: Mapping[str, Sequence[Completion]],
    failures: Sequence[Rejection] = (),
    truth: Mapping[str, str] | None = None,
) -> Judged:
    """Run the checks over all answers; what a query's accepted samples agree on is its example.

    Where `truth` has the query's true answer, the example holds that; its class probabilities are
    the teacher's all the same.
    """
    examples: list[Example] = []
    rejections = list(failures)
    failed = {failure.query_id for failure in failures}
    seen = accepted_count = 0
    for query in queries:
        samples = sorted(completions.get(query.id, ()), key=lambda c: c.sample)
        if not samples and query.id not in failed:
            rejections.append(
                Rejection(
                    query_id=query.id,
                    reason="unanswered",
                    detail="the teacher gave no answer",
                    messages=query.messages,
                )
            )
        accepted: dict[int, _Accepted] = {}
        for completion in samples:
            seen += 1
            verdict = check_completion(task, query, completion, section)
            if isinstance(verdict, Rejection):
                rejections.append(verdict)
                continue
            accepted_count += 1
            accepted[completion.sample] = _Accepted(completion, verdict.text)
        chosen = agreed(task, [one.completion for one in accepted.values()])
        if chosen is None:
            continue
        reference = (truth or {}).get(query.id)
        text = accepted[chosen.sample].text if reference is None else reference
        examples.append(
            Example(
                id=query.id,
                messages=(*query.messages, Message(role="assistant", content=text)),
                task=query.task or task.name,
                group="",
                teacher=chosen.model,
                teacher_revision=chosen.revision,
                label=text if isinstance(task, ClassificationTask) else None,
                reference=reference,
                label_probabilities=class_probabilities(task, samples, signals)
                if isinstance(task, ClassificationTask)
                else None,
            )
        )
    return Judged(examples, rejections, seen, accepted_count)


class _Accepted(NamedTuple):
    completion: Completion
    text: str


def _with_beliefs(judged: Judged) -> Judged:
    """Reject the examples without class probabilities, unless most are."""
    kept = [e for e in judged.examples if e.label_probabilities is not None]
    if 2 * len(kept) <= len(judged.examples):
        return judged
    rejections = [
        Rejection(
            query_id=example.id,
            reason="no_belief",
            detail="no class probabilities can be read from its answers, train.alpha needs them",
            messages=example.messages,
        )
        for example in judged.examples
        if example.label_probabilities is None
    ]
    return judged._replace(examples=kept, rejections=[*judged.rejections, *rejections])


def _with_groups(task: Task, examples: Sequence[Example], threshold: float) -> list[Example]:
    groups = groups_of([task.varying_text(e.to_query()) for e in examples], threshold)
    return [
        example.model_copy(update={"group": group})
        for example, group in zip(examples, groups, strict=True)
    ]


class _Kept(NamedTuple):
    examples: list[Example]
    repeated: list[Rejection]


def _without_repeats(task: Task, examples: Sequence[Example], threshold: float) -> _Kept:
    """Take out chats that occur before, whatever their answer, and near ones of equal answer.

    Near-duplicates with unlike answers show where the teacher's boundary is: they stay, together.
    """
    first: dict[tuple[tuple[str, str], ...], Example] = {}
    distinct: list[Example] = []
    repeated: list[Rejection] = []
    for example in examples:
        chat = tuple((m.role, normalised(m.content)) for m in example.prompt)
        earlier = first.setdefault(chat, example)
        if earlier is example:
            distinct.append(example)
        else:
            repeated.append(_repeat(example, "duplicate", "the same chat as", earlier))
    near = repeats(
        [task.varying_text(example.to_query()) for example in distinct],
        [example.completion for example in distinct],
        [example.group for example in distinct],
        threshold,
    )
    repeated += [
        _repeat(distinct[i], "near_duplicate", "nearly the same text and answer as", distinct[j])
        for i, j in sorted(near.items())
    ]
    return _Kept([e for index, e in enumerate(distinct) if index not in near], repeated)


def _repeat(example: Example, reason: str, detail: str, earlier: Example) -> Rejection:
    return Rejection(
        query_id=example.id,
        reason=reason,
        detail=f"{detail} {earlier.id}",
        messages=example.messages,
    )
