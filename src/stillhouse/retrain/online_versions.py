"""Writing a version of the student: its folder first, whole or not at all, then the state with it.

Knows students with a last layer and the state; not how the layer was learned.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import JsonValue

from stillhouse.core.artefact import student_sha
from stillhouse.core.jsonl import disk_errors
from stillhouse.models.head_weights import HeadStudent, HeadWeights, save_head
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


def write_version(
    state: OnlineState, store: Store, student: HeadStudent, made: Made, keep: int
) -> OnlineState:
    """Write the folder versions/N; the state in which it is live, not yet committed.

    Args:
        keep: versions that stay, the base among them.
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
    kept = (base, *learned[max(0, len(learned) + 2 - keep) :], version)
    return state.model_copy(update={"versions": kept, "live": number})
