"""Students' files by content: one read-only folder each, named by the digest of what it holds.

A folder is copied under a temporary name, made read-only, hashed again and renamed: it is there
whole, or not at all. Files are copied and not linked, since who edits the source in place would
edit a linked student with it. Knows no stage and no task.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stillhouse.core.artefact import file_sha256
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors

TEMPORARY: Final = ".adding-"
DAMAGED: Final = ".damaged-"


def folder_digest(folder: Path) -> str:
    """SHA-256 over `name NUL sha256-of-content NEWLINE` of all files below, in order of names.

    Hidden files, and what lies in hidden folders, are not of it. Links to files count as files.

    Raises:
        UserError: no such folder, nothing in it, or something that is neither file nor folder.
    """
    return _digest(folder, _files(folder, hidden=False))


def object_digest(folder: Path) -> str:
    """The same of a stored folder, where a hidden file is one that somebody put there."""
    return _digest(folder, _files(folder, hidden=True))


def store_object(source: Path, objects: Path) -> str:
    """Copy a folder's files to `objects/DIGEST`, and return the digest.

    What lies there already is kept if it is whole, else put aside and replaced.

    Raises:
        UserError: as `folder_digest`.
        RunFolderError: the disk is full, or cannot be written.
    """
    with disk_errors(objects):
        objects.mkdir(parents=True, exist_ok=True)
        temporary = objects / f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            found = objects / folder_digest(source)
            if is_whole(found):
                return found.name
            for name in _files(source, hidden=False):
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, target)
                _sync(target)
            digest = object_digest(temporary)
            final = objects / digest
            if final.is_dir():
                if is_whole(final):
                    return digest
                os.rename(final, objects / f"{DAMAGED}{digest[:12]}-{uuid.uuid4().hex[:8]}")
            _make_read_only(temporary)
            os.rename(temporary, final)
            _sync(objects)
        finally:
            remove_object(temporary)
    return digest


def is_whole(folder: Path) -> bool:
    """Whether a stored folder holds what its name says."""
    try:
        return folder.is_dir() and object_digest(folder) == folder.name
    except (UserError, OSError):
        return False


def remove_object(folder: Path) -> None:
    """Delete a stored folder, in one step as seen from outside; nothing where there is none."""
    if not folder.is_dir():
        return
    doomed = folder
    if not folder.name.startswith("."):
        doomed = folder.with_name(f"{TEMPORARY}{folder.name[:12]}-{uuid.uuid4().hex[:8]}")
        os.rename(folder, doomed)
    for path, _, _ in os.walk(doomed):
        os.chmod(path, 0o755)
    shutil.rmtree(doomed)


def leftovers(objects: Path) -> list[Path]:
    """Folders that a killed `add` or removal left, and damaged ones that were replaced."""
    if not objects.is_dir():
        return []
    return sorted(p for p in objects.iterdir() if p.name.startswith((TEMPORARY, DAMAGED)))


def _files(folder: Path, *, hidden: bool) -> list[str]:
    if not folder.is_dir():
        raise UserError(str(folder), "there is no such folder", action="give a student's folder")
    found = sorted(_walk(folder, hidden=hidden))
    if not found:
        raise UserError(str(folder), "holds no file", action="give a student's folder")
    return found


def _walk(folder: Path, *, hidden: bool) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        if not hidden:
            folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                raise UserError(
                    os.path.join(place, name),
                    "is a link to a folder",
                    action="put the folder itself there",
                )
        for name in files:
            if name.startswith(".") and not hidden:
                continue
            path = os.path.join(place, name)
            if not os.path.exists(path) or not stat.S_ISREG(os.stat(path).st_mode):
                raise UserError(path, "is no plain file", action="remove it from the folder")
            yield os.path.relpath(path, folder)


def _digest(folder: Path, names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0" + file_sha256(folder / name).encode() + b"\n")
    return digest.hexdigest()


def _make_read_only(folder: Path) -> None:
    for place, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.chmod(os.path.join(place, name), 0o444)
        _sync(Path(place))
        for name in folders:
            os.chmod(os.path.join(place, name), 0o555)
    os.chmod(folder, 0o555)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
