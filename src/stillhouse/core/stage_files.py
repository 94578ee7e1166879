"""Whether the files of a finished stage still hold what its manifest says.

A file is read and hashed, unless it is known from the last look: its size, times and inode are
those of then. Among the times is that of the inode's change, which the kernel sets at every write
and no program can choose, so an edit that keeps size and modification time is seen too. As in git's
index, a file that changed less than two seconds before the last look began is read again: a second
write may have fallen into the same tick of the clock. A file that cannot be read is an error, no
change: the disk may be away for a moment, and what is on it may have cost days. Knows files and
hashes, no stages.
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

    Raises:
        RunFolderError: one is there and cannot be read.
    """
    known, settled = _last_look(folder / SEEN)
    looked: dict[str, Any] = {}
    changed: list[str] = []
    began: int | None = None
    for name, wanted in recorded.items():
        try:
            facts = (folder / name).stat()
            mark = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
            last = known.get(name)
            if isinstance(last, list) and last[:-1] == mark and facts.st_ctime_ns < settled:
                found = str(last[-1])
            else:
                began = _now_there(folder / SEEN) if began is None else began
                found = hash_file(folder / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            changed.append(name)
            continue
        except OSError as error:
            why = error.strerror or error
            raise RunFolderError(
                f"{folder / name}: cannot be read ({why}); nothing is done again for that: "
                "mend it, or delete it to have its stage done again"
            ) from error
        looked[name] = [*mark, found]
        if found != wanted:
            changed.append(name)
    if began:  # else nothing can be written there, or the folder is gone
        with suppress(RunFolderError):  # a folder that cannot be written is read every time
            write_json(folder / SEEN, {"began": began, "files": looked})
    return tuple(changed)


def _now_there(path: Path) -> int:
    """Nanoseconds by the clock of the disk, which also dates its files; 0 where it says none."""
    try:
        path.touch()
        return path.stat().st_ctime_ns
    except OSError:
        return 0


def _last_look(path: Path) -> tuple[Mapping[str, Any], int]:
    """What was found by the last look, and before when a file must have changed to be known."""
    try:
        last = read_json(path)
    except RunFolderError:
        return {}, 0
    files, began = last.get("files"), last.get("began")
    if isinstance(files, dict) and isinstance(began, int):
        return files, began - SETTLED_NS
    return {}, 0
