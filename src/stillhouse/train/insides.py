"""What a model computes on the way: attention probabilities, and queries, keys and values.

Nothing is changed in a model but inside `watch`: there hooks on its projections keep what they
give, and attention is taken step by step where its probabilities are wanted, which the fast kernels
do not have. Of an encoder-decoder it is the decoder's self-attention. Knows the BERT, DistilBERT,
Llama, Qwen, Phi-3, GPT-2, GPT-NeoX, T5 and BART families' names of projections, also under
adapters; knows no loss.

Legend: B batch, T tokens, A attention heads, D width of a head.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from stillhouse.core.errors import UserError
from stillhouse.train.layers import blocks_of, decoder_blocks_of

STEP_BY_STEP: Final = "stillhouse_probabilities"
APART: Final = (
    ("q_proj", "k_proj", "v_proj"),  # Llama, Qwen, Mistral, Gemma, OPT
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q", "k", "v"),  # T5
)
JOINED: Final = ("qkv_proj", "c_attn", "Wqkv")  # Phi-3, GPT-2, ModernBERT: queries, keys, values
PER_HEAD: Final = "query_key_value"  # GPT-NeoX: the three of each head together
CROSS: Final = ("cross", "encoder_attn", "EncDec")
HEADS: Final = ("decoder_attention_heads", "num_attention_heads", "n_head", "n_heads", "num_heads")


@dataclass(frozen=True, slots=True)
class Projections:
    """Queries, keys and values of one layer, before attention, rotation and norms, heads apart."""

    queries: Tensor  # [B, A, T, D]
    keys: Tensor  # [B, A', T, D]; A' key heads under grouped queries
    values: Tensor  # [B, A', T, D]


@dataclass(slots=True)
class Caught:
    """What hooks kept in one forward pass."""

    parts: list[dict[str, Tensor]] = field(default_factory=list)  # a layer each
    split: Callable[[dict[str, Tensor]], Projections] | None = None

    def projections(self) -> tuple[Projections, ...] | None:
        """Of all layers; `None` where nobody asked."""
        if self.split is None:
            return None
        return tuple(self.split(part) for part in self.parts)


@contextmanager
def watch(model: Any, *, attentions: bool, projections: bool) -> Iterator[Caught]:
    """Inside, a forward pass gives what is asked for.

    Args:
        model: a transformers model, with adapters or without.
        attentions: have `output_attentions` give probabilities as they were before dropout.
        projections: keep queries, keys and values; see `Caught.projections`.

    Raises:
        UserError: a family whose attention or projections are not known.
    """
    base = plain(model)
    caught = Caught()
    with ExitStack() as stack:
        if attentions:
            stack.enter_context(_step_by_step(base))
        if projections:
            stack.enter_context(_hooks(base, caught))
        yield caught


def plain(model: Any) -> Any:
    """The transformers model under data-parallel wrapping and adapters."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _step_by_step(base: Any) -> Iterator[None]:
    AttentionInterface.register(STEP_BY_STEP, _probabilities)
    AttentionMaskInterface.register(STEP_BY_STEP, eager_mask)
    before = base.config._attn_implementation
    base.set_attn_implementation(STEP_BY_STEP)
    try:
        if base.config._attn_implementation != STEP_BY_STEP:
            raise _unknown(base, "its attention cannot be taken step by step")
        yield
    finally:
        base.set_attn_implementation(before)


def _probabilities(
    module: nn.Module,
    query: Tensor,  # [B, A, T, D]
    key: Tensor,  # [B, A', T, D]
    value: Tensor,  # [B, A', T, D]
    attention_mask: Tensor | None,
    *args: Any,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """The family's own attention, step by step, and its probabilities before dropout."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise _unknown(module, "its attention cannot be taken step by step")
    out, probabilities = eager(module, query, key, value, attention_mask, *args, **more)
    if dropout > 0:
        kept = nn.functional.dropout(probabilities, dropout)
        values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        out = (kept @ values).transpose(1, 2).contiguous()
    return out, probabilities


@contextmanager
def _hooks(base: Any, caught: Caught) -> Iterator[None]:
    heads = next(int(n) for name in HEADS if (n := getattr(base.config, name, None)))
    width = getattr(base.config, "head_dim", None)
    with ExitStack() as stack:
        of = decoder_blocks_of if base.config.is_encoder_decoder else blocks_of
        for block in of(base):
            part: dict[str, Tensor] = {}
            caught.parts.append(part)
            for name, module in _projections_of(base, block).items():
                handle = module.register_forward_hook(_keep(part, name))
                stack.callback(handle.remove)
        caught.split = lambda part: _split(part, heads, width, int(base.config.hidden_size))
        yield


def _keep(part: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        part[name] = output

    return hook


def _projections_of(base: Any, block: nn.Module) -> dict[str, nn.Module]:
    """A block's own projections by what they give: `queries`, `keys`, `values`, or one for all."""
    named: dict[str, nn.Module] = {}
    for path, module in block.named_modules():
        if not any(mark in path for mark in CROSS):
            named.setdefault(path.rpartition(".")[2], module)
    for names in APART:
        if all(name in named for name in names):
            kinds = ("queries", "keys", "values")
            return {kind: named[name] for kind, name in zip(kinds, names, strict=True)}
    for name in JOINED:
        if name in named:
            return {"joined": named[name]}
    if PER_HEAD in named and base.config.model_type == "gpt_neox":
        return {"per_head": named[PER_HEAD]}
    raise _unknown(base, "its projections of queries, keys and values are not known by name")


def _split(part: dict[str, Tensor], heads: int, width: int | None, hidden: int) -> Projections:
    if "per_head" in part:
        whole = part["per_head"]
        apart = whole.reshape(*whole.shape[:2], heads, -1).transpose(1, 2)  # [B, A, T, 3 D]
        return Projections(*apart.chunk(3, dim=-1))
    if "joined" in part:
        of_queries = heads * (width or hidden // heads)
        rest = (part["joined"].shape[-1] - of_queries) // 2
        queries, keys, values = torch.split(part["joined"], [of_queries, rest, rest], dim=-1)
    else:
        queries, keys, values = part["queries"], part["keys"], part["values"]
    width = queries.shape[-1] // heads
    found = (x.reshape(*x.shape[:2], -1, width).transpose(1, 2) for x in (queries, keys, values))
    return Projections(*found)


def _unknown(model: nn.Module, problem: str) -> UserError:
    return UserError(
        "train.terms",
        f"a {type(model).__name__} cannot be compared inside: {problem}",
        action="use hidden terms, or a BERT- or Llama-like model",
    )


def insides_wanted(hidden_states: bool, attentions: bool) -> dict[str, bool]:
    """Arguments of a forward pass that has these given."""
    wanted = {"output_hidden_states": hidden_states, "output_attentions": attentions}
    return {name: True for name, value in wanted.items() if value}
