"""A text student in compressed-tensors' format, which vLLM serves on a GPU as it stands.

W8A16: INT8 weights, a scale for each output. W4A16: INT4, a scale for each 128 inputs (64 or 32
where 128 does not divide them). FP8: 8-bit floats, a scale for each output; activations are
rounded as they come, token by token (needs a GPU of compute capability 8.9 to be faster). Weights
are rounded to the nearest, without calibration data: a student that loses too much by it is trained
on the same grid first (`train/quantize`, schemes `W8A16` and `W4A16`). Embeddings and head stay
float. Writing needs no GPU; transformers reads the folder on any machine, in floats. Knows one
folder of a language model.

Legend: O outputs, I inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from stillhouse.compress.weight_files import linear_weights, rewrite
from stillhouse.core.artefact import Artefact, MadeFrom, student_sha, write_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.machine import package_versions
from stillhouse.core.optional import require
from stillhouse.core.tasks import Task
from stillhouse.models.quantization import fitting_group, group_scales

Scheme = Literal["w8a16", "w4a16", "fp8"]
GROUP: Final = "group_0"
FP8_MOST: Final = torch.finfo(torch.float8_e4m3fn).max


def export_compressed_tensors(
    student: Path,
    out: Path,
    scheme: Scheme,
    *,
    name: str = "",
    task: Task | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Artefact:
    """Write a text student quantized, and its `artefact.json`.

    Args:
        student: a plain transformers folder.
        out: an empty folder.
        scheme: what is rounded to what.
        name: what the student was initialised from.
        task: noted in the artefact.
        dtype: of scales and of all that stays float; GPUs serve bfloat16 or float16.

    Raises:
        MissingExtraError: compressed-tensors is not installed.
        UserError: no linear layers, or inputs that no group divides.
    """
    library = require("compressed_tensors", "cuda", "exporting for vLLM")
    layers = linear_weights(student)
    group = _group(layers, student) if scheme == "w4a16" else None
    weights = _arguments(scheme, group)
    given = {"targets": ["Linear"], "weights": weights}
    if scheme == "fp8":
        given["input_activations"] = {
            "num_bits": 8,
            "type": "float",
            "strategy": "token",
            "symmetric": True,
            "dynamic": True,
        }
    kind = "float-quantized" if scheme == "fp8" else "pack-quantized"
    compressor = _compressor(library, kind)
    wanted = require("compressed_tensors.quantization", "cuda", "exporting for vLLM")
    made = wanted.QuantizationScheme.model_validate(given)

    def change(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        if name not in layers:
            return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor}
        # Integers are found with the scale as it is stored, so that reading gives the nearest.
        scale = _scales(tensor, scheme, group).to(dtype)
        packed = compressor.compress(
            {"weight": tensor.float(), "weight_scale": scale.float()}, made
        )
        packed["weight_scale"] = scale
        stem = name.removesuffix("weight")
        return {f"{stem}{part}": value for part, value in packed.items()}

    settings: dict[str, Any] = {"format": "compressed-tensors", "scheme": scheme, "group": group}
    rewrite(
        student,
        out,
        change,
        {
            "dtype": str(dtype).removeprefix("torch."),
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": kind,
                "quantization_status": "compressed",
                "config_groups": {GROUP: {**given, "format": kind}},
                "ignore": ["lm_head"],
                "kv_cache_scheme": None,
                "global_compression_ratio": None,
                "version": library.__version__,
            },
        },
    )
    return write_artefact(
        out,
        kind="hf",
        precision=scheme,
        head="text",
        made_from=MadeFrom(
            student=student_sha(student),
            name=name,
            versions=package_versions("compressed-tensors", "torch", "transformers"),
        ),
        task=task,
        settings=settings,
    )


def serve_line(folder: Path) -> str:
    """How vLLM serves what was written."""
    return f"vllm serve {folder} --dtype auto"


def _arguments(scheme: Scheme, group: int | None) -> dict[str, Any]:
    plain = {"symmetric": True, "dynamic": False}
    if scheme == "fp8":
        return {"num_bits": 8, "type": "float", "strategy": "channel", **plain}
    if scheme == "w8a16":
        return {"num_bits": 8, "type": "int", "strategy": "channel", **plain}
    return {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group, **plain}


def _scales(weight: Tensor, scheme: Scheme, group: int | None) -> Tensor:
    """[O, G]; G is 1 without groups."""
    if scheme == "fp8":
        largest = weight.float().abs().amax(1, keepdim=True)
        return torch.where(largest > 0, largest / FP8_MOST, torch.ones_like(largest))
    return group_scales(weight, 4 if scheme == "w4a16" else 8, group)


def _group(layers: Mapping[str, tuple[int, int]], student: Path) -> int:
    group = fitting_group(inputs for _, inputs in layers.values())
    if group is None:
        raise UserError(
            str(student),
            "has layers whose inputs neither 128, 64 nor 32 divides, as INT4 kernels need",
            action="use w8a16 or fp8",
        )
    return group


def _compressor(library: Any, kind: str) -> Any:
    return library.compressors.BaseCompressor.get_value_from_registry(kind)
