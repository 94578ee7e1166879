"""The formats that a student can be brought into, and the function that writes each.

An exporter reads a student's folder and fills an empty one with an artefact (`core.artefact`).
Adding a format is a function here and its name in `core.recipe_compress`. Knows no weights: what
does is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from stillhouse.core.heads import Head
from stillhouse.core.optional import require
from stillhouse.core.recipe_compress import Format
from stillhouse.core.tasks import Task


class ExportRequest(NamedTuple):
    """What an exporter is given.

    `folder` is empty and the exporter's own; `student` is read only. `name` is what the student was
    initialised from. `texts` are a few inputs of the task, by which what was written is compared
    with the student; `calibration` are those that set ranges, empty where the format needs none.
    Both are texts as a label student reads them (`task.input_text`).
    """

    student: Path
    folder: Path
    task: Task
    head: Head
    name: str
    texts: Sequence[str]
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
    module = require("stillhouse.compress.onnx_export", "onnx", "an ONNX student")
    module.export_onnx(
        request.student, request.folder, request.task, name=request.name, texts=request.texts
    )


def _onnx_int8(request: ExportRequest) -> None:
    module = require("stillhouse.compress.onnx_int8", "onnx", "an ONNX student")
    module.quantize_dynamic_onnx(
        request.student, request.folder, request.task, name=request.name, texts=request.texts
    )


def _onnx_int8_static(request: ExportRequest) -> None:
    module = require("stillhouse.compress.onnx_int8", "onnx", "an ONNX student")
    module.quantize_static_onnx(
        request.student, request.folder, request.task, request.calibration, name=request.name
    )


def _onnx_mobile(request: ExportRequest) -> None:
    module = require("stillhouse.compress.onnx_mobile", "onnx", "an ONNX student")
    module.export_mobile(
        request.student, request.folder, request.task, name=request.name, texts=request.texts
    )


def _executorch(request: ExportRequest) -> None:
    module = require("stillhouse.compress.executorch_export", "executorch", "a student program")
    module.write_executorch(
        request.student, request.folder, request.task, name=request.name, texts=request.texts
    )


def _gguf(precision: str) -> Exporter:
    def export(request: ExportRequest) -> None:
        module = require("stillhouse.compress.gguf_export", "gguf", "a GGUF student")
        module.export_gguf(
            request.student, request.folder, precision, task=request.task, texts=request.texts
        )

    return export


def _genai(precision: str) -> Exporter:
    def export(request: ExportRequest) -> None:
        module = require("stillhouse.compress.genai_export", "genai", "a text student in ONNX")
        module.export_genai(
            request.student,
            request.folder,
            precision,
            name=request.name,
            task=request.task,
            texts=request.texts,
        )

    return export


def _compressed_tensors(scheme: str) -> Exporter:
    def export(request: ExportRequest) -> None:
        module = require("stillhouse.compress.compressed_tensors_export", "cuda", "a GPU student")
        module.export_compressed_tensors(
            request.student, request.folder, scheme, name=request.name, task=request.task
        )

    return export


def _torchao(precision: str) -> Exporter:
    def export(request: ExportRequest) -> None:
        module = require("stillhouse.compress.torchao_export", "cuda", "a GPU student")
        module.export_torchao(
            request.student, request.folder, precision, name=request.name, task=request.task
        )

    return export


EXPORTERS: Final[Mapping[Format, Exporter]] = {
    "onnx": _onnx,
    "onnx-int8": _onnx_int8,
    "onnx-int8-static": _onnx_int8_static,
    "onnx-mobile": _onnx_mobile,
    "executorch": _executorch,
    "gguf-f16": _gguf("f16"),
    "gguf-q8_0": _gguf("q8_0"),
    "gguf-q4": _gguf("q4_k"),
    "genai-int8": _genai("int8"),
    "genai-int4": _genai("int4"),
    "compressed-tensors-w8a16": _compressed_tensors("w8a16"),
    "compressed-tensors-w4a16": _compressed_tensors("w4a16"),
    "compressed-tensors-fp8": _compressed_tensors("fp8"),
    "torchao-int8": _torchao("int8"),
    "torchao-int4": _torchao("int4"),
}
