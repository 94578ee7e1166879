"""windows.jsonl and alerts.jsonl, read from their ends. Knows the files' places and no figure."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Final, TypeVar

from pydantic import ValidationError

from stillhouse.monitor.dashboard.shown import AlertShown, Shown, WindowShown

TAIL_BYTES: Final = 4_000_000
MOST: Final = 200
S = TypeVar("S", bound=Shown)


class WatchFiles:
    """`sources.Watch` over loop.yaml's folder.

    Files are read again when they have changed; a line that cannot be read (the last one of a
    writer that was killed) is left out.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, tuple[tuple[int, int], tuple[Shown, ...]]] = {}
        self._one = Lock()

    def windows(self, task: str) -> tuple[WindowShown, ...]:
        """See `sources.Watch`."""
        return self._read(self._folder / task / "windows.jsonl", WindowShown)

    def alerts(self, task: str) -> tuple[AlertShown, ...]:
        """See `sources.Watch`."""
        return self._read(self._folder / task / "alerts.jsonl", AlertShown)

    def _read(self, path: Path, kind: type[S]) -> tuple[S, ...]:
        try:
            found = path.stat()
        except OSError:
            return ()
        stamp = (found.st_mtime_ns, found.st_size)
        with self._one:
            known = self._known.get(path)
        if known is None or known[0] != stamp:
            known = (stamp, tuple(_records(_tail(path), kind)))
            with self._one:
                self._known[path] = known
        return tuple(one for one in known[1] if isinstance(one, kind))


def _tail(path: Path) -> list[bytes]:
    """The last lines, the newest `MOST` of them at most."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - TAIL_BYTES)
        file.seek(start)
        lines = file.read(TAIL_BYTES).splitlines()
    return (lines[1:] if start else lines)[-MOST:]


def _records(lines: list[bytes], kind: type[S]) -> list[S]:
    found = []
    for line in lines:
        try:
            found.append(kind.model_validate_json(line))
        except ValidationError:
            continue
    return found
