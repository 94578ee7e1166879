"""The last layer of a language model, apart from its body: hidden states to logits.

A fused loss needs hidden states and this, never all logits at once. Adapters on the head stay
apart from its weight. Knows no loss.

Legend: B batch, T tokens, N positions, H hidden, V vocabulary, L rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial


class LowRank(NamedTuple):
    """What an adapter adds before scale and cap: scale * dropout(hidden) @ down.T @ up.T."""

    down: Tensor  # [L, H]
    up: Tensor  # [V, L]
    scale: float
    dropout: float = 0.0

    def inner(self, hidden: Tensor) -> Tensor:
        """[..., H] to [..., L], scaled."""
        dropped = nn.functional.dropout(hidden, self.dropout) if self.dropout else hidden
        down = whole(self.down)
        return nn.functional.linear(dropped.to(down.dtype), down) * self.scale


@dataclass(frozen=True, slots=True)
class Head:
    """logits = softcap * tanh(scale * (hidden @ weight.T + low-rank parts + bias) / softcap),
    without cap where `softcap` is None."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0  # Cohere's logit_scale
    softcap: float | None = None  # Gemma's final_logit_softcapping
    low_rank: tuple[LowRank, ...] = ()

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] to [..., V]."""
        bias = None if self.bias is None else whole(self.bias)
        out = nn.functional.linear(hidden, whole(self.weight), bias)
        for part in self.low_rank:
            inner = part.inner(hidden)
            out = out + nn.functional.linear(inner, whole(part.up).to(inner.dtype)).to(out.dtype)
        return self.finish(out)

    def narrowed(self, width: int) -> Head:
        """Over the first `width` ids alone."""
        return replace(
            self,
            weight=self.weight[:width],
            bias=None if self.bias is None else self.bias[:width],
            low_rank=tuple(part._replace(up=part.up[:width]) for part in self.low_rank),
        )

    def only(
        self,
        ids: Tensor,  # [V'] int64
    ) -> Head:
        """Over the chosen ids alone, in their order."""
        rows = ids.to(self.weight.device)
        return replace(
            self,
            weight=self.weight[rows],
            bias=None if self.bias is None else self.bias[rows],
            low_rank=tuple(part._replace(up=part.up[rows]) for part in self.low_rank),
        )

    def finish(self, out: Tensor) -> Tensor:
        """What follows the product: scale, then cap."""
        if self.scale != 1.0:
            out = out * self.scale
        if self.softcap is not None:
            out = torch.tanh(out / self.softcap) * self.softcap
        return out


# Models that do more to their logits than their configuration says here: read as a whole.
_odd: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
# What a model is asked to finish, to see what it does to its logits: sizes that show a factor, a
# shift, a cap and a cut. What the model itself computes may be too near to 0 to show any.
_PROBES: Final = (2.0, -60.0, 0.02, 15.0, -0.1, 0.5, -1.0, -5.0)


def head_of(model: Any) -> Head | None:
    """A language model's head, with gradient; `None` where it is more than one linear layer, with
    or without LoRA on it (Hu et al. 2021, arXiv:2106.09685)."""
    if _odd.get(model, False):
        return None
    module = model.get_output_embeddings()
    trained_whole = getattr(module, "modules_to_save", None)
    if trained_whole is not None and module is not None:  # peft: a copy that is trained instead
        active = module.active_adapters
        module = trained_whole[active[0]] if len(active) == 1 else None
    low_rank: tuple[LowRank, ...] | None = ()
    if hasattr(module, "lora_A"):
        low_rank = _adapters(module)
        module = module.base_layer
    if low_rank is None or not _is_plain(module):
        return None
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(module.weight, module.bias, _scale(config), cap, low_rank)


@contextmanager
def without_head(model: Any) -> Iterator[list[Tensor]]:
    """Inside, a forward pass skips the head; the list then holds what the head would have read.

    The model still runs as a whole, under DDP or FSDP hooks too; what it returns as logits means
    nothing, but to `head_input`.
    """
    module = model.get_output_embeddings()
    caught: list[Tensor] = []
    known = model in _odd

    def skip(hidden: Tensor) -> Tensor:
        caught.append(hidden)
        first = hidden[..., :1].clone()
        if known:
            return first
        # Through `where`, as a part of the graph: see `head_input`.
        return torch.where(torch.ones_like(first, dtype=torch.bool), _probes(first), first)

    module.forward = skip
    try:
        yield caught
    finally:
        del module.forward


def head_input(
    model: Any,
    head: Head,
    caught: list[Tensor],
    returned: Any,  # [..., 1] what the pass gave as logits
) -> Tensor | None:  # [..., H]
    """What the head would have read in a forward pass `without_head`.

    `None` if the model did something else to its column than the head's finish does: a family that
    scales, shifts or cuts its logits in a way that `head_of` does not know is told by this, and has
    no head from then on. It is asked until one pass had positions enough for every probe.
    """
    if model not in _odd:
        odd = len(caught) != 1 or not _finishes(head, caught[0], returned)
        if odd or caught[0][..., 0].numel() >= len(_PROBES):
            _odd[model] = odd
    if _odd.get(model, False):
        return None
    (hidden,) = caught
    if torch.is_grad_enabled() and returned.requires_grad:
        # Sharded models gather their weights for the backward pass when a gradient reaches what
        # their forward pass returned: one that is 0 does.
        hidden = hidden + returned.sum() * 0.0
    return hidden


@torch.no_grad()
def _finishes(head: Head, hidden: Tensor, returned: Any) -> bool:
    first = hidden[..., :1]
    if not isinstance(returned, Tensor) or returned.shape != first.shape:
        return False
    wanted = head.finish(_probes(first)).float()
    return torch.allclose(wanted, returned.float(), rtol=1e-2, atol=0.0)


def _probes(column: Tensor) -> Tensor:
    """`_PROBES` over and over, shaped as a column [..., 1]."""
    numbers = torch.arange(column.numel(), device=column.device) % len(_PROBES)
    return column.new_tensor(_PROBES)[numbers].reshape(column.shape)


def whole(weight: Tensor) -> Tensor:
    """A sharded parameter gathered, with gradient; others as they are.

    Ranks see different data, so a gradient is a partial sum of the ranks', and what each shard gets
    is their mean, as from the sharded model's own layers.
    """
    if not isinstance(weight, DTensor):
        return weight
    mesh = weight.device_mesh
    gathered: Tensor = weight.full_tensor(grad_placements=[Partial("sum")] * mesh.ndim)
    if gathered.requires_grad:
        gathered.register_hook(lambda gradient: gradient / mesh.size())  # type: ignore[no-untyped-call]
    return gathered


def _is_plain(module: Any) -> bool:
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and module.weight.is_floating_point()
        and tuple(module.weight.shape) == (module.out_features, module.in_features)
    )


def _adapters(module: Any) -> tuple[LowRank, ...] | None:
    """The active ones, unless merged or switched off; `None` where they are not plain LoRA."""
    if module.merged:
        return None if module.disable_adapters else ()
    if module.disable_adapters:
        return ()
    if getattr(module, "lora_variant", None) or getattr(module, "fan_in_fan_out", False):
        return None
    found = []
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        down, up = module.lora_A[name], module.lora_B[name]
        if up.bias is not None:
            return None
        dropout = module.lora_dropout[name]
        rate = float(getattr(dropout, "p", 0.0)) if dropout.training else 0.0
        found.append(LowRank(down.weight, up.weight, float(module.scaling[name]), rate))
    return tuple(found)


def _scale(config: Any) -> float:
    """What logits are multiplied with: Cohere, Falcon-H1, Granite and their likes."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    divisor = getattr(config, "logits_scaling", None)
    return 1.0 if not divisor else 1.0 / float(divisor)


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
