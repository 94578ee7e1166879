"""Deterministic splits: by seed and content alone, the same on every machine and in any order.

Knows ids, group names and texts; does not know what a split is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from stillhouse.core.duplicates import bare, groups_of
from stillhouse.core.hashing import unit_hash
from stillhouse.core.records import Example, LabelledQuery, Query

__all__ = ["Split", "near_groups", "part_of", "split_by_group", "tune_check_split", "unit_hash"]

T = TypeVar("T")
# Fixed, so that all who split a labelled set see the same groups.
NEAR: Final = 0.8


class Split(NamedTuple, Generic[T]):
    """Two disjoint parts, each in the order of the input."""

    first: list[T]
    second: list[T]


def part_of(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """So many of the examples, those whose hash is lowest, in the order of the input.

    With one seed, a larger part holds every smaller one. `None`, or more than there are: all.
    """
    if count is None or count >= len(examples):
        return list(examples)
    order = sorted(examples, key=lambda one: (unit_hash(f"part:{one.id}", seed), one.id))
    chosen = {one.id for one in order[:count]}
    return [one for one in examples if one.id in chosen]


def split_by_group(items: Sequence[T], groups: Sequence[str], share: float, seed: int) -> Split[T]:
    """Move whole groups into the second part until it holds `share` of the items, or just over.

    Groups are taken in the order of their hash; one larger than the whole share stays in the first
    part, so that a large cluster of near-duplicates cannot swallow the split. Both parts are
    non-empty where there are at least two groups.

    Raises:
        ValueError: lengths differ, or there is nothing to split.
    """
    if len(items) != len(groups) or not items:
        raise ValueError("items and groups must be of one length, at least 1")
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    order = sorted(sizes, key=lambda group: (unit_hash(group, seed), group))
    wanted = share * len(items)
    fitting = [group for group in order if sizes[group] <= max(1.0, wanted)]
    if not fitting:
        fitting = [min(order, key=lambda group: sizes[group])]
    moved: set[str] = set()
    count = 0
    for group in fitting:
        if count >= wanted or len(moved) == len(order) - 1:
            break
        moved.add(group)
        count += sizes[group]
    pairs = list(zip(items, groups, strict=True))
    return Split(
        [item for item, group in pairs if group not in moved],
        [item for item, group in pairs if group in moved],
    )


def tune_check_split(
    queries: Sequence[LabelledQuery], check_fraction: float, seed: int
) -> Split[LabelledQuery]:
    """The labelled set as (tune, check): equal and nearly equal texts stay on one side."""
    return split_by_group(queries, near_groups(queries), check_fraction, seed)


def near_groups(queries: Sequence[Query]) -> list[str]:
    """A group id for each query; those that ask nearly the same share one.

    Case, white space and punctuation do not tell texts apart. Where all are nearly the same, only
    equal ones are grouped: two groups are needed to split at all.
    """
    texts = [
        bare("\n".join(m.content for m in query.messages if m.role not in ("system", "developer")))
        for query in queries
    ]
    groups = groups_of(texts, NEAR)
    return groups if len(set(groups)) > 1 else groups_of(texts, 1.0)
