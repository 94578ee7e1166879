"""Earlier examples that are trained on again, and what must never be trained on.

A share of every cycle's and label's examples alike, by hash: what is drawn of a share holds what is
drawn of a smaller one, and a new cycle changes nothing of the draw from the older. Texts that are
in a held-out set, or nearly, are left out of whatever is trained on. Knows queries; no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stillhouse.core.duplicates import matches
from stillhouse.core.hashing import unit_hash
from stillhouse.core.records import Query
from stillhouse.core.selection import quotas
from stillhouse.core.tasks import Task


class Earlier(NamedTuple):
    """A query that was learned from: its answer is in the store.

    `source` is the cycle that asked it, `label` its class, where it has one.
    """

    query: Query
    source: str
    label: str | None


class Clean(NamedTuple):
    """Queries that may be trained on, and how many may not."""

    queries: list[Query]
    held_back: int


def replayed(earlier: Sequence[Earlier], share: float, most: int | None, seed: int) -> list[Query]:
    """The earlier queries to train on again, in their order; see the module."""
    wanted = round(share * len(earlier))
    wanted = wanted if most is None else min(wanted, most)
    if wanted == 0:
        return []
    strata: dict[tuple[str, str], list[int]] = {}
    for index, one in enumerate(earlier):
        strata.setdefault((one.source, one.label or ""), []).append(index)
    names = sorted(strata)
    sizes = np.array([len(strata[name]) for name in names], dtype=np.int64)
    floor = 1 if wanted >= len(names) else 0
    taken: set[int] = set()
    for name, quota in zip(names, quotas(sizes, wanted, floor), strict=True):
        order = sorted(strata[name], key=lambda i: _draw(earlier[i].query.id, seed))
        taken.update(order[: int(quota)])
    return [one.query for index, one in enumerate(earlier) if index in taken]


def _draw(name: str, seed: int) -> tuple[float, str]:
    return unit_hash(f"replay:{name}", seed), name


def decontaminated(
    task: Task, queries: Sequence[Query], held_out: Sequence[Query], threshold: float
) -> Clean:
    """Without those whose text is in a held-out set, or nearly.

    Args:
        threshold: as `dataset.near_duplicate`.
    """
    found = matches(
        [task.varying_text(query) for query in queries],
        [task.varying_text(query) for query in held_out],
        threshold,
    )
    kept = [query for index, query in enumerate(queries) if index not in found]
    return Clean(kept, len(found))
