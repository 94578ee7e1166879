"""A label or tag student's ONNX graph with INT8 weights: dynamic (ranges of each input, as it
comes) and static (ranges set beforehand by calibration texts).

Matrix products: weights symmetric INT8 with a scale for each output channel, inputs UINT8 with a
zero point. On x86 without VNNI, products of UINT8 and INT8 are added in pairs in 16 bits and
saturate; 7-bit weights cannot (255 * 64 * 2 < 2^15), so `reduce_range` is the default and the
same file gives the same answers on every processor. Embedding tables: symmetric INT8 with a scale
for each row. In float stay the last product (the classifier: few weights, on each of which answers
depend), normalisations, softmax, GELU and products of two activations. Knows graphs and
texts; not what the answers are worth.

Source: Jacob et al. 2018 (arXiv:1712.05877) for affine quantization; docs/onnx.md has the measures
behind each choice.

Legend: V rows of a table, H channels.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.compress.onnx_export import finish, quiet_export, write_float_graph
from stillhouse.compress.onnx_heads import EXTRA, NEEDED_FOR
from stillhouse.compress.onnx_ranges import Calibration, Range, measure_ranges
from stillhouse.core.artefact import Artefact
from stillhouse.core.errors import DataError
from stillhouse.core.optional import require
from stillhouse.core.tasks import Task

LEAST_TABLE: Final = 2048  # elements; a smaller table is not worth two operators more
FIELD: Final = "compress.calibration"
MICROSOFT: Final = "com.microsoft"  # the domain of onnxruntime's own operators
INPUT_LEVELS: Final = 255
LAST: Final = "classifier_product"


def quantize_dynamic_onnx(
    student: Path,
    out: Path,
    task: Task,
    *,
    name: str = "",
    texts: Sequence[str] = (),
    per_channel: bool = True,
    reduce_range: bool = True,
) -> Artefact:
    """Write a label or tag student to `out` as dynamic INT8.

    Args:
        student, out, task, name, texts: as `onnx_export.export_onnx`, whose float graph is made and
            checked first.
        per_channel: a scale for each output channel of a weight; else one for all.
        reduce_range: 7-bit weights.

    Raises:
        UserError, MissingExtraError: as `export_onnx`.
    """
    made = write_float_graph(student, out, task, texts)
    quantization: Any = require("onnxruntime.quantization", EXTRA, NEEDED_FOR)
    path = out / _model_name()
    last = _last_product(path)
    with quiet_export():
        quantization.quantize_dynamic(
            str(path),
            str(path),
            op_types_to_quantize=["MatMul", "Attention"],
            nodes_to_exclude=[last],
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": _float_type()},
        )
    tables = quantize_tables(path)
    settings = {
        "per_channel": per_channel,
        "reduce_range": reduce_range,
        "tables": tables,
        "worst_nats_float": made.worst,
    }
    return finish(student, out, task, precision="int8", name=name, settings=settings)


def quantize_static_onnx(
    student: Path,
    out: Path,
    task: Task,
    texts: Sequence[str],
    *,
    name: str = "",
    method: Calibration = "minmax",
    per_channel: bool = True,
    reduce_range: bool = True,
) -> Artefact:
    """Write a label or tag student to `out` as static INT8: ranges of activations are constants.

    Args:
        student, out, task, name: as `onnx_export.export_onnx`.
        texts: inputs of the task, as the student reads them (`task.input_text`).
        method: how a range is taken from what the texts bring: all of it, the least KL divergence
            of the histogram, or its central 99.999%.
        per_channel, reduce_range: as `quantize_dynamic_onnx`.

    Raises:
        DataError: no text, or none with a word that the tokenizer knows.
        UserError, MissingExtraError: as `export_onnx`.
    """
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise DataError(
            FIELD,
            "holds no text, and static INT8 takes its ranges from texts",
            value=len(texts),
            action="give queries of this task, or make onnx-int8, which needs none",
        )
    made = write_float_graph(student, out, task, kept)
    _check_known(out, kept)
    path = out / _model_name()
    last = _last_product(path)
    feeds = (made.reader.inputs([text]) for text in kept)
    ranges = measure_ranges(path, product_inputs(path, last), feeds, method)
    quantize_products(path, ranges, last, per_channel=per_channel, reduce_range=reduce_range)
    tables = quantize_tables(path)
    settings = {
        "per_channel": per_channel,
        "reduce_range": reduce_range,
        "tables": tables,
        "calibration": method,
        "calibration_samples": len(kept),
        "worst_nats_float": made.worst,
    }
    return finish(student, out, task, precision="int8-static", name=name, settings=settings)


def quantize_tables(path: Path) -> int:
    """Give every embedding table of a graph INT8 rows with a scale each; how many tables.

    Gather(table, ids) becomes Cast(Gather(rows [V, H] INT8, ids)) * Gather(scales [V, 1], ids).
    """
    onnx: Any = require("onnx", EXTRA, NEEDED_FOR)
    model = onnx.load(str(path))
    graph = model.graph
    floats = {
        one.name: one
        for one in graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) == 2
    }
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    nodes: list[Any] = []
    made: dict[str, tuple[str, str]] = {}
    for node in graph.node:
        table = floats.get(node.input[0]) if node.op_type == "Gather" else None
        axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
        if table is None or axis != 0 or int(np.prod(table.dims)) < LEAST_TABLE:
            nodes.append(node)
            continue
        if table.name not in made:
            rows, scales = row_scaled(onnx.numpy_helper.to_array(table))
            made[table.name] = (f"{table.name}_rows", f"{table.name}_scales")
            graph.initializer.append(onnx.numpy_helper.from_array(rows, made[table.name][0]))
            graph.initializer.append(onnx.numpy_helper.from_array(scales, made[table.name][1]))
        rows_name, scales_name = made[table.name]
        readers[table.name] -= 1
        ids, result = node.input[1], node.output[0]
        make = onnx.helper.make_node
        nodes += [
            make("Gather", [rows_name, ids], [f"{result}_int8"], axis=0),
            make("Gather", [scales_name, ids], [f"{result}_scale"], axis=0),
            make("Cast", [f"{result}_int8"], [f"{result}_float"], to=onnx.TensorProto.FLOAT),
            make("Mul", [f"{result}_float", f"{result}_scale"], [result]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    left = [one for one in graph.initializer if one.name not in made or readers[one.name] > 0]
    del graph.initializer[:]
    graph.initializer.extend(left)
    onnx.save(model, str(path))
    return len(made)


def product_inputs(path: Path, last: str) -> list[str]:
    """Names of the activations that a graph multiplies by constant weights, in its order; the node
    named `last` left out."""
    onnx: Any = require("onnx", EXTRA, NEEDED_FOR)
    graph = onnx.load(str(path), load_external_data=False).graph
    constant = {one.name for one in graph.initializer if len(one.dims) == 2}
    names = [node.input[0] for node in graph.node if _is_product(node, constant, last)]
    return list(dict.fromkeys(names))


def quantize_products(
    path: Path, ranges: Mapping[str, Range], last: str, *, per_channel: bool, reduce_range: bool
) -> None:
    """Make each product of an activation and constant weights one of integers, with fixed ranges;
    the node named `last` stays.

    MatMul becomes QuantizeLinear and MatMulIntegerToFloat, Attention QuantizeLinear and QAttention.
    (As QuantizeLinear, DequantizeLinear and MatMul, what onnxruntime's tool writes, its CPU build
    1.32 multiplies floats by unpacked weights, at the speed of neither.)
    """
    onnx: Any = require("onnx", EXTRA, NEEDED_FOR)
    model = onnx.load(str(path))
    graph = model.graph
    weights = {one.name: one for one in graph.initializer if len(one.dims) == 2}
    constants: dict[str, Any] = {}
    entered: dict[str, _Entered] = {}
    nodes: list[Any] = []
    for node in graph.node:
        if not _is_product(node, weights, last):
            nodes.append(node)
            continue
        x, name = node.input[0], node.input[1]
        if x not in entered:
            entered[x] = _Entered(f"{x}_u8", f"{x}_scale", f"{x}_zero")
            scale, zero = affine(ranges[x])
            constants[entered[x].scale], constants[entered[x].zero] = scale, zero
            nodes.append(onnx.helper.make_node("QuantizeLinear", [x, *entered[x][1:]], [f"{x}_u8"]))
        if f"{name}_int8" not in constants:
            whole, scales = column_scaled(
                onnx.numpy_helper.to_array(weights[name]), per_channel, reduce_range
            )
            constants[f"{name}_int8"], constants[f"{name}_scale"] = whole, scales
            constants[f"{name}_zero"] = np.zeros(scales.shape, dtype=np.int8)
        nodes.append(_integer_product(node, entered[x]))
    del graph.node[:]
    graph.node.extend(nodes)
    for key, value in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), key))
    used = {name for node in nodes for name in node.input}
    left = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(left)
    if MICROSOFT not in {one.domain for one in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    onnx.save(model, str(path))


def affine(bounds: Range) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of a UINT8 range: x ~ (u8 - zero) * scale."""
    width = bounds.high - bounds.low
    scale = width / INPUT_LEVELS if width > 0 else 1.0
    return np.float32(scale), np.uint8(np.clip(np.rint(-bounds.low / scale), 0, INPUT_LEVELS))


