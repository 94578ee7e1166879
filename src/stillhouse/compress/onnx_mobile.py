"""A label student as one file: its dynamic INT8 graph with tokenizer, labels and cutting inside.

`model.onnx` carries `tokenizer.json` and `student.json` in its metadata (ONNX `metadata_props`)
under their names, so that whoever has the file can answer: `models.onnx_student`, and the runners
in examples/mobile, in Python and in a browser. Knows files; the graph is `onnx_int8`'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from stillhouse.compress.onnx_export import finish
from stillhouse.compress.onnx_heads import EXTRA, NEEDED_FOR
from stillhouse.compress.onnx_int8 import quantize_dynamic_onnx
from stillhouse.core.artefact import Artefact
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors
from stillhouse.core.optional import require
from stillhouse.core.tasks import ClassificationTask, Task

MOST_BYTES: Final = 2**31 - 1  # of a protobuf message


def export_mobile(
    student: Path, out: Path, task: Task, *, name: str = "", texts: Sequence[str] = ()
) -> Artefact:
    """Write a label student to `out` as one INT8 `model.onnx`, and `artefact.json`, which answering
    does not need.

    Args:
        student, out, task, name, texts: as `onnx_int8.quantize_dynamic_onnx`. The packed file must
            answer `texts` as the unpacked ones do, number for number.

    Raises:
        UserError: as `quantize_dynamic_onnx`; not a classification task; the file would be too big
            for ONNX, or answers otherwise than its parts.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    if not isinstance(task, ClassificationTask):
        raise UserError(
            "compress.formats",
            "needs a label student: the runners of one-file students answer with labels",
            value="onnx-mobile",
            action="make onnx-int8",
        )
    with tempfile.TemporaryDirectory() as scratch:
        parts = Path(scratch)
        made = quantize_dynamic_onnx(student, parts, task, name=name, texts=texts)
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        pack(parts, out)
        _check(parts, out, texts)
    settings = {**made.settings, "packed": "tokenizer.json, student.json"}
    return finish(student, out, task, precision=made.precision, name=name, settings=settings)


def pack(parts: Path, out: Path) -> None:
    """Write the three files of an ONNX student in `parts` as one `model.onnx` in `out`.

    Raises:
        UserError: more than 2 GB.
    """
    onnx: Any = require("onnx", EXTRA, NEEDED_FOR)
    opener: Any = require("stillhouse.models.onnx_student", EXTRA, NEEDED_FOR)
    model = onnx.load(str(parts / opener.MODEL))
    inside = {one.key: one.value for one in model.metadata_props}
    for part in (opener.SPEC, opener.TOKENIZER):
        inside[part] = (parts / part).read_text(encoding="utf-8")
    onnx.helper.set_model_props(model, inside)
    if model.ByteSize() > MOST_BYTES:
        raise UserError(
            "compress.formats",
            f"one ONNX file holds at most {MOST_BYTES:,} bytes, this would be {model.ByteSize():,}",
            value="onnx-mobile",
            action="make the student smaller (student.size)",
        )
    with disk_errors(out):
        (out / opener.MODEL).write_bytes(model.SerializeToString())


def _check(parts: Path, out: Path, texts: Sequence[str]) -> None:
    opener: Any = require("stillhouse.models.onnx_student", EXTRA, NEEDED_FOR)
    unpacked, packed = opener.OnnxReader(parts, 1), opener.OnnxReader(out, 1)
    for text in ("", *texts):
        before, after = unpacked.read([text]), packed.read([text])
        if before.tokens != after.tokens or not np.array_equal(before.log_p, after.log_p):
            raise UserError(
                str(out / opener.MODEL), "answers otherwise than the files it was packed from"
            )
