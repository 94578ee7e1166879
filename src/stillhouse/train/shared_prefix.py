"""What all texts of a batch begin with is read once, by a teacher that reads along.

The chats of one task share system prompt, template and instruction head, and no target lies there:
its keys and values are computed once, kept from batch to batch, and expanded over the rows. Results
equal a plain forward pass up to rounding. Knows causal models and batches; knows no loss.

Legend: B batch, T tokens, P shared tokens.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from stillhouse.models.prefix_cache import KeyValues, expanded, plain_key_values
from stillhouse.models.signals import accepts
from stillhouse.train.outputs import POSITIONS, Batch, next_tokens

LEAST: Final = 8  # shorter beginnings are not worth a cache
SLACK: Final = 8  # a kept beginning this much shorter than the batch's own is still used


class Rest(NamedTuple):
    """A model that has read the beginning, and the batch without it."""

    model: Any
    batch: Batch


class SharedPrefix:
    """Keeps the last beginning that was read.

    Families whose caches are not plain keys and values (sliding windows, linear attention) read all
    of each row: slower, never wrong.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._ids = torch.empty(0, dtype=torch.int64)
        self._key_values: KeyValues = []
        takes = accepts(model)
        self._plain = {"position_ids", "past_key_values"} <= takes
        self._narrow = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def split(self, batch: Batch) -> Rest | None:
        """The rest of a batch, and the model for it; `None` where that does not pay or hold."""
        if not self._plain or POSITIONS in batch or "input_ids" not in batch:
            return None
        ids = batch["input_ids"]  # [B, T]
        columns = next_tokens(batch["labels"]).positions.any(0)  # [T]
        alike = (ids == ids[:1]).all(0) & (columns.cumsum(0) == 0)
        shared = int(alike.cumprod(0).sum())
        if len(ids) < 2 or shared < LEAST or not bool(columns.any()):
            return None
        size = self._kept(ids[0, :shared])
        if size == 0:
            return None
        names = [n for n in ("input_ids", "labels", "attention_mask") if n in batch]
        rest = {**batch, **{name: batch[name][:, size:] for name in names}}
        return Rest(_Prefixed(self._model, self._key_values, size), rest)

    def _kept(self, prefix: Tensor) -> int:
        """How many of these tokens the cache holds, filled here if need be; 0 where it cannot."""
        known = len(self._ids)
        if known > len(prefix) - SLACK and known <= len(prefix):
            if torch.equal(self._ids, prefix[:known]):
                return known
        out = self._model(input_ids=prefix[None], use_cache=True, **self._narrow)
        found = plain_key_values(out)
        if found is None:
            self._plain = False
            return 0
        self._ids, self._key_values = prefix, found
        return len(prefix)


class _Prefixed:
    """Calls a model as if the beginning stood before its input. `module` is the model itself."""

    def __init__(self, model: Any, key_values: KeyValues, size: int) -> None:
        self.module = model
        self._key_values, self._size = key_values, size

    def __call__(self, input_ids: Tensor, **asked: Any) -> Any:
        rows, length = input_ids.shape
        places = torch.arange(self._size, self._size + length, device=input_ids.device)
        return self.module(
            input_ids=input_ids,
            position_ids=places.expand(rows, -1),
            past_key_values=expanded(self._key_values, rows),
            **asked,
        )
