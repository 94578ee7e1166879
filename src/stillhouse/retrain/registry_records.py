"""What a registry says of a student, and which moves between stages there are.

Frozen records, one table, two errors. Knows no file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, JsonValue

from stillhouse.core.errors import UserError
from stillhouse.core.records import Record

Stage = Literal["candidate", "shadow", "canary", "live", "retired"]
Action = Literal["add", "move", "promote", "roll_back", "alias", "unalias", "remove"]

STAGES: Final[tuple[Stage, ...]] = ("candidate", "shadow", "canary", "live", "retired")
# What `move` may do. A student becomes live by `promote` or `roll_back` alone, since these two also
# say what becomes of the one that was live.
ALLOWED: Final[Mapping[Stage, tuple[Stage, ...]]] = {
    "candidate": ("shadow", "canary", "retired"),
    "shadow": ("candidate", "canary", "retired"),
    "canary": ("candidate", "shadow", "retired"),
    "live": ("retired",),
    "retired": ("candidate",),
}
PROMOTED_FROM: Final[tuple[Stage, ...]] = ("candidate", "shadow", "canary")
LIVE: Final = "live"
PREVIOUS: Final = "previous"
ID_DIGITS: Final = 12
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST: Final = r"^[0-9a-f]{64}$"


class ConflictError(UserError):
    """Another operator moved something of this task first: nothing was done."""


class TamperedError(UserError):
    """A file of the registry is not what the registry wrote; names the file."""

    def __init__(self, path: Path, problem: str, root: Path) -> None:
        super().__init__(
            str(path), problem, action=f"run: stillhouse registry verify --registry {root}"
        )


class Student(Record):
    """A student as it was added: never changed afterwards.

    `digest` is over the names and contents of its files; `id` is "s-" and its first 12 digits.
    `parent` is the id of the student that it was started from, or that it is to follow.
    """

    id: str = Field(pattern=r"^s-[0-9a-f]{12}$")
    digest: str = Field(pattern=_DIGEST)
    task: str
    created_at: float = Field(description="Unix seconds at which it was added.")
    parent: str | None = None
    lineage: Mapping[str, JsonValue] = Field(
        default_factory=dict, description="Traffic window, teacher, dataset, recipe: hashes."
    )
    metrics: Mapping[str, JsonValue] = Field(default_factory=dict)
    artefacts: Mapping[str, str] = Field(
        default_factory=dict, description="Name -> path within the student's folder."
    )


class Entry(Student):
    """A student as it stands now. `version` is of its task's state; it grows with every change."""

    stage: Stage
    version: int = Field(ge=1)
    aliases: tuple[str, ...] = ()


class Move(Record):
    """One line of a task's log: what was done to one student, by whom and why.

    `previous` is the SHA-256 of the line before it, so that a line cannot be changed, dropped or
    put elsewhere unnoticed. Lines of one `version` were written in one step. Where the stage stays
    (an alias was set), both stages are the same; a student that is new or gone has none.
    """

    task: str
    version: int = Field(ge=1)
    at: float
    by: str
    action: Action
    ref: str
    from_stage: Stage | None = None
    to_stage: Stage | None = None
    alias: str | None = None
    reason: str = ""
    entry: str | None = Field(default=None, description="SHA-256 of the entry, where it is added.")
    previous: str = Field(pattern=_DIGEST)


def checked_name(field: str, name: str) -> str:
    """The name of a task or an alias: it becomes a file's name.

    Raises:
        UserError: it holds something else than letters, digits, dots, dashes and underscores.
    """
    if not _NAME.fullmatch(name) or len(name) > 100:
        raise UserError(
            field,
            "has to be up to 100 letters, digits, dots, dashes and underscores, a letter or digit "
            "first",
            value=name,
            action="choose another name",
        )
    return name


def id_of(digest: str) -> str:
    """A student's id."""
    return f"s-{digest[:ID_DIGITS]}"
