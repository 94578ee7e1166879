"""The last layer of an ONNX label student: what it reads, its weights, another in its place.

The classifier stays in float in every form that `compress` writes: a Gemm, or a MatMul and an Add.
What it reads is made an output of the graph beside the logits. Integers before it stay as they are.

Shapes: N texts, H hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stillhouse.core.artefact import copy_student, read_artefact, write_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors
from stillhouse.core.optional import require
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.head_weights import Floats, HeadRead, HeadWeights
from stillhouse.models.onnx_student import MODEL, OUTPUT, OnnxReader, log_softmax, open_session


class _Place(NamedTuple):
    """Where the last layer stands in a graph."""

    reads: str
    weight: str
    bias: str
    turned: bool  # the weight is [C, H], not [H, C]


class OnnxHead:
    """See `HeadStudent`.

    Raises:
        UserError: other labels, or a last layer that is not plain.
    """

    def __init__(self, folder: Path, task: ClassificationTask, batch: int) -> None:
        self._onnx: Any = require("onnx", "onnx", "refining an ONNX student")
        self._folder, self._batch = folder, batch
        model = self._onnx.load(str(folder / MODEL))
        self._place = _place(model.graph, self._onnx, folder)
        shown = self._onnx.helper.make_tensor_value_info(
            self._place.reads, self._onnx.TensorProto.FLOAT, None
        )
        model.graph.output.append(shown)
        self._session = open_session(folder / MODEL, graph=model.SerializeToString())
        self._reader = OnnxReader(folder, session=self._session)
        if self._reader.spec.labels != task.labels:
            raise UserError(
                f"{folder} labels",
                f"are {list(self._reader.spec.labels)}, the task's labels are {list(task.labels)}",
                action="refine a student of this task",
            )
        arrays = {
            one.name: self._onnx.numpy_helper.to_array(one)
            for one in model.graph.initializer
            if one.name in (self._place.weight, self._place.bias)
        }
        weight = arrays[self._place.weight]
        weight = weight if self._place.turned else weight.T
        bias = arrays[self._place.bias].reshape(-1)
        self.head = HeadWeights(
            np.array(weight, dtype=np.float32), np.array(bias, dtype=np.float32)
        )

    def features(self, texts: Sequence[str]) -> Floats:
        """See `HeadStudent`."""
        return self.read(texts).features

    def read(self, texts: Sequence[str]) -> HeadRead:
        """See `HeadStudent`. Texts of about one length are read together."""
        classes, hidden = self.head.weight.shape
        found = np.zeros((len(texts), hidden), dtype=np.float32)
        log_p = np.zeros((len(texts), classes), dtype=np.float32)
        tokens = [0] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            feed, counts = self._reader.fed([texts[i] for i in rows])
            logits, found[rows] = self._session.run([OUTPUT, self._place.reads], feed)
            log_p[rows] = log_softmax(logits)
            for row, count in zip(rows, counts, strict=True):
                tokens[row] = count
        return HeadRead(log_p, found, tokens)

    def write(self, head: HeadWeights, out: Path) -> None:
        """See `HeadStudent`."""
        new = {
            self._place.weight: head.weight if self._place.turned else head.weight.T,
            self._place.bias: head.bias,
        }
        model = self._onnx.load(str(self._folder / MODEL))
        for one in model.graph.initializer:
            if one.name in new:
                shape = tuple(one.dims)
                array = np.ascontiguousarray(new[one.name], dtype=np.float32).reshape(shape)
                one.CopyFrom(self._onnx.numpy_helper.from_array(array, one.name))
        old = read_artefact(self._folder)
        with disk_errors(out):
            copy_student(self._folder, out)
            self._onnx.save(model, str(out / MODEL))
        write_artefact(
            out,
            kind="onnx",
            precision=old.precision,
            head="label",
            made_from=old.made_from,
            task=old.task,
            settings={**old.settings, "head": head.digest()},
        )


def open_head(folder: Path, task: ClassificationTask, batch: int, _device: str) -> OnnxHead:
    """See `head_weights.open_head_student`."""
    return OnnxHead(folder, task, batch)


def _place(graph: Any, onnx: Any, folder: Path) -> _Place:
    constant = {one.name: one for one in graph.initializer}
    makes = {name: node for node in graph.node for name in node.output}
    node = makes.get(OUTPUT)
    while node is not None and node.op_type in ("Cast", "Identity"):
        node = makes.get(node.input[0])
    if node is not None and node.op_type == "Gemm" and len(node.input) == 3:
        plain = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if plain.get("alpha", 1.0) == plain.get("beta", 1.0) == 1.0 and not plain.get("transA", 0):
            if node.input[1] in constant and node.input[2] in constant:
                x, weight, bias = node.input
                return _Place(x, weight, bias, bool(plain.get("transB", 0)))
    if node is not None and node.op_type == "Add":
        for first, second in (node.input, reversed(node.input)):
            product = makes.get(first)
            if second in constant and product is not None and product.op_type == "MatMul":
                if product.input[1] in constant:
                    return _Place(product.input[0], product.input[1], second, turned=False)
    raise UserError(
        str(folder / MODEL),
        "does not end in a plain linear layer with a bias",
        action="make it again with: stillhouse compress",
    )
