"""Which layers of a model its task can spare: the least missed goes, one after another.

Each round leaves every remaining layer out in turn and keeps out the one without which the model
says most nearly what it says whole, as in SLEB (Song et al. 2024, arXiv:2402.09025). So a pair of
layers that copies words of its input stays a pair, which no rule by a layer's place or by what it
changes alone can see. What lies below the layer left out is not computed again: n layers cost
n^2 / 2 layers' work a round. Knows a model and texts; decides no depth.

Distance: of a text student KL(whole || cut) in nats, mean over tokens; of others 1 - cos of the
last hidden states, mean over tokens.

Legend: B batch, T tokens, N valid tokens of a batch, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.errors import UserError
from stillhouse.train.layers import blocks_of
from stillhouse.train.text_sample import TOKENS, sample_batches

SAMPLES: Final = 8  # texts at most: each is read about L^2 / 2 times over L layers
NORMS: Final = ("norm", "ln_f", "final_layernorm", "final_layer_norm")  # behind the last layer


class _Call(NamedTuple):
    """What a block is given beside its hidden states."""

    rest: tuple[Any, ...]
    named: dict[str, Any]


class _Batch(NamedTuple):
    """Some texts, as the first block gets them, and what the whole model says of them."""

    first: Tensor  # [B, T, H]
    calls: list[_Call]  # one a block
    mask: Tensor  # [B, T]
    said: Tensor  # [N, V] log-probabilities, or [N, H] of length 1


def greedy_layers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    keep: int,
    samples: int = SAMPLES,
) -> tuple[int, ...]:
    """The layers that stay, in rising order: those that `greedy_order` does not name."""
    gone = set(greedy_order(model, tokenizer, texts, keep, samples))
    return tuple(n for n in range(len(blocks_of(model))) if n not in gone)


@torch.no_grad()
def greedy_order(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    keep: int,
    samples: int = SAMPLES,
) -> tuple[int, ...]:
    """The layers that go, the least missed first; its beginning is the order for a larger `keep`.

    Args:
        model: whole; with an output table it is compared by what it predicts.
        tokenizer: the model's.
        texts: of the task, each with its answer where the model writes it.
        keep: how many layers stay.
        samples: texts that are read, at most 8.

    Raises:
        UserError: no text, or more layers than there are.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError(
            "student.cut.depth",
            "there is no text on which to measure which layers the task can spare",
            value="greedy",
            action="give the task's texts, or use depth: even",
        )
    left = list(range(len(blocks_of(model))))
    if keep > len(left):
        raise UserError(
            "student.layers",
            f"the source has {len(left)} layers",
            value=keep,
            action=f"use at most {len(left)}",
        )
    gone: list[int] = []
    training = model.training
    model.train(False)
    try:
        batches = _read(model, tokenizer, texts, min(samples, SAMPLES))
        while len(left) > keep:
            missed = torch.zeros(len(left), dtype=torch.float64)
            for batch in batches:
                missed += _missed(model, batch, left)
            gone.append(left.pop(int(missed.argmin())))
    finally:
        model.train(training)
    return tuple(gone)


def _read(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], samples: int
) -> list[_Batch]:
    """The texts once through the whole model, with what each block is given."""
    blocks = blocks_of(model)
    given: dict[int, tuple[Tensor, _Call]] = {}

    def see(number: int, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        rest = dict(named)
        hidden = args[0] if args else rest.pop("hidden_states")
        given[number] = hidden, _Call(tuple(args[1:]), rest)

    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, named, number=number: see(number, args, named), with_kwargs=True
        )
        for number, block in enumerate(blocks)
    ]
    found: list[_Batch] = []
    most = int(getattr(model.config, "max_position_embeddings", TOKENS))
    cached = getattr(model.config, "use_cache", None)
    model.config.use_cache = False  # a block would add to what it was given before
    try:
        for inputs in sample_batches(tokenizer, texts, samples, most):
            mask = inputs["attention_mask"].to(model.device)
            ids = inputs["input_ids"].to(model.device)
            model.base_model(input_ids=ids, attention_mask=mask)
            calls = [given[number][1] for number in range(len(blocks))]
            batch = _Batch(given[0][0], calls, mask.bool(), torch.empty(0))
            whole = _through(blocks, batch, batch.first, range(len(blocks)))
            found.append(batch._replace(said=_says(model, whole, batch.mask)))
    finally:
        for hook in hooks:
            hook.remove()
        model.config.use_cache = cached
    return found


def _missed(model: PreTrainedModel, batch: _Batch, left: Sequence[int]) -> Tensor:
    """The distance, summed over tokens, that leaving out each of `left` brings. [len(left)]"""
    blocks = blocks_of(model)
    below, found = batch.first, []
    for place, number in enumerate(left):
        without = _through(blocks, batch, below, left[place + 1 :])
        found.append(_distance(model, batch.said, _says(model, without, batch.mask)))
        below = _through(blocks, batch, below, [number])
    return torch.stack(found).double().cpu()


def _through(
    blocks: nn.ModuleList, batch: _Batch, hidden: Tensor, numbers: Sequence[int]
) -> Tensor:
    """Hidden states [B, T, H] through some blocks, each with what it was given in the whole."""
    for number in numbers:
        call = batch.calls[number]
        out = blocks[number](hidden, *call.rest, **call.named)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def _says(model: PreTrainedModel, hidden: Tensor, mask: Tensor) -> Tensor:
    """What the model makes of its last hidden states: log-probabilities, or their directions."""
    norm = _last_norm(model)
    rows = (hidden if norm is None else norm(hidden))[mask]  # [N, H]
    table = _table(model)
    if table is None:
        return nn.functional.normalize(rows.float(), dim=-1)
    logits = table(rows).float()  # [N, V]
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits, dim=-1)


def _last_norm(model: PreTrainedModel) -> nn.Module | None:
    """What stands between the last block of a decoder and its output table."""
    found = (getattr(model.base_model, name, None) for name in NORMS)
    return next((norm for norm in found if isinstance(norm, nn.Module)), None)


def _table(model: PreTrainedModel) -> nn.Module | None:
    """The output table of a decoder; an encoder's stands behind a head of its own."""
    table: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return None if _last_norm(model) is None else table


def _distance(model: PreTrainedModel, whole: Tensor, cut: Tensor) -> Tensor:
    if _table(model) is None:
        return (1 - (whole * cut).sum(-1)).sum()
    return (whole.exp() * (whole - cut)).sum()
