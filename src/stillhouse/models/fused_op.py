"""The fused loss as one operator: chunks of rows, from hidden states to sums and gradients.

`torch.library` sees tensors in and tensors out, so that a compiler passes it by whole and a fake
tensor runs through it. Everything is computed here, gradients too; autograd only scales them.
docs/fused.md has the method. Knows no model and no `Head`.

Legend: N positions, R rows of a chunk, H hidden, H' the teacher's, V vocabulary, K kept entries,
L rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, cast

import torch
from torch import Tensor

from stillhouse.core.divergence_names import DivergenceKind
from stillhouse.models.divergence_kind import Divergence
from stillhouse.models.fused_rows import (
    Drawn,
    Kept,
    Logits,
    Sums,
    Teaching,
    Weighing,
    finish,
    overwrite,
)
from stillhouse.models.wide_matmul import Wide

IGNORED: Final = -100
LEAST_ROWS: Final = 128  # fewer and a product no longer runs at the machine's rate
MOST_ROWS: Final = 2048
APART: Final = 16
BLOCK: Final = 1 << 20  # numbers that are passed over together on a CPU: 4 MiB, in its cache


class Chunks(NamedTuple):
    """How N rows are cut: all chunks of `rows`, but for the last."""

    number: int
    rows: int


def chunks(positions: int, hidden: int) -> Chunks:
    """Chunks whose two buffers [R, V] together are no larger than the gradient [V, H] of the head.

    That is what must be held anyway; and at H / 2 rows the product with the head's matrix, which is
    read anew for each chunk, runs at its full rate.
    """
    rows = min(max(hidden // 2, LEAST_ROWS), MOST_ROWS)
    number = max(1, -(-positions // rows))
    return Chunks(number, -(-positions // number))


@torch.library.custom_op("stillhouse::fused_divergence", mutates_args=())
def fused_divergence(
    student: Sequence[Tensor],
    targets: Tensor,  # [N] int64, IGNORED where the position does not count
    teacher: Sequence[Tensor],  # what its belief consists of
    *,
    belief: str,  # none, hidden, logits, kept or drawn
    teacher_scale: float,
    teacher_softcap: float,  # 0: none
    scale: float,
    softcap: float,  # 0: none
    kind: str,
    beta: float,
    distillation_temperature: float,
    soft: float,
    hard: float,
    width: int,  # ids that student and teacher share
    read: torch.dtype,  # precision of the products' operands
    measure: bool,
    wanted: Sequence[bool],  # gradients of hidden, weight, bias, inner, outer
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums [3] (`Sums`, over all rows) and the gradients of soft T^2 D + hard CE, empty where not
    wanted.

    `student`, and `teacher` where its belief is `hidden`, are hidden states [N, H], the head's
    weight [V, H] and bias [V], and its low-rank part as what it reads [N, L] and multiplies with
    [V, L]; bias and low-rank part may be empty.
    """
    hidden = student[0]
    summed = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    weighing = Weighing(
        Divergence(cast(DivergenceKind, kind), beta),
        distillation_temperature,
        soft,
        hard,
        scale,
        softcap or None,
        measure,
    )
    with torch.autocast(hidden.device.type, enabled=False):
        product = _Product(student, width, read, summed)
        valid = (targets != IGNORED).nonzero().squeeze(-1)
        grads = _Gradients.start(product, wanted, len(valid))
        found: list[Sums] = []
        plan = chunks(len(valid), hidden.shape[-1])
        # Rows a power of two apart would share cache lines: a few numbers more a row do not.
        shape = (2 if belief == "hidden" else 1, plan.rows, width + APART)
        buffers = hidden.new_empty(shape, dtype=summed)[..., :width]
        believed = None
        if belief == "hidden":
            believed = _Product(teacher, width, read, summed)
        for number in range(plan.number if len(valid) else 0):
            index = valid[number * plan.rows : (number + 1) * plan.rows]
            if len(valid) == len(targets):  # nothing to skip: a view will do
                start = number * plan.rows
                rows: Tensor | slice = slice(start, start + len(index))
            else:
                rows = index
            raw = product.of(rows, buffers[0, : len(index)])
            if believed is not None:
                out = believed.of(rows, buffers[1, : len(index)])
                signal: list[Tensor] = [out]
            else:
                signal = [part[rows] for part in teacher]
            wanted_targets = targets[rows]
            for at in _blocks(raw):
                teaching = _teaching(belief, [part[at] for part in signal], width, summed)
                if isinstance(teaching, Logits) and belief == "hidden":
                    finish(teaching.logits, teacher_scale, teacher_softcap or None)
                found.append(overwrite(raw[at], wanted_targets[at], teaching, weighing))
            grads.take(product, raw, rows, first=number == 0)
    sums = hidden.new_zeros(3, dtype=summed)
    if found:
        sums = torch.stack([torch.cat(part).sum() for part in zip(*found, strict=True)])
    return (sums, *grads.cast(product))


