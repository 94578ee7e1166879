"""Adapters while they are served: found by who asks, read again as soon as the files change.

What cannot be used is not: the shared student answers, and `troubles` says why, once. An adapter's
numbers are read when its owner first asks, and the most recently used are kept. Knows files; no
student, no request.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.core.errors import UserError
from stillhouse.models.adapter_files import (
    FORGOTTEN,
    INDEX,
    AdapterIndex,
    delta_path,
    forgotten_users,
    owner_key,
    read_index,
)
from stillhouse.models.head_weights import HeadWeights, load_head

KEPT: Final = 1024  # adapters in memory
SHARED: Final = "shared"
BROKEN: Final = "broken"
DIGITS: Final = 12
# A file that was written this recently may be written again without its time changing.
SETTLED_S: Final = 0.1


class Found(NamedTuple):
    """Whose last layer answers. `name`: `shared`, `broken` (shared, for that reason), or the first
    digits of the adapter's SHA-256."""

    name: str
    delta: HeadWeights | None


class LiveAdapters:
    """See the module.

    Args:
        root: FOLDER/TASK/online; need not be there yet.
        head: the last layer of the shared student that is served.
        kept: adapters in memory.
    """

    def __init__(
        self,
        root: Path,
        head: HeadWeights,
        kept: int = KEPT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root, self._most, self._clock = root, kept, clock
        self._shared, self._shape = head.digest(), head.weight.shape
        self._by = AdapterIndex(shared="").by
        self._deltas: dict[str, str] = {}  # owner to digest
        self._numbers: OrderedDict[str, HeadWeights] = OrderedDict()
        self._broken: set[str] = set()
        self._stamp: object = None
        self._told: set[str] = set()
        self._troubles: list[str] = []

    def troubles(self) -> list[str]:
        """What became known since the last call of adapters that are not used."""
        found, self._troubles = self._troubles, []
        return found

    def refresh(self) -> None:
        """Take what the files say now. Two looks at the disk where nothing changed."""
        stamp = self._look()
        if stamp is not None and stamp == self._stamp:
            return
        self._stamp = stamp
        self._read()

    def find(self, asker: str | None) -> Found:
        """Whose last layer answers.

        Args:
            asker: a tenant, or a tenant and a user's pseudonym with a line break between.
        """
        if asker is None:
            return Found(SHARED, None)
        tenant, _, whose = asker.partition("\n")
        digest = self._digest(tenant, whose)
        if digest is not None and not self._ready(digest):
            self._read()  # it may have been replaced since the index was read
            digest = self._digest(tenant, whose)
        if digest is None:
            return Found(SHARED, None)
        if not self._ready(digest, tell=True):
            return Found(BROKEN, None)
        self._numbers.move_to_end(digest)
        return Found(digest[:DIGITS], self._numbers[digest])

    def _digest(self, tenant: str, whose: str) -> str | None:
        """Of an asker's adapter."""
        owner = owner_key(tenant, whose or None, self._by)
        return None if owner is None else self._deltas.get(owner)

    def _ready(self, digest: str, *, tell: bool = False) -> bool:
        """Whether an adapter can be used; its numbers are in memory then.

        Args:
            tell: a problem is one, and is not looked at again.
        """
        if digest in self._numbers:
            return True
        if digest in self._broken:
            return False
        problem = self._load(digest)
        if problem is not None and tell:
            self._broken.add(digest)
            self._tell(f"{problem}: the shared student answers in its stead")
        return problem is None

    def _look(self) -> object:
        """What tells one state of the files from another; `None`: they change just now."""
        seen: list[tuple[int, int, int] | None] = []
        newest = 0.0
        for name in (INDEX, FORGOTTEN):
            try:
                found = os.stat(self._root / name)
            except OSError:
                seen.append(None)
            else:
                seen.append((found.st_mtime_ns, found.st_ino, found.st_size))
                newest = max(newest, found.st_mtime)
        return None if self._clock() - newest < SETTLED_S else tuple(seen)

    def _read(self) -> None:
        deltas: dict[str, str] = {}
        try:
            # Users first: one who is forgotten between the two reads is no longer in the index.
            gone = forgotten_users(self._root)
            index = read_index(self._root)
        except UserError as error:
            self._tell(f"{error}: no adapter is used")
            index = None
        if index is not None:
            self._by = index.by
            entries = index.of(self._shared)
            if entries is None:
                if index.adapters:
                    self._tell(
                        f"the adapters in {self._root} are of another version of the student "
                        f"({index.shared[:DIGITS]}): none is used"
                    )
            else:
                out = {owner_key(one.user.tenant, one.user.whose, index.by) for one in gone}
                deltas = {one.owner: one.delta for one in entries if one.owner not in out}
        self._deltas = deltas
        held = set(deltas.values())
        self._broken &= held
        for digest in [one for one in self._numbers if one not in held]:
            del self._numbers[digest]

    def _load(self, digest: str) -> str | None:
        """Take an adapter's numbers; why it cannot be used."""
        path = delta_path(self._root, digest)
        try:
            delta = load_head(path, digest)
        except UserError as error:
            return str(error)
        if delta.weight.shape != self._shape:
            return f"{path} is of the shape {delta.weight.shape}"
        self._numbers[digest] = delta
        if len(self._numbers) > self._most:
            self._numbers.popitem(last=False)
        return None

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._troubles.append(text)
