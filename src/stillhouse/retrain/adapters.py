"""Adapters of tenants or users: what their own corrected answers add to the shared last layer.

Each is tested before it is used: on its owner's rows, each predicted by an adapter that did not
see it, it must be better than the shared student; on the guard set it may cost only so much. Who
has none that passed is answered by the shared student. Knows lessons and heads; no gateway.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from pydantic import Field

from stillhouse.core.hashing import unit_hash
from stillhouse.core.jsonl import read_records, write_records
from stillhouse.core.loop_online import PersonalSection
from stillhouse.core.records import Record
from stillhouse.models.head_weights import Floats, HeadWeights, load_head, save_head
from stillhouse.retrain.online_rows import Lesson
from stillhouse.retrain.online_step import Table

INDEX: Final = "adapters.jsonl"
FOLDS: Final = 4
Fit = Callable[[HeadWeights, Floats, Floats], HeadWeights]


class Adapter(Record):
    """One line of adapters.jsonl."""

    owner: str = Field(description="Tenant, or tenant, newline and the user's pseudonym.")
    state: Literal["used", "refused"]
    why: str = ""
    digest: str = ""
    base: str = Field(description="SHA-256 of the student whose features it reads.")
    rows: int
    shared: float = Field(description="Share of its rows that the shared student gets right.")
    own: float = Field(description="That an adapter which did not see them gets right.")
    guard_cost: float = Field(description="Agreement with the guard set that it costs.")


class Tried(NamedTuple):
    """An adapter and its test."""

    adapter: Adapter
    delta: HeadWeights


def try_adapter(
    owner: str,
    lessons: Sequence[Lesson],
    rows: Table,
    guard: Table,
    shared: HeadWeights,
    *,
    section: PersonalSection,
    base: str,
    fit: Fit,
) -> Tried:
    """Fit and test one.

    Args:
        lessons: the owner's corrected answers; `rows` are theirs.
        base: SHA-256 of the student.
    """
    fold = np.array([int(unit_hash(one.id, 0) * FOLDS) for one in lessons])
    seen_by_none = np.zeros(len(lessons))
    for number in np.unique(fold):
        out, rest = fold == number, fold != number
        if not rest.any():
            continue
        delta = fit(shared, rows.features[rest], rows.targets[rest])
        held = Table(rows.features[out], rows.targets[out])
        seen_by_none[out] = held.scores(added(shared, delta))
    before = rows.scores(shared)
    delta = fit(shared, rows.features, rows.targets)
    cost = 0.0
    if len(guard.targets):
        cost = float(guard.scores(shared).mean() - guard.scores(added(shared, delta)).mean())
    why = ""
    if seen_by_none.mean() <= before.mean():
        why = "no better than the shared student on its owner's rows"
    elif cost > section.harm:
        why = f"costs {cost:.3f} of the guard set, more than personal.harm"
    elif not len(guard.targets):
        why = "the guard set is empty"
    adapter = Adapter(
        owner=owner,
        state="refused" if why else "used",
        why=why,
        digest=delta.digest(),
        base=base,
        rows=len(lessons),
        shared=float(before.mean()),
        own=float(seen_by_none.mean()),
        guard_cost=cost,
    )
    return Tried(adapter, delta)


def added(shared: HeadWeights, delta: HeadWeights) -> HeadWeights:
    """The shared head with an adapter on it."""
    return HeadWeights(shared.weight + delta.weight, shared.bias + delta.bias)


class Adapters:
    """The folder of adapters; the index is written last.

    Args:
        most: how many are kept; the earliest go.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        path = folder / INDEX
        found = list(read_records(path, Adapter)) if path.exists() else []
        self._index = {one.owner: one for one in found}

    @property
    def index(self) -> Mapping[str, Adapter]:
        """All, by owner, the earliest first."""
        return self._index

    def put(self, tried: Sequence[Tried]) -> None:
        """Take new ones in place of their owners' earlier ones."""
        for one in tried:
            if one.adapter.state == "used":
                save_head(self._path(one.adapter), one.delta)
            self._index.pop(one.adapter.owner, None)
            self._index[one.adapter.owner] = one.adapter
        for owner in list(self._index)[: max(0, len(self._index) - self._most)]:
            del self._index[owner]
        self._commit()

    def drop(self, gone: Callable[[str], bool]) -> int:
        """Take owners' adapters away; how many."""
        names = [owner for owner in self._index if gone(owner)]
        for owner in names:
            del self._index[owner]
        self._commit()
        return len(names)

    def of(self, owner: str, base: str) -> HeadWeights | None:
        """An owner's adapter for a student; `None`: the shared student answers.

        Raises:
            UserError: its file was changed.
        """
        one = self._index.get(owner)
        if one is None or one.state != "used" or one.base != base:
            return None
        return load_head(self._path(one), one.digest)

    def _path(self, one: Adapter) -> Path:
        name = hashlib.sha256(one.owner.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self._folder / f"{name}-{one.digest[:16]}.safetensors"

    def _commit(self) -> None:
        if self._index or self._folder.exists():
            write_records(self._folder / INDEX, self._index.values())
            named = {self._path(one) for one in self._index.values() if one.state == "used"}
            for path in self._folder.glob("*.safetensors"):
                if path not in named:
                    path.unlink()
