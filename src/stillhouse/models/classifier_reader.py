"""Texts through a sequence classifier: which inputs it takes, how many tokens fit, its belief.

Knows a loaded classifier and its tokenizer; does not know tasks, records, nor whether the model is
teacher or student.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stillhouse.models.loading import Loaded
from stillhouse.models.signals import accepts


class Read(NamedTuple):
    """What a batch of texts came to."""

    log_p: Tensor  # [B, C] nats
    tokens: list[int]  # of each text, after cutting


class ClassifierReader:
    """Reads texts with a classifier. `longest` is the smaller of the tokenizer's
    `model_max_length` and the model's positions; `takes` names the tokenizer's outputs that the
    model is given."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        # Of its own: a fast tokenizer must not be used by two threads at a time.
        self._measuring = copy.deepcopy(loaded.tokenizer)
        room = getattr(loaded.model.config, "max_position_embeddings", None)
        longest = int(loaded.tokenizer.model_max_length)  # huge where the tokenizer sets none
        self.longest = longest if room is None else min(longest, room)
        self.takes = tuple(
            name
            for name in loaded.tokenizer.model_input_names
            if name in accepts(loaded.model) or name == "input_ids"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """`id2label` of the model, in the order of its logits."""
        names = self._loaded.model.config.id2label
        return tuple(str(names[index]) for index in range(len(names)))

    def measure(self, text: str) -> int:
        """Tokens of a text, not cut. May be called while another thread reads."""
        return len(self._measuring(text, verbose=False)["input_ids"])

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """`measure` of each text, for the thread that reads."""
        rows = self._loaded.tokenizer(list(texts), verbose=False)["input_ids"]
        return [len(row) for row in rows]

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Read:
        """One forward pass; texts longer than `longest` tokens are cut at their end."""
        encoded = self._loaded.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        model = self._loaded.model
        inputs = {name: encoded[name].to(model.device) for name in self.takes if name in encoded}
        log_p = model(**inputs).logits.float().log_softmax(-1)
        return Read(log_p, encoded["attention_mask"].sum(1).tolist())
