"""What llama.cpp calls the parts of a transformers model: its numbers and its tensors, by family.

Knows configs and the names of weights; reads no weights. A weight, a rope or an activation that
the family's graph in llama.cpp does not compute is refused by name.

Shapes: H hidden, N heads, D channels of a head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.core.errors import UserError

Floats = NDArray[np.float32]
FIELD: Final = "student"
_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(.+)")
_COMMON: Final = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_SPLIT: Final = {
    **_COMMON,
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
}
_QKV_BIAS: Final = {
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
}
_OUTER: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


class _Family(NamedTuple):
    """A transformers `model_type` as llama.cpp has it."""

    architecture: str
    layer: Mapping[str, str]
    interleaved: bool  # llama.cpp rotates pairs (2i, 2i+1) where transformers rotates (i, i+D/2)
    unfused: bool = False  # projections that transformers keeps in one weight are written apart


_FAMILIES: Final = {
    "llama": _Family(
        "llama",
        {
            **_SPLIT,
            **_QKV_BIAS,
            "self_attn.o_proj.bias": "attn_output.bias",
            "mlp.gate_proj.bias": "ffn_gate.bias",
            "mlp.up_proj.bias": "ffn_up.bias",
            "mlp.down_proj.bias": "ffn_down.bias",
        },
        True,
    ),
    "mistral": _Family("llama", _SPLIT, True),
    "qwen2": _Family("qwen2", {**_SPLIT, **_QKV_BIAS}, False),
    "qwen3": _Family(
        "qwen3",
        {
            **_SPLIT,
            "self_attn.q_norm.weight": "attn_q_norm.weight",
            "self_attn.k_norm.weight": "attn_k_norm.weight",
        },
        False,
    ),
    "phi3": _Family(
        "phi3",
        {
            **_COMMON,
            "self_attn.qkv_proj.weight": "attn_qkv.weight",
            "mlp.gate_up_proj.weight": "ffn_up.weight",
        },
        False,
    ),
}
KNOWN: Final = tuple(_FAMILIES)
# llama.cpp reads these with N*D = H only, which a cut does not keep. Its llama has any N and D, and
# is the same function with rows in its own order.
_AS_LLAMA: Final = {
    "qwen2": _Family("llama", {**_SPLIT, **_QKV_BIAS}, True),
    "phi3": _Family("llama", _COMMON, True, unfused=True),
}


class Placed(NamedTuple):
    """A weight's name in the file, how many rows it has, and how they are got from the source's."""

    name: str
    rows: int | None  # `None`: as many as the source
    arrange: Callable[[Floats], Floats]


LLAMA: Final = _FAMILIES["llama"]


class GgufShape(NamedTuple):
    """A model as llama.cpp will see it.

    `numbers` go under the architecture's prefix. `factors`, if any, are `rope_freqs.weight` [D/2].
    """

    numbers: Mapping[str, int | float]
    factors: Floats | None
    context: int
    vocabulary: int
    tied: bool
    layers: int
    heads: int
    groups: int
    family: _Family

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the graph."""
        return self.family.architecture

    def place(self, weight: str) -> tuple[Placed, ...]:
        """Where a weight of the state dict goes: nowhere for the output of a tied model.

        Raises:
            UserError: the family's graph in llama.cpp has no such weight.
        """
        if weight == "lm_head.weight" and self.tied:
            return ()
        if weight in _OUTER:
            return (Placed(_OUTER[weight], None, _as_it_is),)
        match = _LAYER.fullmatch(weight)
        block, part = (f"blk.{match[1]}.", match[2]) if match else ("", "")
        if part in self.family.layer:
            heads = 0
            if self.family.interleaved:
                heads = {"q_proj": self.heads, "k_proj": self.groups}.get(part.split(".")[1], 0)
            return (Placed(block + self.family.layer[part], None, _turned(heads)),)
        if self.family.unfused and part == "self_attn.qkv_proj.weight":
            return (
                self._slice(block + "attn_q.weight", 0, self.heads, self.heads),
                self._slice(block + "attn_k.weight", self.heads, self.groups, self.groups),
                self._slice(block + "attn_v.weight", self.heads + self.groups, self.groups, 0),
            )
        if self.family.unfused and part == "mlp.gate_up_proj.weight":
            width = int(self.numbers["feed_forward_length"])
            return (
                Placed(block + "ffn_gate.weight", width, lambda rows: rows[:width]),
                Placed(block + "ffn_up.weight", width, lambda rows: rows[width:]),
            )
        raise UserError(
            FIELD,
            f"llama.cpp's {self.family.architecture} has no place for the weight {weight}",
            action="export it to ONNX, or train a student without it",
        )

    def _slice(self, name: str, first: int, count: int, turned: int) -> Placed:
        """Some heads' rows of a fused projection."""
        size = int(self.numbers["attention.key_length"])
        turn = _turned(turned)
        return Placed(
            name, count * size, lambda rows: turn(rows[first * size : (first + count) * size])
        )


