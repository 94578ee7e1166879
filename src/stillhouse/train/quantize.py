"""Quantization-aware distillation: a student on the grid of a runtime, its teacher in floats.

For a student that loses too much when it is quantized as it is. What comes out is a plain float
folder; exported with the scheme that it was trained with, it is what was trained. Knows the recipe
and folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback

from stillhouse.core.jsonl import write_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.models.loading import folder_size
from stillhouse.train.distil import STUDENT
from stillhouse.train.fake_quant import ONNX_DYNAMIC, QuantScheme, dequantized, quantized
from stillhouse.train.heal import Place, go_on
from stillhouse.train.students import Student

QUANTIZED: Final = "quantization_aware.json"


@dataclass(frozen=True, slots=True)
class Quantizing:
    """Weights, and what goes into them, on the grid of a runtime."""

    scheme: QuantScheme

    def shape(self, student: Student, texts: Sequence[str]) -> Student:
        """See `Shaping`."""
        quantized(student.model, self.scheme)
        return student

    def callbacks(self, model: Any) -> Sequence[TrainerCallback]:
        """See `Shaping`: ranges are taken at each step."""
        return ()

    def release(self, model: Any) -> None:
        """See `Shaping`."""
        dequantized(model)

    def as_json(self) -> dict[str, object]:
        """See `Shaping`."""
        return {"scheme": self.scheme.as_json()}


def distil_quantized(
    recipe: Recipe,
    student: Path,
    dataset_dir: Path,
    tuned: Path | None,
    *,
    work: Path,
    progress: Progress,
    signals: Path | None = None,
    scheme: QuantScheme = ONNX_DYNAMIC,
    epochs: float = 1.0,
    learning_rate: float | None = None,
) -> Path:
    """Quantization-aware distillation: a student on the grid, its teacher in floats.

    Args:
        recipe: all that the student was trained with.
        student: the trained student's folder.
        dataset_dir: holds `train.jsonl` and `held_out.jsonl`.
        tuned: folder of the tuned teacher, if it was tuned.
        work: gets what `distil` writes, and `quantization_aware.json`.
        progress: bars.
        signals: the capture stage's folder, where `train.signals` is cache.
        scheme: that of the export which the student is for.
        epochs: of training.
        learning_rate: `None`: the rate that the student was trained at (LoRA: 2e-5).

    Returns the float student's folder, which loads in plain transformers; quantized with the same
    scheme, it is what was trained.

    Raises:
        UserError: a student that cannot be quantized.
        StillhouseError: training went off.
    """
    facts = go_on(
        recipe,
        Place(student, dataset_dir, tuned, work, signals),
        Quantizing(scheme),
        progress,
        title="learn to be quantized",
        epochs=epochs,
        learning_rate=learning_rate,
    )
    write_json(
        work / QUANTIZED,
        {
            "scheme": scheme.as_json(),
            "held_out": facts["further"]["held_out"],
            "training_helped": facts["further"]["training_helped"],
            "steps": facts["steps"],
            "size_bytes": folder_size(work / STUDENT),
        },
    )
    return work / STUDENT
