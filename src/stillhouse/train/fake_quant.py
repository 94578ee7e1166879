"""A student that computes as its quantized copy will, and learns as a float one.

Linear layers and embeddings round weights and activations to the grid of the runtime that will
answer (`models/quantization`), forward; backward, rounding is taken for the identity
(straight-through: Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877). Ranges
are taken from the tensors themselves at each step, as a dynamic quantizer takes them, so there is
nothing to calibrate and nothing more to save: the weights stay float, under their own names, and
whoever exports them with the same scheme writes the very integers that the student was trained
with. Knows modules; knows no recipe, no training and no file format.

Legend: O outputs, I inputs, B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from stillhouse.core.errors import UserError
from stillhouse.models.quantization import (
    Grid,
    channel_grid,
    dynamic_grid,
    group_grid,
    row_grid,
    table_grid,
)

Tables = Literal["float", "tensor", "row"]


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """What is rounded, and to which grid.

    Attributes:
        bits: of the weights of linear layers.
        group: inputs that share a scale; `None`: all of an output's.
        reduced: INT8 weights in 7 bits (`channel_grid`).
        activations: what goes into linear layers is rounded too, per tensor, as it comes.
        tables: embeddings: float, rounded with one scale a table, or one a row.
        head: the head too (classifier, or a language model's output table).
    """

    bits: Literal[4, 8] = 8
    group: int | None = None
    reduced: bool = False
    activations: bool = True
    tables: Tables = "tensor"
    head: bool = True

    def as_json(self) -> dict[str, object]:
        """A plain object."""
        return asdict(self)

    def weight_grid(self, weight: Tensor) -> Grid:
        """The grid of a linear layer's weight [O, I]."""
        if self.bits == 8 and self.activations:
            return channel_grid(weight, reduced=self.reduced)
        return group_grid(weight, self.bits, self.group)


# onnxruntime's dynamic quantizer: weight_type QInt8, per_channel.
ONNX_DYNAMIC: Final = QuantScheme()
# What `compress/onnx_int8` writes: 7 bits for weights, a scale for each row of a table, the
# classifier float.
ONNX_INT8: Final = QuantScheme(reduced=True, tables="row", head=False)
# compressed-tensors, weights alone, as `compress/compressed_tensors_export` writes them.
W8A16: Final = QuantScheme(activations=False, tables="float", head=False)
W4A16: Final = QuantScheme(bits=4, group=128, activations=False, tables="float", head=False)


def straight_through(values: Tensor, grid: Grid) -> Tensor:
    """`grid.rounded(values)`, whose gradient is that of `values`."""
    return values + (grid.rounded(values) - values).detach()


class QuantLinear(nn.Linear):
    """A linear layer on the grid. Made by `quantized`, never built."""

    scheme: QuantScheme

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        if self.scheme.activations:
            input = straight_through(input, dynamic_grid(input))
        weight = straight_through(self.weight, self.scheme.weight_grid(self.weight))
        return nn.functional.linear(input, weight, self.bias)


class QuantEmbedding(nn.Embedding):
    """A table on the grid. Made by `quantized`, never built."""

    scheme: QuantScheme

    def forward(self, input: Tensor) -> Tensor:
        """Ids [B, T] to rows; only the rows that are read are rounded."""
        rows = super().forward(input)
        grid = row_grid(rows.flatten(0, -2)) if self._by_row else table_grid(self.weight)
        if self._by_row:
            grid = grid._replace(scale=grid.scale.view(*rows.shape[:-1], 1))
        return straight_through(rows, grid)

    @property
    def _by_row(self) -> bool:
        return self.scheme.tables == "row"


def quantized(model: nn.Module, scheme: QuantScheme) -> int:
    """Have a model compute on the grid, in place. Returns how many layers do.

    Weights, their names and their ties stay as they are. Layers of kinds of their own (an embedding
    that is scaled, as Gemma's) stay float, as do normalisations and the products within attention,
    which a dynamic quantizer leaves alone too.

    Raises:
        UserError: a model without a linear layer that could be rounded (GPT-2's `Conv1D`).
    """
    heads = set() if scheme.head else set(_heads(model))
    count = 0
    for module in model.modules():
        kind: Any = None
        if type(module) is nn.Linear and module not in heads:
            kind = QuantLinear
        elif type(module) is nn.Embedding and scheme.tables != "float":
            kind = QuantEmbedding
        if kind is not None:
            module.__class__ = kind
            module.scheme = scheme  # type: ignore[assignment]
            count += kind is QuantLinear
    if not count:
        raise UserError(
            "compress.quantization_aware",
            f"a {type(model).__name__} has no linear layers whose weights could be rounded",
            action="use false, or a BERT- or Llama-like student",
        )
    return count


def dequantized(model: nn.Module) -> None:
    """Undo `quantized`: a plain float model, of the same weights."""
    plain: dict[type, Any] = {QuantLinear: nn.Linear, QuantEmbedding: nn.Embedding}
    for module in model.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]
            del module.scheme


@torch.no_grad()
def rounding_error(model: nn.Module) -> float:
    """Root mean square of what rounding does to the weights of the layers on the grid, over their
    own root mean square."""
    error = size = torch.zeros((), dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, QuantLinear):
            rounded = module.scheme.weight_grid(module.weight).rounded(module.weight)
            error = error + (rounded - module.weight).double().square().sum().cpu()
            size = size + module.weight.double().square().sum().cpu()
    return float((error / size.clamp_min(1e-300)).sqrt())


def _heads(model: Any) -> Iterator[nn.Module]:
    """What stands on the body: a classifier's layers, or the output table."""
    body = set(model.base_model.modules())
    for module in model.modules():
        if module not in body:
            yield module
