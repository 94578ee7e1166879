"""What goes into each matrix product of a graph, over texts of the task: the ranges of static INT8.

Texts are read one by one, so that padding sets no range. Histograms and the search for the best
threshold are onnxruntime's. Knows a graph and its inputs; writes no graph.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from stillhouse.core.optional import require

Calibration = Literal["minmax", "entropy", "percentile"]

EXTRA: Final = "onnx"
NEEDED_FOR: Final = "calibrating an ONNX student"
PERCENTILE: Final = 99.999  # of the values that stay inside the range
BINS: Final = {"percentile": 2048, "entropy": 128}
LEVELS: Final = 128  # that the entropy method compares with, as onnxruntime's own tool
TEXTS_A_TIME: Final = 16


class Range(NamedTuple):
    """Least and greatest value that is not cut off; 0 lies inside."""

    low: float
    high: float


def measure_ranges(
    path: Path, names: Sequence[str], feeds: Iterable[Mapping[str, Any]], method: Calibration
) -> dict[str, Range]:
    """The range of each named tensor of a float graph.

    Args:
        path: the graph.
        names: tensors of float32, of any shape.
        feeds: the graph's inputs, one text each.
        method: `minmax`: all values; `percentile`: the central 99.999%; `entropy`: the range whose
            histogram, in 128 levels, has the least KL divergence from the whole (TensorRT's way).
    """
    session = _with_outputs(path, names)
    lows, highs = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    collector: Any = None
    if method != "minmax":
        tools: Any = require("onnxruntime.quantization.calibrate", EXTRA, NEEDED_FOR)
        collector = tools.HistogramCollector(
            method, False, BINS[method], LEVELS, PERCENTILE, "same"
        )
    held: list[list[Any]] = []
    for feed in feeds:
        values = [one.ravel() for one in session.run(list(names), dict(feed))]
        if collector is None:
            for name, value in zip(names, values, strict=True):
                lows[name] = min(lows[name], float(value.min()))
                highs[name] = max(highs[name], float(value.max()))
            continue
        held.append(values)
        if len(held) == TEXTS_A_TIME:
            _collect(collector, names, held)
            held = []
    if collector is None:
        return {name: Range(lows[name], highs[name]) for name in names}
    if held:
        _collect(collector, names, held)
    with redirect_stdout(io.StringIO()):  # it prints what it does
        found = collector.compute_collection_result()
    return {
        name: Range(min(0.0, float(found[name][0])), max(0.0, float(found[name][1])))
        for name in names
    }


def _collect(collector: Any, names: Sequence[str], held: Sequence[Sequence[Any]]) -> None:
    columns = zip(*held, strict=True)
    merged = {name: np.concatenate(column) for name, column in zip(names, columns, strict=True)}
    with redirect_stdout(io.StringIO()):
        collector.collect(merged)


def _with_outputs(path: Path, names: Sequence[str]) -> Any:
    """A session that also gives the named tensors."""
    onnx: Any = require("onnx", EXTRA, NEEDED_FOR)
    runtime: Any = require("onnxruntime", EXTRA, NEEDED_FOR)
    model = onnx.load(str(path))
    given = {one.name for one in model.graph.output}
    for name in names:
        if name not in given:
            info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            model.graph.output.append(info)
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    return runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
