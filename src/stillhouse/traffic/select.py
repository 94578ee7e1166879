"""Choose a diverse part of the traffic: embed, cluster, drop semantic duplicates, select, measure.

Every query left out is kept with its reason; every chosen one carries its cluster in its metadata;
coverage.json says how near the traffic is to the chosen set, beside random sets of the same size.
Knows queries and the recipe's section; the methods are in `core` and `models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from stillhouse.core.coverage import coverage
from stillhouse.core.errors import UserError
from stillhouse.core.facility import facility_location, neighbour_graph
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_data import SelectSection
from stillhouse.core.records import Query, Rejection
from stillhouse.core.selection import Indices, Strata, Vectors, k_center, quotas
from stillhouse.core.semantic_duplicates import semantic_duplicates
from stillhouse.core.split import unit_hash
from stillhouse.core.tasks import Task
from stillhouse.models.clusters import Clusters, cluster, default_clusters, nearest
from stillhouse.models.embedders import embed_all, open_embedder

EXAMPLES: Final = 3  # of each cluster, in coverage.json
EXAMPLE_CHARS: Final = 160


class Selected(NamedTuple):
    """The chosen queries in the order of the traffic, the labelled ones that join them, and why
    each other one was left out. `report` is coverage.json, `summary` its short form.
    """

    queries: list[Query]
    joined: list[Query]
    rejections: list[Rejection]
    report: dict[str, object]
    summary: dict[str, object]


def select_queries(  # noqa: PLR0917 - what the stage knows
    queries: Sequence[Query],
    joined: Sequence[Query],
    task: Task,
    section: SelectSection,
    seed: int,
    progress: Progress,
) -> Selected:
    """Choose `section.n` of the queries; see the module.

    Args:
        queries: the traffic, without repeats; at least one.
        joined: labelled queries, which are asked in any case: what is near them is covered.
        task: says which part of a query varies.
        section: how to choose.
        seed: of clusters and choice.
        progress: where the bar goes.

    Raises:
        UserError: the floors of all clusters together are more than n.
        MissingExtraError: the embedder needs an extra that is not installed.
    """
    texts = [task.varying_text(query) for query in queries]
    embedder = open_embedder(section.embedder, texts)
    vectors = embed_all(embedder, texts, progress)
    given = embed_all(embedder, [task.varying_text(query) for query in joined], progress)
    k = section.clusters or min(default_clusters(len(queries)), section.n)
    with progress.bar("choosing queries", 4, "steps") as bar:
        space = _Space(queries, texts, vectors, cluster(vectors, k, seed))
        labels, centres = space.clusters
        bar.advance()
        twins: dict[int, int] = {}
        if section.semantic_duplicate is not None:
            twins = semantic_duplicates(
                vectors, labels, centres, section.semantic_duplicate, section.semantic_keep
            )
        bar.advance()
        chosen = _choose(space, twins, given, section, seed)
        bar.advance()
        measured = coverage(vectors, chosen, start=given, seed=seed)
        bar.advance()
    counts = np.bincount(labels[chosen], minlength=len(centres))
    return Selected(
        queries=[queries[i].in_cluster(int(labels[i])) for i in np.sort(chosen).tolist()],
        joined=[
            query.in_cluster(int(label))
            for query, label in zip(joined, nearest(given, centres).labels, strict=True)
        ],
        rejections=_rejections(space, set(chosen.tolist()), twins, counts, section.method),
        report={
            "method": section.method,
            "embedder": embedder.name,
            "queries": len(texts),
            "semantic_duplicates": len(twins),
            "coverage": measured.as_json(),
            "clusters": _rows(space, twins, counts),
        },
        summary={
            "semantic_duplicates": len(twins),
            "not_selected": len(queries) - len(twins) - len(chosen),
            "clusters": len(centres),
            "coverage_p95": round(measured.chosen.p95, 4),
            "coverage_p95_random": round(measured.random.p95, 4),
            "coverage_mean": round(measured.chosen.mean, 4),
            "coverage_mean_random": round(measured.random.mean, 4),
        },
    )


class _Space(NamedTuple):
    """The traffic: N queries, what varies of them, their vectors [N, H] and clusters."""

    queries: Sequence[Query]
    texts: Sequence[str]
    vectors: Vectors
    clusters: Clusters


def _choose(
    space: _Space, twins: dict[int, int], given: Vectors, section: SelectSection, seed: int
) -> Indices:
    """Indices of the chosen queries; `twins` are not among them."""
    pool = np.array([i for i in range(len(space.queries)) if i not in twins], dtype=np.int64)
    labels, centres = space.clusters.labels[pool], space.clusters.centres
    sizes = np.bincount(labels, minlength=len(centres)).astype(np.int64)
    n = min(section.n, len(pool))
    try:
        strata = Strata(labels, quotas(sizes, n, section.floor))
    except ValueError as error:
        raise UserError(
            "traffic.select",
            f"cannot keep its floor: {error}",
            action="raise traffic.select.n, or lower traffic.select.floor or clusters",
        ) from None
    vectors = space.vectors[pool]
    if section.method == "random":
        ids = [space.queries[index].id for index in pool]
        return pool[_random(ids, strata, seed)]
    if section.method == "k_center":
        return pool[k_center(vectors, n, start=given, strata=strata, seed=seed).chosen]
    graph = neighbour_graph(vectors, labels, centres)
    return pool[facility_location(vectors, n, graph, start=given, strata=strata).chosen]


def _random(ids: Sequence[str], strata: Strata, seed: int) -> Indices:
    """Of each cluster those with the least hash of seed and id."""
    draws = np.array([unit_hash(name, seed) for name in ids])
    order = np.lexsort((np.arange(len(ids)), draws, strata.groups))
    starts = np.searchsorted(strata.groups[order], np.arange(len(strata.quotas)))
    parts = [
        order[start : start + quota]
        for start, quota in zip(starts.tolist(), strata.quotas.tolist(), strict=True)
    ]
    return np.concatenate(parts).astype(np.int64)


def _rejections(
    space: _Space, taken: set[int], twins: dict[int, int], counts: Indices, method: str
) -> list[Rejection]:
    """Why each query that is not taken was left out; `counts` [K] are chosen of each cluster."""
    queries, vectors, sizes = space.queries, space.vectors, space.clusters.sizes
    found: list[Rejection] = []
    for index, query in enumerate(queries):
        if index in taken:
            continue
        label = int(space.clusters.labels[index])
        reason = "not_selected"
        detail = f"{method} chose {counts[label]} of the {sizes[label]} of cluster {label}"
        if index in twins:
            twin = twins[index]
            cosine = float(vectors[index] @ vectors[twin])
            reason = "semantic_duplicate"
            detail = f"nearly means what {queries[twin].id} does (cosine {cosine:.3f})"
        found.append(
            Rejection(query_id=query.id, reason=reason, detail=detail, messages=query.messages)
        )
    return found


def _rows(space: _Space, twins: dict[int, int], counts: Indices) -> list[dict[str, object]]:
    """Each cluster for coverage.json, with its most typical texts."""
    labels, centres = space.clusters
    lost = np.bincount(labels[np.fromiter(twins, dtype=np.int64)], minlength=len(centres))
    rows: list[dict[str, object]] = []
    for label, centre in enumerate(centres):
        members = np.flatnonzero(labels == label)
        typical = members[np.argsort(-(space.vectors[members] @ centre), kind="stable")]
        rows.append(
            {
                "cluster": label,
                "queries": len(members),
                "semantic_duplicates": int(lost[label]),
                "chosen": int(counts[label]),
                "examples": [space.texts[i][:EXAMPLE_CHARS] for i in typical[:EXAMPLES]],
            }
        )
    return rows
