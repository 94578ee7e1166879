"""One file that answers: what is inside, who can read it, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mobile_student import LABELS, TASK, TEXTS, make_student
from stillhouse.compress import onnx_mobile
from stillhouse.core.artefact import read_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.recipe_compress import CompressSection
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.artefact_student import open_artefact

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
onnx_student = pytest.importorskip("stillhouse.models.onnx_student")
RUNNER = Path(__file__).parents[2] / "examples" / "mobile" / "run.py"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mobile")
    out = root / "onnx-mobile"
    onnx_mobile.export_mobile(make_student(root / "student"), out, TASK, name="tiny", texts=TEXTS)
    return out


def test_one_file_holds_all(packed: Path) -> None:
    artefact = read_artefact(packed)
    assert list(artefact.files) == ["model.onnx"]
    assert (artefact.kind, artefact.precision, artefact.head) == ("onnx", "int8", "label")
    inside = {p.key: p.value for p in onnx.load(str(packed / "model.onnx")).metadata_props}
    assert json.loads(inside["student.json"])["labels"] == list(LABELS)
    assert json.loads(inside["tokenizer.json"])["model"]["type"] == "WordPiece"
    assert open_artefact(packed, TASK, "label", 4).info.notes["dtype"] == "int8"
    other = ClassificationTask(kind="classification", labels=("a", "b"))
    with pytest.raises(UserError, match="labels"):
        open_artefact(packed, other, "label", 4)


def test_the_plain_runner_says_the_same(packed: Path, tmp_path: Path) -> None:
    reader = onnx_student.OnnxReader(packed, 1)
    texts = [text for text in TEXTS if text and "\n" not in text]
    asked = "\n".join(texts) + "\n"
    # Where only the file lies, in a Python that has neither torch, transformers nor stillhouse.
    (tmp_path / "film.onnx").write_bytes((packed / "model.onnx").read_bytes())
    code = (
        "import runpy, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers', 'stillhouse', 'onnx'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"sys.argv = ['run.py', 'film.onnx']\n"
        f"runpy.run_path({str(RUNNER)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, input=asked, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[2] for line in lines] == texts, done.stderr
    for text, (label, share, _) in zip(texts, lines, strict=True):
        p = np.exp(reader.read([text]).log_p[0])
        assert label == LABELS[int(p.argmax())]
        assert float(share) == pytest.approx(p.max(), abs=6e-4)


def test_a_file_without_a_tokenizer(packed: Path, tmp_path: Path) -> None:
    model = onnx.load(str(packed / "model.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(UserError, match=r"student\.json: cannot be read"):
        onnx_student.OnnxReader(tmp_path, 1)
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(tmp_path / "model.onnx"), "a"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "onnx-mobile" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_packed_file_that_answers_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = onnx_mobile.pack

    def loses_a_limit(parts: Path, out: Path) -> None:
        spec = json.loads((parts / "student.json").read_text())
        kept = (parts / "student.json").read_bytes()
        (parts / "student.json").write_text(json.dumps(spec | {"max_tokens": 3}))
        pack(parts, out)
        (parts / "student.json").write_bytes(kept)

    monkeypatch.setattr(onnx_mobile, "pack", loses_a_limit)
    with pytest.raises(UserError, match="answers otherwise"):
        onnx_mobile.export_mobile(
            make_student(tmp_path / "student"), tmp_path / "out", TASK, texts=TEXTS
        )
    assert not (tmp_path / "out" / "artefact.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(onnx_mobile, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="at most 1,000 bytes"):
        onnx_mobile.export_mobile(tmp_path / "student", tmp_path / "big", TASK)


def test_it_is_made_where_it_is_named() -> None:
    assert "onnx-mobile" not in CompressSection().wanted("label")
    named = CompressSection.model_validate({"formats": ["onnx-mobile"]})
    assert named.wanted("label") == ("onnx-mobile",)
    assert "for label students" in (named.problem("text") or "")
