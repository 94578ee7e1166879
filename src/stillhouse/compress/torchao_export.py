"""A text student with torchao's weight-only quantization, for transformers and vLLM on a GPU.

INT8 (a scale for each output) is quantized and runs anywhere, on a CPU too, if slowly there. INT4
(a scale for each group of inputs) is packed by torchao for the tensor cores of a CUDA GPU, on that
GPU: asked for without one it is refused, and compressed-tensors' W4A16 is what can be written
anywhere. Written as safetensors with torchao's own description of its tensors; nothing is pickled.
Embeddings and head stay float. Knows one folder of a language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.compress.weight_files import linear_weights
from stillhouse.core.artefact import Artefact, MadeFrom, student_sha, write_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.machine import package_versions
from stillhouse.core.optional import require
from stillhouse.core.tasks import Task
from stillhouse.models.quantization import fitting_group
from stillhouse.models.quiet import quiet_transformers

Precision = Literal["int8", "int4"]
INT4_LAYOUT: Final = "tile_packed_to_4d"  # tinygemm's, which Ampere and later run


def export_torchao(
    student: Path,
    out: Path,
    precision: Precision,
    *,
    name: str = "",
    task: Task | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Artefact:
    """Write a text student quantized by torchao, and its `artefact.json`.

    Args:
        student: a plain transformers folder.
        out: an empty folder.
        precision: of the weights.
        name: what the student was initialised from.
        task: noted in the artefact.
        dtype: of all that stays float.

    Raises:
        MissingExtraError: torchao is not installed.
        UserError: INT4 without a CUDA GPU, no linear layers, or inputs that no group divides.
    """
    if precision == "int4" and not torch.cuda.is_available():
        raise UserError(
            "compress.formats",
            "torchao packs INT4 weights for a CUDA GPU, on it, and torch sees none here",
            value="torchao-int4",
            action="run this on the GPU that will serve, or use compressed-tensors-w4a16",
        )
    library = require("torchao.quantization", "cuda", "quantizing with torchao")
    layers = linear_weights(student)
    group = None if precision == "int8" else fitting_group(i for _, i in layers.values())
    if precision == "int4" and group is None:
        raise UserError(
            str(student),
            "has layers whose inputs neither 128, 64 nor 32 divides, as INT4 kernels need",
            action="use torchao-int8",
        )
    made: Any = (
        library.Int8WeightOnlyConfig()
        if precision == "int8"
        else library.Int4WeightOnlyConfig(group_size=group, int4_packing_format=INT4_LAYOUT)
    )
    transformers = require("transformers", "cuda", "quantizing with torchao")
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            student,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            device_map="cuda" if precision == "int4" else "cpu",
            quantization_config=transformers.TorchAoConfig(made),
        )
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(student, local_files_only=True).save_pretrained(out)
    return write_artefact(
        out,
        kind="hf",
        precision=f"torchao-{precision}",
        head="text",
        made_from=MadeFrom(
            student=student_sha(student),
            name=name,
            versions=package_versions("torchao", "torch", "transformers"),
        ),
        task=task,
        settings={"format": "torchao", "group": group},
    )
