"""Adapters on disk: whose there are for which shared student, and whose must no longer answer.

FOLDER/TASK/online holds `adapters.json` (replaced at once), `adapters/SHA-256.safetensors` (never
changed) and `forgotten/`, one file for each user whom the gateway has forgotten and the learner has
not yet. The learner writes the first two, the gateway the third; both read all. Imports no runtime.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final, Literal, NamedTuple

from pydantic import Field, ValidationError

from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.jsonl import disk_errors, read_json, write_json
from stillhouse.core.records import Record

INDEX: Final = "adapters.json"
FOLDER: Final = "adapters"
FORGOTTEN: Final = "forgotten"
By = Literal["tenant", "user"]


class AdapterEntry(Record):
    """An adapter that may answer."""

    owner: str = Field(description="As `owner_key` says.")
    delta: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of its numbers.")


class Adapters(Record):
    """Whose adapters there are for one shared student."""

    shared: str = Field(description="SHA-256 of the shared last layer that they add to.")
    adapters: tuple[AdapterEntry, ...] = ()


class AdapterIndex(Adapters):
    """adapters.json: those of the live version."""

    by: By = "tenant"
    earlier: Adapters | None = Field(
        default=None,
        description="Those of the version that the gateway has, until it is given the live one.",
    )

    def of(self, shared: str) -> tuple[AdapterEntry, ...] | None:
        """The adapters beside a last layer; `None`: there are none for it."""
        for one in (self, self.earlier):
            if one is not None and one.shared == shared:
                return one.adapters
        return None


class Forgotten(Record):
    """A user whom the gateway has forgotten."""

    tenant: str
    whose: str = Field(description="The user's pseudonym.")


class Told(NamedTuple):
    """A user to be forgotten, and the file that says so: removed once it is done."""

    path: Path
    user: Forgotten


def owner_key(tenant: str, whose: str | None, by: By) -> str | None:
    """Whose adapter answers; `None` where nobody's can. `whose`: the user's pseudonym."""
    if by == "tenant":
        return tenant
    return None if whose is None else f"{tenant}\n{whose}"


def delta_path(root: Path, digest: str) -> Path:
    """Where an adapter's numbers lie."""
    return root / FOLDER / f"{digest}.safetensors"


def write_index(root: Path, index: AdapterIndex) -> None:
    """Replace the index at once."""
    write_json(root / INDEX, index.model_dump(mode="json"))


def read_index(root: Path) -> AdapterIndex | None:
    """The index; `None` where nothing was learned yet.

    Raises:
        UserError: it was changed, or cannot be read.
    """
    path = root / INDEX
    if not path.exists():
        return None
    try:
        return AdapterIndex.model_validate(read_json(path))
    except (RunFolderError, ValidationError) as error:
        raise UserError(
            str(path), f"is damaged: {str(error).splitlines()[0]}", action="refine again"
        ) from None


def forget_user(root: Path, tenant: str, whose: str) -> None:
    """No adapter that a user may have a part in answers from now on, until the learner has made it
    without them. Nothing is written where nothing was learned.

    Raises:
        RunFolderError: it cannot be written.
    """
    if not root.is_dir():
        return
    name = hashlib.sha256(f"{tenant}\n{whose}".encode("utf-8", "surrogatepass")).hexdigest()
    with disk_errors(root / FORGOTTEN):
        (root / FORGOTTEN).mkdir(exist_ok=True)
    one = Forgotten(tenant=tenant, whose=whose)
    write_json(root / FORGOTTEN / f"{name}.json", one.model_dump(mode="json"))


def forgotten_users(root: Path) -> list[Told]:
    """Who is still to be forgotten.

    Raises:
        UserError: it is not known, for the folder or a file in it cannot be read.
    """
    folder, found = root / FORGOTTEN, []
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            str(folder),
            f"cannot be read ({error.strerror}), and says whose adapters answer no more",
            action="let this process read it",
        ) from None
    for path in (folder / name for name in names if name.endswith(".json")):
        try:
            found.append(Told(path, Forgotten.model_validate(read_json(path))))
        except (RunFolderError, ValidationError) as error:
            if not path.exists():  # done meanwhile
                continue
            raise UserError(
                str(path),
                f"is damaged: {str(error).splitlines()[0]}",
                action="forget the user with: stillhouse online --forget, then delete this file",
            ) from None
    return found
