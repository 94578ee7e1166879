"""What each weight of a known architecture is made of: its axes, and so its size after any cut.

A model is read as a table: parameter name -> axes. From the table follow the number of parameters
of every smaller shape (`Layout.count`) and, in `cut_width`, which rows and columns a smaller model
inherits. Shapes only: a model on the meta device is enough. Knows no budget and no importance.

Legend, one letter an axis: V vocabulary, P positions, H hidden, Q query heads x head size, K
key-value heads x head size, I MLP neurons, R = Q + 2K and J = 2I (Phi-3 fuses them), D head size,
E low-rank embedding, T token types, C classes.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final, Literal, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from stillhouse.core.errors import UserError
from stillhouse.models.quiet import quiet_transformers

SUPPORTED: Final = {
    "llama": "decoder",
    "mistral": "decoder",
    "qwen2": "decoder",
    "qwen3": "decoder",
    "phi3": "decoder",
    "gemma": "decoder",
    "gemma2": "decoder",
    "gemma3_text": "decoder",
    "smollm3": "decoder",
    "bert": "encoder",
    "distilbert": "encoder",
    "roberta": "encoder",
    "xlm-roberta": "encoder",
    "camembert": "encoder",
    "electra": "encoder",
}
NAMES: Final = (
    "Llama (SmolLM, SmolLM3), Mistral, Qwen2 and 2.5, Qwen3, Phi-3, Gemma 1, 2 and 3 (text), BERT "
    "(MiniLM), DistilBERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA"
)
Form = Literal["label", "text", "tags", "masked"]  # as heads are called, and a masked LM

# The first pattern that matches a parameter's name says its axes; a bias has the first of them.
_AXES: Final = tuple(
    (re.compile(pattern), axes)
    for pattern, axes in (
        (r"embeddings_project\.", "HE"),
        (r"(^|\.)(embed_tokens|word_embeddings|lm_head|vocab_projector)\.weight$", "VH"),
        (r"(cls\.predictions|lm_head|generator_lm_head|vocab_projector)\.bias$", "V"),
        (r"position_embeddings\.", "PH"),
        (r"token_type_embeddings\.", "TH"),
        (r"generator_predictions\.dense\.", "EH"),
        (r"generator_predictions\.LayerNorm\.", "E"),
        (r"\.(q_norm|k_norm)\.", "D"),
        (r"(?i)norm\.(weight|bias)$", "H"),
        (r"qkv_proj\.", "RH"),
        (r"gate_up_proj\.", "JH"),
        (r"\.(q_proj|q_lin|query)\.", "QH"),
        (r"\.(k_proj|v_proj|k_lin|v_lin|key|value)\.", "KH"),
        (r"\.(o_proj|out_lin|attention\.output\.dense)\.", "HQ"),
        (r"\.(gate_proj|up_proj|lin1|intermediate\.dense)\.", "IH"),
        (r"\.(down_proj|lin2|layer\.\d+\.output\.dense)\.", "HI"),
        (r"(^|\.)(score|classifier|classifier\.out_proj)\.(weight|bias)$", "CH"),
        (r"(pooler\.dense|pre_classifier|classifier\.dense|transform\.dense)\.", "HH"),
        (r"(vocab_transform|lm_head\.dense)\.", "HH"),
    )
)
_LAYER: Final = re.compile(r"\.(?:layers|layer)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that make a model's size. `embedding` is 0 where embeddings are `hidden` wide."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    vocabulary: int
    positions: int
    classes: int
    types: int
    tied: bool
    embedding: int = 0

    def axes(self) -> dict[str, int]:
        """Letters of the legend to sizes."""
        q, k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "V": self.vocabulary,
            "P": self.positions,
            "H": self.hidden,
            "Q": q,
            "K": k,
            "R": q + 2 * k,
            "I": self.neurons,
            "J": 2 * self.neurons,
            "D": self.head_dim,
            "E": self.embedding,
            "T": self.types,
            "C": self.classes,
        }


class Named(NamedTuple):
    """A parameter: its name in the model, the layer it belongs to, its axes."""

    name: str
    layer: int | None
    axes: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A model as a table of axes."""

    family: str
    encoder: bool
    shape: Shape
    table: tuple[Named, ...]
    outside: Counter[str]  # axes of the weights outside the layers, and how many have them
    inside: Counter[str]  # of one layer
    untied_output: bool  # an output table of its own is among `outside`

    def count(self, shape: Shape) -> int:
        """Parameters of this architecture in another shape; tied tables once."""
        outside, inside = self.parts(shape)
        return outside + shape.layers * inside

    def parts(self, shape: Shape) -> tuple[int, int]:
        """Parameters outside the layers, and of one layer."""
        sizes = shape.axes()
        outside, inside = (
            sum(times * prod(sizes[axis] for axis in axes) for axes, times in counts.items())
            for counts in (self.outside, self.inside)
        )
        if self.untied_output and shape.tied:
            outside -= sizes["V"] * sizes["H"]
        return outside, inside


