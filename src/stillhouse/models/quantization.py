"""The arithmetic of integers in place of floats: grids, rounding, and what is left of a tensor.

A grid is a scale and a zero point: q = clamp(round(x / scale) + zero_point), and x is read back as
(q - zero_point) * scale. Rounding is to even at a half. The grids are those of the runtimes that
are exported to: `channel_grid`, `table_grid` and `dynamic_grid` are onnxruntime's dynamic
quantizer (ONNX `DynamicQuantizeLinear` for activations), `group_grid` is compressed-tensors'. Knows
tensors; knows no model, no file and no gradient.

Legend: O outputs, I inputs of a linear layer, G groups of inputs, V rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import torch
from torch import Tensor

GROUPS: Final = (128, 64, 32)  # inputs to a scale that the 4-bit kernels of GPUs are built for
TINY: Final = torch.finfo(torch.float32).tiny


class Grid(NamedTuple):
    """Where the integers lie. `scale` and `zero_point` broadcast against what is quantized."""

    scale: Tensor
    zero_point: Tensor | float
    low: int
    high: int

    def integers(self, values: Tensor) -> Tensor:
        """q of each value, as a float tensor of whole numbers."""
        q = torch.round(values.float() / self.scale) + self.zero_point
        return q.clamp(self.low, self.high)

    def floats(self, integers: Tensor) -> Tensor:
        """What a runtime reads them as."""
        return (integers - self.zero_point) * self.scale

    def rounded(self, values: Tensor) -> Tensor:
        """Each value as a runtime would read it, in the dtype it came in."""
        return self.floats(self.integers(values)).to(values.dtype)


def channel_grid(weight: Tensor, *, reduced: bool = False) -> Grid:
    """INT8, one scale for each output, symmetric: scale = max |w| / 127.

    Args:
        weight: [O, I].
        reduced: 7 bits, [-64, 64]: for processors whose 8-bit products may overflow 16 bits
            (x86 without VNNI); onnxruntime's `reduce_range`.
    """
    most = 64 if reduced else 127
    largest = weight.detach().float().abs().amax(1, keepdim=True)  # [O, 1]
    return Grid(_positive(largest / most), 0.0, -most, most)


def table_grid(table: Tensor) -> Grid:
    """UINT8, one scale and zero point for a whole table [V, H], from its least and its greatest."""
    low, high = table.detach().aminmax()
    return _asymmetric(low.float(), high.float())


def row_grid(table: Tensor) -> Grid:
    """INT8, one scale for each row of a table [V, H], symmetric."""
    return channel_grid(table)


def dynamic_grid(values: Tensor) -> Grid:
    """UINT8, one scale and zero point for a whole tensor of activations, 0 among what it holds."""
    return table_grid(values)


def group_grid(weight: Tensor, bits: int, group: int | None) -> Grid:
    """Signed integers of `bits`, a scale for each group of inputs, symmetric:
    scale = max |w| / ((2^bits - 1) / 2).

    Args:
        weight: [O, I].
        bits: 4 or 8.
        group: inputs of a group; the last may be shorter. `None`: all of an output's.

    Returns a grid whose scale is spread over the inputs, [O, I]; see `group_scales` for [O, G].
    """
    scales = group_scales(weight, bits, group)
    if group is not None:
        scales = scales.repeat_interleave(group, 1)[:, : weight.shape[1]]
    return Grid(scales, 0.0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def group_scales(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """The scales of `group_grid`, [O, G]; G is 1 without groups."""
    size = weight.detach().float().abs()
    if group is not None:
        size = torch.nn.functional.pad(size, (0, -size.shape[1] % group))
        size = size.reshape(len(size), -1, group).amax(2)
    else:
        size = size.amax(1, keepdim=True)
    return _positive(size / ((2**bits - 1) / 2))


def fitting_group(inputs: Iterable[int]) -> int | None:
    """The largest group that divides the inputs of all layers; `None`: none of `GROUPS` does."""
    sizes = set(inputs)
    return next((group for group in GROUPS if not any(size % group for size in sizes)), None)


def _asymmetric(low: Tensor, high: Tensor) -> Grid:
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    scale = _positive((high - low) / 255)
    return Grid(scale, torch.round((0.0 - low) / scale).clamp(0, 255), 0, 255)


def _positive(scale: Tensor) -> Tensor:
    """What is 0 everywhere has scale 1, so that it stays 0."""
    return torch.where(scale < TINY, torch.ones_like(scale), scale)
