"""Text students as GGUF files: the numbers llama.cpp gets from them are those of transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from stillhouse.compress.gguf_export import FILE, export_gguf
from stillhouse.compress.gguf_quant import PRECISIONS, pack, plan_tensor
from stillhouse.compress.gguf_shapes import KNOWN, interleave, shape_of
from stillhouse.core import optional
from stillhouse.core.artefact import read_artefact
from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.models.gguf_file import gguf_facts
from tiny_models import byte_bpe

gguf = pytest.importorskip("gguf")
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-untied": (LlamaConfig, {"tie_word_embeddings": False, "mlp_bias": True}),
    "mistral": (MistralConfig, {}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": True}),
    "phi3": (Phi3Config, {}),
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def model_of(family: str, **more: Any) -> PreTrainedModel:
    """A model whose heads together are wider than its hidden size, as cuts leave them."""
    kind, own = FAMILIES[family]
    torch.manual_seed(3)
    config = kind(
        **{
            "vocab_size": len(byte_bpe()),
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 16,
            "intermediate_size": 96,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **own,
            **more,
        }
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * (0.15 if weight.dim() == 2 else 0.1))
    return model


def saved(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    byte_bpe().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {}),
        ("llama-untied", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("phi3", {}),
        ("phi3", {"head_dim": 8}),
        pytest.param("mistral", {}, marks=pytest.mark.full),
        pytest.param("qwen2", {"head_dim": 8}, marks=pytest.mark.full),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 100.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                }
            },
        ),
        pytest.param(
            "llama",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
            marks=pytest.mark.full,
        ),
    ],
)
def test_logits_are_the_float_students(tmp_path: Path, family: str, more: dict[str, Any]) -> None:
    student = saved(tmp_path / "student", model_of(family, **more))
    artefact = export_gguf(student, tmp_path / "out", "f32")
    check: Any = artefact.settings["check"]
    assert check["mean_kl"] < 1e-5  # llama.cpp keeps keys and values in half precision
    assert check["positions"] == 24
    assert read_artefact(tmp_path / "out") == artefact
    facts = gguf_facts(tmp_path / "out" / FILE, "x")
    assert facts.architecture in ("llama", "qwen2", "qwen3", "phi3")
    assert facts.end_token == 2
    assert "FROM ./student.gguf" in (tmp_path / "out" / "Modelfile").read_text()


def test_rounding_grows_as_bits_get_fewer(tmp_path: Path) -> None:
    student = saved(
        tmp_path / "student",
        model_of(
            "llama",
            hidden_size=64,
            intermediate_size=256,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
    )
    far, sizes = [], []
    for precision in ("f16", "q8_0", "q4_k"):
        artefact = export_gguf(student, tmp_path / precision, precision)
        check: Any = artefact.settings["check"]
        far.append(check["mean_kl"])
        sizes.append((tmp_path / precision / FILE).stat().st_size)
    assert far[0] < 1e-4
    assert far == sorted(far)
    assert far[1] < 0.01
    assert sizes == sorted(sizes, reverse=True)
    weights: Any = artefact.settings["weights"]
    assert {"q4_k", "q5_0", "q8_0"} <= weights.keys()  # rows of 256, of 64, and the embedding


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    other = shape_error(Gemma2Config())
    assert all(known in other for known in KNOWN)
    assert "gemma2" in other
    assert "silu" in shape_error(LlamaConfig(hidden_act="gelu"))
    yarn = {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}
    assert "yarn" in shape_error(LlamaConfig(rope_parameters=yarn))
    with pytest.raises(UserError, match=r"no place for the weight model\.layers\.0\.extra"):
        shape_of(LlamaConfig()).place("model.layers.0.extra")
    with pytest.raises(UserError, match="is none of f32, f16, q8_0"):
        export_gguf(tmp_path, tmp_path / "out", "int8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="is not empty"):
        export_gguf(tmp_path, tmp_path / "full")


def shape_error(config: Any) -> str:
    with pytest.raises(UserError) as caught:
        shape_of(config)
    return str(caught.value)


def test_a_missing_runtime_is_a_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtraError, match="pip install 'stillhouse"):
        export_gguf(tmp_path, tmp_path / "out")
    assert optional.pip_line("gguf").endswith("'stillhouse[gguf]'")


@settings(max_examples=25, deadline=None)
@given(
    precision=st.sampled_from(PRECISIONS),
    rows=st.integers(1, 5),
    columns=st.sampled_from([32, 48, 64, 256, 512]),
    seed=st.integers(0, 99),
)
def test_blocks_read_back_within_their_step(
    precision: Any, rows: int, columns: int, seed: int
) -> None:
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    packed = plan_tensor("blk.0.ffn_up.weight", values.shape, precision)
    data = pack(values, packed.kind)
    assert data.nbytes == packed.nbytes
    back = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[packed.kind.upper()])
    bits = {"f32": 23, "f16": 10}.get(packed.kind) or int(packed.kind[1])
    # A step is the range over 2^bits; K kinds also round a block's own scale to 6 bits.
    step = (values.max(-1) - values.min(-1)).max() / 2 ** (bits - 1)
    assert np.abs(back.reshape(values.shape) - values).max() <= step


@given(heads=st.integers(1, 4), half=st.integers(1, 4), columns=st.integers(1, 3))
def test_interleaved_rows_are_pairs(heads: int, half: int, columns: int) -> None:
    rows = np.arange(heads * 2 * half * columns, dtype=np.float32).reshape(-1, columns)
    turned = interleave(rows, heads)
    for head in range(heads):
        start = head * 2 * half
        for i in range(half):
            assert (turned[start + 2 * i] == rows[start + i]).all()
            assert (turned[start + 2 * i + 1] == rows[start + i + half]).all()
