"""Cut a student from a deeper model: keep some of its layers, renumber them, mend its config.

Works in memory on any transformers model whose blocks sit in one `ModuleList` (BERT, Llama, Qwen,
Mistral, GPT-2, DistilBERT families). The result saves and loads as a plain, shallower model. Does
not know what the student is for.

DistilBERT (Sanh et al. 2019, arXiv:1910.01108) starts its student from every other layer of the
teacher; `evenly_spaced` is that rule for any pair of depths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from stillhouse.core.errors import UserError

# The names under which transformers' configs keep their depth.
DEPTH_NAMES: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def evenly_spaced(total: int, keep: int) -> tuple[int, ...]:
    """`keep` of `total` layer indices, evenly spaced, first and last among them (one: the first).

    Raises:
        UserError: more layers are asked for than there are.
    """
    if keep > total:
        raise UserError(
            "student.layers",
            f"the source has {total} layers",
            value=keep,
            action=f"use at most {total}",
        )
    if keep == 1:
        return (0,)
    return tuple((2 * i * (total - 1) + keep - 1) // (2 * (keep - 1)) for i in range(keep))


def depth(model: PreTrainedModel) -> int:
    """How many layers a model has."""
    return len(blocks_of(model))


def cut_layers(model: PreTrainedModel, keep: int | Sequence[int]) -> tuple[int, ...]:
    """Keep `keep` evenly spaced layers, or exactly the given ones, in place.

    Returns the indices, in the source, of the layers that are kept.

    Raises:
        UserError: an index that the source does not have.
    """
    blocks = blocks_of(model)
    total = len(blocks)
    chosen = evenly_spaced(total, keep) if isinstance(keep, int) else tuple(keep)
    if not chosen or chosen[0] < 0 or chosen[-1] >= total:
        raise UserError(
            "student.layers",
            f"the source has layers 0 to {total - 1}",
            value=list(chosen),
            action="list indices in that range",
        )
    _fill(blocks, [blocks[index] for index in chosen])
    _mend_config(model.config, total, chosen)
    return chosen


@contextmanager
def upper_part(model: PreTrainedModel, first: int) -> Iterator[None]:
    """Inside the block, the model is its layers from `first` up; then it is whole again.

    Asked with `inputs_embeds`, it takes the hidden states that would reach layer `first`.
    """
    blocks = blocks_of(model)
    whole = list(blocks)
    settings = dict(vars(model.config))
    cut_layers(model, range(first, len(whole)))
    try:
        yield
    finally:
        _fill(blocks, whole)
        vars(model.config).update(settings)


def _fill(blocks: nn.ModuleList, chosen: Sequence[nn.Module]) -> None:
    while len(blocks):
        del blocks[-1]
    for number, block in enumerate(chosen):
        blocks.append(block)
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, "layer_idx", number)  # noqa: B010 - its row in the key-value cache


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The one list of blocks, as long as the config says the model is deep."""
    wanted = {getattr(model.config, name, None) for name in DEPTH_NAMES} - {None}
    found = [
        module
        for module in model.base_model.modules()
        if isinstance(module, nn.ModuleList) and len(module) in wanted
    ]
    if len(found) != 1:
        raise UserError(
            "student.layers",
            f"no single stack of layers was found in a {type(model).__name__}",
            action="leave student.layers out, or use a BERT- or Llama-like source",
        )
    return found[0]


def decoder_blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of an encoder-decoder's decoder."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    found = [module for module in decoder.children() if isinstance(module, nn.ModuleList)]
    if len(found) != 1:
        raise UserError(
            "train.terms",
            f"no single stack of layers was found in the decoder of a {type(model).__name__}",
            action="compare logits, or use a T5- or BART-like model",
        )
    return found[0]


def _mend_config(config: PreTrainedConfig, total: int, chosen: Sequence[int]) -> None:
    """Set the depth, and thin out what the config lists layer by layer (`layer_types`, say)."""
    per_layer = {
        name: [value[index] for index in chosen]
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == total and name != "architectures"
    }
    for name in DEPTH_NAMES:
        if getattr(config, name, None) == total:
            setattr(config, name, len(chosen))
    for name, value in per_layer.items():
        setattr(config, name, value)
