"""One process at a time: a lock that dies with its holder. Knows folders; not what they hold."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import disk_errors

POLL_S: Final = 0.02


@contextmanager
def folder_lock(folder: Path, name: str, held: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a folder, which is made where it is not there.

    Args:
        folder: what is held.
        name: of the lock's file in it.
        held: what is said where another process holds it, and what to do then.
        wait_s: for so many seconds it is tried again before that is said.

    Raises:
        RunFolderError: another process holds it, or it cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    raise RunFolderError(f"{folder}: {held}") from None
                time.sleep(POLL_S)
        yield
    finally:
        os.close(handle)
