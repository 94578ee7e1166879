"""Acceptance by cluster and by difficulty, and a floor under each cluster.

Filters reject what is hard first; a student that never sees the hard part of the traffic fails
there. Where a cluster's acceptance falls below `dataset.floor`, the best of its answers that only
soft filters rejected come back, marked. What the checks rejected stays out. Knows names of
clusters and candidates; how clusters are found is in `clusters`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from stillhouse.core.records import Query, Rejection
from stillhouse.core.statistics import wilson
from stillhouse.dataset.clusters import Clustering
from stillhouse.dataset.difficulty import Difficulty
from stillhouse.dataset.select import Candidate

BINS: Final = 4
# Without a floor a cluster is named where its acceptance is surely below this share of the whole.
FAR_BELOW: Final = 0.5


class ClusterAcceptance(NamedTuple):
    """One cluster: how many of its queries gave an example, before and after the floor.

    `top_reason` is the most frequent reason among the queries that gave none.
    """

    name: str
    queries: int
    accepted: int
    readmitted: int
    top_reason: str | None

    @property
    def share(self) -> float:
        """Accepted and readmitted over all."""
        return (self.accepted + self.readmitted) / self.queries

    def as_json(self) -> dict[str, object]:
        """The row in dataset.json; the interval is of what was accepted by the filters alone."""
        return {
            "cluster": self.name,
            "queries": self.queries,
            "accepted": self.accepted,
            "acceptance": wilson(self.accepted, self.queries).model_dump(),
            "readmitted": self.readmitted,
            "top_reason": self.top_reason,
        }


def readmitted(
    floor: float | None,
    clustering: Clustering,
    queries: Sequence[Query],
    accepted: Collection[str],
    candidates: Mapping[str, Candidate],
) -> list[str]:
    """Ids of the queries whose candidates come back, in the order of the queries.

    In each cluster the best candidates (by the judge's score, agreement, likelihood) until
    ceil(floor * queries) have an example, or there is no candidate left.
    """
    if floor is None:
        return []
    back: set[str] = set()
    for members in clustering.members(queries).values():
        missing = math.ceil(floor * len(members) - 1e-9) - sum(m in accepted for m in members)
        if missing <= 0:
            continue
        waiting = [m for m in members if m in candidates and m not in accepted]
        # A stable sort: of equals, the earlier query.
        waiting.sort(key=lambda m: candidates[m].rank, reverse=True)
        back.update(waiting[:missing])
    return [query.id for query in queries if query.id in back]


def by_cluster(
    clustering: Clustering,
    queries: Sequence[Query],
    accepted: Collection[str],
    back: Collection[str],
    rejections: Sequence[Rejection],
) -> list[ClusterAcceptance]:
    """One row a cluster, the lowest acceptance first."""
    reasons: dict[str, Counter[str]] = {}
    for rejection in rejections:
        reasons.setdefault(rejection.query_id, Counter())[rejection.reason] += 1
    rows = []
    for name, members in clustering.members(queries).items():
        lost: Counter[str] = Counter()
        for member in members:
            if member not in accepted and member not in back and member in reasons:
                lost[reasons[member].most_common(1)[0][0]] += 1
        rows.append(
            ClusterAcceptance(
                name,
                len(members),
                sum(member in accepted for member in members),
                sum(member in back for member in members),
                min(lost, key=lambda r: (-lost[r], r)) if lost else None,
            )
        )
    return sorted(rows, key=lambda row: (row.accepted / row.queries, row.name))


def low_clusters(rows: Sequence[ClusterAcceptance], floor: float | None) -> list[ClusterAcceptance]:
    """Those to warn of: below the floor before it was applied; without one, those whose upper 95%
    limit is below half of the acceptance of all.
    """
    if floor is not None:
        return [row for row in rows if row.accepted < floor * row.queries - 1e-9]
    total = sum(row.queries for row in rows)
    overall = sum(row.accepted for row in rows) / total if total else 0.0
    return [row for row in rows if wilson(row.accepted, row.queries).high < FAR_BELOW * overall]


def unmeasured(
    difficulty: Difficulty, queries: Sequence[Query], accepted: Collection[str]
) -> dict[str, object] | None:
    """Acceptance of the queries whose difficulty is not known; `None` where there is none.

    They are often the hardest: the measure is read off answers, and none of theirs could be read.
    """
    left = [query.id in accepted for query in queries if query.id not in difficulty.values]
    if not left:
        return None
    return {
        "queries": len(left),
        "accepted": sum(left),
        "acceptance": wilson(sum(left), len(left)).model_dump(),
    }


def by_difficulty(difficulty: Difficulty, accepted: Collection[str]) -> list[dict[str, object]]:
    """Acceptance in four parts of equal size, the easiest first; equal values stay together.

    Queries without a value are in none of them: see `unmeasured`.
    """
    if not difficulty.values:
        return []
    values = np.array(list(difficulty.values.values()))
    taken = np.array([query_id in accepted for query_id in difficulty.values])
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    place = np.searchsorted(edges, values, side="left")
    rows: list[dict[str, object]] = []
    for part in np.unique(place):
        inside = place == part
        rows.append(
            {
                "from": float(values[inside].min()),
                "to": float(values[inside].max()),
                "queries": int(inside.sum()),
                "accepted": int(taken[inside].sum()),
                "acceptance": wilson(int(taken[inside].sum()), int(inside.sum())).model_dump(),
            }
        )
    return rows
