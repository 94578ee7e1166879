"""The last layer of a transformers label student: what it reads, its weights, another in its place.

The last linear layer over the classes is found by its size; what a student with another one answers
is the forward pass's, so nothing is assumed of its family but that this layer reads one vector a
text. Other files of the folder are copied as they are.

Shapes: N texts, B batch, H hidden, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from stillhouse.core.artefact import copy_student, is_artefact, read_artefact, write_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.head_file import INDEX
from stillhouse.models.head_weights import Floats, HeadRead, HeadWeights
from stillhouse.models.loading import WEIGHTS, load_classifier


class TorchHead:
    """See `HeadStudent`.

    Raises:
        UserError: other labels, no last linear layer with a bias, or weights in no safetensors.
    """

    def __init__(
        self, folder: Path, task: ClassificationTask, batch: int, device: str = "auto"
    ) -> None:
        self._folder, self._batch = folder, batch
        loaded = load_classifier(str(folder), device=device)
        self._reader = ClassifierReader(loaded)
        if self._reader.classes != task.labels:
            raise UserError(
                f"{folder} id2label",
                f"holds {list(self._reader.classes)}, the task's labels are {list(task.labels)}",
                action="refine a student of this task",
            )
        layers = [
            (name, one)
            for name, one in loaded.model.named_modules()
            if isinstance(one, nn.Linear) and one.out_features == len(task.labels)
        ]
        if not layers or layers[-1][1].bias is None:
            raise UserError(
                str(folder), "has no last linear layer with a bias", action="retrain it instead"
            )
        self._name, self._layer = layers[-1]
        self.head = HeadWeights(_array(self._layer.weight), _array(self._layer.bias))

    def features(self, texts: Sequence[str]) -> Floats:
        """See `HeadStudent`."""
        return self.read(texts).features

    def read(self, texts: Sequence[str]) -> HeadRead:
        """See `HeadStudent`. Texts of about one length are read together."""
        caught: list[torch.Tensor] = []

        def catch(_module: Any, given: tuple[Any, ...]) -> None:
            caught.append(given[0].detach())

        classes, hidden = self.head.weight.shape
        found = np.zeros((len(texts), hidden), dtype=np.float32)
        log_p = np.zeros((len(texts), classes), dtype=np.float32)
        tokens = [0] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        hook = self._layer.register_forward_pre_hook(catch)
        try:
            for start in range(0, len(order), self._batch):
                rows = order[start : start + self._batch]
                caught.clear()
                read = self._reader.read([texts[i] for i in rows])
                if len(caught) != 1 or caught[0].shape != (len(rows), found.shape[1]):
                    raise UserError(
                        str(self._folder),
                        f"its layer {self._name} does not read one vector a text",
                        action="retrain it instead",
                    )
                found[rows] = caught[0].float().cpu().numpy()
                log_p[rows] = read.log_p.cpu().numpy()
                for row, count in zip(rows, read.tokens, strict=True):
                    tokens[row] = count
        finally:
            hook.remove()
        return HeadRead(log_p, found, tokens)

    def write(self, head: HeadWeights, out: Path) -> None:
        """See `HeadStudent`."""
        names = {f"{self._name}.weight": head.weight, f"{self._name}.bias": head.bias}
        with disk_errors(out):
            copy_student(self._folder, out)
            for file in sorted(out.glob(WEIGHTS)):
                with safe_open(file, framework="pt") as opened:
                    held = [name for name in opened.keys() if name in names]  # noqa: SIM118
                    notes = opened.metadata()
                if held:
                    tensors = load_file(file)
                    for name in held:
                        new = torch.from_numpy(np.array(names.pop(name)))
                        tensors[name] = new.to(tensors[name].dtype)
                    file.unlink()
                    save_file(tensors, file, metadata=notes)
        if names:
            where = "model.safetensors"
            if (self._folder / INDEX).exists():
                where = str(sorted(json.loads((self._folder / INDEX).read_text())["weight_map"]))
            raise UserError(str(self._folder), f"{', '.join(names)} is not in {where}")
        if is_artefact(self._folder):
            old = read_artefact(self._folder)
            write_artefact(
                out,
                kind=old.kind,
                precision=old.precision,
                head="label",
                made_from=old.made_from,
                task=old.task,
                settings={**old.settings, "head": head.digest()},
            )


def open_head(folder: Path, task: ClassificationTask, batch: int, device: str) -> TorchHead:
    """See `head_weights.open_head_student`."""
    return TorchHead(folder, task, batch, device)


def _array(tensor: torch.Tensor) -> Floats:
    return np.array(tensor.detach().float().cpu().numpy(), dtype=np.float32)
