"""Shapes: the arithmetic against published counts and against real models of each family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
)

from stillhouse.core.errors import UserError
from stillhouse.core.shapes import of_config, published, shape_of

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("shape", published(), ids=lambda shape: shape.ids[0])
def test_the_table_counts_what_was_published(shape: Any) -> None:
    assert shape.count() == shape.parameters


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_a_language_model_has_as_many_parameters(family: str, tied: bool) -> None:
    more = {"head_dim": 16} if family == "qwen3" else {}
    config = AutoConfig.for_model(
        family, **SIZES, **more, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        classifier = AutoModelForSequenceClassification.from_config(config)
    shape = of_config(config.to_dict())
    assert shape is not None
    assert shape.count() == model.num_parameters()
    labels = int(classifier.config.num_labels)
    assert shape.count(head="label", labels=labels) == classifier.num_parameters()


def test_an_encoder_has_as_many_parameters() -> None:
    config = BertConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"})
    with torch.device("meta"):
        model = BertModel(config)
        classifier = AutoModelForSequenceClassification.from_config(config)
    shape = of_config(config.to_dict())
    assert shape is not None
    assert shape.count() == model.num_parameters()
    assert shape.count(head="label", labels=2) == classifier.num_parameters()


def test_where_a_shape_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = shape_of("hf:meta-llama/llama-3.2-3b-instruct")
    assert known is not None
    assert known.hidden == 3072
    assert shape_of("embedded") is not None
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert shape_of("hf:who/what") is None
    config = {"model_type": "llama", **SIZES}
    cached = tmp_path / "hub" / "models--who--what" / "snapshots" / "abc"
    for folder in (cached, tmp_path / "mine"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
    for source in ("hf:who/what", f"hf:{tmp_path / 'mine'}"):
        found = shape_of(source)
        assert found is not None
        assert (found.hidden, found.kv_heads, found.head_dim) == (48, 2, 8)
    assert of_config({**config, "model_type": "mamba"}) is None


def test_adapters_are_counted_and_wrong_ones_named() -> None:
    llama, phi = (
        shape_of("hf:meta-llama/Llama-3.2-3B"),
        shape_of("hf:microsoft/Phi-3-mini-4k-instruct"),
    )
    assert llama is not None
    assert phi is not None
    assert llama.adapters(16, ("q_proj", "v_proj")) == 28 * 16 * (2 * 3072 + 3072 + 1024)
    assert phi.adapters(16, ("qkv_proj",)) == 32 * 16 * (3072 + 3 * 3072)
    with pytest.raises(UserError, match="qkv_proj"):
        phi.adapters(16, ("q_proj", "v_proj"))
