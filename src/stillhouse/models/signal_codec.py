"""Teacher signals to compact arrays and back.

What is lost is said by the layout: nothing but the rounding of its `dtype` for dense, hidden and
top-k; of a sample, nothing (ids and counts are whole numbers) where the proposal is the target.
Knows tensors and layouts; knows no file.

Legend: R rows, E entries, K kept entries, V vocabulary, H hidden, S draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from stillhouse.models.drawing import Draws, draw
from stillhouse.models.head import Head
from stillhouse.models.signal_layout import Layout
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    TeacherSignal,
    sparsify,
)

Arrays = Mapping[str, Tensor]
ENTRY_ARRAYS: Final = frozenset({"entries", "weights"})
_DTYPES: Final = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


class Stored(NamedTuple):
    """A signal out of a cache. `information` [R] turns the cross-entropy to sampled targets into a
    divergence: KL is estimated by sum_k w_k (log p_k - log q_k). `None` for other formats."""

    signal: TeacherSignal
    information: Tensor | None


def dtype_of(layout: Layout) -> torch.dtype:
    """The type of a layout's numbers."""
    return _DTYPES[layout.dtype]


def encode_belief(
    layout: Layout,
    logits: Tensor,  # [R, V]
    numbers: Tensor | None = None,  # [R, S] uniform, for a sampled layout
) -> dict[str, Tensor]:
    """A live belief as arrays, for every layout but hidden states."""
    assert logits.shape[-1] == layout.width
    scaled = logits.float() / layout.distillation_temperature
    match layout.format:
        case "top_k":
            return encode_sparse(layout, sparsify(DenseSignal(logits), layout.k))
        case "sampled":
            assert numbers is not None, "draws need uniform numbers"
            drawn = draw(scaled.log_softmax(-1), numbers, layout.proposal_temperature)
            return encode_draws(layout, drawn)
        case "dense":
            return {"log_probs": scaled.log_softmax(-1).to(dtype_of(layout)).cpu()}
        case "hidden":
            raise AssertionError("hidden states are stored as they are")


def encode_hidden(layout: Layout, hidden: Tensor) -> dict[str, Tensor]:
    """Last hidden states [R, H] as arrays."""
    assert hidden.shape[-1] == layout.width
    return {"hidden": hidden.to(dtype_of(layout)).cpu()}


def encode_sparse(layout: Layout, signal: SparseSignal) -> dict[str, Tensor]:
    """Top-k entries [R, K] and their tail as arrays."""
    dtype = dtype_of(layout)
    return {
        "ids": _to_bytes(signal.token_ids.cpu(), layout.entry_bytes),
        "log_probs": signal.log_probs.to(dtype).cpu(),
        "tail": signal.tail_log_mass.to(dtype).cpu(),
    }


def encode_draws(layout: Layout, drawn: Draws) -> dict[str, Tensor]:
    """Drawn tokens as arrays: the id in the low bits of an entry, its count less one above."""
    entries = drawn.token_ids.cpu()
    found = {
        "in_row": drawn.in_row.to(torch.uint8).cpu(),
        "information": drawn.information.half().cpu(),
    }
    if layout.counted:
        entries = entries | ((drawn.counts.cpu() - 1) << layout.id_bits)
    else:
        dtype = dtype_of(layout)
        most = torch.finfo(dtype).max
        found["weights"] = drawn.weights.clamp_max(most).to(dtype).cpu()
    return {**found, "entries": _to_bytes(entries, layout.entry_bytes)}


def decode(layout: Layout, arrays: Arrays, head: Head | None = None) -> Stored:
    """Arrays of some rows as a signal; log-probabilities in float32.

    Args:
        layout: as they were encoded.
        arrays: as `encode_*` gave them, rows of several examples one after the other.
        head: the teacher's, for hidden states.
    """
    match layout.format:
        case "top_k":
            return Stored(
                SparseSignal(
                    _from_bytes(arrays["ids"]),
                    arrays["log_probs"].float(),
                    arrays["tail"].float(),
                    layout.width,
                ),
                None,
            )
        case "sampled":
            return Stored(_sampled(layout, arrays), arrays["information"].float())
        case "dense":
            return Stored(DenseSignal(arrays["log_probs"].float()), None)
        case "hidden":
            assert head is not None, "hidden states need the teacher's head"
            return Stored(HiddenSignal(arrays["hidden"].to(head.weight.dtype), head), None)


def joined(parts: Sequence[Arrays]) -> dict[str, Tensor]:
    """Arrays of several examples, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def split(arrays: Arrays, rows: Sequence[int]) -> list[dict[str, Tensor]]:
    """The inverse of `joined`, for examples of so many rows each."""
    entries: list[int] = []
    if "in_row" in arrays:
        entries = [int(part.long().sum()) for part in torch.split(arrays["in_row"], list(rows))]
    parts: list[dict[str, Tensor]] = [{} for _ in rows]
    for name, values in arrays.items():
        pieces = torch.split(values, entries if name in ENTRY_ARRAYS else list(rows))
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece
    return parts


def _sampled(layout: Layout, arrays: Arrays) -> SampledSignal:
    """Entries of all rows, one row under the other, with unused slots of weight 0."""
    in_row = arrays["in_row"].long()  # [R]
    packed = _from_bytes(arrays["entries"])  # [E]
    if layout.counted:
        ids = packed & ((1 << layout.id_bits) - 1)
        weights = ((packed >> layout.id_bits) + 1).float() / layout.samples
    else:
        ids, weights = packed, arrays["weights"].float()
    widest = int(in_row.max()) if len(in_row) else 0
    used = torch.arange(widest) < in_row[:, None]  # [R, K]
    token_ids = torch.zeros(used.shape, dtype=torch.int64)
    spread = torch.zeros(used.shape)
    token_ids[used], spread[used] = ids, weights
    return SampledSignal(token_ids, spread, layout.distillation_temperature, layout.width)


def _to_bytes(numbers: Tensor, width: int) -> Tensor:
    """Whole numbers [...] as [..., width] bytes, little-endian."""
    shifts = torch.arange(0, 8 * width, 8)
    return ((numbers[..., None] >> shifts) & 0xFF).to(torch.uint8)


def _from_bytes(raw: Tensor) -> Tensor:
    """[..., width] bytes as int64 [...]."""
    shifts = torch.arange(0, 8 * raw.shape[-1], 8)
    return (raw.long() << shifts).sum(-1)
