"""Products with a vocabulary-sized matrix that are summed in float32, whatever its precision.

On the CPU a matrix in half precision is raised to float32 a band of rows at a time, never whole; on
CUDA the kernels that read half and write float32 are used. Knows no loss.

Legend: R rows, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

BAND: Final = 8192  # vocabulary rows that are raised at a time
_HALF: Final = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Wide:
    """The first `width` rows of a matrix [V, H], read in precision `read`, summed in `summed`."""

    matrix: Tensor
    width: int
    read: torch.dtype
    summed: torch.dtype

    @property
    def _mixed(self) -> bool:
        """Whether the device multiplies halves into float32 by itself."""
        return self.matrix.is_cuda and self.read in _HALF and torch.__version__ >= (2, 8)

    @property
    def _banded(self) -> bool:
        return not self._mixed and {self.matrix.dtype, self.read} != {self.summed}

    def prepared(self) -> Wide:
        """The same, its matrix in the precision that it is read in where that is done whole."""
        return Wide(self.matrix.to(self.read), self.width, self.read, self.summed) if (
            self._mixed
        ) else self  # fmt: skip

    def rows(self, x: Tensor) -> Tensor:
        """Rows [R, H] or [R, V] as they enter a product."""
        read = x.to(self.read)
        return read if self._mixed else read.to(self.summed)

    def _bands(self) -> Iterator[tuple[slice, Tensor]]:
        if not self._banded:
            yield slice(0, self.width), self.matrix[: self.width]
            return
        for start in range(0, self.width, BAND):
            band = slice(start, min(start + BAND, self.width))
            yield band, self.matrix[band].to(self.read).to(self.summed)

    def project(self, rows: Tensor, out: Tensor, *, add: bool = False) -> None:
        """out [R, V] = rows [R, H] @ matrix.T, or added to it."""
        for band, part in self._bands():
            into = out[:, band]
            _multiply(rows, part.t(), into, add=add, mixed=self._mixed)

    def back(self, gradient: Tensor, out: Tensor) -> None:
        """out [R, H] = gradient [R, V] @ matrix."""
        for number, (band, part) in enumerate(self._bands()):
            piece = gradient[:, band]
            piece = piece.to(self.read) if self._mixed else piece
            _multiply(piece, part, out, add=number > 0, mixed=self._mixed)

    def gather(self, gradient: Tensor, rows: Tensor, out: Tensor, *, add: bool) -> None:
        """out [V, H], its first `width` rows, = gradient [R, V].T @ rows [R, H], or added to it."""
        piece = gradient.to(self.read) if self._mixed else gradient
        _multiply(piece.t(), rows, out[: self.width], add=add, mixed=self._mixed)


def _multiply(a: Tensor, b: Tensor, out: Tensor, *, add: bool, mixed: bool) -> None:
    if mixed and add:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    elif mixed:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    elif add:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)
