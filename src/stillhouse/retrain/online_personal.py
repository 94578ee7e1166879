"""Adapters of tenants or users: fitted to their corrected answers, guarded, unused where they fail.

An adapter must win more of its owner's corrected rows than it loses, each row judged by a fit
without it (cross-validation), and may cost the shared guard set `harm` at most. It is made anew
when its rows or the student change, and judged anew when the shared head does. Knows arrays and
lessons; no file and no gateway.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stillhouse.core.hashing import unit_hash
from stillhouse.core.loop_online import PersonalSection
from stillhouse.core.records import Record
from stillhouse.models.adapter_files import owner_key
from stillhouse.models.head_weights import Floats, HeadWeights
from stillhouse.retrain.online_rows import Lesson
from stillhouse.retrain.online_step import Table

FOLDS: Final = 4
Fit = Callable[[HeadWeights, Floats, Floats], HeadWeights]
Tabled = Callable[[Sequence[Lesson]], Table]
Delta = Callable[[str], HeadWeights]


class AdapterNote(Record):
    """What is known of an owner's adapter."""

    owner: str
    delta: str = Field(description="SHA-256 of its numbers.")
    student: str = Field(description="SHA-256 of the student whose features it reads.")
    shared: str = Field(description="SHA-256 of the shared head that it was judged with.")
    rows: str = Field(description="SHA-256 of the rows that it was fitted to.")
    count: int = Field(ge=1, description="Of these rows.")
    made_at: float
    won: int = Field(ge=0, description="Own rows that it gets right and the shared head does not.")
    lost: int = Field(ge=0)
    harm: float = Field(description="Agreement with the guard set that it costs.")
    refused: str | None = Field(default=None, description="Why it does not answer.")


class Adapters(NamedTuple):
    """All owners' adapters, and the numbers of those that were made just now."""

    notes: tuple[AdapterNote, ...]
    made: Mapping[str, HeadWeights]  # by digest


class Around(NamedTuple):
    """What adapters are fitted beside."""

    head: HeadWeights
    student: str
    guard: Sequence[Lesson]
    at: float


def added(head: HeadWeights, delta: HeadWeights) -> HeadWeights:
    """The shared head with an adapter."""
    return HeadWeights(head.weight + delta.weight, head.bias + delta.bias)


def owners_of(lessons: Sequence[Lesson], section: PersonalSection) -> dict[str, list[Lesson]]:
    """Each owner's corrected rows, where they are enough."""
    found: dict[str, list[Lesson]] = {}
    for one in lessons:
        owner = owner_key(one.tenant, one.whose, section.by)
        if owner is not None:
            found.setdefault(owner, []).append(one)
    return {owner: own for owner, own in found.items() if len(own) >= section.least_rows}


def refresh(
    old: Sequence[AdapterNote],
    lessons: Sequence[Lesson],
    around: Around,
    *,
    tabled: Tabled,
    delta: Delta,
    section: PersonalSection,
    fit: Fit,
) -> Adapters:
    """The adapters that there should be now. Without a guard set there are none.

    Args:
        lessons: corrected rows of all owners.
        delta: reads an adapter's numbers by their digest.
    """
    owners = owners_of(lessons, section)
    if not owners or not around.guard:
        return Adapters((), {})
    guard = tabled(around.guard)
    before = {one.owner: one for one in old}
    notes: list[AdapterNote] = []
    made: dict[str, HeadWeights] = {}
    for owner, own in sorted(owners.items()):
        note = before.get(owner)
        if note is None or note.rows != rows_sha(own) or note.student != around.student:
            new, numbers = _made(
                owner, own, around, rows=tabled(own), guard=guard, section=section, fit=fit
            )
            made[new.delta] = numbers
            notes.append(new)
        elif note.shared != around.head.digest():
            notes.append(_judged(note, delta(note.delta), around, guard, section))
        else:
            notes.append(note)
    kept = sorted(notes, key=lambda one: (one.made_at, one.owner))[-section.most :]
    named = {one.delta for one in kept}
    return Adapters(tuple(kept), {key: made[key] for key in made if key in named})


def rows_sha(lessons: Sequence[Lesson]) -> str:
    """SHA-256 of which rows there are and what is right in each."""
    told = sorted((one.id, one.target) for one in lessons)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _made(
    owner: str,
    own: Sequence[Lesson],
    around: Around,
    *,
    rows: Table,
    guard: Table,
    section: PersonalSection,
    fit: Fit,
) -> tuple[AdapterNote, HeadWeights]:
    shared = rows.scores(around.head)
    without = np.zeros(len(own))
    for out in _folds(own):
        part = fit(around.head, rows.features[~out], rows.targets[~out])
        held = Table(rows.features[out], rows.targets[out])
        without[out] = held.scores(added(around.head, part))
    numbers = fit(around.head, rows.features, rows.targets)
    note = AdapterNote(
        owner=owner,
        delta=numbers.digest(),
        student=around.student,
        shared=around.head.digest(),
        rows=rows_sha(own),
        count=len(own),
        made_at=around.at,
        won=int((without > shared).sum()),
        lost=int((without < shared).sum()),
        harm=0.0,
    )
    return _judged(note, numbers, around, guard, section), numbers


def _judged(
    note: AdapterNote,
    numbers: HeadWeights,
    around: Around,
    guard: Table,
    section: PersonalSection,
) -> AdapterNote:
    before = guard.scores(around.head)
    harm = float((before - guard.scores(added(around.head, numbers))).mean())
    refused = None
    if note.won <= note.lost:
        refused = f"wins {note.won} of its owner's rows and loses {note.lost}"
    elif harm > section.harm:
        refused = f"costs {harm:.1%} of the guard set, {section.harm:.1%} are allowed"
    return note.model_copy(
        update={"shared": around.head.digest(), "harm": harm, "refused": refused}
    )


def _folds(own: Sequence[Lesson]) -> list[npt.NDArray[np.bool_]]:
    """Rows by the hash of their names, alike many in each fold but for one."""
    order = sorted(range(len(own)), key=lambda at: (unit_hash(f"fold:{own[at].id}", 0), own[at].id))
    fold = np.empty(len(own), dtype=np.int64)
    fold[order] = np.arange(len(own)) % FOLDS
    return [fold == number for number in range(FOLDS)]
