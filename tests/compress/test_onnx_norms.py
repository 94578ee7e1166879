"""A fused normalisation and its parts give the same, and stay apart when a graph is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stillhouse.compress.onnx_norms import part_normalisations

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
FLOAT = 1  # TensorProto.FLOAT


def fused(path: Path, *, bias: bool, summed: bool) -> None:
    """x times a weight, then one SkipLayerNormalization with skip y."""
    draw = np.random.default_rng(2)
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    parts = {"w": (12, 12), "scale": (12,), "shift": (12,), **({"bias": (12,)} if bias else {})}
    outputs = ["out", "", "", "whole"] if summed else ["out"]
    graph = onnx.helper.make_graph(
        [
            make("MatMul", ["x", "w"], ["product"]),
            make(
                "SkipLayerNormalization",
                ["product", "y", "scale", "shift", *(["bias"] if bias else [])],
                outputs,
                domain="com.microsoft",
                epsilon=1e-3,
            ),
        ],
        "fused",
        [info(name, FLOAT, ["b", "t", 12]) for name in ("x", "y")],
        [info(name, FLOAT, ["b", "t", 12]) for name in outputs if name],
        [
            onnx.numpy_helper.from_array(draw.normal(size=shape).astype("f4"), name)
            for name, shape in parts.items()
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_the_same_numbers_from_the_parts(tmp_path: Path, bias: bool, summed: bool) -> None:
    path, optimised = tmp_path / "model.onnx", tmp_path / "loaded.onnx"
    fused(path, bias=bias, summed=summed)
    draw = np.random.default_rng(3)
    feed = {name: draw.normal(size=(2, 5, 12)).astype("f4") for name in ("x", "y")}
    cpu = ["CPUExecutionProvider"]
    before = runtime.InferenceSession(str(path), providers=cpu).run(None, feed)
    assert part_normalisations(path) == 1
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    after = runtime.InferenceSession(str(path), options, providers=cpu).run(None, feed)
    assert len(before) == len(after) == 1 + summed
    for left, right in zip(before, after, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    operators = {node.op_type for node in onnx.load(str(optimised)).graph.node}
    assert "LayerNormalization" in operators
    assert "SkipLayerNormalization" not in operators
