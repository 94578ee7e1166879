"""From completions to a dataset: accept, keep clusters alive, decontaminate, deduplicate, split.

Order matters and is fixed: the checks and filters come first (a rejected answer is in no set), then
what the floors bring back, then golden texts are taken out, then repeats, and the split is by
near-duplicate group, so that no held-out query has a near twin in training. Knows records; where
they come from is the stage's business.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from stillhouse.core.duplicates import groups_of, normalised, repeats
from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.records import (
    SYNTHETIC,
    Completion,
    Example,
    LabelledQuery,
    Query,
    Rejection,
)
from stillhouse.core.split import Split, split_by_group
from stillhouse.core.tasks import GenerationTask, Task
from stillhouse.dataset.accept import ExampleMaker, Judged, accept
from stillhouse.dataset.clusters import Clustering, cluster_queries
from stillhouse.dataset.contamination import Decontaminated, decontaminate
from stillhouse.dataset.difficulty import difficulty_of
from stillhouse.dataset.floors import (
    ClusterAcceptance,
    by_cluster,
    by_difficulty,
    readmitted,
    unmeasured,
)
from stillhouse.dataset.select import Judgements
from stillhouse.dataset.watch import watch_set


class Coverage(NamedTuple):
    """Which parts of the traffic gave examples: by cluster and by difficulty (see `floors`)."""

    clusters_from: str
    clusters: list[ClusterAcceptance]
    difficulty: str
    by_difficulty: list[dict[str, object]]
    unmeasured: dict[str, object] | None


class Dataset(NamedTuple):
    """What the dataset stage makes, before it is written.

    `examples` are in the order of the queries and carry their group; they are what is split.
    """

    judged: Judged
    contamination: Decontaminated
    repeated: list[Rejection]
    examples: list[Example]
    coverage: Coverage

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

    def watch(self, share: float, seed: int, without: Collection[str] = ()) -> list[Example]:
        """Those that training looks at and never learns from (`watch.watch_set`), at most `share`
        of the labelled ones; `without` are ids that the teacher was tuned on: what it gets wrong
        elsewhere, it may get right there."""
        return watch_set(self.examples, self.judged.own, share, seed, without)

    def split(self, share: float, seed: int, watch: Sequence[Example] = ()) -> Split[Example]:
        """(train, held-out), by group, without the watch set; `share` is of the `free` examples.

        A share of all would leave little unlabelled traffic to train on where most is labelled.

        Raises:
            ValueError: there is no free example.
        """
        free = self.free
        split = split_by_group(free, [example.group for example in free], share, seed)
        other = {example.id for example in (*split.second, *watch)}
        return Split([e for e in self.examples if e.id not in other], split.second)


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
    judgements: Judgements | None = None,
    members: Mapping[str, Sequence[Completion]] | None = None,
    beliefs: bool = False,
    seed: int = 0,
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
        judgements: what the judge said of the answers, where there is one.
        members: answers of an ensemble's members, by query id, where the teacher is one.
        beliefs: whether training needs class probabilities. Where most examples have them, those
            without are rejected; where most have none, it is the recipe that does not fit.
        seed: of the clusters.
    """
    truth = (
        {}
        if isinstance(task, GenerationTask)
        else {query.as_traffic().id: query.reference for query in labelled}
    )
    judged = accept(
        task,
        section,
        signals,
        queries=queries,
        completions=completions,
        failures=failures,
        truth=truth,
        judgements=judgements,
        members=members,
    )
    difficulty = difficulty_of(task, signals, queries, completions, judged.shares)
    maker = ExampleMaker(task, signals, completions)
    if beliefs:
        judged = _with_beliefs(judged, maker, queries)
    by_filters = {example.id for example in judged.examples}
    clustering = cluster_queries(task, queries, seed)
    judged, rows = _with_floors(section, maker, clustering, queries, judged)
    coverage = Coverage(
        clustering.source,
        rows,
        difficulty.measure,
        by_difficulty(difficulty, by_filters),
        unmeasured(difficulty, queries, by_filters),
    )
    clean = decontaminate(task, judged.examples, golden, labelled, section.near_duplicate)
    grouped = _with_groups(task, clean.examples, section.near_duplicate)
    kept, repeated = _without_repeats(task, grouped, section.near_duplicate)
    return Dataset(judged, clean, repeated, kept, coverage)


def _with_floors(
    section: DatasetSection,
    maker: ExampleMaker,
    clustering: Clustering,
    queries: Sequence[Query],
    judged: Judged,
) -> _Floored:
    """Bring back candidates up to each cluster's floor; their rejections are taken off."""
    accepted = {example.id for example in judged.examples}
    back = readmitted(section.floor, clustering, queries, accepted, judged.candidates)
    rows = by_cluster(clustering, queries, accepted, set(back), judged.rejections)
    if not back:
        return _Floored(judged, rows)
    made = {example.id: example for example in judged.examples}
    returned: set[tuple[str, str, int]] = set()
    by_id = {query.id: query for query in queries}
    for query_id in back:
        candidate = judged.candidates[query_id]
        example = maker.make(by_id[query_id], candidate.answer)
        made[query_id] = example.model_copy(update={"readmitted": candidate.failed})
        completion = candidate.answer.completion
        returned.add((query_id, completion.model, completion.sample))
    rejections = [
        rejection
        for rejection in judged.rejections
        if rejection.completion is None
        or (rejection.query_id, rejection.completion.model, rejection.completion.sample)
        not in returned
    ]
    examples = [made[query.id] for query in queries if query.id in made]
    return _Floored(judged._replace(examples=examples, rejections=rejections), rows)


class _Floored(NamedTuple):
    judged: Judged
    rows: list[ClusterAcceptance]


def _with_beliefs(judged: Judged, maker: ExampleMaker, queries: Sequence[Query]) -> Judged:
    """Reject the examples without class probabilities, unless most are.

    Before the floors, so that these count what is lost here; what has no belief cannot come back.
    """
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
    candidates = {
        query.id: judged.candidates[query.id]
        for query in queries
        if query.id in judged.candidates and maker.belief(query) is not None
    }
    return judged._replace(
        examples=kept, rejections=[*judged.rejections, *rejections], candidates=candidates
    )


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
