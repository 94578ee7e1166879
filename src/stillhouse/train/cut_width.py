"""Carry out a cut: a smaller model of the same architecture that inherits the chosen weights.

Rows and columns are taken by the table of axes: channels are the same everywhere, heads and neurons
are chosen layer by layer. A normalisation over fewer channels would divide by another spread; its
gain (and bias) make up for the mean change, measured on the task's texts. A model whose config
scales embeddings by the root of the hidden size (Gemma) keeps the scale it was trained with. The
result is what `from_config` makes, filled: it saves and loads as any model of its kind. Knows
models in memory and a plan.

Legend: V vocabulary, H hidden, E low-rank embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import sqrt
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.cut_importance import Importance
from stillhouse.train.cut_plan import CutPlan
from stillhouse.train.cut_shapes import Layout, Shape
from stillhouse.train.layers import cut_layers

ROOT_SCALED: Final = ("gemma", "gemma2", "gemma3_text")  # embeddings x sqrt(hidden size)


def choose_layers(plan: CutPlan, importance: Importance) -> tuple[int, ...]:
    """The layers that stay: the plan's, or the most important ones."""
    if plan.layers_kept is not None:
        return plan.layers_kept
    return most_important(importance.layers, plan.after.layers)


def most_important(layers: Sequence[float], keep: int) -> tuple[int, ...]:
    """The `keep` layers of the largest importance, in rising order; of equals the lower."""
    ranked = sorted(range(len(layers)), key=lambda n: (-layers[n], n))
    return tuple(sorted(ranked[:keep]))


def narrowed(
    model: PreTrainedModel, layout: Layout, plan: CutPlan, importance: Importance
) -> PreTrainedModel:
    """A model with the plan's width, and with the source's layers and rows as they are in `model`.

    Args:
        model: the source, whole.
        layout: its table.
        plan: the shape wanted.
        importance: of the source.
    """
    before, after = plan.before, plan.after
    chosen = _Chosen(layout, after, importance)
    small: PreTrainedModel = _empty(model, after)
    held: dict[str, Tensor] = {name: weight.detach() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for name, weight in small.named_parameters():
            item = next(item for item in layout.table if item.name == name)
            source = held[name]
            for dimension, axis in enumerate(item.axes):
                kept = chosen.indices(axis, item.layer)
                if kept is not None:
                    source = source.index_select(dimension, kept.to(source.device))
            assert weight.shape == source.shape, f"{name}: {weight.shape} of {source.shape}"
            weight.copy_(source)
        _mend_norms(small, layout, chosen.hidden, importance)
        if layout.family in ROOT_SCALED:
            _keep_scale(small, sqrt(before.hidden / after.hidden))
    small.train(model.training)
    return small


def deepened(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Keep the layers `kept`, in place."""
    if len(kept) < int(model.config.num_hidden_layers):
        cut_layers(model, kept)


class _Chosen:
    """Which indices of each axis stay; `None` where all do."""

    def __init__(self, layout: Layout, after: Shape, importance: Importance) -> None:
        self._before, self._after = layout.shape, after
        self._importance = importance
        self.hidden = _most(importance.hidden, after.hidden)
        self._made: dict[tuple[str, int], Tensor] = {}

    def indices(self, axis: str, layer: int | None) -> Tensor | None:
        """Of one axis in one layer."""
        if axis == "H":
            return None if self._after.hidden == self._before.hidden else self.hidden
        if layer is None or axis not in "QKRIJ":
            return None
        key = axis, layer
        if key not in self._made:
            self._made[key] = self._make(axis, layer)
        return self._made[key]

    def _make(self, axis: str, layer: int) -> Tensor:
        before = self._before
        if axis in "IJ":
            neurons = _most(self._importance.neurons[layer], self._after.neurons)
            return neurons if axis == "I" else torch.cat((neurons, neurons + before.neurons))
        groups, heads = self._heads(layer)
        q, k = _channels(heads, before.head_dim), _channels(groups, before.head_dim)
        if axis == "Q":
            return q
        if axis == "K":
            return k
        start = before.heads * before.head_dim
        return torch.cat((q, k + start, k + start + before.kv_heads * before.head_dim))

    def _heads(self, layer: int) -> tuple[Tensor, Tensor]:
        """Key-value groups that stay, and in each as many of its query heads."""
        scores = self._importance.heads[layer].view(self._before.kv_heads, -1)
        groups = _most(scores.sum(1), self._after.kv_heads)
        each = self._after.heads // self._after.kv_heads
        size = scores.shape[1]
        return groups, torch.cat([_most(scores[g], each) + g * size for g in groups.tolist()])


def _most(scores: Tensor, count: int) -> Tensor:
    """The `count` highest, in rising order of index; ties go to the lower index."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _channels(heads: Tensor, size: int) -> Tensor:
    return (heads.unsqueeze(1) * size + torch.arange(size)).flatten()


def _empty(model: PreTrainedModel, after: Shape) -> PreTrainedModel:
    """A model of `model`'s kind, depth and rows, as wide as `after`."""
    config: Any = copy.deepcopy(model.config)
    set_width(config, after)
    kind: Any = type(model)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        small: PreTrainedModel = kind(config)
    small.to(dtype=model.dtype)  # type: ignore[call-arg]
    return small


def set_width(config: Any, after: Shape) -> None:
    """Write hidden size, heads, neurons and tying into a config."""
    wide = hasattr(config, "num_key_value_heads")
    config.hidden_size = after.hidden
    config.num_attention_heads = after.heads
    if wide:
        config.num_key_value_heads = after.kv_heads
        config.head_dim = after.head_dim
    if config.model_type == "distilbert":
        config.hidden_dim = after.neurons
    else:
        config.intermediate_size = after.neurons
    config.tie_word_embeddings = after.tied


def _mend_norms(
    small: PreTrainedModel, layout: Layout, kept: Tensor, importance: Importance
) -> None:
    if len(kept) == layout.shape.hidden:
        return
    for name, module in small.named_modules():
        seen = importance.norms.get(name)
        if seen is None:
            continue
        mean = float(seen.first[kept].mean())
        square = float(seen.second[kept].mean())
        norm: Any = module
        if isinstance(module, nn.LayerNorm):
            norm.bias.add_(norm.weight * mean)
            norm.weight.mul_(sqrt(max(square - mean**2, 1e-6)))
        else:
            scale = sqrt(max(square, 1e-6))
            unit = layout.family in ROOT_SCALED  # gains are 1 + weight
            norm.weight.add_(float(unit)).mul_(scale).sub_(float(unit))


def _keep_scale(small: PreTrainedModel, scale: float) -> None:
    """Undo a config's sqrt(hidden size) before the first layer, and after the last where the
    table is tied to the output."""
    part: Any = small
    part.get_input_embeddings().weight.mul_(scale)
    head = part.get_output_embeddings()
    if head is not None and head.weight is part.get_input_embeddings().weight:
        norm = part.base_model.norm
        norm.weight.add_(1).div_(scale).sub_(1)
