"""The expand stage: the traffic stage's files, with queries that the teacher wrote added.

Writes queries.jsonl (the traffic, then the new ones), copies of labelled.jsonl and golden.jsonl,
rejections.jsonl with all that was not kept, and expansion.json. The stages after it read this
folder in place of the traffic's. The replies go through the answer store: paid for once. Knows
files; `expand` decides.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import numpy as np

from stillhouse.core.jsonl import read_records, write_json, write_records
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_data import ExpandSection
from stillhouse.core.records import CLUSTER, LabelledQuery, Query
from stillhouse.core.runfolder import Outcome
from stillhouse.core.selection import Vectors
from stillhouse.models.clusters import Clusters, cluster, default_clusters, mean_directions
from stillhouse.models.completer import Sampling
from stillhouse.models.embedders import embed_all, open_embedder
from stillhouse.teacher.ask_as import ask_as
from stillhouse.teacher.batch_journal import FOLDER, held_by_batches
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.expand import Answered, Expansion, expand
from stillhouse.teacher.expand_prompts import reply_schema
from stillhouse.teacher.expand_sieve import Ground
from stillhouse.teacher.replay import STORE_FILE
from stillhouse.teacher.stage import GOLDEN, LABELLED, QUERIES
from stillhouse.teacher.store import AnswerStore

EXPANSION: Final = "expansion.json"
REJECTIONS: Final = "rejections.jsonl"


def run_expand(
    recipe: Recipe, traffic_dir: Path, store_path: Path, work: Path, progress: Progress
) -> Outcome:
    """Add queries where the traffic is thin; see the module.

    The teacher writes with its own weights, also where a tuned one answers: tuning on short answers
    unlearns writing.

    Raises:
        UserError: none of the first replies can be read, or as `ask`.
        TeacherError: as `ask`.
    """
    section = recipe.traffic.expand
    assert section is not None, "the stage is there where the section is"
    queries = list(read_records(traffic_dir / QUERIES, Query))
    labelled = _sets(traffic_dir / LABELLED)
    golden = _sets(traffic_dir / GOLDEN)
    texts = [recipe.task.varying_text(query) for query in queries]
    embedder = open_embedder(section.embedder, texts)
    vectors = embed_all(embedder, texts, progress)
    clusters = _clusters(recipe, section, queries, vectors)
    if recipe.traffic.select is None:
        queries = [
            query.in_cluster(int(label))
            for query, label in zip(queries, clusters.labels, strict=True)
        ]
    ground = Ground(queries, vectors, clusters, labelled, golden)
    usd: dict[Any, float] = {}  # by answer key
    budget_usd = held_by_batches(store_path / FOLDER).budget_left(recipe.teacher.budget_usd)

    async def grow() -> Expansion:
        completer = open_teacher(recipe.teacher, recipe.prices)
        async with aclosing(completer):
            sampling = Sampling(
                max_tokens=section.max_tokens,
                sampling_temperature=section.sampling_temperature,
                json_schema=reply_schema(section.method),
                seed=recipe.seed,
            )
            with AnswerStore(store_path / STORE_FILE) as store:

                async def ask_all(requests: Sequence[Query]) -> Answered:
                    result = await ask_as(
                        recipe.teacher,
                        completer,
                        requests,
                        sampling,
                        store,
                        budget_usd=budget_usd,
                        prices=recipe.prices,
                        progress=progress,
                        title="asking for new queries",
                    )
                    usd.update(result.usd_by_key)
                    return Answered(result.completions_by_query, result.failures)

                return await expand(
                    recipe.task,
                    ground,
                    section,
                    embedder,
                    ask_all,
                    near_duplicate=recipe.dataset.near_duplicate,
                    seed=recipe.seed,
                )

    grown = asyncio.run(grow())
    write_records(work / QUERIES, [*queries, *grown.queries])
    write_records(work / REJECTIONS, grown.rejections)
    for name in (LABELLED, GOLDEN):
        if (traffic_dir / name).exists():
            shutil.copyfile(traffic_dir / name, work / name)
    reasons = Counter(rejection.reason for rejection in grown.rejections)
    thin = np.flatnonzero(grown.before < section.per_cluster)
    summary: dict[str, object] = {
        "synthetic": len(grown.queries),
        "requests": grown.requests,
        "rejected": len(grown.rejections),
        "thin_clusters": len(thin),
        "still_thin": int((grown.after < section.per_cluster).sum()),
        "queries": len(queries) + len(grown.queries),
    }
    write_json(
        work / EXPANSION,
        {
            **summary,
            "method": section.method,
            "rounds": grown.rounds,
            "rejections": dict(sorted(reasons.items())),
            "clusters": [
                {
                    "cluster": int(label),
                    "before": int(grown.before[label]),
                    "after": int(grown.after[label]),
                    "wanted": section.per_cluster,
                }
                for label in thin
            ],
        },
    )
    return Outcome(summary=summary, cost_usd=sum(usd.values()))


def _sets(path: Path) -> list[LabelledQuery]:
    return list(read_records(path, LabelledQuery)) if path.exists() else []


def _clusters(
    recipe: Recipe, section: ExpandSection, queries: Sequence[Query], vectors: Vectors
) -> Clusters:
    """Those of traffic.select, with their centres in this embedder's space; else new ones."""
    if recipe.traffic.select is None:
        k = section.clusters or default_clusters(len(queries))
        return cluster(vectors, k, recipe.seed)
    labels = np.array([query.metadata[CLUSTER] for query in queries], dtype=np.int32)
    return Clusters(labels, mean_directions(vectors, labels))
