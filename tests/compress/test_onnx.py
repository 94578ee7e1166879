"""Label students in ONNX: equal answers without torch, INT8 weights, and what is refused."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from stillhouse.compress import onnx_export, onnx_int8
from stillhouse.compress.onnx_export import export_onnx
from stillhouse.compress.onnx_int8 import (
    quantize_dynamic_onnx,
    quantize_static_onnx,
    row_scaled,
)
from stillhouse.core.artefact import read_artefact
from stillhouse.core.errors import DataError, MissingExtraError, UserError
from stillhouse.core.records import Message, Query
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from stillhouse.models.completer import Sampling
from stillhouse.models.loading import load_classifier
from stillhouse.models.student import LabelStudent
from tiny_models import TEXTS, byte_bpe, save_drawn, wordpiece
from train.cut_families import DECODERS, config_of

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
onnx_student = pytest.importorskip("stillhouse.models.onnx_student")

TASK = ClassificationTask(kind="classification", labels=("bad", "good", "so so"))
# The empty text, one that is cut, and one that is all unknown.
READ = [*TEXTS, "", "boring " * 90, "\u4f60\u597d", "Film!"]


def student_of(
    folder: Path, family: str, tokenizer: PreTrainedTokenizerFast, spread: float = 0.15
) -> Path:
    """A tiny classifier of a family whose answers differ, saved with its tokenizer."""
    config = config_of(family, len(tokenizer))
    kind, tokenizer.model_max_length = AutoModelForSequenceClassification, 60
    return save_drawn(folder, kind, config, tokenizer, TASK.labels, seed=5, spread=spread)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student_of(tmp_path_factory.mktemp("bert") / "student", "bert", wordpiece())


@pytest.fixture(scope="module")
def exported(bert: Path) -> Path:
    out = bert.parent / "float"
    export_onnx(bert, out, TASK, name="tiny", texts=READ)
    return out


@pytest.fixture(scope="module")
def dynamic(bert: Path) -> Path:
    out = bert.parent / "int8"
    quantize_dynamic_onnx(bert, out, TASK)
    return out


def answers(completer: object, texts: list[str]) -> list[object]:
    async def ask() -> list[object]:
        asked = [
            completer.complete(  # type: ignore[attr-defined]
                Query(id=str(i), messages=(Message(role="user", content=text),)), Sampling(n=2)
            )
            for i, text in enumerate(texts)
        ]
        found = await asyncio.gather(*asked)
        await completer.aclose()  # type: ignore[attr-defined]
        return found

    return asyncio.run(ask())


def opened(folder: Path, batch_size: int = 4) -> object:
    return onnx_student.open_onnx_student(folder, read_artefact(folder), TASK, batch_size, 1)


def test_the_same_answers_as_the_float_student(bert: Path, exported: Path) -> None:
    texts = [text or "." for text in READ]
    mine = answers(opened(exported), texts)
    theirs = answers(LabelStudent(load_classifier(str(bert), device="cpu"), TASK, 4), texts)
    for left, right in zip(mine, theirs, strict=True):
        assert [c.text for c in left] == [c.text for c in right]
        assert [c.prompt_tokens for c in left] == [c.prompt_tokens for c in right]
        assert [c.sample for c in left] == [0, 1]
        for label in TASK.labels:
            assert left[0].label_logprobs[label] == pytest.approx(
                right[0].label_logprobs[label], abs=1e-5
            )


def test_any_batch_gives_the_same(exported: Path) -> None:
    reader = onnx_student.OnnxReader(exported, 1)
    whole = reader.read(READ)
    for number, text in enumerate(READ):
        alone = reader.read([text])
        assert alone.tokens == [whole.tokens[number]]
        np.testing.assert_allclose(alone.log_p[0], whole.log_p[number], atol=1e-5)
    np.testing.assert_allclose(np.exp(whole.log_p).sum(-1), 1, atol=1e-5)


def test_pieces_side_by_side_are_the_batch(exported: Path) -> None:
    texts = [f"{text} {n}" for n in range(9) for text in READ]  # several pieces for each thread
    alone, together = (onnx_student.OnnxReader(exported, threads) for threads in (1, 3))
    wanted = [alone.read([text]) for text in texts]
    for reader in (alone, together):
        for most in (len(texts), onnx_student.PIECE + 1, 2):
            found = reader.read(texts[:most])
            assert found.tokens == [one.tokens[0] for one in wanted[:most]]
            np.testing.assert_allclose(
                found.log_p, np.concatenate([one.log_p for one in wanted[:most]]), atol=1e-5
            )


def test_what_the_artefact_says(bert: Path, exported: Path) -> None:
    artefact = read_artefact(exported)
    assert (artefact.kind, artefact.precision, artefact.head) == ("onnx", "float32", "label")
    assert set(artefact.files) == {"model.onnx", "tokenizer.json", "student.json"}
    assert artefact.made_from.name == "tiny"
    assert artefact.made_from.versions["onnxruntime"]
    assert artefact.settings["worst_nats"] < 1e-4
    info = opened(exported).info  # type: ignore[attr-defined]
    assert info.parameters == load_classifier(str(bert), device="cpu").parameters
    assert info.notes["runtime"] == "onnxruntime"
    graph = onnx.load(str(exported / "model.onnx")).graph
    operators = {node.op_type for node in graph.node}
    assert {"Attention", "BiasGelu", "Sum", "LayerNormalization"} <= operators
    assert "SkipLayerNormalization" not in operators


def test_it_answers_without_torch_and_transformers(exported: Path) -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from pathlib import Path\n"
        "from stillhouse.models.onnx_student import OnnxReader\n"
        f"print(OnnxReader(Path({str(exported)!r}), 1).read(['a boring film']).log_p.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 3)", done.stderr


def test_dynamic_int8_is_integer_and_close(exported: Path, dynamic: Path) -> None:
    model = onnx.load(str(dynamic / "model.onnx"))
    float_weights = sum(
        int(np.prod(one.dims))
        for one in model.graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) == 2 and one.dims[1] > 1
    )
    weights = sum(
        int(np.prod(one.dims))
        for one in model.graph.initializer
        if one.data_type == onnx.TensorProto.INT8
    )
    assert float_weights == 48 * 3 + 2 * 48  # the classifier and the table of token types
    assert weights > 50 * float_weights
    operators = {node.op_type for node in model.graph.node}
    assert {"MatMulInteger", "QAttention"} <= operators
    largest = max(
        int(np.abs(onnx.numpy_helper.to_array(one).astype(int)).max())
        for one in model.graph.initializer
        if one.data_type == onnx.TensorProto.INT8 and one.name.endswith("_quantized")
    )
    assert largest <= 64  # 7 bits: no pair of products leaves 16 bits
    mine = onnx_student.OnnxReader(dynamic, 1).read(READ).log_p
    base = onnx_student.OnnxReader(exported, 1).read(READ).log_p
    assert (np.exp(base) * (base - mine)).sum(-1).mean() < 0.01


def test_static_int8_is_integer_and_close(bert: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "static"
    artefact = quantize_static_onnx(bert, out, TASK, TEXTS)
    assert artefact.settings["calibration_samples"] == len(TEXTS)
    operators = [node.op_type for node in onnx.load(str(out / "model.onnx")).graph.node]
    assert {"QuantizeLinear", "MatMulIntegerToFloat", "QAttention"} <= set(operators)
    assert "DynamicQuantizeLinear" not in operators
    assert "DequantizeLinear" not in operators
    assert operators.count("MatMul") == 1  # the classifier's: the others are in Attention or INT8
    mine = onnx_student.OnnxReader(out, 1).read(TEXTS).log_p
    base = onnx_student.OnnxReader(exported, 1).read(TEXTS).log_p
    assert (np.exp(base) * (base - mine)).sum(-1).mean() < 0.01


@pytest.mark.full
@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_calibrations(bert: Path, exported: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / method
    quantize_static_onnx(bert, out, TASK, TEXTS, method=method)
    mine = onnx_student.OnnxReader(out, 1).read(TEXTS).log_p
    base = onnx_student.OnnxReader(exported, 1).read(TEXTS).log_p
    assert (np.exp(base) * (base - mine)).sum(-1).mean() < 0.05


@pytest.mark.full
@pytest.mark.parametrize("family", ["distilbert", "roberta", *DECODERS])
def test_every_family(tmp_path: Path, family: str) -> None:
    tokenizer = byte_bpe() if family in DECODERS or family == "roberta" else wordpiece()
    student = student_of(tmp_path / "student", family, tokenizer)
    assert export_onnx(student, tmp_path / "float", TASK, texts=READ).size_bytes > 0
    quantize_dynamic_onnx(student, tmp_path / "int8", TASK)
    mine = onnx_student.OnnxReader(tmp_path / "int8", 1).read(TEXTS).log_p
    base = onnx_student.OnnxReader(tmp_path / "float", 1).read(TEXTS).log_p
    assert (np.exp(base) * (base - mine)).sum(-1).mean() < 0.05


def test_left_padding_and_cutting_as_trained(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    student = student_of(tmp_path / "student", "distilbert", tokenizer)
    export_onnx(student, tmp_path / "float", TASK)
    reader = onnx_student.OnnxReader(tmp_path / "float", 1)
    texts = ["dull", "boring " * 80 + "wonderful"]
    expected = AutoTokenizer.from_pretrained(student)(
        texts, padding=True, truncation=True, max_length=60, return_tensors="np"
    )
    found = reader.inputs(texts)
    np.testing.assert_array_equal(found["input_ids"], expected["input_ids"])
    np.testing.assert_array_equal(found["attention_mask"], expected["attention_mask"])


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-44, 1e-6, 1.0, 1e6, 1e38]))
def test_rows_are_within_half_a_step(seed: int, size: float) -> None:
    table = (np.random.default_rng(seed).standard_cauchy((5, 7)).clip(-3, 3) * size).astype("f4")
    rows, scales = row_scaled(table)
    assert scales.shape == (len(table), 1)
    assert (scales > 0).all()
    error = np.abs(rows.astype(np.float64) * scales - table)
    assert (error <= scales * (0.5 + 1e-4)).all()


def test_an_edited_file_is_named(dynamic: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in dynamic.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    spec = json.loads((copy / "student.json").read_text())
    (copy / "student.json").write_text(json.dumps(spec | {"labels": ["good", "bad", "so so"]}))
    with pytest.raises(UserError, match=r"student\.json: was changed"):
        read_artefact(copy)


def test_what_is_refused(
    bert: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for texts in ([], ["", "  "]):
        with pytest.raises(DataError, match="holds no text"):
            quantize_static_onnx(bert, tmp_path / "a", TASK, texts)
    with pytest.raises(DataError, match="tokenizer knows"):
        quantize_static_onnx(bert, tmp_path / "b", TASK, ["\u4f60\u597d", "\u597d"])
    with pytest.raises(UserError, match="needs a label student"):
        export_onnx(bert, tmp_path / "c", GenerationTask(kind="generation"))
    other = ClassificationTask(kind="classification", labels=("good", "bad", "so so"))
    with pytest.raises(UserError, match="the task's labels are"):
        onnx_student.open_onnx_student(exported, read_artefact(exported), other, 4)
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot run it"):
        onnx_student.open_session(tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'stillhouse\[onnx\]'"):
        export_onnx(bert, tmp_path / "d", TASK)


def test_an_architecture_that_cannot_be_exported(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(config: object, path: Path) -> None:
        model = onnx.load(str(path))
        for one in model.graph.initializer:
            if one.name.endswith("classifier.bias"):
                moved = onnx.numpy_helper.to_array(one) + np.array([0, 0, 1], dtype=np.float32)
                one.CopyFrom(onnx.numpy_helper.from_array(moved, one.name))
        onnx.save(model, str(path))

    monkeypatch.setattr(onnx_export, "_fuse", changed)
    with pytest.raises(UserError, match="comes out of the export changed"):
        export_onnx(bert, tmp_path / "a", TASK)

    def fails(*given: object) -> None:
        raise RuntimeError("Unsupported: aten::strange")

    monkeypatch.setattr(onnx_export, "_trace", fails)
    with pytest.raises(UserError, match=r"architecture bert cannot be exported.*aten::strange"):
        export_onnx(bert, tmp_path / "b", TASK)
    assert not (tmp_path / "b" / "artefact.json").exists()


def test_two_tables_of_one_weight_are_written_once(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            make("Gather", ["table", "ids"], ["a"]),
            make("Gather", ["table", "ids"], ["b"]),
            make("Add", ["a", "b"], ["logits"]),
        ],
        "twice",
        [info("ids", onnx.TensorProto.INT64, ["n"])],
        [info("logits", onnx.TensorProto.FLOAT, ["n", 48])],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    path = tmp_path / "model.onnx"
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    assert onnx_int8.quantize_tables(path) == 1
    assert {one.name for one in onnx.load(str(path)).graph.initializer} == {
        "table_rows",
        "table_scales",
    }
    ids = np.array([3, 63, 3])
    found = onnx_student.open_session(path, 1).run(None, {"ids": ids})[0]
    np.testing.assert_allclose(found, 2 * table[ids], atol=2 * np.abs(table).max() / 127)