@fused_divergence.register_fake
def _shapes(
    student: Sequence[Tensor],
    targets: Tensor,
    teacher: Sequence[Tensor],
    *,
    belief: str,
    teacher_scale: float,
    teacher_softcap: float,
    scale: float,
    softcap: float,
    kind: str,
    beta: float,
    distillation_temperature: float,
    soft: float,
    hard: float,
    width: int,
    read: torch.dtype,
    measure: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    hidden = student[0]
    summed = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    grads = [
        torch.empty_like(like, memory_format=torch.contiguous_format) if want else like.new_empty(0)
        for like, want in zip(student, wanted, strict=True)
    ]
    return (hidden.new_empty(3, dtype=summed), grads[0], grads[1], grads[2], grads[3], grads[4])


class _Product:
    """A head's product with hidden states, a chunk at a time."""

    def __init__(
        self,
        operands: Sequence[Tensor],  # [N, H], [V, H], bias, [N, L] and [V, L]; empty: none
        width: int,
        read: torch.dtype,
        summed: torch.dtype,
    ) -> None:
        hidden, weight, bias, inner, outer = self.tensors = tuple(operands)
        self.inner = inner
        self.summed = summed
        self.weight = Wide(weight, width, read, summed).prepared()
        self.outer = Wide(outer, width, read, summed).prepared() if outer.numel() else None
        self.bias = bias[:width].to(summed) if bias.numel() else None
        self.rows = self.inner_rows = hidden[:0]

    def of(self, rows: Tensor | slice, out: Tensor) -> Tensor:
        """out [R, V] before scale and cap; remembers what it read."""
        self.rows = self.weight.rows(self.tensors[0][rows])
        self.weight.project(self.rows, out)
        if self.outer is not None:
            self.inner_rows = self.outer.rows(self.inner[rows])
            self.outer.project(self.inner_rows, out, add=True)
        if self.bias is not None:
            out.add_(self.bias)
        return out


class _Gradients:
    """What is summed over chunks, in float32 or better; `None` where nobody wants it."""

    def __init__(self, parts: Sequence[Tensor | None]) -> None:
        self.hidden, self.weight, self.bias, self.inner, self.outer = parts

    @staticmethod
    def start(product: _Product, wanted: Sequence[bool], rows: int) -> _Gradients:
        """Zero, but for what the first chunk writes."""
        parts: list[Tensor | None] = []
        for like, want in zip(product.tensors, wanted, strict=True):
            parts.append(like.new_empty(like.shape, dtype=product.summed) if want else None)
        grads = _Gradients(parts)
        width = product.weight.width if rows else 0
        for sum_ in (grads.weight, grads.outer):
            if sum_ is not None:
                sum_[width:].zero_()
        for sum_ in (grads.hidden, grads.inner):
            if sum_ is not None and rows < len(sum_):
                sum_.zero_()
        if grads.bias is not None:
            grads.bias.zero_()
        return grads

    def take(
        self,
        product: _Product,
        gradient: Tensor,  # [R, V] of the loss with respect to the product
        rows: Tensor | slice,
        *,
        first: bool,
    ) -> None:
        """Add a chunk."""
        width = gradient.shape[-1]
        if self.hidden is not None:
            out = gradient.new_empty((len(gradient), self.hidden.shape[-1]))
            product.weight.back(gradient, out)
            self.hidden[rows] = out
        if self.weight is not None:
            product.weight.gather(gradient, product.rows, self.weight, add=not first)
        if self.bias is not None:
            self.bias[:width] += gradient.sum(0)
        if product.outer is None:
            return
        if self.inner is not None:
            out = gradient.new_empty((len(gradient), self.inner.shape[-1]))
            product.outer.back(gradient, out)
            self.inner[rows] = out
        if self.outer is not None:
            product.outer.gather(gradient, product.inner_rows, self.outer, add=not first)

    def cast(self, product: _Product) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """In the precision of what they are gradients of; empty where not wanted."""
        parts = (self.hidden, self.weight, self.bias, self.inner, self.outer)
        out = [
            like.new_empty(0) if part is None else part.to(like.dtype)
            for part, like in zip(parts, product.tensors, strict=True)
        ]
        return out[0], out[1], out[2], out[3], out[4]


def _blocks(raw: Tensor) -> list[slice]:
    """Rows that are passed over together: what fits into a CPU's cache; on other devices all."""
    rows = len(raw)
    size = rows if raw.device.type != "cpu" else max(1, BLOCK // raw.shape[-1])
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _teaching(belief: str, parts: Sequence[Tensor], width: int, summed: torch.dtype) -> Teaching:
    match belief:
        case "hidden":
            return Logits(parts[0])
        case "logits":
            return Logits(parts[0][:, :width].to(summed, copy=True))
        case "kept":
            return Kept(parts[0], parts[1], parts[2])
        case "drawn":
            return Drawn(parts[0], parts[1])
    return None
