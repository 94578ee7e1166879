"""An artefact: a folder with a student in a form that a runtime answers from, and what it is.

`artefact.json` is written last: a folder without it is unfinished. It names every file with its
SHA-256, the student the files were made from and the settings they were made with; reading it
computes the checksums again. Knows files and checksums, not the formats or the runtimes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import Field, JsonValue, ValidationError

from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.heads import Head
from stillhouse.core.jsonl import disk_errors, read_json, write_json
from stillhouse.core.records import Record
from stillhouse.core.stage_files import HASH_BLOCK
from stillhouse.core.tasks import Task

ARTEFACT: Final = "artefact.json"
CARD: Final = "README.md"
GATE: Final = "gate.json"  # how sure the student must be to answer for itself
NOVELTY: Final = "novelty.npz"  # training texts' vectors that such a gate may need
# Written beside the files, before or after artefact.json, and read by no runtime. A gate names the
# student by these files, so it is none of them.
NOT_LISTED: Final = frozenset({ARTEFACT, CARD, GATE, NOVELTY})
REMAKE: Final = "make it again with: stillhouse compress"

Kind = Literal["onnx", "executorch", "gguf", "genai", "hf"]
R = TypeVar("R", bound=Record)


class MadeFrom(Record):
    """Where an artefact's weights come from.

    `student` is `student_sha` of the folder they were exported from; `name` is what that student
    was initialised from; `versions` are of the packages that wrote the files.
    """

    student: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str = ""
    versions: Mapping[str, str] = Field(default_factory=dict)


class Artefact(Record):
    """What `artefact.json` says of the folder that it lies in.

    `precision` is of the weights, as their format names it (float32, int8, int8-static, f16, q8_0,
    q4_k_m); `files` maps paths below the folder to SHA-256; `size_bytes` is their sum; `settings`
    is what else decided the files (opset, calibration samples).
    """

    kind: Kind
    precision: str = Field(min_length=1)
    head: Head
    task: Task | None = None
    files: Mapping[str, str] = Field(min_length=1)
    size_bytes: int = Field(ge=1)
    made_from: MadeFrom
    settings: Mapping[str, JsonValue] = Field(default_factory=dict)


def write_artefact(
    folder: Path,
    *,
    kind: Kind,
    precision: str,
    head: Head,
    made_from: MadeFrom,
    task: Task | None = None,
    settings: Mapping[str, JsonValue] | None = None,
) -> Artefact:
    """Name and hash all files below `folder`, and write `artefact.json`, last and atomically.

    Raises:
        RunFolderError: the folder cannot be read or written.
        ValueError: it holds no file, or a link that leads out of it.
    """
    paths = list(listed_files(folder))
    root = folder.resolve()
    for path in paths:
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{path} leads out of the artefact's folder")
    with disk_errors(folder):
        files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}
        size = sum(path.stat().st_size for path in paths)
    artefact = Artefact(
        kind=kind,
        precision=precision,
        head=head,
        task=task,
        files=files,
        size_bytes=size,
        made_from=made_from,
        settings=dict(settings or {}),
    )
    write_json(folder / ARTEFACT, artefact.model_dump(mode="json", by_alias=True))
    return artefact


def is_artefact(folder: Path) -> bool:
    """Whether a folder says of itself that it is one; reads nothing of it."""
    return (folder / ARTEFACT).is_file()


def read_artefact(folder: Path) -> Artefact:
    """Read an artefact and verify every file it names.

    Raises:
        UserError: not an artefact, a damaged `artefact.json`, or a file that is gone, or was
            changed or added after it was written; names the file.
    """
    path = folder / ARTEFACT
    if not path.is_file():
        raise UserError(str(folder), f"holds no {ARTEFACT}: it is no artefact", action=REMAKE)
    try:
        artefact = Artefact.model_validate(read_json(path))
    except RunFolderError as error:
        raise UserError(str(path), f"cannot be read: {error}", action=REMAKE) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(str(path), f"is damaged: {field}: {first['msg']}", action=REMAKE) from None
    root = folder.resolve()
    for name, expected in artefact.files.items():
        file = folder / name
        if not file.resolve().is_relative_to(root):
            raise UserError(str(path), "names a file outside its folder", value=name, action=REMAKE)
        if not file.is_file():
            raise UserError(str(file), "is gone from its artefact", action=REMAKE)
        if file_sha256(file) != expected:
            raise UserError(str(file), f"was changed after {ARTEFACT} was written", action=REMAKE)
    for file in listed_files(folder):
        # A runtime may read it: another tokenizer_config.json makes other answers.
        if file.relative_to(folder).as_posix() not in artefact.files:
            raise UserError(
                str(file), f"was added after {ARTEFACT} was written", action=f"move it, or {REMAKE}"
            )
    return artefact


def folder_size(folder: Path) -> int:
    """Bytes of the files that make a student or an artefact: weights, configuration, tokenizer."""
    return sum(path.stat().st_size for path in listed_files(folder))


def student_sha(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's files, without cards, notes, gates.

    Raises:
        UserError: there is no such folder, or it is empty.
    """
    if not folder.is_dir():
        raise UserError(str(folder), "there is no such folder", action="give a student's folder")
    digest = hashlib.sha256()
    empty = True
    for path in listed_files(folder):
        empty = False
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{file_sha256(path)}\n".encode())
    if empty:
        raise UserError(str(folder), "is empty", action="give a student's folder")
    return digest.hexdigest()


def copy_student(folder: Path, out: Path) -> None:
    """Copy a student's files to a new folder where they are to be changed: without its gate, which
    holds for these files alone."""
    shutil.copytree(folder, out, symlinks=False, ignore=shutil.ignore_patterns(GATE, NOVELTY))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def listed_files(folder: Path) -> Iterator[Path]:
    """The files that make the artefact, in the order of their names; hidden ones are not of it."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            if relative.as_posix() not in NOT_LISTED:
                yield path


def settings_as(kind: type[R], folder: Path, artefact: Artefact) -> R:
    """The settings of the artefact in a folder that are `kind`'s, checked; others are left out.

    Raises:
        UserError: one is missing or damaged.
    """
    try:
        return kind.model_validate(
            {name: value for name, value in artefact.settings.items() if name in kind.model_fields}
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(
            str(folder / ARTEFACT), f"is damaged: settings.{field}: {first['msg']}", action=REMAKE
        ) from None
