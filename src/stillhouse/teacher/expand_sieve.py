"""The sieve of the expansion: which new texts are kept, and why the others are not.

A new text is compared with the golden and the labelled set (contamination), the traffic, and all
new ones before it, by words (MinHash, true Jaccard) and by vectors, and must fall into a cluster
that lacks queries. Asks nobody.

N queries, H dimensions, K clusters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.duplicates import bare, groups_of, matches, repeats
from stillhouse.core.recipe_data import ExpandSection
from stillhouse.core.records import SYNTHETIC, Completion, Message, Query, Rejection
from stillhouse.core.selection import Vectors
from stillhouse.core.tasks import Task
from stillhouse.models.clusters import Clusters, nearest
from stillhouse.models.embedders import Embedder

Counts = npt.NDArray[np.int64]  # [K]


class Ground(NamedTuple):
    """What is there already: the traffic with its vectors [N, H] and clusters, and the two sets."""

    queries: Sequence[Query]
    vectors: Vectors
    clusters: Clusters
    labelled: Sequence[Query]
    golden: Sequence[Query]


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


class Sieve:
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
