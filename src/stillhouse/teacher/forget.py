"""Take a user's answers out of the store of paid answers.

Lines are kept or dropped as they stand, so that form and checksums stay; the file is rewritten
whole, under its lock. A frozen store is frozen anew without them, under the date it had. Knows the
store's lines, not what an answer is worth.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import AppendOnlyFile, write_atomic
from stillhouse.teacher.lines import AnswerHead, FrozenLine, frozen_line, parse_line


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
            dropped, answers = 0, 0
            before, after = hashlib.sha256(), hashlib.sha256()
            with path.open("rb") as handle:
                for number, raw in enumerate(handle, start=1):
                    try:
                        line = raw.decode("utf-8")
                        value = json.loads(line)
                        parsed = parse_line(raw.rstrip(b"\n"))
                        if isinstance(parsed.line, FrozenLine):
                            if parsed.line.digest != before.hexdigest()[:32]:
                                raise ValueError("digest")
                            mark = FrozenLine(parsed.line.at, answers, after.hexdigest()[:32])
                            line = frozen_line(mark).decode("utf-8")
                    except (ValueError, KeyError, TypeError):
                        raise DataError(
                            f"{path} line {number}", "is damaged", action="delete this line"
                        ) from None
                    is_answer = isinstance(parsed.line, AnswerHead)
                    if is_answer:
                        before.update(parsed.checksum)
                    if theirs(value):
                        dropped += 1
                        continue
                    if is_answer:
                        after.update(parsed.checksum)
                        answers += 1
                    yield line

        for _ in kept():
            pass
        found = dropped
        if found and not dry_run:
            write_atomic(path, lambda handle: handle.writelines(kept()))
        return found
    finally:
        lock.close()