def column_scaled(
    weight: npt.NDArray[np.float32], per_channel: bool, reduce_range: bool
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """INT8 [H, N] and scales [N], or one scale [], with weight ~ INT8 * scales.

    Symmetric; within 64 where `reduce_range`, else 127.
    """
    most = 64 if reduce_range else 127
    largest = np.abs(weight).max(axis=0 if per_channel else None)
    scales = _scales(largest, most)
    return np.rint(weight / scales).clip(-most, most).astype(np.int8), scales


def row_scaled(
    table: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """rows [V, H] INT8 and scales [V, 1] with table ~ rows * scales; |error| <= scale / 2."""
    scales = _scales(np.abs(table).max(axis=1, keepdims=True), 127)
    return np.rint(table / scales).clip(-127, 127).astype(np.int8), scales


class _Entered(NamedTuple):
    """Names of a quantized activation."""

    values: str
    scale: str
    zero: str


def _integer_product(node: Any, x: _Entered) -> Any:
    onnx: Any = require("onnx", EXTRA, NEEDED_FOR)
    name = node.input[1]
    weight, scale, zero = f"{name}_int8", f"{name}_scale", f"{name}_zero"
    if node.op_type == "MatMul":
        inputs = [x.values, weight, x.scale, scale, x.zero, zero]
        return onnx.helper.make_node(
            "MatMulIntegerToFloat", inputs, list(node.output), domain=MICROSOFT
        )
    bias, mask, past = (*node.input[2:5], "", "", "")[:3]
    inputs = [x.values, weight, bias, x.scale, scale, mask, x.zero, zero, past]
    while not inputs[-1]:
        inputs.pop()
    product = onnx.helper.make_node("QAttention", inputs, list(node.output), domain=MICROSOFT)
    product.attribute.extend(node.attribute)
    return product


def _is_product(node: Any, weights: Container[str], last: str) -> bool:
    if node.op_type not in ("MatMul", "Attention") or node.name == last:
        return False
    return node.input[1] in weights


def _last_product(path: Path) -> str:
    """Write Gemm as MatMul and Add, which both ways of quantizing know; name the classifier's."""
    onnx: Any = require("onnx", EXTRA, NEEDED_FOR)
    tools: Any = require("onnxruntime.quantization.onnx_model", EXTRA, NEEDED_FOR)
    whole = tools.ONNXModel(onnx.load(str(path)))
    whole.replace_gemm_with_matmul()
    whole.topological_sort()
    graph = whole.model.graph
    constant = {one.name for one in graph.initializer}
    products = [
        node for node in graph.node if node.op_type == "MatMul" and node.input[1] in constant
    ]
    products[-1].name = LAST
    onnx.save(whole.model, str(path))
    return LAST


def _scales(largest: Any, most: int) -> npt.NDArray[np.float32]:
    """largest / most; what is all denormals counts as zeros, since its scale would round to 0."""
    usable = np.where(largest > np.finfo(np.float32).tiny * 127, largest, 1.0)
    return (usable / most).astype(np.float32)


def _check_known(out: Path, texts: Sequence[str]) -> None:
    """Texts in a script or language that the tokenizer does not know calibrate nothing."""
    tokenizers: Any = require("tokenizers", EXTRA, NEEDED_FOR)
    opener: Any = require("stillhouse.models.onnx_student", EXTRA, NEEDED_FOR)
    tokenizer = tokenizers.Tokenizer.from_file(str(out / opener.TOKENIZER))
    unknown = getattr(tokenizer.model, "unk_token", None)
    special = set(tokenizer.get_added_tokens_decoder())
    number = tokenizer.token_to_id(unknown) if unknown else None
    for one in tokenizer.encode_batch(list(texts)):
        if any(i != number and i not in special for i in one.ids):
            return
    raise DataError(
        FIELD,
        f"none of the {len(texts)} texts has a word that the student's tokenizer knows",
        action="give queries of this task",
    )


def _model_name() -> str:
    opener: Any = require("stillhouse.models.onnx_student", EXTRA, NEEDED_FOR)
    return str(opener.MODEL)


def _float_type() -> int:
    """What onnxruntime's own operators give, whose types shape inference does not know."""
    onnx: Any = require("onnx", EXTRA, NEEDED_FOR)
    return int(onnx.TensorProto.FLOAT)
