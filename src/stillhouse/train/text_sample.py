"""A few of a task's texts, read in batches: what importance and ranges are measured on.

Knows tokenizers and texts; knows no model.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

TOKENS: Final = 128  # of a text, read from its start
BATCH: Final = 8


def evenly_drawn(texts: Sequence[T], samples: int) -> list[T]:
    """Up to `samples` texts, from the first to the last in even steps: a list in any order of its
    sources is read as a whole."""
    if len(texts) <= samples:
        return list(texts)
    return [texts[int(at)] for at in np.linspace(0, len(texts) - 1, samples).round()]


def sample_batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], samples: int, most: int
) -> Iterator[Any]:
    """`input_ids` and `attention_mask` [B, T] of texts evenly drawn, those of like length together.

    Args:
        tokenizer: cuts them.
        texts: of the task.
        samples: so many at most.
        most: tokens of a text at most, and never more than `TOKENS`.
    """
    chosen = sorted(evenly_drawn(texts, samples), key=len)
    for start in range(0, len(chosen), BATCH):
        yield tokenizer(
            chosen[start : start + BATCH],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=min(TOKENS, most),
        )
