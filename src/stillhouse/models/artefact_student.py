"""Opens a compressed student by its `artefact.json`: onnxruntime (-genai), llama.cpp,
ExecuTorch or transformers.

Every file is verified first. Imports no torch: an artefact of the first two answers where torch is
not installed, and starts without waiting for it. Knows the kinds of artefact; not how any of them
answers.
"""

from __future__ import annotations

from pathlib import Path

from stillhouse.core.artefact import ARTEFACT, Artefact, is_artefact, read_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.optional import require
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.models.completer import Completer

AnyTask = ClassificationTask | ExtractionTask | GenerationTask


def open_any(
    folder: Path, task: AnyTask, head: str, batch_size: int, device: str = "auto"
) -> Completer:
    """Open a student's folder or an artefact's; torch is imported for the first alone.

    Raises:
        UserError: the folder cannot be loaded, was changed after it was written, or its labels are
            not the task's.
        MissingExtraError: its runtime is not installed.
    """
    if is_artefact(folder):
        return open_artefact(folder, task, head, batch_size, device)
    student = require("stillhouse.models.student", "train", "opening a student")
    opened: Completer = student.open_student(folder, task, head, batch_size, device)
    return opened


def open_artefact(
    folder: Path, task: AnyTask, head: str, batch_size: int, device: str = "auto"
) -> Completer:
    """Verify an artefact and open it with its runtime.

    Raises:
        UserError: as `read_artefact`; it is of another head, or its labels are not the task's.
        MissingExtraError: its runtime is not installed.
    """
    artefact = read_artefact(folder)
    _check(folder, artefact, task, head)
    opened: Completer
    if artefact.kind == "onnx" and head == "tags":
        module = require("stillhouse.models.onnx_tags", "onnx", "an ONNX student")
        opened = module.open_onnx_tags(folder, artefact, task, batch_size)
    elif artefact.kind == "onnx":
        module = require("stillhouse.models.onnx_student", "onnx", "an ONNX student")
        opened = module.open_onnx_student(folder, artefact, task, batch_size)
    elif artefact.kind == "executorch":
        module = require(
            "stillhouse.models.executorch_student", "executorch", "an ExecuTorch student"
        )
        opened = module.open_executorch_student(folder, artefact, task, batch_size)
    elif artefact.kind == "gguf":
        module = require("stillhouse.models.gguf_student", "gguf", "a GGUF student")
        opened = module.open_gguf_student(folder, artefact, task, batch_size)
    elif artefact.kind == "genai":
        module = require("stillhouse.models.genai_student", "genai", "a text student in ONNX")
        opened = module.open_genai_student(folder, artefact)
    else:
        module = require("stillhouse.models.student", "train", "opening a student")
        opened = module.open_weights(folder, task, head, batch_size, device)
    return opened


def _check(folder: Path, artefact: Artefact, task: AnyTask, head: str) -> None:
    where = str(folder / ARTEFACT)
    if artefact.head != head:
        raise UserError(
            where, f"is of a {artefact.head} student", value=head, action="set student.head to it"
        )
    own = artefact.task
    if (
        isinstance(own, ClassificationTask)
        and isinstance(task, ClassificationTask)
        and own.labels != task.labels
    ):
        raise UserError(
            where,
            f"was made for the labels {list(own.labels)}, the task's are {list(task.labels)}",
            action="compress a student of this task",
        )
