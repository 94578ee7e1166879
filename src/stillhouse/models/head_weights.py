"""A label student's last layer as arrays, and what can give and take it. Imports no runtime.

Shapes: N texts, H hidden, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stillhouse.core.artefact import ARTEFACT, is_artefact, read_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.heads import head_of_architecture
from stillhouse.core.jsonl import disk_errors, read_json
from stillhouse.core.optional import require
from stillhouse.core.tasks import ClassificationTask

Floats = npt.NDArray[np.float32]


class HeadWeights(NamedTuple):
    """logits = features @ weight.T + bias."""

    weight: Floats  # [C, H]
    bias: Floats  # [C]

    def logits(self, features: Floats) -> Floats:
        """[N, H] to [N, C]."""
        return np.asarray(features @ self.weight.T + self.bias, dtype=np.float32)

    def digest(self) -> str:
        """SHA-256 of its numbers, bit by bit."""
        digest = hashlib.sha256(repr(self.weight.shape).encode())
        for part in self:
            digest.update(np.ascontiguousarray(part, dtype="<f4").tobytes())
        return digest.hexdigest()


class HeadRead(NamedTuple):
    """What texts came to."""

    log_p: Floats  # [N, C] nats
    features: Floats  # [N, H]
    tokens: list[int]  # of each text, after cutting


class HeadStudent(Protocol):
    """A label student whose last layer can be taken out and put in; the rest stays frozen."""

    head: HeadWeights

    def features(self, texts: Sequence[str]) -> Floats:
        """What the last layer reads. [N, H]"""

    def read(self, texts: Sequence[str]) -> HeadRead:
        """The same, and what its own last layer says of it."""

    def write(self, head: HeadWeights, out: Path) -> None:
        """The student with another last layer, as a folder of the same form."""


def open_head_student(
    folder: Path, task: ClassificationTask, batch: int = 32, device: str = "auto"
) -> HeadStudent:
    """Open a transformers folder or an ONNX artefact.

    Args:
        device: of a transformers folder.

    Raises:
        UserError: it writes texts, is of another form, or its last layer cannot be taken out.
        MissingExtraError: its runtime is not installed.
    """
    artefact = read_artefact(folder) if is_artefact(folder) else None
    kind = "hf" if artefact is None else artefact.kind
    head = artefact.head if artefact is not None else _head(folder)
    if head not in (None, "label"):
        raise UserError(
            str(folder),
            f"is a {head} student; only label students are refined online",
            action="retrain it instead: stillhouse retrain",
        )
    module: Any
    if kind == "onnx":
        module = require("stillhouse.models.onnx_head", "onnx", "refining an ONNX student")
    elif kind == "hf":
        module = require("stillhouse.models.torch_head", "train", "refining a student")
    else:
        raise UserError(
            str(folder / ARTEFACT),
            "has a last layer that cannot be put in anew",
            value=kind,
            action="serve the transformers or the ONNX form of the student to refine it",
        )
    found: HeadStudent = module.open_head(folder, task, batch, device)
    return found


def _head(folder: Path) -> str | None:
    """The head that a transformers folder names; what is wrong with it, loading says."""
    config = folder / "config.json"
    if not config.is_file():
        return None
    names = read_json(config).get("architectures")
    return head_of_architecture(str(names[0])) if isinstance(names, list) and names else None


def save_head(path: Path, head: HeadWeights) -> None:
    """Write it as safetensors."""
    numpy: Any = require("safetensors.numpy", "onnx", "keeping versions of a student")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".tmp")
        # safetensors writes an array's memory as it lies.
        rows = {name: np.ascontiguousarray(one) for name, one in head._asdict().items()}
        numpy.save_file(rows, str(part))
        part.replace(path)


def load_head(path: Path, digest: str) -> HeadWeights:
    """Read it, and see that it is what was written.

    Raises:
        UserError: it is gone, or was changed.
    """
    numpy: Any = require("safetensors.numpy", "onnx", "keeping versions of a student")
    own: Any = require("safetensors", "onnx", "keeping versions of a student")
    try:
        found = numpy.load_file(str(path))
        head = HeadWeights(found["weight"], found["bias"])
    except (OSError, KeyError, own.SafetensorError) as error:
        raise UserError(str(path), f"cannot be read: {error}", action="roll back further") from None
    if head.digest() != digest:
        raise UserError(str(path), "was changed after it was written", action="roll back further")
    return head
