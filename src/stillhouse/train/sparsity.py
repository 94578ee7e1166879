"""How many zeros a saved model holds, and what they are worth to a packer. Reads files alone."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import safe_open

from stillhouse.models.loading import WEIGHTS

CHUNK: Final = 1 << 20
CHUNKS: Final = 64  # read evenly over a file, at most

# What a report says of single weights that are 0.
HONEST: Final = (
    "zeros alone make a file no smaller and a CPU no faster: they are stored and multiplied like "
    "any number, until the file is packed or a kernel skips them"
)


class Sparsity(NamedTuple):
    """What a saved model's files hold.

    `pruned` is the share of zeros in the named matrices, `whole` in all weights; `size_bytes` is of
    the files as they lie, `packed_share` what zlib (level 6) leaves of a sample of them.
    """

    pruned: float
    whole: float
    size_bytes: int
    packed_share: float

    def as_json(self) -> dict[str, object]:
        """A plain object, rounded."""
        return {
            "sparsity": round(self.pruned, 6),
            "sparsity_of_all_weights": round(self.whole, 6),
            "size_bytes": self.size_bytes,
            "packed_share": round(self.packed_share, 4),
        }


def measure_sparsity(folder: Path, names: set[str]) -> Sparsity:
    """Count the zeros of a saved model.

    Args:
        folder: holds safetensors.
        names: of the matrices that were pruned, as the files name them.
    """
    files = sorted(folder.glob(WEIGHTS))
    zeros = {True: 0, False: 0}
    total = {True: 0, False: 0}
    for file in files:
        with safe_open(file, framework="pt") as handle:
            held: Any = handle
            for name in held.keys():  # noqa: SIM118 - not a dict
                weight = held.get_tensor(name)
                zeros[name in names] += weight.numel() - int(torch.count_nonzero(weight))
                total[name in names] += weight.numel()
    return Sparsity(
        pruned=zeros[True] / max(1, total[True]),
        whole=sum(zeros.values()) / max(1, sum(total.values())),
        size_bytes=sum(file.stat().st_size for file in files),
        packed_share=_packed(files),
    )


def follows_pattern(folder: Path, names: set[str], keep: int, of: int) -> bool:
    """Whether in all named matrices of a saved model at most `keep` of each `of` are not 0."""
    for file in sorted(folder.glob(WEIGHTS)):
        with safe_open(file, framework="pt") as handle:
            held: Any = handle
            for name in names & set(held.keys()):
                weight = held.get_tensor(name)
                groups = weight.reshape(len(weight), -1, of)
                if int((groups != 0).sum(-1).max()) > keep:
                    return False
    return True


def _packed(files: list[Path]) -> float:
    """Bytes that zlib leaves of chunks spread evenly over the files, over the bytes of these."""
    read = packed = 0
    for file in files:
        size = file.stat().st_size
        step = max(CHUNK, size * len(files) // CHUNKS)
        with file.open("rb") as handle:
            for start in range(0, size, step):
                handle.seek(start)
                block = handle.read(CHUNK)
                read += len(block)
                packed += len(zlib.compress(block, 6))
    return packed / max(1, read)
