"""Tag students in ONNX: the same tags and JSON as torch's, INT8 near to them, what is refused."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stillhouse.compress import onnx_export
from stillhouse.compress.exporters import EXPORTERS, ExportRequest
from stillhouse.compress.onnx_export import export_onnx
from stillhouse.compress.onnx_int8 import quantize_dynamic_onnx, quantize_static_onnx
from stillhouse.compress.onnx_mobile import export_mobile
from stillhouse.core.artefact import read_artefact
from stillhouse.core.errors import DataError, UserError
from stillhouse.core.records import Completion, Query
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.models.artefact_student import open_any
from stillhouse.models.completer import Completer, Sampling
from stillhouse.models.loading import load_tagger
from stillhouse.models.tag_student import Tagger
from tiny_models import TEXTS, byte_bpe, wordpiece
from tiny_tags import RAW_TASK, TASK, noisy_tagger

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
onnx_tags = pytest.importorskip("stillhouse.models.onnx_tags")

ODD = ["", " ", "boring " * 60 + "warm", "你好", "Film! A WARM\tfilm,  dull é", "a 😀 film"]
FIXED = np.array([0, 0, 0, 0, 1], dtype=np.float32)


def many(count: int = 150) -> list[str]:
    """Texts of the tokenizers' words, long and short, and odd ones."""
    draw = random.Random(3)
    words = sorted({word for text in TEXTS for word in text.split()})
    made = [" ".join(draw.choices(words, k=draw.randint(1, 30))) for _ in range(count)]
    return [*TEXTS, *ODD, *made]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_tagger(tmp_path_factory.mktemp("tags") / "student", "bert", wordpiece())


@pytest.fixture(scope="module")
def exported(tagger: Path) -> Path:
    out = tagger.parent / "float"
    export_onnx(tagger, out, TASK, name="tiny", texts=[*TEXTS, *ODD])
    return out


@pytest.fixture(scope="module")
def dynamic(tagger: Path) -> Path:
    out = tagger.parent / "int8"
    quantize_dynamic_onnx(tagger, out, TASK, texts=TEXTS)
    return out


def answers(student: Completer, texts: Sequence[str], **how: int) -> list[Sequence[Completion]]:
    async def ask() -> list[Sequence[Completion]]:
        queries = [Query(id=str(n), messages=TASK.messages_for(t)) for n, t in enumerate(texts)]
        asked = (student.complete(one, Sampling(**how)) for one in queries)
        found = await asyncio.gather(*asked)
        await student.aclose()
        return list(found)

    return asyncio.run(ask())


def opened(folder: Path) -> Completer:
    return open_any(folder, TASK, "tags", 4, "cpu")


