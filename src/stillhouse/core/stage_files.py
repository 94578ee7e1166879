"""Whether the files of a finished stage still hold what its manifest says.

A file is read and hashed, unless it is known from the last look: its size, times and inode are
those of then. Among the times is that of the inode's change, which the kernel sets at every write
and no program can choose, so an edit that keeps size and modification time is seen too. As in git's
index, a file that changed less than two seconds before the last look was written down is read
again: a second write may have fallen into the same tick of the clock. Knows files and hashes, no
stages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json, write_json

SEEN: Final = ".seen.json"
SETTLED_NS: Final = 2_000_000_000  # the coarsest clock of a file system in use
HASH_BLOCK: Final = 1 << 20


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 32 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:32]


def changed_files(folder: Path, recorded: Mapping[str, str]) -> tuple[str, ...]:
    """Which of these files are gone or hold something else.

    Args:
        folder: the stage's.
        recorded: path below it: content hash.
    """
    known, settled = _last_look(folder / SEEN)
    looked: dict[str, Any] = {}
    changed: list[str] = []
    read = False
    for name, wanted in recorded.items():
        try:
            facts = (folder / name).stat()
            mark = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
            last = known.get(name)
            if isinstance(last, list) and last[:-1] == mark and facts.st_ctime_ns < settled:
                found = str(last[-1])
            else:
                found, read = hash_file(folder / name), True
        except OSError:
            changed.append(name)
            continue
        looked[name] = [*mark, found]
        if found != wanted:
            changed.append(name)
    if read:
        with suppress(RunFolderError):  # a folder that cannot be written is read every time
            write_json(folder / SEEN, {"files": looked})
    return tuple(changed)


def _last_look(path: Path) -> tuple[Mapping[str, Any], int]:
    """What was found by the last look, and before when a file must have changed to be known.

    By the clock of the disk that also dates the files.
    """
    try:
        files = read_json(path).get("files")
        settled = path.stat().st_ctime_ns - SETTLED_NS
    except (RunFolderError, OSError):
        return {}, 0
    return (files, settled) if isinstance(files, dict) else ({}, 0)
