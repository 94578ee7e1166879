"""Shapes of transformers models by id, and what follows from them: parameters and products.

No download is needed: `shapes.yaml` has the published config of models that recipes name, and any
other model's `config.json` is read where it lies on this disk. Knows six families (llama, mistral,
qwen2, qwen3, phi3, bert); knows no weights and imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field

from stillhouse.core.errors import UserError
from stillhouse.core.heads import Head
from stillhouse.core.jsonl import read_json

Family = Literal["llama", "mistral", "qwen2", "qwen3", "phi3", "bert"]
FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3", "phi3", "bert")
BERT_SEGMENTS: Final = 2


class Product(NamedTuple):
    """A linear layer: out = W in, W [outputs, inputs], with a bias or without."""

    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Of the matrix alone."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Matrix and bias."""
        return self.weights + (self.outputs if self.bias else 0)


class Shape(BaseModel):
    """What a config says of a model's sizes. Widths are in numbers, `positions` in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: tuple[str, ...] = ()
    family: Family
    hidden: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    positions: int = Field(ge=1)
    tied: bool
    parameters: int | None = Field(default=None, description="As published, where it is.")

    @property
    def queries(self) -> int:
        """Width of all queries together."""
        return self.heads * self.head_dim

    @property
    def causal(self) -> bool:
        """Whether it writes text."""
        return self.family != "bert"

    def linear(self) -> Mapping[str, Product]:
        """The linear layers of one block, by the name that adapters know them by.

        BERT's three `dense` layers are told apart by where they stand.
        """
        h, q, k, i = self.hidden, self.queries, self.kv_heads * self.head_dim, self.intermediate
        if self.family == "bert":
            return {
                **{name: Product(h, q, True) for name in ("query", "key", "value")},
                "attention.output.dense": Product(q, h, True),
                "intermediate.dense": Product(h, i, True),
                "output.dense": Product(i, h, True),
            }
        if self.family == "phi3":
            return {
                "qkv_proj": Product(h, q + 2 * k),
                "o_proj": Product(q, h),
                "gate_up_proj": Product(h, 2 * i),
                "down_proj": Product(i, h),
            }
        bias = self.family == "qwen2"
        return {
            "q_proj": Product(h, q, bias),
            "k_proj": Product(h, k, bias),
            "v_proj": Product(h, k, bias),
            "o_proj": Product(q, h),
            "gate_proj": Product(h, i),
            "up_proj": Product(h, i),
            "down_proj": Product(i, h),
        }

    @property
    def block_weights(self) -> int:
        """Weights in the products of one block: each takes two operations a token, forward."""
        return sum(product.weights for product in self.linear().values())

    def count(self, *, head: Head = "text", labels: int = 0) -> int:
        """All parameters, as transformers builds the model.

        Args:
            head: text has the matrix over the vocabulary, once where it is tied; label has a
                classifier instead (BERT: after its pooler), tags one of each token.
            labels: classes of a label or tags head.
        """
        h = self.hidden
        norms = 4 * h if self.family == "bert" else 2 * h
        if self.family == "qwen3":
            norms += 2 * self.head_dim
        body = self.layers * (norms + sum(p.parameters for p in self.linear().values()))
        body += self.vocabulary * h
        if self.family == "bert":
            body += (self.positions + BERT_SEGMENTS) * h + 2 * h
            body += 0 if head == "tags" else h * h + h
            return body + (0 if head == "text" else labels * (h + 1))
        body += h
        if head != "text":
            return body + labels * h
        return body + (0 if self.tied else self.vocabulary * h)

    def adapters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of adapters of this rank on the named layers of every block.

        Raises:
            UserError: a block has no such layer.
        """
        found = 0
        for name in targets:
            hit = [p for key, p in self.linear().items() if key.rpartition(".")[2] == name]
            if not hit:
                raise UserError(
                    "train.lora.target_modules",
                    f"a block of a {self.family} model has no such linear layer",
                    value=name,
                    action="choose among "
                    + ", ".join(sorted({key.rpartition(".")[2] for key in self.linear()})),
                )
            found += sum(rank * (product.inputs + product.outputs) for product in hit)
        return self.layers * found


@cache
def _table() -> Mapping[str, Shape]:
    text = resources.files("stillhouse.core").joinpath("shapes.yaml").read_text(encoding="utf-8")
    shapes = [Shape.model_validate(row) for row in yaml.safe_load(text)["models"]]
    return {name.casefold(): shape for shape in shapes for name in shape.ids}


def published() -> tuple[Shape, ...]:
    """Every shape of the table, once."""
    return tuple(dict.fromkeys(_table().values()))


def shape_of(source: str) -> Shape | None:
    """The shape of a model as recipes name it (`hf:ID_OR_PATH`, `embedded`, `embedded-encoder`).

    Looked for in the folder itself, then in the table, then in the hub's cache on this disk; `None`
    where it is in none of them, or of another family.
    """
    name = source.removeprefix("hf:")
    config = Path(name) / "config.json"
    if config.is_file():
        return of_config(read_json(config))
    known = _table().get(name.casefold())
    if known is not None:
        return known
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cached = home / "hub" / ("models--" + name.replace("/", "--")) / "snapshots"
    for config in sorted(cached.glob("*/config.json")):
        return of_config(read_json(config))
    return None


def of_config(config: Mapping[str, object]) -> Shape | None:
    """The shape that a `config.json` of transformers states; `None` for an unknown family."""
    family = config.get("model_type")
    if family not in FAMILIES:
        return None

    def number(key: str, default: int | None = None) -> int:
        value = config.get(key)
        return int(str(default if value is None else value))

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    return Shape.model_validate(
        {
            "family": family,
            "hidden": hidden,
            "layers": number("num_hidden_layers"),
            "heads": heads,
            "kv_heads": number("num_key_value_heads", heads),
            "head_dim": number("head_dim", hidden // heads),
            "intermediate": number("intermediate_size"),
            "vocabulary": number("vocab_size"),
            "positions": number("max_position_embeddings"),
            "tied": bool(config.get("tie_word_embeddings", family == "bert")),
        }
    )
