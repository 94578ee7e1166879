"""Shrink a model's embedding tables: rows of pieces that were trimmed, positions never used.

Works in memory on any transformers model with one input embedding; tied heads stay tied. Does not
know how the rows were chosen.

Legend: V vocabulary, H hidden, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedModel

# Token ids that configs hold, alone or in lists.
ID_NAMES: Final = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "forced_eos_token_id",
)


def keep_rows(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Keep the rows `kept` of the embedding and of the output head, in that order, in place.

    Token ids in the model's configs are renumbered; one whose piece is gone becomes `None`.
    """
    new = {old: number for number, old in enumerate(kept)}
    rows = torch.tensor(kept)
    embedding: Any = model.get_input_embeddings()  # weight [V, H]
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # [V, H], or None
    tied = head is not None and head.weight is embedding.weight
    embedding.weight = _rows(embedding.weight, rows)
    embedding.num_embeddings = len(kept)
    if embedding.padding_idx is not None:
        embedding.padding_idx = new.get(embedding.padding_idx)
    if head is not None:
        head.weight = embedding.weight if tied else _rows(head.weight, rows)
        head.out_features = len(kept)
        bias = getattr(head, "bias", None)
        if bias is not None:
            head.bias = _rows(bias, rows)
            _share(model, bias, head.bias)
    model.config.vocab_size = len(kept)
    for config in (model.config, getattr(model, "generation_config", None)):
        for name in ID_NAMES:
            value = getattr(config, name, None)
            if isinstance(value, int):
                setattr(config, name, new.get(value))
            elif isinstance(value, list):
                setattr(config, name, [new[old] for old in value if old in new] or None)


def _share(model: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put `new` where `old` stands too: heads of BERT's kind hold their bias under two names."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight is old:
                setattr(module, name, new)


def keep_positions(model: PreTrainedModel, count: int) -> int:
    """Keep the first `count` learned absolute positions, in place; returns how many there are now.

    Only for BERT's plain numbering from 0. Rotary models have nothing to trim, and tables that
    start at an offset (RoBERTa's) are left as they are; both return what the config says.
    """
    parts = getattr(model.base_model, "embeddings", None)
    table = getattr(parts, "position_embeddings", None)
    most = int(getattr(model.config, "max_position_embeddings", count))
    if not isinstance(table, nn.Embedding) or table.padding_idx is not None or count >= most:
        return most
    table.weight = _rows(table.weight, torch.arange(count))  # [P, H]
    table.num_embeddings = count
    for name in ("position_ids", "token_type_ids"):
        held = getattr(parts, name, None)
        if isinstance(held, torch.Tensor):
            setattr(parts, name, held[:, :count].clone())  # [1, P]
    model.config.max_position_embeddings = count
    return count


def _rows(weight: torch.Tensor, rows: torch.Tensor) -> nn.Parameter:
    chosen = weight.detach()[rows.to(weight.device)].clone()
    return nn.Parameter(chosen, requires_grad=weight.requires_grad)
