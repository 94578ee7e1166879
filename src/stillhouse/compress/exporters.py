"""The formats that a student can be brought into, and the function that writes each.

An exporter reads a student's folder and fills an empty one with an artefact (`core.artefact`).
Adding a format is a function here and its name in `core.recipe_compress`. Knows no weights: what
does is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

from stillhouse.core.recipe_compress import Format
from stillhouse.core.tasks import Task


class ExportRequest(NamedTuple):
    """What an exporter is given.

    `folder` is empty and the exporter's own; `student` is read only. `name` is what the student was
    initialised from. `calibration` holds texts as the student reads them (`task.input_text`), empty
    where the format needs none.
    """

    student: Path
    folder: Path
    task: Task
    head: Literal["label", "text"]
    name: str
    max_tokens: int
    calibration: Sequence[str]


class Exporter(Protocol):
    """Writes an artefact: its files, then `artefact.json`."""

    def __call__(self, request: ExportRequest) -> None:
        """Fill `request.folder`.

        Raises:
            UserError: this student cannot be brought into this format; says why.
            MissingExtraError: a package is not installed.
        """


def _onnx(request: ExportRequest) -> None:
    raise NotImplementedError(request.folder)


EXPORTERS: Final[Mapping[Format, Exporter]] = {}
