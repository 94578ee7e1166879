"""GGUF files, written tensor by tensor.

Knows the format through the `gguf` package, and safetensors; holds one weight in memory at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from stillhouse.compress.gguf_quant import (
    Packed,
    Precision,
    file_type,
    pack,
    plan_tensor,
    tensor_type,
)
from stillhouse.compress.gguf_shapes import FIELD, LLAMA, GgufShape, Placed
from stillhouse.compress.gguf_tokenizer import GgufVocabulary
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors
from stillhouse.core.optional import require

STUB_WIDTH: Final = 32


class _Weight(NamedTuple):
    source: str
    file: Path
    placed: Placed
    packed: Packed


def write_gguf(
    path: Path,
    student: Path,
    shape: GgufShape,
    vocabulary: GgufVocabulary,
    precision: Precision,
) -> dict[str, int]:
    """Write a student's weights, numbers and tokenizer to one file.

    Args:
        path: the file to write.
        student: a transformers folder with safetensors.

    Returns:
        Parameters by the kind they were written in.

    Raises:
        UserError: a weight that llama.cpp has no place for.
        RunFolderError: the disk is full or not writable.
    """
    weights = sorted(_weights(student, shape, precision), key=lambda weight: weight.placed.name)
    writer = _writer(path, shape.architecture)
    _describe(writer, shape, vocabulary, precision, _name(student, vocabulary.strips))
    counted: dict[str, int] = {}
    if shape.factors is not None:
        _announce(writer, "rope_freqs.weight", plan_tensor("", shape.factors.shape, "f32"))
    for weight in weights:
        _announce(writer, weight.placed.name, weight.packed)
        kind = weight.packed.kind
        counted[kind] = counted.get(kind, 0) + int(np.prod(weight.packed.shape))
    with disk_errors(path.parent):
        _open(writer)
        if shape.factors is not None:
            writer.write_tensor_data(shape.factors)
        for weight in weights:
            values = weight.placed.arrange(_read(weight.file, weight.source))
            writer.write_tensor_data(pack(values, weight.packed.kind))
        writer.close()
    return counted


def write_stub(path: Path, vocabulary: GgufVocabulary) -> None:
    """Write a model of one empty layer with this tokenizer: enough to let llama.cpp cut texts.

    Raises:
        RunFolderError: the disk is full or not writable.
    """
    width = STUB_WIDTH
    shape = GgufShape(
        numbers={
            "context_length": width,
            "embedding_length": width,
            "block_count": 1,
            "feed_forward_length": width,
            "attention.head_count": 1,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": width,
            "vocab_size": len(vocabulary.tokens),
        },
        factors=None,
        context=width,
        vocabulary=len(vocabulary.tokens),
        tied=True,
        layers=1,
        heads=1,
        groups=1,
        family=LLAMA,
    )
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    extents: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(vocabulary.tokens), width),
        "output_norm.weight": (width,),
        **{f"blk.0.{part}.weight": (width, width) for part in square},
        **{f"blk.0.{part}.weight": (width,) for part in ("attn_norm", "ffn_norm")},
    }
    writer = _writer(path, shape.architecture)
    _describe(writer, shape, vocabulary, "q4_0", "phi-3" if vocabulary.strips else "stub")
    planned = {name: plan_tensor("", extent, "q4_0") for name, extent in extents.items()}
    for name, packed in planned.items():
        _announce(writer, name, packed)
    with disk_errors(path.parent):
        _open(writer)
        for packed in planned.values():
            writer.write_tensor_data(pack(np.zeros(packed.shape, np.float32), packed.kind))
        writer.close()


def _writer(path: Path, architecture: str) -> Any:
    gguf: Any = require("gguf", "gguf", "writing a GGUF file")
    return gguf.GGUFWriter(path, architecture)


def _open(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _announce(writer: Any, name: str, packed: Packed) -> None:
    writer.add_tensor_info(
        name, packed.shape, np.dtype(np.float32), packed.nbytes, tensor_type(packed.kind)
    )


def _describe(
    writer: Any,
    shape: GgufShape,
    vocabulary: GgufVocabulary,
    precision: Precision,
    name: str,
) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type(precision))
    writer.add_quantization_version(2)
    for key, value in shape.numbers.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{shape.architecture}.{key}", value)
    if "rope.scaling.factor" in shape.numbers:
        writer.add_string(f"{shape.architecture}.rope.scaling.type", "linear")
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for token, number in vocabulary.special.items():
        getattr(writer, f"add_{token}_token_id")(number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_bool("tokenizer.ggml.add_space_prefix", vocabulary.space_prefix)
    writer.add_chat_template(vocabulary.template)


def _weights(student: Path, shape: GgufShape, precision: Precision) -> Iterator[_Weight]:
    seen: set[str] = set()
    for file in sorted(student.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for source in weights.keys():  # noqa: SIM118 (not a mapping)
                first, *rest = (int(n) for n in weights.get_slice(source).get_shape())
                for placed in shape.place(source):
                    packed = plan_tensor(placed.name, (placed.rows or first, *rest), precision)
                    seen.add(placed.name)
                    yield _Weight(source, file, placed, packed)
    needed = {"token_embd.weight", "output_norm.weight"} | (
        set() if shape.tied else {"output.weight"}
    )
    if needed - seen:
        raise UserError(
            FIELD,
            f"{student} lacks the weight for {min(needed - seen)}",
            action="give a folder of a causal language model, saved with save_pretrained",
        )


def _read(file: Path, name: str) -> NDArray[np.float32]:
    with safe_open(file, framework="pt") as weights:
        values: torch.Tensor = weights.get_tensor(name)
    found: NDArray[np.float32] = values.to(torch.float32).numpy()
    return found


def _name(student: Path, strips: bool) -> str:
    """What the file calls itself: the student's source, unless llama.cpp reads a rule into it.

    By "phi-3" in a name, llama.cpp drops white space after special tokens.
    """
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    name = Path(str(config.get("_name_or_path") or config.get("model_type") or "student")).name
    return f"{name} phi-3" if strips else re.sub("(?i)phi-?3", "phi", name)
