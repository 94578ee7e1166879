"""Train only the upper layers of a language model, and run the frozen ones once.

What reaches the first trained layer does not change from epoch to epoch: `with_hidden_states` keeps
it, [T, H] for each example, and the model's upper part then trains on that alone. Knows models and
tokenised rows; knows no recipe.

Legend: B batch, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.train.batches import Collator, Item, Rows
from stillhouse.train.layers import blocks_of, upper_part

MOST_BYTES: Final = 2 << 30  # of hidden states in memory
BATCH: Final = 32
_FINAL_NORMS: Final = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


def freeze_lower(model: PreTrainedModel, first: int) -> None:
    """Leave only the layers from `first` up, and the norm after them, to be trained."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained: list[nn.Module] = list(blocks_of(model))[first:]
    trained += [child for name, child in model.base_model.named_children() if name in _FINAL_NORMS]
    for module in trained:
        for parameter in module.parameters():
            parameter.requires_grad_(True)


class _ReachedError(Exception):
    """Ends a forward pass at the first trained layer."""


@torch.no_grad()
def with_hidden_states(
    model: PreTrainedModel, rows: Rows, first: int, pad_token_id: int
) -> Rows | None:
    """The rows with what reaches layer `first` of each, as `hidden` [T, H] on the CPU.

    `None` where that does not pay or does not hold: more than `MOST_BYTES`, or a model that does
    something to `inputs_embeds` before its layers (Gemma scales them), found by trying it.
    """
    collate = Collator(pad_token_id)
    embedding: Any = model.get_input_embeddings()
    width = int(embedding.weight.shape[1])
    if sum(rows.lengths) * width * 4 > MOST_BYTES:
        return None
    found: list[Item | None] = [None] * len(rows)
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _ReachedError

    model.train(False)
    handle = blocks_of(model)[first].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for numbers in _by_length(rows):
            batch = collate([rows[i] for i in numbers])
            try:
                model(input_ids=batch["input_ids"].to(model.device), use_cache=False)
            except _ReachedError:
                pass
            hidden = caught.pop().float().cpu()  # [B, T, H]
            for at, number in enumerate(numbers):
                length = len(rows[number]["input_ids"])
                found[number] = {**rows[number], "hidden": hidden[at, :length].clone()}
    finally:
        handle.remove()
    whole = Rows([item for item in found if item is not None])
    return whole if _holds(model, whole, first, collate) else None


def _holds(model: PreTrainedModel, rows: Rows, first: int, collate: Collator) -> bool:
    """Whether the upper part gives, from kept hidden states, what the whole model gives."""
    batch = {k: v.to(model.device) for k, v in collate(rows.items[:2]).items()}
    real = batch["attention_mask"].bool()
    wanted = model(input_ids=batch["input_ids"], use_cache=False).logits[real]
    with upper_part(model, first):
        got = model(inputs_embeds=batch["inputs_embeds"], use_cache=False).logits[real]
    return torch.allclose(got, wanted, rtol=1e-3, atol=1e-3)


def _by_length(rows: Rows) -> Iterator[Sequence[int]]:
    lengths = rows.lengths
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]
