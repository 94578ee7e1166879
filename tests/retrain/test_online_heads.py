"""Refined heads of real students: transformers, ONNX float and INT8."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mobile_student import TASK, TEXTS, make_student
from stillhouse.compress.onnx_export import export_onnx
from stillhouse.compress.onnx_int8 import quantize_dynamic_onnx
from stillhouse.core.artefact import MadeFrom, read_artefact, write_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.heads import Head
from stillhouse.core.records import Message, Query
from stillhouse.models.artefact_student import open_any
from stillhouse.models.batching import Call
from stillhouse.models.completer import Sampling
from stillhouse.models.head_weights import open_head_student


@pytest.mark.parametrize("form", ["transformers", "onnx", "int8"])
def test_another_head_answers_as_it_should(form: str, tmp_path: Path) -> None:
    folder = make_student(tmp_path / "float")
    if form == "onnx":
        export_onnx(folder, tmp_path / "onnx", TASK, texts=["dull"])
        folder = tmp_path / "onnx"
    elif form == "int8":
        quantize_dynamic_onnx(folder, tmp_path / "int8", TASK, texts=["dull"])
        folder = tmp_path / "int8"
    student = open_head_student(folder, TASK, batch=1)
    texts = [text for text in TEXTS if text.strip()]
    features = student.features(texts)
    new = student.head._replace(
        weight=student.head.weight[::-1].copy(), bias=np.array([0.5, -1, 2], dtype=np.float32)
    )
    student.write(new, tmp_path / "new")
    again = open_head_student(tmp_path / "new", TASK, batch=1)
    assert again.head.digest() == new.digest()
    for at, head in ((folder, student.head), (tmp_path / "new", new)):
        opened = open_any(at, TASK, "label", 1)
        expected = head.logits(features)
        for text, row in zip(texts, expected, strict=True):
            query = Query(id="q", messages=(Message(role="user", content=text),))
            (said,) = opened.run_batch([Call(query, Sampling())])[0]  # type: ignore[attr-defined]
            belief = np.array([said.label_logprobs[label] for label in TASK.labels])
            wanted = row - np.log(np.exp(row - row.max()).sum()) - row.max()
            assert belief == pytest.approx(wanted, abs=2e-5)
    if form != "transformers":
        assert read_artefact(tmp_path / "new").settings["head"] == new.digest()


@pytest.mark.parametrize(
    ("architecture", "head"), [("LlamaForCausalLM", "text"), ("BertForTokenClassification", "tags")]
)
def test_a_student_of_another_head_is_refused_in_one_line(
    tmp_path: Path, architecture: str, head: Head
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    said = f"is a {head} student; only label students"
    with pytest.raises(UserError, match=said) as caught:
        open_head_student(tmp_path, TASK)
    assert "\n" not in str(caught.value)
    made = MadeFrom(student="0" * 64)
    write_artefact(tmp_path, kind="onnx", precision="int8", head=head, made_from=made)
    with pytest.raises(UserError, match=said):
        open_head_student(tmp_path, TASK)
