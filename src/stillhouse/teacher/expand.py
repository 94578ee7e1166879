"""New queries from seeds, where the traffic is thin: asked for in rounds, sifted, kept or rejected.

Clusters with fewer queries than the quota are filled up, the thinnest first. Each new text is
checked against the golden and the labelled set (contamination), the traffic and all other new ones
(near-duplicates by words and by vectors), and must fall into a cluster that lacks queries. What is
not kept is a rejection with its reason. Knows how replies are had only as a function.

N queries, H dimensions, K clusters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_data import ExpandSection
from stillhouse.core.records import EXPANDING, Completion, Query, Rejection
from stillhouse.core.split import unit_hash
from stillhouse.core.tasks import Task
from stillhouse.models.embedders import Embedder
from stillhouse.teacher.expand_prompts import read_reply, request_messages
from stillhouse.teacher.expand_sieve import Counts, Draft, Ground, Request, Sieve

PILOT: Final = 8  # replies of which one must be readable before the rest is paid for


class Answered(NamedTuple):
    """Replies by request id, and the requests without one."""

    completions: Mapping[str, tuple[Completion, ...]]
    failures: tuple[Rejection, ...]


AskAll = Callable[[Sequence[Query]], Awaitable[Answered]]


class Expansion(NamedTuple):
    """New queries, and all that was not kept. `before` and `after` [K] count queries a cluster."""

    queries: list[Query]
    rejections: list[Rejection]
    before: Counts
    after: Counts
    rounds: int
    requests: int


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
    sieve = Sieve(task, ground, section, embedder, near_duplicate)
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
            query = Query(id=f"{EXPANDING}{turn}", messages=messages, task="expand")
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
