"""Which cluster each query belongs to: what its metadata says, else one found in its text.

Knows queries and the embedder; what clusters are for is said in `floors`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from stillhouse.core.records import Query
from stillhouse.core.tasks import Task
from stillhouse.models.clusters import cluster, default_clusters
from stillhouse.models.embedders import HASHING, open_embedder

CLUSTER_KEY: Final = "cluster"
UNKNOWN: Final = "unknown"
# More would leave too few queries in each to say anything of its acceptance.
MOST_CLUSTERS: Final = 50
LEAST_QUERIES: Final = 20
NAME_WORDS: Final = 3
_WORD = re.compile(r"[^\W\d_]{3,}")


class Clustering(NamedTuple):
    """The cluster of each query, by id, and where that is from: `metadata` or the embedder."""

    source: str
    names: Mapping[str, str]

    def members(self, queries: Sequence[Query]) -> dict[str, list[str]]:
        """Ids of the queries in each cluster, in their order."""
        found: dict[str, list[str]] = {}
        for query in queries:
            found.setdefault(self.names[query.id], []).append(query.id)
        return found


def cluster_queries(task: Task, queries: Sequence[Query], seed: int) -> Clustering:
    """Metadata where any query has it (the rest are `unknown`), else spherical k-means.

    Text clusters are named by number, largest first, and the words that mark them off.
    """
    if any(CLUSTER_KEY in query.metadata for query in queries):
        return Clustering(
            "metadata",
            {query.id: str(query.metadata.get(CLUSTER_KEY, UNKNOWN)) for query in queries},
        )
    texts = [task.varying_text(query) for query in queries]
    k = max(1, min(default_clusters(len(texts)), MOST_CLUSTERS, len(texts) // LEAST_QUERIES))
    if k == 1:
        return Clustering("all in one", {query.id: "all" for query in queries})
    found = cluster(open_embedder(HASHING, texts).embed(texts), k, seed)
    labels = [int(label) for label in found.labels]
    names = _names(texts, labels)
    return Clustering(
        HASHING, {query.id: names[label] for query, label in zip(queries, labels, strict=True)}
    )


def _names(texts: Sequence[str], labels: Sequence[int]) -> dict[int, str]:
    """`NUMBER WORD WORD WORD`: words in more texts of the cluster, against those of all, by share.

    The score is the difference of the two shares: a word that only one text has marks off nothing.
    """
    overall: Counter[str] = Counter()
    inside: dict[int, Counter[str]] = {}
    sizes = Counter(labels)
    for text, label in zip(texts, labels, strict=True):
        words = set(_WORD.findall(text.casefold()))
        overall.update(words)
        inside.setdefault(label, Counter()).update(words)
    names = {}
    for label, counts in inside.items():
        score = {
            word: count / sizes[label] - overall[word] / len(texts)
            for word, count in counts.items()
        }
        best = sorted(score, key=lambda word: (-score[word], word))[:NAME_WORDS]
        names[label] = " ".join([str(label), *best])
    return names
