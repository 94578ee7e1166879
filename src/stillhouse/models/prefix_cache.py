"""Next-token logits for a batch of prompts that begin alike: the shared beginning is read once.

The chats of one task share system prompt, template and instruction head. Their keys and values are
computed once and expanded over each batch; only the rest of each prompt is run. Results equal a
plain forward pass up to rounding. Knows causal language models and token ids; does not know chats
or labels.

Shapes: B batch, P shared prefix tokens, S other tokens (left-padded), T = P + S, D path tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from stillhouse.models.signals import accepts

KeyValues = list[tuple[Tensor, Tensor]]  # per layer: keys, values [B, heads, T, size]

MIN_PREFIX: Final = 4  # shorter ones are not worth a cache
SLACK: Final = 8  # a stored prefix this much shorter than the batch's own is still used


class Read(NamedTuple):
    """A batch of prompts that has been read."""

    logits: Tensor  # [B, V] after the last token
    mask: Tensor  # [B, T], 1 where a token is real
    key_values: KeyValues | None  # for `follow`; None if not kept or not of a plain kind


class PrefixReader:
    """Runs prompts through a causal language model, the shared prefix once.

    Model families whose caches are not plain keys and values (sliding windows, linear attention)
    are run without a shared prefix: slower, never wrong.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        self._model = model
        self._pad_id = pad_id
        self._accepts = accepts(model)
        self._prefix: list[int] = []
        self._prefix_kv: KeyValues = []
        self._plain_cache = True  # until a cache says otherwise

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]], keep: bool = False) -> Read:
        """Logits after each prompt; keys and values too if `keep`. Prompts are not empty."""
        size = self._usable_prefix(prompts)
        batch = len(prompts)
        longest = max(len(prompt) for prompt in prompts) - size
        device = self._model.device
        rows = [[*[self._pad_id] * (longest + size - len(p)), *p[size:]] for p in prompts]
        ids = torch.tensor(rows, device=device)  # [B, S]
        real = torch.tensor(
            [[0] * (longest + size - len(p)) + [1] * (len(p) - size) for p in prompts],
            device=device,
        )
        mask = torch.cat([real.new_ones(batch, size), real], dim=1)  # [B, T]
        position_ids = (mask.cumsum(1) - 1).clamp_min(0)[:, size:]
        past = expanded(self._prefix_kv, batch) if size else None
        logits, key_values = self._forward(ids, mask, position_ids, past, keep)
        return Read(logits, mask, key_values)

    @torch.inference_mode()
    def follow(self, read: Read, path: Sequence[int]) -> Tensor:
        """Logits [B, V] after each prompt of `read`, followed by `path`. `read` is not changed."""
        assert read.key_values is not None
        batch = read.mask.shape[0]
        ids = torch.tensor([list(path)] * batch, device=read.mask.device)  # [B, D]
        mask = torch.cat([read.mask, torch.ones_like(ids)], dim=1)
        position_ids = mask.cumsum(1)[:, -ids.shape[1] :] - 1
        past = expanded(read.key_values, batch)
        return self._forward(ids, mask, position_ids, past, False)[0]

    def _forward(
        self,
        ids: Tensor,
        mask: Tensor,
        position_ids: Tensor,
        past: DynamicCache | None,
        keep: bool,
    ) -> tuple[Tensor, KeyValues | None]:
        asked: dict[str, object] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self._accepts:
            asked["position_ids"] = position_ids
        if "logits_to_keep" in self._accepts:
            asked["logits_to_keep"] = 1
        if past is not None:
            asked["past_key_values"] = past
        out = self._model(**asked, use_cache=keep or past is not None)
        return out.logits[:, -1], plain_key_values(out) if keep else None

    def _usable_prefix(self, prompts: Sequence[Sequence[int]]) -> int:
        """Number of leading tokens to take from the cache, filled here if need be."""
        shared = common_prefix(prompts)
        known = len(self._prefix)
        if known and shared - SLACK < known <= shared and list(prompts[0][:known]) == self._prefix:
            return known
        if not self._plain_cache or len(prompts) < 2 or shared < MIN_PREFIX:
            return 0
        prefix = list(prompts[0][:shared])
        out = self._model(
            input_ids=torch.tensor([prefix], device=self._model.device), use_cache=True
        )
        key_values = plain_key_values(out)
        if key_values is None:
            self._plain_cache = False
            return 0
        self._prefix, self._prefix_kv = prefix, key_values
        return shared


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens all prompts share, leaving each at least one token of its own."""
    limit = min(len(prompt) for prompt in prompts) - 1
    ordered = sorted(list(prompt[:limit]) for prompt in prompts)
    first, last = ordered[0], ordered[-1]  # the extremes in order share what all share
    for index in range(limit):
        if first[index] != last[index]:
            return index
    return max(limit, 0)


def plain_key_values(out: Any) -> KeyValues | None:
    """A model's cache as tensors; `None` where it is more than keys and values."""
    cache = getattr(out, "past_key_values", None)
    layers = getattr(cache, "layers", None)
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    return [(layer.keys, layer.values) for layer in layers]


def expanded(key_values: KeyValues, batch: int) -> DynamicCache:
    """A fresh cache over the same tensors; the model appends by concatenation, never in place."""
    return DynamicCache(
        [
            (keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1))
            for keys, values in key_values
        ]
    )
