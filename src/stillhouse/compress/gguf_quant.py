"""Weights in the blocks of a GGUF precision.

`gguf` writes the plain kinds itself; the K kinds are packed by llama.cpp's own quantiser, which
xllamacpp's library exports. Knows arrays; does not know models.

A precision names what the matrices are written in. A row that is no whole number of the kind's
blocks (narrow students have such) is written in the next kind of `FALLBACK`; vectors stay float32.
The embedding, which a tied model also multiplies its output by, is never below 8 bits: in a small
student it decides every token, and an error there is not averaged over layers.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.optional import require

Precision = Literal["f32", "f16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
# What llama.cpp itself takes in the place of a K kind whose blocks of 256 do not fit.
FALLBACK: Final[dict[Precision, Precision]] = {
    "q6_k": "q8_0",
    "q5_k": "q5_1",
    "q4_k": "q5_0",
    "q8_0": "f16",
    "q5_1": "f16",
    "q5_0": "f16",
    "q4_1": "f16",
    "q4_0": "f16",
}
_K_KINDS: Final = ("q4_k", "q5_k", "q6_k")
_TABLES: Final = ("token_embd.weight", "output.weight")
_FILE_TYPES: Final[dict[Precision, str]] = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k": "MOSTLY_Q5_K_S",
    "q5_1": "MOSTLY_Q5_1",
    "q5_0": "MOSTLY_Q5_0",
    "q4_k": "MOSTLY_Q4_K_S",
    "q4_1": "MOSTLY_Q4_1",
    "q4_0": "MOSTLY_Q4_0",
}


class Packed(NamedTuple):
    """How a tensor is written: `shape` in values, `nbytes` on disk."""

    kind: Precision
    shape: tuple[int, ...]
    nbytes: int


def as_precision(value: str) -> Precision:
    """The precision of that name.

    Raises:
        UserError: there is none; names those there are.
    """
    for known in PRECISIONS:
        if value.lower() == known:
            return known
    raise UserError(
        "precision", f"is none of {', '.join(PRECISIONS)}", value=value, action="use q8_0"
    )


def file_type(precision: Precision) -> int:
    """The number that GGUF files carry as `general.file_type`."""
    gguf: Any = require("gguf", "gguf", "writing a GGUF file")
    return int(gguf.LlamaFileType[_FILE_TYPES[precision]])


def plan_tensor(name: str, shape: tuple[int, ...], precision: Precision) -> Packed:
    """Choose the kind that a tensor of a file of this precision is written in."""
    if len(shape) < 2:
        return _packed("f32", shape)
    kind = precision
    if name in _TABLES and kind not in ("f32", "f16"):
        kind = "q8_0"
    while shape[-1] % _sizes(kind)[0]:
        kind = FALLBACK[kind]
    return _packed(kind, shape)


def pack(values: NDArray[np.float32], kind: Precision) -> NDArray[Any]:
    """Values [..., columns] in a kind's blocks: uint8, or floats for f16 and f32.

    Raises:
        UserError: a K kind, and the installed llama.cpp exports no quantiser.
    """
    gguf: Any = require("gguf", "gguf", "writing a GGUF file")
    if kind in _K_KINDS:
        return _pack_by_llama(values, kind)
    found: NDArray[Any] = gguf.quants.quantize(values, tensor_type(kind))
    return found


def tensor_type(kind: Precision) -> Any:
    """The kind as `gguf` names it."""
    gguf: Any = require("gguf", "gguf", "writing a GGUF file")
    return gguf.GGMLQuantizationType[kind.upper()]


def _sizes(kind: Precision) -> tuple[int, int]:
    """Values and bytes of a block."""
    gguf: Any = require("gguf", "gguf", "writing a GGUF file")
    values, size = gguf.GGML_QUANT_SIZES[tensor_type(kind)]
    return int(values), int(size)


def _packed(kind: Precision, shape: tuple[int, ...]) -> Packed:
    values, size = _sizes(kind)
    count = 1
    for extent in shape:
        count *= extent
    return Packed(kind, shape, count // values * size)


def _pack_by_llama(values: NDArray[np.float32], kind: Precision) -> NDArray[np.uint8]:
    library = require("xllamacpp.xllamacpp", "gguf", f"packing weights as {kind}")
    try:
        quantise = ctypes.CDLL(str(library.__file__)).ggml_quantize_chunk
    except (OSError, AttributeError):
        raise MissingExtraError(
            "xllamacpp", f"exports no quantiser, which {kind} needs", action="use q4_1 or q5_1"
        ) from None
    quantise.restype = ctypes.c_size_t
    quantise.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    rows = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, values.shape[-1])
    block, size = _sizes(kind)
    out = np.zeros((rows.shape[0], rows.shape[1] // block * size), dtype=np.uint8)
    written = quantise(
        int(tensor_type(kind)),
        rows.ctypes.data,
        out.ctypes.data,
        0,
        rows.shape[0],
        rows.shape[1],
        None,  # no importance matrix
    )
    if written != out.nbytes:
        raise MissingExtraError(
            "xllamacpp", f"packs {kind} in another way than gguf reads it", action="use q4_1"
        )
    return out.reshape(*values.shape[:-1], -1)
