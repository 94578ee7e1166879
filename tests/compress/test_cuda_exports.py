"""Exports for serving on a GPU, read back on the CPU by transformers and the formats' libraries."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from stillhouse.compress.compressed_tensors_export import export_compressed_tensors, serve_line
from stillhouse.compress.drift import drift
from stillhouse.compress.exporters import EXPORTERS, ExportRequest
from stillhouse.compress.torchao_export import export_torchao
from stillhouse.compress.weight_files import linear_weights
from stillhouse.core.artefact import read_artefact
from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.optional import available
from stillhouse.core.recipe_compress import Format
from stillhouse.core.records import Message, Query
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.artefact_student import open_any
from stillhouse.models.completer import Sampling
from stillhouse.models.quantization import fitting_group, group_grid
from tiny_models import TEXTS, byte_bpe

NEEDS_CT = pytest.mark.skipif(
    not available("compressed_tensors"), reason="compressed-tensors is not installed"
)
NEEDS_AO = pytest.mark.skipif(not available("torchao"), reason="torchao is not installed")


def save_llama(folder: Path, hidden: int = 64, shard: str = "5GB") -> Path:
    """A Llama whose inputs are divided by 32, on disk."""
    tokenizer = byte_bpe()
    torch.manual_seed(4)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=2 * hidden,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.1)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("student"))


@NEEDS_CT
@pytest.mark.parametrize(
    ("scheme", "bits", "group"), [("w8a16", 8, None), ("w4a16", 4, 64), ("fp8", 0, None)]
)
def test_what_is_read_back_is_what_was_rounded(
    scheme: Any, bits: int, group: int | None, student: Path, tmp_path: Path
) -> None:
    artefact = export_compressed_tensors(student, tmp_path, scheme, dtype=torch.float32)
    assert read_artefact(tmp_path) == artefact
    assert artefact.precision == scheme
    assert artefact.settings["group"] == group
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model(input_ids=torch.tensor([[1, 2]]))  # unpacks the weights
    plain = load_file(student / "model.safetensors")
    layers = linear_weights(student)
    assert len(layers) == 2 * 7
    for name, weight in model.state_dict().items():
        if name in layers and bits:
            wanted = group_grid(plain[name], bits, group).rounded(plain[name])
            torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=1e-7)
        elif name in layers:
            scale = plain[name].abs().amax(1, keepdim=True) / 448
            wanted = (plain[name] / scale).to(torch.float8_e4m3fn).float() * scale
            torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-6)
        elif name in plain:
            assert torch.equal(weight, plain[name]), name
    found = drift(student, tmp_path, TEXTS)
    assert found.mean_kl < {"w8a16": 1e-3, "w4a16": 0.3, "fp8": 0.05}[scheme]
    assert found.tokens > 20
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template
    assert str(tmp_path) in serve_line(tmp_path)


@NEEDS_CT
def test_files_in_bfloat16_are_small_and_say_what_they_are(student: Path, tmp_path: Path) -> None:
    export_compressed_tensors(student, tmp_path, "w4a16")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == "pack-quantized"
    assert quantization["config_groups"]["group_0"]["weights"]["group_size"] == 64
    held = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.down_proj"
    assert held[f"{name}.weight_packed"].shape == (64, 128 * 4 // 32)
    assert held[f"{name}.weight_packed"].dtype == torch.int32
    assert held[f"{name}.weight_scale"].shape == (64, 2)
    assert held[f"{name}.weight_shape"].tolist() == [64, 128]
    assert held["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert f"{name}.weight" not in held


@NEEDS_CT
def test_sharded_weights_keep_an_index(tmp_path: Path) -> None:
    student = save_llama(tmp_path / "student", shard="200KB")
    assert len(list(student.glob("*.safetensors"))) > 1
    out = tmp_path / "out"
    out.mkdir()
    export_compressed_tensors(student, out, "w8a16")
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert all((out / file).is_file() for file in index.values())
    assert "model.layers.0.self_attn.q_proj.weight_packed" in index
    AutoModelForCausalLM.from_pretrained(out)


@NEEDS_CT
def test_inputs_that_no_group_divides_are_refused(tmp_path: Path) -> None:
    student = save_llama(tmp_path / "student", hidden=40)
    with pytest.raises(UserError, match="neither 128, 64 nor 32"):
        export_compressed_tensors(student, tmp_path / "out", "w4a16")


@NEEDS_AO
def test_torchao_int8_is_written_and_read_without_pickle(student: Path, tmp_path: Path) -> None:
    artefact = export_torchao(student, tmp_path, "int8", dtype=torch.float32)
    assert artefact.precision == "torchao-int8"
    assert read_artefact(tmp_path) == artefact
    assert not list(tmp_path.glob("*.bin"))
    found = drift(student, tmp_path, TEXTS)
    assert found.mean_kl < 1e-3
    assert found.agreement > 0.97


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("compressed-tensors-w8a16", marks=NEEDS_CT),
        pytest.param("compressed-tensors-w4a16", marks=NEEDS_CT),
        pytest.param("torchao-int8", marks=NEEDS_AO),
    ],
)
def test_a_format_of_the_stage_answers_as_its_student(
    name: Format, student: Path, tmp_path: Path
) -> None:
    task = ClassificationTask(kind="classification", labels=("dull", "moving"))
    EXPORTERS[name](
        ExportRequest(student, tmp_path, task, "text", "tiny", texts=TEXTS, calibration=())
    )

    async def beliefs(folder: Path) -> list[list[float]]:
        opened = open_any(folder, task, "text", 4, "cpu")
        queries = [
            Query(id=str(i), messages=(Message(role="user", content=text),))
            for i, text in enumerate(TEXTS[:4])
        ]
        found = [await opened.complete(q, Sampling(labels=task.labels)) for q in queries]
        await opened.aclose()
        return [[one[0].label_logprobs[label] for label in task.labels] for one in found]

    mine, theirs = (asyncio.run(beliefs(folder)) for folder in (tmp_path, student))
    within = 0.6 if "w4" in name else 0.06
    for left, right in zip(mine, theirs, strict=True):
        assert left == pytest.approx(right, abs=within)


def test_torchao_int4_without_a_gpu_is_refused_in_one_line(student: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="compressed-tensors-w4a16"):
        export_torchao(student, tmp_path, "int4")


@pytest.mark.skipif(available("compressed_tensors"), reason="compressed-tensors is installed")
def test_what_is_not_installed_is_named(student: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"stillhouse\[cuda\]"):
        export_compressed_tensors(student, tmp_path, "w8a16")


def test_groups_fit_all_layers() -> None:
    assert fitting_group([256, 1024]) == 128
    assert fitting_group([576, 1536]) == 64
    assert fitting_group([96, 64]) == 32
    assert fitting_group([100]) is None