def same_answers(folder: Path, student: Path, texts: Sequence[str]) -> int:
    """See that both say the same; how many different answers there are."""
    mine = answers(opened(folder), texts, n=2, logprobs=3)
    theirs = answers(opened(student), texts, n=2, logprobs=3)
    for ours, torchs in zip(mine, theirs, strict=True):
        assert [one.text for one in ours] == [one.text for one in torchs]
        assert [one.sample for one in ours] == [0, 1]
        left, right = ours[0], torchs[0]
        assert (left.prompt_tokens, left.completion_tokens) == (
            right.prompt_tokens,
            right.completion_tokens,
        )
        assert left.logprobs is not None
        assert right.logprobs is not None
        assert [one.token for one in left.logprobs] == [one.token for one in right.logprobs]
        for a, b in zip(left.logprobs, right.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
            assert [v for _, v in a.top] == pytest.approx([v for _, v in b.top], abs=1e-4)
    return len({ours[0].text for ours in mine})


def kl(base: Path, other: Path, texts: Sequence[str]) -> float:
    """Mean KL per token in nats, each text alone."""
    found = []
    readers = [onnx_tags.OnnxTagger(folder, 1) for folder in (base, other)]
    for text in texts:
        p, q = (reader.read([text])[0].log_p for reader in readers)
        found += (np.exp(p) * (p - q)).sum(-1).tolist()
    return float(np.mean(found))


def test_the_same_json_and_log_probabilities_as_torch(tagger: Path, exported: Path) -> None:
    texts = many()
    assert same_answers(exported, tagger, texts) > 60


def test_pieces_side_by_side_are_the_batch(exported: Path) -> None:
    reader, texts = onnx_tags.OnnxTagger(exported, 3), many(40)
    alone = onnx_tags.OnnxTagger(exported, 1)
    for text, found in zip(texts, reader.read(texts), strict=True):
        (wanted,) = alone.read([text])
        assert (found.offsets, found.tokens) == (wanted.offsets, wanted.tokens)
        np.testing.assert_allclose(found.log_p, wanted.log_p, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_bytes_of_characters_and_cuts_on_either_side(tmp_path: Path, side: str) -> None:
    tokenizer = byte_bpe()
    tokenizer.padding_side = tokenizer.truncation_side = side
    student = noisy_tagger(tmp_path / "student", "roberta", tokenizer)
    export_onnx(student, tmp_path / "float", TASK, texts=TEXTS)
    texts = [text for text in many(20) if text]  # its tokenizer gives an empty text no token
    assert same_answers(tmp_path / "float", student, texts) > 10


@pytest.mark.full
def test_distilbert_too(tmp_path: Path) -> None:
    student = noisy_tagger(tmp_path / "student", "distilbert", wordpiece())
    export_onnx(student, tmp_path / "float", TASK, texts=TEXTS)
    assert same_answers(tmp_path / "float", student, many(20)) > 10


def test_what_the_artefact_says(tagger: Path, exported: Path) -> None:
    artefact = read_artefact(exported)
    assert (artefact.kind, artefact.precision, artefact.head) == ("onnx", "float32", "tags")
    assert artefact.task == TASK
    assert set(artefact.files) == {"model.onnx", "tokenizer.json", "student.json"}
    assert artefact.settings["worst_nats"] < 1e-3
    info, base = opened(exported).info, opened(tagger).info
    assert (info.parameters, info.name) == (base.parameters, base.name)
    assert (info.gives_logprobs, info.gives_label_logprobs, info.takes_seed) == (True, False, False)
    assert dict(info.notes) == {
        "head": "tags", "device": "cpu", "dtype": "float32", "runtime": "onnxruntime",
    }  # fmt: skip
    operators = {one.op_type for one in onnx.load(str(exported / "model.onnx")).graph.node}
    assert {"Attention", "BiasGelu", "LayerNormalization"} <= operators


@pytest.mark.parametrize(("given", "rule"), [(None, 1), (2, 2)])
def test_the_rule_by_which_words_were_told_apart_is_kept(
    tagger: Path, tmp_path: Path, given: int | None, rule: int
) -> None:
    student = shutil.copytree(tagger, tmp_path / "student")
    config = json.loads((student / "config.json").read_text())
    assert "tag_words" not in config
    if given is not None:
        (student / "config.json").write_text(json.dumps(config | {"tag_words": given}))
    assert Tagger(load_tagger(str(student), device="cpu")).words == rule
    export_onnx(student, tmp_path / "float", TASK)
    assert onnx_tags.OnnxTagger(tmp_path / "float", 1).words == rule


def test_dynamic_int8_is_integer_and_near(tagger: Path, exported: Path, dynamic: Path) -> None:
    model = onnx.load(str(dynamic / "model.onnx"))
    operators = {one.op_type for one in model.graph.node}
    assert {"MatMulInteger", "QAttention"} <= operators
    weights = {one.name: one for one in model.graph.initializer if len(one.dims) == 2}
    kept = [one for one in weights.values() if one.dims[-1] == len(onnx_tags_names(dynamic))]
    assert [one.data_type for one in kept] == [onnx.TensorProto.FLOAT]  # the classifier's
    assert read_artefact(dynamic).precision == "int8"
    assert read_artefact(dynamic).size_bytes < 0.6 * read_artefact(exported).size_bytes
    assert kl(exported, dynamic, many(40)) < 0.05
    texts = many(40)
    pairs = zip(answers(opened(dynamic), texts), answers(opened(tagger), texts), strict=True)
    # Drawn weights decide most tags by little; half of whole answers is far from chance.
    assert sum(ours[0].text == torchs[0].text for ours, torchs in pairs) > len(texts) / 2


def onnx_tags_names(folder: Path) -> tuple[str, ...]:
    names: tuple[str, ...] = onnx_tags.OnnxTagger(folder, 1).classes
    return names


def test_static_int8_takes_its_ranges_from_texts(
    tagger: Path, exported: Path, tmp_path: Path
) -> None:
    texts = many(40)
    made = quantize_static_onnx(tagger, tmp_path / "static", TASK, texts)
    assert (made.precision, made.head) == ("int8-static", "tags")
    graph = onnx.load(str(tmp_path / "static" / "model.onnx")).graph
    operators = [one.op_type for one in graph.node]
    assert {"QuantizeLinear", "MatMulIntegerToFloat", "QAttention"} <= set(operators)
    assert "DynamicQuantizeLinear" not in operators
    assert kl(exported, tmp_path / "static", texts) < 0.05
    with pytest.raises(DataError, match="holds no text"):
        quantize_static_onnx(tagger, tmp_path / "none", TASK, [" "])


def test_it_answers_without_torch_and_transformers(exported: Path) -> None:
    code = (
        "import asyncio, json, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from pathlib import Path\n"
        "from stillhouse.core.records import Query\n"
        "from stillhouse.core.tasks import ExtractionTask\n"
        "from stillhouse.models.artefact_student import open_any\n"
        "from stillhouse.models.completer import Sampling\n"
        f"task = ExtractionTask.model_validate({RAW_TASK!r})\n"
        f"student = open_any(Path({str(exported)!r}), task, 'tags', 4)\n"
        "query = Query(id='q', messages=task.messages_for('a boring film'))\n"
        "print(asyncio.run(student.complete(query, Sampling()))[0].text)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == answers(opened(exported), ["a boring film"])[0][0].text


def test_other_fields_and_tasks_are_refused(exported: Path) -> None:
    schema = {"type": "object", "properties": {"blame": {"type": "string"}}}
    other = ExtractionTask(kind="extraction", json_schema=schema)
    with pytest.raises(UserError, match=r"student\.json labels: holds .* the task's tags are"):
        open_any(exported, other, "tags", 4)
    with pytest.raises(UserError, match="tags needs an extraction task"):
        open_any(exported, GenerationTask(kind="generation"), "tags", 4)
    with pytest.raises(UserError, match="is of a tags student"):
        open_any(exported, TASK, "text", 4)


def test_what_cannot_be_made_is_refused(tagger: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a label student or a tag student"):
        export_onnx(tagger, tmp_path / "a", GenerationTask(kind="generation"))
    labels = ClassificationTask(kind="classification", labels=("bad", "good"))
    with pytest.raises(UserError, match="is not a classifier"):
        export_onnx(tagger, tmp_path / "b", labels)
    with pytest.raises(UserError, match=r"needs a label student: .*make onnx-int8"):
        export_mobile(tagger, tmp_path / "c", TASK)
    request = ExportRequest(tagger, tmp_path / "d", TASK, "tags", "", TEXTS, ())
    with pytest.raises(UserError, match="needs a label student"):
        EXPORTERS["onnx-mobile"](request)


def test_a_graph_that_tags_otherwise_is_refused(
    tagger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(config: object, path: Path) -> None:
        model = onnx.load(str(path))
        for one in model.graph.initializer:
            if one.name.endswith("classifier.bias"):
                moved = onnx.numpy_helper.to_array(one) + FIXED
                one.CopyFrom(onnx.numpy_helper.from_array(moved, one.name))
        onnx.save(model, str(path))

    monkeypatch.setattr(onnx_export, "_fuse", changed)
    with pytest.raises(UserError, match="comes out of the export changed"):
        export_onnx(tagger, tmp_path / "a", TASK)


def test_a_tokenizer_that_reads_otherwise_is_refused(
    tagger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same number of tokens, elsewhere in the text: tags would be of other characters."""
    read = Tagger.read

    def moved(self: Tagger, texts: Sequence[str]) -> object:
        found = read(self, texts)
        return [one._replace(offsets=[(a + 1, b + 1) for a, b in one.offsets]) for one in found]

    monkeypatch.setattr(Tagger, "read", moved)
    with pytest.raises(UserError, match="comes out of the export changed"):
        export_onnx(tagger, tmp_path / "a", TASK, texts=TEXTS)
