"""Memory and operations of training: against what autograd keeps, and torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from stillhouse.core.recipe_train import LoraSection, StudentSection, TrainSection
from stillhouse.core.shapes import Shape, of_config, shape_of
from stillhouse.train.footprint import (
    GIB,
    Job,
    Work,
    activation_bytes,
    memory_of,
    operations,
    student_shape,
)
from stillhouse.train.lora import with_adapters

ROWS, TOKENS = 2, 64
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 192,
    "num_attention_heads": 6,
    "intermediate_size": 512,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
TARGETS = {"llama": ("q_proj", "v_proj"), "phi3": ("qkv_proj",)}


def made(family: str, layers: int) -> Any:
    torch.manual_seed(0)
    if family == "llama":
        return LlamaForCausalLM(
            LlamaConfig(**SIZES, num_hidden_layers=layers, num_key_value_heads=2)
        )
    if family == "phi3":
        return Phi3ForCausalLM(Phi3Config(**SIZES, num_hidden_layers=layers))
    return BertModel(
        BertConfig(
            **SIZES,
            num_hidden_layers=layers,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def kept(model: nn.Module, bf16: bool) -> int:
    """Bytes of all that autograd saves in a forward pass, but for the parameters themselves."""
    own = {weight.untyped_storage()._cdata for weight in model.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage  # held, so that no address comes twice
        return tensor

    ids = torch.randint(3, 300, (ROWS, TOKENS))
    mask = torch.ones_like(ids)
    mask[1, 50:] = 0
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), half:
        model(input_ids=ids, attention_mask=mask)
    return sum(storage.nbytes() for storage in seen.values())


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    ("family", "lora"), [("llama", True), ("llama", False), ("phi3", True), ("bert", False)]
)
def test_a_block_keeps_as_many_bytes(family: str, lora: bool, bf16: bool) -> None:
    section = LoraSection(target_modules=TARGETS[family]) if lora else None
    found = []
    for layers in (1, 3):
        model = made(family, layers).train()
        shape = of_config(model.config.to_dict())
        assert shape is not None
        if section is not None:
            model = with_adapters(model.bfloat16() if bf16 else model, section, "text", "x", 0)
        found.append(kept(model, bf16))
    block = (found[1] - found[0]) / 2
    if bf16 and section is None:
        block -= 2 * shape.block_weights  # autocast's copies of the weights, counted as weights
    job = Job(shape, TrainSection(lora=section), "label" if family == "bert" else "text")
    said = activation_bytes(job, bf16=bf16)
    assert said == pytest.approx(block / (ROWS * TOKENS), rel=0.12)


@pytest.mark.parametrize("lora", [True, False])
def test_operations_are_those_that_torch_counts(lora: bool) -> None:
    section = LoraSection() if lora else None
    model = made("llama", 2).train()
    shape = of_config(model.config.to_dict())
    assert shape is not None
    if section is not None:
        model = with_adapters(model, section, "text", "x", 0)
    ids = torch.randint(3, 300, (ROWS, TOKENS))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    job = Job(shape, TrainSection(lora=section, epochs=1, evals=1), "text")
    said = operations(job, Work(0.0, float(ROWS * TOKENS)), TOKENS, 0.0)
    # attention is counted whole there and half here; a frozen first block needs less
    assert said == pytest.approx(counter.get_total_flops(), rel=0.15)


def llama() -> Shape:
    shape = shape_of("hf:meta-llama/Llama-3.2-3B-Instruct")
    assert shape is not None
    return shape


def test_memory_of_full_training_is_sixteen_bytes_a_parameter() -> None:
    job = Job(llama(), TrainSection(), "text")
    memory = memory_of(job, 1, 512, bf16=False)
    assert memory.weights + memory.trained == 16 * job.parameters


def test_adapters_leave_the_weights_in_half_precision() -> None:
    job = Job(llama(), TrainSection(lora=LoraSection()), "text")
    memory = memory_of(job, 4, 2048)
    assert memory.weights == 2 * 3_212_749_824
    assert memory.trained == 16 * 4_587_520
    assert memory.logits < 2 * GIB
    again = memory_of(
        Job(llama(), TrainSection(lora=LoraSection(), gradient_checkpointing=True), "text"), 4, 2048
    )
    assert again.activations < memory.activations / 5
    assert memory_of(job, 8, 2048).activations == 2 * memory.activations


def test_a_teacher_that_reads_along_counts() -> None:
    alone = Job(llama(), TrainSection(), "text")
    teacher = shape_of("hf:meta-llama/Llama-3.1-8B-Instruct")
    both = Job(llama(), TrainSection(), "text", teacher=teacher)
    assert memory_of(both, 1, 512).teacher > 2 * 8_030_261_248
    work = Work(100.0, 100.0)
    assert operations(both, work, 200, 0.0) > operations(alone, work, 200, 0.0)


def test_a_student_is_cut_as_the_recipe_says() -> None:
    section = StudentSection.model_validate(
        {"head": "text", "from": "teacher", "layers": 10, "vocabulary": 5000, "max_tokens": 100}
    )
    cut = student_shape(section, llama())
    assert (cut.layers, cut.vocabulary, cut.positions) == (10, 5000, 100)
