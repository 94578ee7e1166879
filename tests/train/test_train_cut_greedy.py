"""Layers that a task can spare, left out one after another: beside a plain search, and planted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_families import DECODERS, ENCODERS, model_of
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_train import StudentSection
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from stillhouse.train.cut_greedy import greedy_layers, greedy_order
from stillhouse.train.layers import blocks_of, cut_layers
from stillhouse.train.students import build_student
from tiny_models import TEXTS, byte_bpe, review_examples, wordpiece


def tokenizer_of(family: str) -> PreTrainedTokenizerBase:
    return wordpiece() if family in ENCODERS else byte_bpe()


def made(family: str, seed: int = 0) -> PreTrainedModel:
    """A model whose layers matter, each to another degree."""
    torch.manual_seed(seed)
    model = model_of(family, len(tokenizer_of(family))).eval()
    with torch.no_grad():
        for number, block in enumerate(blocks_of(model)):
            for name, weight in block.named_parameters():
                if weight.ndim == 2:
                    weight.mul_(1 + 2 * ((number * 7) % 4))
                assert name
    return model


@torch.no_grad()
def said(model: PreTrainedModel, tokenizer: Any, text: str) -> Tensor:
    """What the model itself gives for one text, unpadded: log-probabilities, or directions."""
    ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)["input_ids"]
    if model.config.model_type in ENCODERS:
        hidden = model.base_model(input_ids=ids).last_hidden_state[0].float()
        return torch.nn.functional.normalize(hidden, dim=-1)
    return torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)


def plainly(model: PreTrainedModel, tokenizer: Any, texts: list[str], keep: int) -> tuple[int, ...]:
    """The same search with a copy of the model for every candidate."""
    left = list(range(len(blocks_of(model))))
    whole = [said(model, tokenizer, text) for text in texts]
    while len(left) > keep:
        found = []
        for number in left:
            small = copy.deepcopy(model)
            cut_layers(small, [one for one in left if one != number])
            small.eval()
            away = 0.0
            for text, full in zip(texts, whole, strict=True):
                cut = said(small, tokenizer, text)
                if model.config.model_type in ENCODERS:
                    away += float((1 - (full * cut).sum(-1)).sum())
                else:
                    away += float((full.exp() * (full - cut)).sum())
            found.append(away)
        left.pop(found.index(min(found)))
    return tuple(left)


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_the_choice_is_that_of_a_plain_search(family: str) -> None:
    model, tokenizer, texts = made(family), tokenizer_of(family), TEXTS[:3]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for keep in (3, 1):
        assert greedy_layers(model, tokenizer, texts, keep) == plainly(
            model, tokenizer, texts, keep
        )
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert not any(block._forward_pre_hooks for block in blocks_of(model))
    assert not model.training


def test_one_order_gives_every_depth() -> None:
    model, tokenizer, texts = made("llama"), byte_bpe(), TEXTS[:3]
    order = greedy_order(model, tokenizer, texts, 1)
    assert len(order) == len(blocks_of(model)) - 1
    for keep in (3, 2):
        assert greedy_order(model, tokenizer, texts, keep) == order[: len(order) + 1 - keep]


@pytest.mark.parametrize("idle", [(0, 2), (1, 3), (2, 3)])
def test_layers_that_do_nothing_go_first(idle: tuple[int, int]) -> None:
    model = made("llama")
    with torch.no_grad():
        for number in idle:
            block: Any = blocks_of(model)[number]
            block.self_attn.o_proj.weight.zero_()
            block.self_attn.o_proj.bias.zero_()
            block.mlp.down_proj.weight.zero_()
    assert set(greedy_layers(model, byte_bpe(), TEXTS[:4], 2)) == {0, 1, 2, 3} - set(idle)


def test_all_layers_and_too_many() -> None:
    model = made("llama").train()
    assert greedy_layers(model, byte_bpe(), TEXTS[:2], 4) == (0, 1, 2, 3)
    assert model.training
    with pytest.raises(UserError, match=r"student\.layers: the source has 4 layers"):
        greedy_layers(model, byte_bpe(), TEXTS[:2], 5)
    with pytest.raises(UserError, match=r"cut\.depth.*no text"):
        greedy_layers(model, byte_bpe(), ["", " "], 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("llama")
    byte_bpe().save_pretrained(found)
    made("llama", 3).save_pretrained(found)
    return found


@pytest.mark.parametrize("rule", ["first", "last", "first_last", "importance", "greedy"])
@pytest.mark.parametrize("head", ["text", "label"])
def test_a_count_of_layers_by_every_rule(folder: Path, rule: str, head: str) -> None:
    section = StudentSection.model_validate(
        {"from": f"hf:{folder}", "head": head, "layers": 2, "cut": {"depth": rule}}
    )
    written = GenerationTask(kind="generation")
    labels = ClassificationTask(kind="classification", labels=("positive", "negative"))
    chats = review_examples(12) if head == "text" else ()
    task = written if head == "text" else labels
    student = build_student(section, task, f"hf:{folder}", TEXTS, 0, chats=chats)
    kept = student.plan.layers_kept
    known = {"first": (0, 1), "last": (2, 3), "first_last": (0, 3)}
    assert kept == known.get(rule, kept)
    assert len(kept) == 2
    assert list(kept) == sorted(set(kept))
    assert len(blocks_of(student.model)) == 2


def test_a_size_by_greedy_choice(folder: Path) -> None:
    section = {"from": f"hf:{folder}", "head": "text", "size": 0.6, "cut": {"depth": "greedy"}}
    student = build_student(
        StudentSection.model_validate(section),
        GenerationTask(kind="generation"),
        f"hf:{folder}",
        TEXTS,
        0,
    )
    cut = student.plan.cut
    assert cut is not None
    assert len(blocks_of(student.model)) == len(student.plan.layers_kept)
    assert abs(student.plan.parameters / student.plan.parameters_before - 0.6) <= 0.012
