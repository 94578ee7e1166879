"""Tiny models of every family that can be cut, as transformers itself makes them."""

from __future__ import annotations

from typing import Any, Final

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

_DECODER: Final[dict[str, Any]] = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER: Final[dict[str, Any]] = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 96,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_DISTIL: Final[dict[str, Any]] = {
    "dim": 48,
    "n_layers": 4,
    "n_heads": 6,
    "hidden_dim": 96,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
DECODERS: Final[dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-untied": (LlamaConfig, {"tie_word_embeddings": False, "mlp_bias": True}),
    "mistral": (MistralConfig, {}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": True}),
    "phi3": (Phi3Config, {}),
    "gemma": (GemmaConfig, {}),
    "gemma2": (Gemma2Config, {"query_pre_attn_scalar": 8}),
    "gemma3": (Gemma3TextConfig, {"query_pre_attn_scalar": 8}),
}
ENCODERS: Final = ("bert", "distilbert", "roberta")


def config_of(family: str, vocabulary: int) -> PreTrainedConfig:
    """A tiny config of a family."""
    if family in DECODERS:
        kind, more = DECODERS[family]
        return kind(vocab_size=vocabulary, **_DECODER, **more)
    if family == "distilbert":
        return DistilBertConfig(vocab_size=vocabulary, **_DISTIL)
    if family == "roberta":
        return RobertaConfig(vocab_size=vocabulary, type_vocab_size=1, **_ENCODER)
    return BertConfig(vocab_size=vocabulary, **_ENCODER)


def model_of(family: str, vocabulary: int) -> PreTrainedModel:
    """A tiny model of a family: a causal or masked language model whose weights are far from 0."""
    torch.manual_seed(3)
    auto: Any = AutoModelForCausalLM if family in DECODERS else AutoModelForMaskedLM
    model: PreTrainedModel = auto.from_config(config_of(family, vocabulary)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.15)
            elif "norm" in name.lower() and name.endswith("weight"):
                weight.add_(torch.rand_like(weight) * 0.2)
            else:
                weight.normal_(std=0.05)
    return model
