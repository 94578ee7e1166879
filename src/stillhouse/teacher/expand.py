"""New queries from seeds, where the traffic is thin: asked for in rounds, sifted, kept or rejected.

Clusters with fewer queries than the quota are filled up, the thinnest first. Each new text is
checked against the golden and the labelled set (contamination), the traffic and all other new ones
(near-duplicates by words and by vectors), and must fall into a cluster that lacks queries. What is
not kept is a rejection with its reason. Knows how replies are had only as a function.

N queries, H dimensions, K clusters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.duplicates import bare, groups_of, matches, repeats
from stillhouse.core.errors import UserError
from stillhouse.core.recipe_data import ExpandSection
from stillhouse.core.records import SYNTHETIC, Completion, Message, Query, Rejection
from stillhouse.core.selection import Vectors
from stillhouse.core.split import unit_hash
from stillhouse.core.tasks import Task
from stillhouse.models.clusters import Clusters, nearest
from stillhouse.models.embedders import Embedder
from stillhouse.teacher.expand_prompts import read_reply, request_messages

PILOT: Final = 8  # replies of which one must be readable before the rest is paid for
Counts = npt.NDArray[np.int64]  # [K]


class Answered(NamedTuple):
    """Replies by request id, and the requests without one."""

    completions: Mapping[str, tuple[Completion, ...]]
    failures: tuple[Rejection, ...]


AskAll = Callable[[Sequence[Query]], Awaitable[Answered]]


class Ground(NamedTuple):
    """What is there already: the traffic with its vectors [N, H] and clusters, and the two sets."""

    queries: Sequence[Query]
    vectors: Vectors
    clusters: Clusters
    labelled: Sequence[Query]
    golden: Sequence[Query]


class Expansion(NamedTuple):
    """New queries, and all that was not kept. `before` and `after` [K] count queries a cluster."""

    queries: list[Query]
    rejections: list[Rejection]
    before: Counts
    after: Counts
    rounds: int
    requests: int


class Request(NamedTuple):
    """One request for new inputs: of which cluster, from which seeds."""

    query: Query
    cluster: int
    seeds: tuple[Query, ...]


class Draft(NamedTuple):
    """A new text before it is sifted."""

    text: str
    request: Request
    persona: str | None
    completion: Completion


async def expand(
    task: Task,
    ground: Ground,
    section: ExpandSection,
    embedder: Embedder,
    ask_all: AskAll,
    *,
    near_duplicate: float,
    seed: int,
) -> Expansion:
    """Ask for new queries until every cluster has its quota, or the rounds or `n` are used up.

    Args:
        task: what the queries ask for.
        ground: what is there; at least one query.
        section: how, and how many.
        embedder: the one that made the ground's vectors.
        ask_all: has requests answered; each request's first completion is read.
        near_duplicate: Jaccard similarity from which two texts are one.
        seed: draws the seeds shown.

    Raises:
        UserError: none of the first replies can be read.
    """
    before = ground.clusters.sizes.astype(np.int64)
    sieve = _Sieve(task, ground, section, embedder, near_duplicate)
    rejections: list[Rejection] = []
    asked = rounds = 0
    while rounds < section.rounds:
        lacking = deficits(sieve.counts, section.per_cluster, section.n - len(sieve.queries))
        if not lacking.any():
            break
        requests = _requests(task, ground, section, lacking, round_=rounds, seed=seed)
        rounds += 1
        drafts: list[Draft] = []
        # The first few alone: a teacher that cannot write the JSON is not paid for more of it.
        for batch in (requests[:PILOT], requests[PILOT:]):
            if not batch:
                continue
            answered = await ask_all([request.query for request in batch])
            asked += len(batch)
            rejections.extend(answered.failures)
            found, refused = _read(task, batch, answered.completions, section)
            rejections.extend(refused)
            if not found and not drafts and not sieve.queries and refused:
                raise UserError(
                    "traffic.expand",
                    f"none of the first {len(batch)} replies holds a usable input; the first: "
                    f"{refused[0].detail}",
                    action="use a teacher that writes JSON, or leave traffic.expand out",
                )
            drafts.extend(found)
        kept = len(sieve.queries)
        rejections.extend(sieve.sift(drafts, rounds))
        if len(sieve.queries) == kept:
            break
    return Expansion(sieve.queries, rejections, before, sieve.counts, rounds, asked)


def deficits(counts: Counts, per_cluster: int, most: int) -> Counts:
    """How many queries each cluster [K] lacks; where that is over `most`, the thinnest go first.

    They are then raised to one level together, so that no cluster stays thinner than one filled.
    """
    lacking = np.maximum(per_cluster - counts, 0)
    if lacking.sum() <= most:
        return lacking
    low, high = 0, per_cluster
    while high - low > 1:
        level = (low + high) // 2
        if np.maximum(level - counts, 0).sum() <= most:
            low = level
        else:
            high = level
    given = np.maximum(low - counts, 0)
    next_ones = np.flatnonzero(counts <= low)[: most - int(given.sum())]
    given[next_ones] += 1
    return given


def _requests(
    task: Task,
    ground: Ground,
    section: ExpandSection,
    lacking: Counts,
    *,
    round_: int,
    seed: int,
) -> list[Request]:
    """Requests of one round; seeds are real queries of the cluster, drawn anew for each."""
    found: list[Request] = []
    shown = section.seeds if section.method == "self_instruct" else 1
    for cluster in np.flatnonzero(lacking).tolist():
        members = np.flatnonzero(ground.clusters.labels == cluster).tolist()
        for part in range(-(-int(lacking[cluster]) // section.per_request)):
            turn = f"{round_}:{cluster}:{part}"
            order = sorted(members, key=lambda i: unit_hash(f"{turn}:{ground.queries[i].id}", seed))
            seeds = tuple(ground.queries[i] for i in order[:shown])
            texts = [task.last_text(query) for query in seeds]
            messages = request_messages(
                task, section.method, texts, section.per_request, round_ + part
            )
            query = Query(id=f"expand:{turn}", messages=messages, task="expand")
            found.append(Request(query, cluster, seeds))
    return found


class _Read(NamedTuple):
    drafts: list[Draft]
    refused: list[Rejection]


def _read(
    task: Task,
    requests: Sequence[Request],
    completions: Mapping[str, tuple[Completion, ...]],
    section: ExpandSection,
) -> _Read:
    found = _Read([], [])
    for request in requests:
        for completion in completions.get(request.query.id, ())[:1]:
            texts = [task.last_text(query) for query in request.seeds]
            reply = read_reply(completion.text, section.method, texts, section.max_chars)
            problem = reply.problem
            if problem is not None and completion.finish_reason == "length":
                problem += " (cut off at traffic.expand.max_tokens)"
            if problem is not None:
                found.refused.append(
                    Rejection(
                        query_id=request.query.id,
                        reason="unreadable",
                        detail=problem,
                        messages=request.query.messages,
                        completion=completion,
                    )
                )
            found.refused.extend(
                Rejection(
                    query_id=request.query.id,
                    reason=reason,
                    detail=f"a new input that cannot be used: {text[:80]!r}",
                    completion=completion,
                )
                for text, reason in reply.refused
            )
            found.drafts.extend(
                Draft(text, request, reply.persona, completion) for text in reply.inputs
            )
    return found


class _Sieve:
    """All that is known, old and new; drafts pass it or are rejected."""

    def __init__(
        self,
        task: Task,
        ground: Ground,
        section: ExpandSection,
        embedder: Embedder,
        near_duplicate: float,
    ) -> None:
        self._task = task
        self._section = section
        self._embedder = embedder
        self._near_duplicate = near_duplicate
        self._centres = ground.clusters.centres
        self.counts = ground.clusters.sizes.astype(np.int64)
        self.queries: list[Query] = []
        # Golden and labelled texts first: of several alike the first is named as the reason.
        sets = (("golden", ground.golden), ("labelled", ground.labelled), ("", ground.queries))
        self._known = [(name, query.id) for name, queries in sets for query in queries]
        texts = [[task.varying_text(query) for query in queries] for _, queries in sets]
        self._bare = [bare(text) for part in texts for text in part]
        held = [embedder.embed(part) for part in texts[:2]]
        self._vectors = np.concatenate([*held, ground.vectors])

    def sift(self, drafts: Sequence[Draft], round_: int) -> list[Rejection]:
        """Keep what is new and wanted, in order; why the rest is not."""
        if not drafts:
            return []
        made = [self._query(draft, round_) for draft in drafts]
        texts = [self._task.varying_text(query) for query in made]
        plain = [bare(text) for text in texts]
        near = matches(plain, self._bare, self._near_duplicate)
        groups = groups_of(plain, self._near_duplicate)
        twins = repeats(plain, [""] * len(plain), groups, self._near_duplicate)
        vectors = self._embedder.embed(texts)
        known = nearest(vectors, self._vectors)
        clusters = nearest(vectors, self._centres).labels
        rejections: list[Rejection] = []
        kept: list[int] = []
        for index, (draft, query) in enumerate(zip(drafts, made, strict=True)):
            why = None
            if index in near:
                why = self._alike(near[index], "near_duplicate", "nearly the same words as")
            elif index in twins:
                why = ("near_duplicate", f"nearly the same words as {made[twins[index]].id}")
            elif known.similarity[index] >= self._section.semantic_duplicate:
                cosine = f"(cosine {known.similarity[index]:.3f}) as"
                why = self._alike(
                    int(known.labels[index]), "semantic_duplicate", f"nearly the same {cosine}"
                )
            else:
                why = self._among(vectors, index, kept, made)
            if why is None:
                why = self._unwanted(int(clusters[index]), draft.request.cluster)
            if why is not None:
                rejections.append(
                    Rejection(
                        query_id=query.id,
                        reason=why[0],
                        detail=why[1],
                        messages=query.messages,
                    )
                )
                continue
            self.counts[clusters[index]] += 1
            self.queries.append(query.in_cluster(int(clusters[index])))
            kept.append(index)
        self._known.extend(("", made[index].id) for index in kept)
        self._bare.extend(plain[index] for index in kept)
        self._vectors = np.concatenate([self._vectors, vectors[kept]])
        return rejections

    def _alike(self, index: int, reason: str, detail: str) -> tuple[str, str]:
        name, other = self._known[index]
        if name:
            return f"contamination_{name}", f"{detail} {other} of the {name} set"
        return reason, f"{detail} {other}"

    def _among(
        self, vectors: Vectors, index: int, kept: list[int], made: Sequence[Query]
    ) -> tuple[str, str] | None:
        """Whether it nearly repeats one that this round kept already."""
        if not kept:
            return None
        found = vectors[kept] @ vectors[index]
        best = int(found.argmax())
        if found[best] < self._section.semantic_duplicate:
            return None
        other = made[kept[best]].id
        return "semantic_duplicate", f"nearly the same (cosine {found[best]:.3f}) as {other}"

    def _unwanted(self, cluster: int, meant: int) -> tuple[str, str] | None:
        if len(self.queries) >= self._section.n:
            return "surplus", "traffic.expand.n is reached"
        if self.counts[cluster] < self._section.per_cluster:
            return None
        if cluster == meant:
            return "surplus", f"cluster {cluster} has its quota"
        return "other_cluster", f"falls into cluster {cluster}, which lacks none, not {meant}"

    def _query(self, draft: Draft, round_: int) -> Query:
        parent = draft.request.seeds[0]
        own = tuple(m for m in parent.messages if m.role in ("system", "developer"))
        asked = self._task.messages_for(draft.text)
        messages: tuple[Message, ...] = (*own, asked[-1]) if own else asked
        digest = hashlib.sha256(draft.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return Query(
            id=f"{SYNTHETIC}{digest}",
            messages=messages,
            task=parent.task,
            metadata={
                "synthetic": self._section.method,
                "parent": parent.id,
                "seeds": [query.id for query in draft.request.seeds],
                "round": round_,
                "writer": f"{draft.completion.model}@{draft.completion.revision}",
                **({"persona": draft.persona} if draft.persona else {}),
            },
        )
