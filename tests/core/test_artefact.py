"""Artefacts: whole or not there, and an edited file is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.artefact import (
    ARTEFACT,
    CARD,
    Artefact,
    MadeFrom,
    is_artefact,
    read_artefact,
    student_sha,
    write_artefact,
)
from stillhouse.core.errors import UserError
from stillhouse.core.tasks import ClassificationTask, ExtractionTask

TASK = ClassificationTask(kind="classification", labels=("bad", "good"))
FROM = MadeFrom(student="0" * 64, name="embedded-encoder", versions={"onnx": "1.0"})


def _made(folder: Path) -> Artefact:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}", encoding="utf-8")
    return write_artefact(
        folder,
        kind="onnx",
        precision="int8",
        head="label",
        task=TASK,
        made_from=FROM,
        settings={"opset": 18, "calibration": {"samples": 64}},
    )


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = _made(tmp_path / "a")
    (tmp_path / "a" / CARD).write_text("# card", encoding="utf-8")
    found = read_artefact(tmp_path / "a")
    assert found == written
    assert found.files == {
        "model.onnx": hashlib.sha256(b"weights").hexdigest(),
        "tokenizer/tokenizer.json": hashlib.sha256(b"{}").hexdigest(),
    }
    assert found.size_bytes == len(b"weights") + 2
    assert found.task == TASK


def test_a_task_with_a_schema_survives(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    task = ExtractionTask.model_validate({"kind": "extraction", "json_schema": schema})
    write_artefact(tmp_path, kind="gguf", precision="q8_0", head="text", task=task, made_from=FROM)
    assert read_artefact(tmp_path).task == task


def test_a_folder_without_its_record_is_unfinished(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"weights")
    assert not is_artefact(tmp_path)
    with pytest.raises(UserError, match=r"holds no artefact\.json"):
        read_artefact(tmp_path)


def test_an_edited_a_lost_and_an_added_file_are_named(tmp_path: Path) -> None:
    _made(tmp_path)
    model = tmp_path / "model.onnx"
    model.write_bytes(b"weightz")
    with pytest.raises(UserError, match=r"model\.onnx: was changed after"):
        read_artefact(tmp_path)
    model.unlink()
    with pytest.raises(UserError, match=r"model\.onnx: is gone"):
        read_artefact(tmp_path)
    model.write_bytes(b"weights")
    (tmp_path / "chat_template.jinja").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"chat_template\.jinja: was added after"):
        read_artefact(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("kind", "pickle", "kind"),
        ("files", {}, "files"),
        ("extra", 1, "extra"),
        ("files", {"../secret": "0" * 64}, "outside its folder"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, key: str, value: object, said: str) -> None:
    folder = tmp_path / "a"
    _made(folder)
    (tmp_path / "secret").write_bytes(b"s")
    raw = json.loads((folder / ARTEFACT).read_text(encoding="utf-8"))
    raw[key] = value
    (folder / ARTEFACT).write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        read_artefact(folder)
    assert "\n" not in str(caught.value)
    (folder / ARTEFACT).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        read_artefact(folder)


def test_a_link_out_of_the_folder_is_no_file_of_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(b"x")
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "model.onnx").symlink_to(outside)
    with pytest.raises(ValueError, match="leads out"):
        write_artefact(folder, kind="onnx", precision="int8", head="label", made_from=FROM)


def test_a_student_is_its_files_not_its_card(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"w")
    before = student_sha(tmp_path)
    (tmp_path / CARD).write_text("card", encoding="utf-8")
    assert student_sha(tmp_path) == before
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert student_sha(tmp_path) != before
    with pytest.raises(UserError, match="no such folder"):
        student_sha(tmp_path / "none")


@given(st.binary(min_size=1, max_size=300), st.integers(min_value=0), st.integers(1, 255))
def test_any_changed_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("artefact")
    path = folder / "m.gguf"
    path.write_bytes(content)
    write_artefact(folder, kind="gguf", precision="f16", head="text", made_from=FROM)
    where = at % len(content)
    path.write_bytes(content[:where] + bytes([content[where] ^ flip]) + content[where + 1 :])
    with pytest.raises(UserError, match="was changed"):
        read_artefact(folder)
