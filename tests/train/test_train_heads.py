"""Heads of real families, with and without adapters: what the fused loss reads is what they say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from stillhouse.models.divergence_kind import FORWARD_KL
from stillhouse.models.head import head_input, head_of, without_head
from stillhouse.train.objectives import TermsObjective, Weighted
from stillhouse.train.outputs import CausalReader, Counts, Needs
from stillhouse.train.teachers import LiveTeacher
from stillhouse.train.terms import Response

# peft still asks transformers 5 by the old name of activation checkpointing
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning"),
]

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _llama(tied: bool = False) -> Any:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied)).eval()


def _family(name: str) -> Any:
    torch.manual_seed(1)
    match name:
        case "gemma2":
            config = Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=0.05)
            model: Any = Gemma2ForCausalLM(config)
        case "cohere":
            model = CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.3))
        case "granite":
            model = GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=3.0))
        case _:
            model = _llama(tied=name == "tied")
    return model.eval()


def _batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    ids = torch.randint(3, 40, (3, 9))
    labels = ids.clone()
    labels[:, :4] = -100
    labels[1, 7:] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


class _Dense(Response):
    """The same, made to take logits."""

    @property
    def student_needs(self) -> Needs:
        return Needs(logits=True)

    @property
    def teacher_needs(self) -> Needs:
        return Needs(logits=True)


def _gradients(model: Any, teacher: Any, term: type[Response]) -> dict[str, torch.Tensor]:
    reader = CausalReader()
    response = term(0.6, 1.5, FORWARD_KL)
    objective = TermsObjective(reader, (Weighted(response),), LiveTeacher(teacher, reader))
    model.zero_grad()
    torch.manual_seed(5)
    loss = objective.loss(model, _batch(), Counts(7, 1, 1))
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


@pytest.mark.parametrize("name", ["llama", "tied", "gemma2", "cohere", "granite"])
def test_families_train_alike_with_and_without_logits(name: str) -> None:
    model, teacher = _family(name), _family(name)
    nn.init.normal_(teacher.get_input_embeddings().weight)
    read = CausalReader().read(model, _batch(), Needs(last_hidden=True))
    assert read.logits is None, "its head is plain"
    fused, dense = (_gradients(model, teacher, term) for term in (Response, _Dense))
    assert fused.keys() == dense.keys()
    for key, wanted in dense.items():
        torch.testing.assert_close(fused[key], wanted, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("on_head", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_adapters_on_and_off_the_head(on_head: bool, tied: bool) -> None:
    targets = ["q_proj", *(["lm_head"] if on_head else [])]
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, task_type=TaskType.CAUSAL_LM, lora_dropout=0.0
    )
    model: Any = get_peft_model(_llama(tied), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    head = head_of(model)
    assert head is not None
    assert len(head.low_rank) == on_head
    assert not head.weight.requires_grad, "the base is frozen: its gradient is never formed"
    fused, dense = (_gradients(model, _llama(), term) for term in (Response, _Dense))
    assert fused.keys() == dense.keys()
    assert any("lm_head.lora_A" in key for key in fused) == on_head
    for key, wanted in dense.items():
        torch.testing.assert_close(fused[key], wanted, rtol=1e-4, atol=1e-6, msg=key)
    with model.disable_adapter():
        plain = head_of(model)
        assert plain is not None
        assert not plain.low_rank


def test_dropout_of_an_adapter_is_drawn_while_training_alone() -> None:
    config = LoraConfig(r=3, target_modules=["lm_head"], lora_dropout=0.4)
    model: Any = get_peft_model(_llama(), config)
    for training, rate in ((True, 0.4), (False, 0.0)):
        model.train(training)
        head = head_of(model)
        assert head is not None
        assert head.low_rank[0].dropout == rate


def test_a_head_that_is_trained_whole_beside_adapters() -> None:
    config = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model: Any = get_peft_model(_llama(), config)
    fused, dense = (_gradients(model, _llama(), term) for term in (Response, _Dense))
    assert any("lm_head" in key for key in fused)
    assert fused.keys() == dense.keys()
    for key, wanted in dense.items():
        torch.testing.assert_close(fused[key], wanted, rtol=1e-4, atol=1e-6, msg=key)


def test_adapters_of_another_kind_are_read_by_their_logits() -> None:
    config = LoraConfig(r=3, target_modules=["lm_head"], use_dora=True)
    model: Any = get_peft_model(_llama(), config)
    assert head_of(model) is None
    read = CausalReader().read(model, _batch(), Needs(last_hidden=True))
    assert read.last_hidden is None
    assert read.class_logits().shape == (13, 40)


class _Odd(LlamaForCausalLM):
    """Adds to its logits what no configuration says."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + 1.0
        return out


def test_a_family_with_logits_of_its_own_is_found_out() -> None:
    model: Any = _Odd(LlamaConfig(**SHAPE)).eval()
    head = head_of(model)
    assert head is not None
    for _ in range(2):
        read = CausalReader().read(model, _batch(), Needs(last_hidden=True))
        assert read.last_hidden is None
        assert read.logits is not None
    assert head_of(model) is None
    plain = _llama()
    head = head_of(plain)
    assert head is not None
    with without_head(plain) as caught:
        out = plain(input_ids=_batch()["input_ids"])
    read_by_head = head_input(plain, head, caught, out.logits)
    assert read_by_head is not None
    torch.testing.assert_close(read_by_head, caught[0])


class _Finishing(LlamaForCausalLM):
    """Finishes its logits as `finish` says."""

    def __init__(self, config: LlamaConfig, finish: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(config)
        self.finishing = finish

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = self.finishing(out.logits)
        return out


@pytest.mark.parametrize(
    "finish",
    [
        lambda x: x * 3,
        lambda x: x + 1e-3,
        lambda x: x.clamp(-50, 50),
        lambda x: x - x.mean(-1, keepdim=True),
        lambda x: 30 * torch.tanh(x / 30),
    ],
    ids=["factor", "shift", "cut", "centred", "cap"],
)
@pytest.mark.parametrize("first_norm", [1.0, 1e-4, 0.0])
def test_what_logits_go_through_is_seen_whatever_the_hidden_states_are(
    finish: Callable[[torch.Tensor], torch.Tensor], first_norm: float
) -> None:
    """A first column of hidden states near 0, and a first pass without targets, hide nothing."""
    torch.manual_seed(1)
    model: Any = _Finishing(LlamaConfig(**SHAPE), finish).eval()
    model.model.norm.weight.data[0] = first_norm
    batch = _batch()
    reader = CausalReader()
    with torch.no_grad():
        empty = batch | {"labels": torch.full_like(batch["labels"], -100)}
        assert not len(reader.read(model, empty, Needs(last_hidden=True)).class_logits())
        wanted = reader.read(model, batch, Needs(logits=True)).class_logits()
        for _ in range(2):
            read = reader.read(model, batch, Needs(last_hidden=True))
            assert read.last_hidden is None
            torch.testing.assert_close(read.class_logits(), wanted)


def test_one_target_at_a_time_shows_a_factor() -> None:
    model: Any = _Finishing(LlamaConfig(**SHAPE), lambda x: x * 3).eval()
    labels = torch.full((1, 9), -100)
    labels[0, 8] = 5
    one = {name: value[:1] for name, value in _batch().items()} | {"labels": labels}
    read = CausalReader().read(model, one, Needs(last_hidden=True))
    assert read.last_hidden is None


@pytest.mark.full
def test_a_sharded_model_has_the_gradients_of_the_whole_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("sharded_head.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "meeting")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for rank in ranks:
        _, problems = rank.communicate(timeout=120)
        assert rank.returncode == 0, problems