def family_of(config: PreTrainedConfig) -> str:
    """The architecture's name, of those that can be cut.

    Raises:
        UserError: another architecture; lists those that can be cut.
    """
    family = str(config.model_type)
    if family not in SUPPORTED:
        raise UserError(
            "student.size",
            f"an architecture {family} cannot be cut to a size",
            action=f"use student.layers, or a source that is one of: {NAMES}",
        )
    return family


def layout_of(config: PreTrainedConfig, form: Form, classes: int = 2) -> Layout:
    """Read the table of an architecture from its config; no weights are made.

    Args:
        config: a transformers config.
        form: what stands on the body.
        classes: of forms `label` and `tags`.

    Raises:
        UserError: an architecture that is not known, or a variant of one whose weights are not.
    """
    family = family_of(config)
    auto: Any = {
        "label": AutoModelForSequenceClassification,
        "text": AutoModelForCausalLM,
        "tags": AutoModelForTokenClassification,
        "masked": AutoModelForMaskedLM,
    }[form]
    config = copy.deepcopy(config)
    classes = classes if form in ("label", "tags") else 0
    if classes:
        config.num_labels = classes
    with torch.device("meta"), quiet_transformers():
        model = auto.from_config(config)
    return layout_from(model, family, classes)


def layout_from(model: PreTrainedModel, family: str, classes: int) -> Layout:
    """The table of a model in memory (or on meta).

    Raises:
        UserError: a weight that the table does not know, or of another size than it says.
    """
    shape = shape_of(model, classes)
    sizes = shape.axes()
    table = []
    for name, weight in model.named_parameters():
        axes = _axes_of(name, weight.dim(), shape.embedding > 0)
        if axes is None or tuple(sizes[axis] for axis in axes) != tuple(weight.shape):
            raise UserError(
                "student.size",
                f"this {family} has a weight {name} {list(weight.shape)} that cutting to a size "
                "does not know",
                action="use student.layers, or a plain source of the family",
            )
        found = _LAYER.search(f".{name}")
        table.append(Named(name, None if found is None else int(found[1]), axes))
    inside = Counter(item.axes for item in table if item.layer == 0)
    if sum(inside.values()) * shape.layers != sum(item.layer is not None for item in table):
        raise UserError(
            "student.size",
            f"the layers of this {family} are not all alike",
            action="use student.layers",
        )
    return Layout(
        family=family,
        encoder=SUPPORTED[family] == "encoder",
        shape=shape,
        table=tuple(table),
        outside=Counter(item.axes for item in table if item.layer is None),
        inside=inside,
        untied_output=any(item.name.endswith("lm_head.weight") for item in table),
    )


def shape_of(model: PreTrainedModel, classes: int) -> Shape:
    """The numbers in a model's config."""
    config: Any = model.config
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    rank = int(getattr(config, "embedding_size", hidden) or hidden)
    return Shape(
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
        neurons=neurons_of(config),
        vocabulary=int(config.vocab_size),
        positions=int(getattr(config, "max_position_embeddings", 0)),
        classes=classes,
        types=int(getattr(config, "type_vocab_size", 0)),
        tied=bool(config.tie_word_embeddings),
        embedding=0 if rank == hidden else rank,
    )


def neurons_of(config: Any) -> int:
    """Neurons of a layer's MLP (DistilBERT calls them `hidden_dim`)."""
    name = "hidden_dim" if config.model_type == "distilbert" else "intermediate_size"
    return int(getattr(config, name))


def low_rank(layout: Layout, rank: int) -> Layout:
    """The table of a BERT whose embeddings are `rank` wide and projected, which is an ELECTRA's.

    A masked language model's head is then as narrow as the table that it shares.
    """
    outside = Counter(layout.outside)
    for axes in ("VH", "PH", "TH"):
        outside[axes[0] + "E"] += outside.pop(axes)
    outside["H"] -= 2  # the normalisation of the embeddings
    outside["E"] += 2
    outside.update(("HE", "H"))
    if any(item.name.startswith("cls.predictions.transform.") for item in layout.table):
        outside["HH"] -= 1
        outside["EH"] += 1
        outside["H"] -= 3  # its bias and its normalisation
        outside["E"] += 3
    return replace(layout, outside=outside, shape=replace(layout.shape, embedding=rank))


def _axes_of(name: str, dimensions: int, ranked: bool) -> str | None:
    for pattern, axes in _AXES:
        if pattern.search(name):
            if ranked and ".embeddings." in f".{name}":
                axes = axes.replace("H", "E")
            return axes[:dimensions]
    return None
