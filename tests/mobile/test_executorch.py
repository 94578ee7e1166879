"""A label student as one ExecuTorch program, and the runner that answers from it."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from pathlib import Path

import pytest

from mobile_student import LABELS, TASK, TEXTS, make_student
from stillhouse.compress import executorch_export
from stillhouse.compress.executorch_export import export_executorch
from stillhouse.compress.exporters import EXPORTERS, ExportRequest
from stillhouse.core.artefact import read_artefact
from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.optional import available, require
from stillhouse.core.records import Completion, Message, Query
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from stillhouse.models.artefact_student import open_any
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.completer import Sampling
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
def test_the_format_opens_and_answers_as_any_other(student: Path, tmp_path: Path) -> None:
    EXPORTERS["executorch"](
        ExportRequest(student, tmp_path, TASK, "label", "tiny", texts=TEXTS, calibration=())
    )
    artefact = read_artefact(tmp_path)
    assert (artefact.kind, artefact.precision, list(artefact.files)) == (
        "executorch",
        "int8",
        ["model.pte"],
    )
    texts = [text or "." for text in TEXTS]
    float_reader = ClassifierReader(load_classifier(str(student), device="cpu"))
    read = float_reader.read(texts)

    async def answers() -> list[Completion]:
        opened = open_any(tmp_path, TASK, "label", 4)
        queries = [
            Query(id=str(i), messages=(Message(role="user", content=text),))
            for i, text in enumerate(texts)
        ]
        found = await asyncio.gather(*(opened.complete(q, Sampling()) for q in queries))
        await opened.aclose()
        assert opened.info.notes["runtime"] == "executorch"
        assert opened.info.parameters == float_reader._loaded.parameters
        return [one[0] for one in found]

    for one, row, tokens in zip(
        asyncio.run(answers()), read.log_p.exp().tolist(), read.tokens, strict=True
    ):
        assert one.prompt_tokens == tokens
        assert one.label_logprobs is not None
        mine = [math.exp(one.label_logprobs[label]) for label in LABELS]
        assert mine == pytest.approx(row, abs=0.02)
    other = ClassificationTask(kind="classification", labels=("bad", "good"))
    with pytest.raises(UserError, match="labels"):
        open_any(tmp_path, other, "label", 4)
    (tmp_path / "model.pte").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"model\.pte: was changed"):
        open_any(tmp_path, TASK, "label", 4)
    reader = require("stillhouse.models.executorch_student", "executorch", "a test")
    with pytest.raises(UserError, match="is no program"):
        reader.ExecutorchReader(tmp_path / "model.pte")


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
