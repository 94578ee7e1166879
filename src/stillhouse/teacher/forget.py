"""Take a user's answers out of the store of paid answers.

Lines are kept or dropped as they stand, so that form and checksums stay; the file is rewritten
whole, under its lock. Knows the store's lines, not what an answer is worth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import AppendOnlyFile, write_atomic


def remove_answers(path: Path, theirs: Callable[[object], bool], *, dry_run: bool) -> int:
    """Drop the lines of a store for which `theirs` holds. Returns how many.

    Args:
        path: the store's file; nothing is done where there is none.
        theirs: told a line's object: `teacher`, `chat` (hash of the messages), `completions`.
        dry_run: count only.

    Raises:
        DataError: a line is damaged.
        RunFolderError: another process holds the store, or the disk is full.
    """
    if not path.exists():
        return 0
    lock = AppendOnlyFile(path)
    try:
        dropped = 0

        def kept() -> Iterator[str]:
            nonlocal dropped
            with path.open("rb") as handle:
                for number, raw in enumerate(handle, start=1):
                    try:
                        line = raw.decode("utf-8")
                        value = json.loads(line)
                    except ValueError:
                        raise DataError(
                            f"{path} line {number}", "is damaged", action="delete this line"
                        ) from None
                    if theirs(value):
                        dropped += 1
                    else:
                        yield line

        for _ in kept():
            pass
        found = dropped
        if found and not dry_run:
            write_atomic(path, lambda handle: handle.writelines(kept()))
        return found
    finally:
        lock.close()
