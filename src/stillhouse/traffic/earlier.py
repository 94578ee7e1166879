"""May the folder of an earlier result be replaced? Not where it holds what mining did not write.

A recipe that was filled in, a labelled file laid beside it, a run folder with answers that were
paid for: a new result would delete them. Knows the files of a result by their hashes in tasks.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.jsonl import read_json
from stillhouse.core.stage_files import hash_file

REPORT: Final = "tasks.json"
PAGE: Final = "tasks.html"
REJECTS: Final = "rejects.jsonl"
SHOWN: Final = 3


def file_hashes(folder: Path) -> dict[str, str]:
    """The hash of each file below a folder by its relative path; not of the report."""
    return {name: hash_file(path) for name, path in _files(folder)}


def require_replaceable(out: Path) -> None:
    """Refuse a folder that is no earlier result, or in which somebody has worked since.

    Raises:
        UserError: it holds files that mining did not write, or that were changed.
    """
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / REPORT).exists()):
        raise UserError(
            str(out), "exists and is no earlier result of mining", action="choose another --out"
        )
    if not (out / REPORT).exists():
        return
    try:
        known = read_json(out / REPORT).get("files")
    except RunFolderError:
        known = None
    written = known if isinstance(known, dict) else {}
    changed = [
        name
        for name, path in _files(out)
        if name not in written or not path.is_file() or hash_file(path) != written[name]
    ]
    if changed:
        more = f" and {len(changed) - SHOWN:,} more" if len(changed) > SHOWN else ""
        raise UserError(
            str(out),
            f"holds files that are yours or were changed: {', '.join(changed[:SHOWN])}{more}; a "
            "new result would delete them",
            action="choose another --out, or move them away",
        )


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_file() or path.is_symlink()) and name not in (REPORT, PAGE, REJECTS):
            yield name, path
