"""Writing a version of the student: its folder first, whole or not at all, then the state with it.

Knows students with a last layer and the state; not how the layer was learned.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import JsonValue

from stillhouse.core.artefact import student_sha
from stillhouse.core.jsonl import disk_errors
from stillhouse.models.head_weights import HeadStudent, HeadWeights, save_head
from stillhouse.retrain.online_rows import Lesson
from stillhouse.retrain.online_state import OnlineState, Seen, Store, Version

Kind = Literal["learned", "rebuilt"]


class Made(NamedTuple):
    """A new head, and how it came about."""

    head: HeadWeights
    kind: Kind
    guard: Mapping[str, JsonValue]
    contributors: Mapping[tuple[str, str], Seen]
    seen: int
    at: float


def rebase(
    state: OnlineState, store: Store, head: HeadWeights, student: str, folder: Path, *, at: float
) -> OnlineState:
    """Begin from another student, which a retraining has put to work, and commit that. Rows and
    tallies stay; numbers of versions go on.

    Args:
        student: SHA-256 of its folder.
    """
    number = max((one.number for one in state.versions), default=-1) + 1
    save_head(store.head_path(head.digest()), head)
    base = Version(
        number=number,
        kind="base",
        head=head.digest(),
        student=student,
        path=str(folder.resolve()),
        made_at=at,
        seen=state.seen,
    )
    update = {"base": number, "live": number, "handed": number, "versions": (base,)}
    state = state.model_copy(update={**update, "learned_to": state.seen})
    store.commit(state)
    store.point(base)
    return state


def note(contributors: dict[tuple[str, str], Seen], lessons: Sequence[Lesson]) -> None:
    """Add whose rows are in a head that becomes live, with the newest of each."""
    for one in lessons:
        old = contributors.get((one.tenant, one.whose))
        if old is None or old.at < one.at:
            contributors[one.tenant, one.whose] = Seen(
                id=one.id, at=one.at, tenant=one.tenant, whose=one.whose
            )


def write_version(
    state: OnlineState, store: Store, student: HeadStudent, made: Made, keep: int
) -> OnlineState:
    """Write the folder versions/N; the state in which it is live, not yet committed.

    Args:
        keep: versions that stay, the base among them; beside the one that the gateway has, which
            could not start again without its folder.
    """
    number = max(one.number for one in state.versions) + 1
    folder = store.root / "versions" / str(number)
    part = folder.with_name(f"{number}.partial")
    with disk_errors(folder):
        for old in (part, folder):  # of a pass that was killed before its commit
            if old.exists():
                shutil.rmtree(old)
        part.parent.mkdir(parents=True, exist_ok=True)
        student.write(made.head, part)
        part.replace(folder)
    save_head(store.head_path(made.head.digest()), made.head)
    live = state.version(state.live)
    both = {(one.tenant, one.whose): one for one in live.contributors} | dict(made.contributors)
    version = Version(
        number=number,
        kind=made.kind,
        parent=state.live,
        head=made.head.digest(),
        student=student_sha(folder),
        path=str(folder.resolve()),
        made_at=made.at,
        seen=made.seen,
        guard=made.guard,
        contributors=tuple(both[key] for key in sorted(both)),
    )
    base = state.version(state.base)
    learned = [one for one in state.versions if one.number != base.number]
    first = max(0, len(learned) + 2 - keep)
    given = [one for one in learned[:first] if one.number == state.handed]
    kept = (base, *given, *learned[first:], version)
    return state.model_copy(update={"versions": kept, "live": number})
