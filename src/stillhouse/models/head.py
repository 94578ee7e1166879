"""The last layer of a language model, apart from its body: hidden states to logits.

A fused loss needs hidden states and this, never all logits at once. Knows no loss.

Legend: B batch, T tokens, N positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Head:
    """logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap), without cap where
    `softcap` is None."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0  # Cohere's logit_scale
    softcap: float | None = None  # Gemma's final_logit_softcapping

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] to [..., V]."""
        out = nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            out = out * self.scale
        if self.softcap is not None:
            out = torch.tanh(out / self.softcap) * self.softcap
        return out


def head_of(model: Any) -> Head | None:
    """A language model's head, with gradient; `None` where it is more than one linear layer."""
    module = model.get_output_embeddings()
    if not isinstance(module, nn.Linear):
        return None
    config = model.config
    return Head(
        module.weight,
        module.bias,
        float(getattr(config, "logit_scale", None) or 1.0),
        getattr(config, "final_logit_softcapping", None),
    )


@contextmanager
def without_head(model: Any) -> Iterator[list[Tensor]]:
    """Inside, a forward pass skips the head; the list then holds what the head would have read.

    The model still runs as a whole, under DDP or FSDP hooks too; what it returns as logits means
    nothing.
    """
    module = model.get_output_embeddings()
    caught: list[Tensor] = []

    def skip(hidden: Tensor) -> Tensor:
        caught.append(hidden)
        return hidden[..., :1]

    module.forward = skip
    try:
        yield caught
    finally:
        del module.forward


@contextmanager
def head_at(model: Any, positions: Tensor) -> Iterator[None]:
    """Inside, a forward pass evaluates the head at the chosen `positions` ([B, T], bool) alone.

    Logits then come as [N, V], rows in row-major order, for every model that gives its head all
    tokens at once; any other still answers with [B, T, V]. The head runs inside the forward pass,
    so hooks of DDP, FSDP and adapters see it.
    """
    module = model.get_output_embeddings()
    if module is None:
        yield
        return
    whole = module.forward

    def narrow(hidden: Tensor) -> Tensor:
        chosen = hidden[positions] if hidden.shape[:-1] == positions.shape else hidden
        out: Tensor = whole(chosen)
        return out

    module.forward = narrow
    try:
        yield
    finally:
        del module.forward
