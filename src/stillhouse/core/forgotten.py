"""The record that a user was forgotten: forgotten.jsonl of a run folder, without the name.

Each line has a salt of its own and a hash, so that who knows the name can check that it was done
and nobody can list the names or link two lines. It also keeps the traffic stage from reading a
forgotten user's lines again. Knows hashes; removes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from stillhouse.core.jsonl import AppendOnlyFile, read_records
from stillhouse.core.records import Record

FORGOTTEN: Final = "forgotten.jsonl"


class Forgotten(Record):
    """One line. `begun` is written before anything is removed, `done` after all of it was."""

    at: str = Field(description="UTC, ISO 8601.")
    state: Literal["begun", "done"]
    salt: str
    user: str = Field(description="HMAC-SHA256 of the name under the salt.")
    removed: Mapping[str, int] = Field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


def hashed(salt: str, user: str) -> str:
    """A user's name under a salt, 64 hex digits."""
    key, name = salt.encode("ascii"), user.encode("utf-8", "surrogatepass")
    return hmac.new(key, name, hashlib.sha256).hexdigest()


class ForgottenUsers:
    """Who was forgotten in a run folder, as a question that can be asked of a name."""

    def __init__(self, root: Path) -> None:
        path = root / FORGOTTEN
        self._lines = list(read_records(path, Forgotten)) if path.exists() else []
        self._known: dict[str, bool] = {}

    def __contains__(self, user: object) -> bool:
        if not isinstance(user, str) or not self._lines:
            return False
        if user not in self._known:
            self._known[user] = bool(self.lines_of(user))
        return self._known[user]

    def lines_of(self, user: str) -> list[Forgotten]:
        """The lines about a user, in the order they were written."""
        return [line for line in self._lines if hashed(line.salt, user) == line.user]


def record_forgotten(
    root: Path,
    user: str,
    state: Literal["begun", "done"],
    *,
    removed: Mapping[str, int] | None = None,
    datasets: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
) -> None:
    """Append a line; it is on the disk when this returns."""
    salt = secrets.token_hex(16)
    line = Forgotten(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        state=state,
        salt=salt,
        user=hashed(salt, user),
        removed=dict(removed or {}),
        datasets=datasets,
        models=models,
    )
    file = AppendOnlyFile(root / FORGOTTEN)
    try:
        file.append([line.to_json()])
    finally:
        file.close()
