"""A trimmed student's pieces under the numbers that they have in another tokenizer.

The one place that pairs two vocabularies by name and compares how they cut texts. Knows tokenizers
and token ids; knows no model.

Legend: V pieces of the trimmed tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.train.batches import Item


def ids_in(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> Tensor | None:
    """The other's id of each of the own pieces [V] int64; `None` where it lacks one of them."""
    pieces, known = own.get_vocab(), other.get_vocab()
    if not pieces.keys() <= known.keys():
        return None
    ids = torch.zeros(max(pieces.values()) + 1, dtype=torch.int64)
    for piece, number in pieces.items():
        ids[number] = known[piece]
    return ids


def renumbered(
    items: Sequence[Item],
    ids: Tensor,  # [V]
) -> list[Item]:
    """Tokenised texts under the other tokenizer's numbers."""
    known = ids.tolist()
    return [
        {
            **item,
            "input_ids": [known[token] for token in item["input_ids"]],
            "labels": [n if n == IGNORE_INDEX else known[n] for n in item["labels"]],
        }
        for item in items
    ]


def cut_otherwise(
    own: Sequence[Sequence[int]], other: Sequence[Sequence[int]], ids: Tensor | None = None
) -> list[int]:
    """Which texts two tokenizers cut into other pieces.

    Args:
        own: token ids of each text.
        other: the same texts' ids in the other tokenizer.
        ids: the other's id of each of the own pieces [V]; `None` where their numbers are equal.
    """
    known = None if ids is None else ids.tolist()
    return [
        number
        for number, (mine, theirs) in enumerate(zip(own, other, strict=True))
        if list(theirs) != (list(mine) if known is None else [known[token] for token in mine])
    ]