def shape_of(config: Any) -> GgufShape:
    """Read a transformers config.

    Raises:
        UserError: no writer knows the architecture, or llama.cpp would compute something else.
    """
    kind = str(config.model_type)
    if kind not in _FAMILIES:
        raise UserError(
            FIELD,
            f"no GGUF writer knows this architecture; known are {', '.join(KNOWN)}",
            value=kind,
            action="export it to ONNX, or keep it as a transformers folder",
        )
    if config.hidden_act not in ("silu", "swish"):
        raise UserError(
            FIELD,
            f"llama.cpp computes {kind} with silu only",
            value=config.hidden_act,
            action="keep it as a transformers folder",
        )
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    family = _FAMILIES[kind]
    if heads * size != int(config.hidden_size):
        family = _AS_LLAMA.get(kind, family)
    rope = _rope(config, size, family)
    context = _context(config)
    numbers: dict[str, int | float] = {
        "context_length": context,
        "embedding_length": int(config.hidden_size),
        "block_count": int(config.num_hidden_layers),
        "feed_forward_length": int(config.intermediate_size),
        "attention.head_count": heads,
        "attention.head_count_kv": groups,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": rope.channels,
        "rope.freq_base": rope.base,
        "vocab_size": int(config.vocab_size),
    }
    if rope.linear != 1.0:
        numbers["rope.scaling.factor"] = rope.linear
    if family.architecture == "phi3":
        numbers["rope.scaling.original_context_length"] = context
    return GgufShape(
        numbers=numbers,
        factors=rope.factors,
        context=context,
        vocabulary=int(config.vocab_size),
        tied=bool(config.tie_word_embeddings),
        layers=int(config.num_hidden_layers),
        heads=heads,
        groups=groups,
        family=family,
    )


def interleave(rows: Floats, heads: int) -> Floats:
    """Rows of a query or key projection, or its bias, [N*D, ...], for rotation by adjacent pairs.

    transformers rotates channel i of a head with i + D/2, llama.cpp's llama 2i with 2i + 1.
    """
    size = rows.shape[0] // heads
    split = rows.reshape(heads, 2, size // 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def _as_it_is(rows: Floats) -> Floats:
    return rows


def _turned(heads: int) -> Callable[[Floats], Floats]:
    return (lambda rows: interleave(rows, heads)) if heads else _as_it_is


class _Rope(NamedTuple):
    base: float
    channels: int
    linear: float
    factors: Floats | None


def _rope(config: Any, size: int, family: _Family) -> _Rope:
    rope: dict[str, Any] = dict(config.rope_parameters or {})
    kind = str(rope.get("rope_type", "default"))
    share = float(rope.get("partial_rotary_factor", 1.0) or 1.0)
    base = float(rope["rope_theta"])
    channels = int(size * share)
    if channels != size and family.architecture != "phi3":
        raise UserError(
            FIELD, "llama.cpp rotates all channels of a head here", value=share, action="use ONNX"
        )
    if kind == "default":
        return _Rope(base, channels, 1.0, None)
    if kind == "linear":
        return _Rope(base, channels, float(rope["factor"]), None)
    if kind == "llama3":
        return _Rope(base, channels, 1.0, _llama3_factors(rope, base, channels))
    raise UserError(
        FIELD,
        "the GGUF writer knows rope types default, linear and llama3",
        value=kind,
        action="keep it as a transformers folder",
    )


def _llama3_factors(rope: Mapping[str, Any], base: float, channels: int) -> Floats:
    """What each frequency is divided by: the factor for long waves, 1 for short ones."""
    factor, low = float(rope["factor"]), float(rope["low_freq_factor"])
    high = float(rope["high_freq_factor"])
    trained = float(rope["original_max_position_embeddings"])
    wave = 2 * np.pi * base ** (np.arange(0, channels, 2) / channels)
    smooth = (trained / wave - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    found = np.where(wave > trained / low, factor, np.where(wave < trained / high, 1.0, between))
    return found.astype(np.float32)


def _context(config: Any) -> int:
    """Positions at which llama.cpp, which attends to all of them here, computes the same."""
    positions = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return positions
    return min(positions, int(window))
