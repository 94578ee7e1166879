"""A label student as one ExecuTorch program, and the runner that answers from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mobile_student import LABELS, TASK, TEXTS, make_student
from stillhouse.compress import executorch_export
from stillhouse.compress.executorch_export import export_executorch
from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.optional import available
from stillhouse.core.tasks import GenerationTask
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.loading import load_classifier

RUNNER = Path(__file__).parents[2] / "examples" / "mobile" / "run_executorch.py"
here = pytest.mark.skipif(
    not available("executorch"), reason="needs executorch: pip install 'stillhouse[executorch]'"
)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("executorch") / "student")


@here
@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_one_program_answers_as_the_student(student: Path, tmp_path: Path) -> None:
    made = export_executorch(student, tmp_path / "film.pte", TASK, texts=TEXTS)
    assert made.mean_kl < 0.01
    assert made.size_bytes == (tmp_path / "film.pte").stat().st_size
    texts = [text for text in TEXTS if "\n" not in text and "\t" not in text]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(RUNNER), "film.pte", *texts],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[2] for line in lines] == texts, done.stderr
    p = ClassifierReader(load_classifier(str(student), device="cpu")).read(texts).log_p.exp()
    for (label, share, _), row in zip(lines, p.tolist(), strict=True):
        assert float(share) == pytest.approx(row[LABELS.index(label)], abs=0.02)
        assert row[LABELS.index(label)] > max(row) - 0.02


@here
@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_a_program_that_answers_otherwise_is_refused(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executorch_export, "MOST_KL", -1.0)
    with pytest.raises(UserError, match="comes out of the export changed"):
        export_executorch(student, tmp_path / "film.pte", TASK, texts=TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="needs a label student"):
        export_executorch(student, tmp_path / "a", GenerationTask(kind="generation"), texts=TEXTS)
    with pytest.raises(UserError, match="holds no text"):
        export_executorch(student, tmp_path / "a", TASK, texts=["", " "])
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'stillhouse\[executorch\]'"):
        export_executorch(student, tmp_path / "a", TASK, texts=TEXTS)
