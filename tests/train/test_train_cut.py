"""Cutting to a size: budgets, inheritance, plain loading, and what no cut can do."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_families import DECODERS, ENCODERS, config_of, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
)

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_cut import CutSection
from stillhouse.train import cut_plan
from stillhouse.train.cut_importance import measure_importance
from stillhouse.train.cut_plan import CutPlan, Rows, layers_by_rule, plan_cut
from stillhouse.train.cut_shapes import layout_from, layout_of
from stillhouse.train.cut_student import cut_model
from stillhouse.train.cut_width import narrowed
from stillhouse.train.text_sample import evenly_drawn
from tiny_models import TEXTS, byte_bpe, wordpiece

FAMILIES = (*DECODERS, *ENCODERS)
TOKENIZERS = {"decoder": byte_bpe(), "encoder": wordpiece()}


def _tokenizer(family: str) -> Any:
    return TOKENIZERS["decoder" if family in DECODERS else "encoder"]


def _form(family: str) -> Any:
    return "text" if family in DECODERS else "masked"


def _parameters(model: PreTrainedModel) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=ids).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.10, 0.25, 0.5])
def test_a_size_is_met_and_the_student_loads_plainly(
    family: str, share: float, tmp_path: Path
) -> None:
    tokenizer = _tokenizer(family)
    model = model_of(family, len(tokenizer))
    source = _parameters(model)
    plan = plan_cut(model.config, share, form=_form(family))
    cut = cut_model(model, tokenizer, plan, _form(family), TEXTS)
    assert plan.source_parameters == source
    assert plan.parameters == _parameters(cut.model)
    assert abs(plan.parameters / source - share) <= 0.02 * share
    assert len(cut.layers_kept) == plan.after.layers == cut.model.config.num_hidden_layers

    cut.model.save_pretrained(tmp_path)
    auto: Any = AutoModelForCausalLM if family in DECODERS else AutoModelForMaskedLM
    again, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    ids = torch.tensor([[3, 9, 20, 31, 5]])
    torch.testing.assert_close(_logits(again, ids), _logits(cut.model, ids))
    if family in DECODERS:  # the cache's shapes, too
        ids = ids[:, :3]
        written = again.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert written.shape[1] > 3


def _dead(model: PreTrainedModel, family: str, hidden: list[int]) -> None:
    """Silence head 1 of each group of two, the last 40 neurons and some hidden channels."""
    for name, weight in model.named_parameters():
        with torch.no_grad():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lin2.weight")) or (
                ".output.dense.weight" in name and "attention" not in name
            ):
                if "o_proj" in name:
                    for head in (1, 3, 5):
                        weight[:, head * 8 : (head + 1) * 8] = 0
                else:
                    weight[:, 56:] = 0
                weight[hidden] = 0
            if name.endswith(("o_proj.bias", "down_proj.bias")):
                weight[hidden] = 0
            if "embed_tokens" in name:
                weight[:, hidden] = 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_nothing_is_cut_without_a_trace(family: str) -> None:
    """Silent heads, neurons and channels go, and the model says what it said before: all weights
    are cut along the same indices, and normalisations make up for the channels that are gone."""
    tokenizer = _tokenizer(family)
    model = model_of(family, len(tokenizer))
    hidden = [1, 5, 17, 40] if family in DECODERS else []
    if family in ("gemma2", "gemma3"):
        hidden = []  # their normalisations of outputs would see silence
    _dead(model, family, hidden)
    ids = torch.tensor([[3, 9, 20, 31, 5, 7]])
    before = _logits(model, ids)
    layout = layout_from(model, str(model.config.model_type), 0)
    importance = measure_importance(model, tokenizer, layout, TEXTS, 8)
    importance.hidden[hidden] = 0  # found silent by themselves, but for biases of normalisations
    for number in range(4):  # heard, but by nobody
        importance.heads[number][[1, 3, 5]] = 0
        importance.neurons[number][56:] = 0
    after = replace(layout.shape, neurons=56, hidden=48 - len(hidden))
    if family in DECODERS:
        after = replace(after, heads=3)
    base = plan_cut(model.config, 0.5, form=_form(family))
    small = narrowed(model, layout, replace(base, after=after), importance)
    assert _parameters(small) == layout.count(after) < _parameters(model)
    torch.testing.assert_close(_logits(small, ids), before, rtol=2e-3, atol=2e-3)


def test_encoder_heads_and_channels_are_inherited_together() -> None:
    tokenizer = wordpiece()
    model = model_of("bert", len(tokenizer))
    layout = layout_from(model, "bert", 0)
    importance = measure_importance(model, tokenizer, layout, TEXTS, 8)
    base = plan_cut(model.config, 0.5, form="masked")
    after = replace(layout.shape, hidden=24, heads=3, kv_heads=3)
    small: Any = narrowed(model, layout, replace(base, after=after), importance)
    channels = importance.hidden.topk(24).indices.sort().values
    for number in range(4):
        heads = importance.heads[number].topk(3).indices.sort().values
        rows = torch.cat([torch.arange(8) + 8 * head for head in heads.tolist()])
        old = model.base_model.encoder.layer[number].attention  # type: ignore[union-attr]
        new = small.base_model.encoder.layer[number].attention
        assert torch.equal(new.self.query.weight, old.self.query.weight[rows][:, channels])
        assert torch.equal(new.self.value.bias, old.self.value.bias[rows])
        assert torch.equal(new.output.dense.weight, old.output.dense.weight[channels][:, rows])


def test_importance_does_not_see_padding() -> None:
    tokenizer = wordpiece()
    model = model_of("bert", len(tokenizer))
    layout = layout_from(model, "bert", 0)
    both = measure_importance(model, tokenizer, layout, [TEXTS[0], "dull"], 2)
    alone = [measure_importance(model, tokenizer, layout, [t], 1) for t in (TEXTS[0], "dull")]
    total = sum(one.tokens for one in alone)
    assert both.tokens == total
    for name in ("neurons", "heads"):
        for number in range(4):
            wanted = sum(getattr(one, name)[number] * one.tokens for one in alone) / total
            torch.testing.assert_close(getattr(both, name)[number], wanted)
    wanted_layers = [
        sum(one.layers[number] * one.tokens for one in alone) / total for number in range(4)
    ]
    assert both.layers == pytest.approx(wanted_layers, abs=1e-5)


def test_the_most_important_layers_stay() -> None:
    tokenizer = byte_bpe()
    model = model_of("llama", len(tokenizer))
    with torch.no_grad():
        for number in (0, 2):  # these pass their input on
            layer: Any = model.base_model.layers[number]  # type: ignore[union-attr]
            for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
                for weight in part.parameters():
                    weight.mul_(1e-3)
    cut = CutSection(depth="importance", hidden=48, heads=6)
    plan = plan_cut(model.config, 0.55, form="text", layers=2, cut=cut)
    assert plan.layers_kept is None
    assert "change their input most" in "\n".join(plan.lines())
    assert cut_model(model, tokenizer, plan, "text", TEXTS).layers_kept == (1, 3)


@pytest.mark.parametrize("rule", ["even", "first", "last", "first_last"])
@pytest.mark.parametrize(("keep", "total"), [(1, 1), (1, 3), (3, 3), (3, 8), (8, 8)])
def test_rules_of_depth(rule: str, keep: int, total: int) -> None:
    kept = layers_by_rule(total, keep, rule)
    assert kept is not None
    assert len(kept) == keep
    assert list(kept) == sorted(set(kept))
    assert set(kept) <= set(range(total))


def test_every_other_layer_and_both_ends() -> None:
    assert layers_by_rule(8, 4, "first_last") == (0, 1, 6, 7)
    assert layers_by_rule(7, 4, "even") == (0, 2, 4, 6)
    assert layers_by_rule(8, 3, "last") == (5, 6, 7)


BIG = LlamaConfig(
    vocab_size=128256,
    hidden_size=3072,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=8192,
    tie_word_embeddings=True,
)


def _plan(share: float, **more: Any) -> CutPlan:
    return plan_cut(BIG, share, form="text", **more)


def test_a_large_model_is_planned_from_its_config_alone() -> None:
    plan = _plan(0.25)
    assert plan.source_parameters == 3_212_749_824  # as published for Llama 3.2 3B
    assert abs(plan.parameters / plan.budget - 1) <= 0.02
    said = "\n".join(plan.lines())
    for words in ("of 28 (", "hidden size", "key-value groups", "MLP neurons", "vocabulary rows"):
        assert words in said
    assert plan.as_json()["budget"] == plan.budget


def test_what_is_preferred_is_cut_first() -> None:
    deep, wide = (_plan(0.25, cut=CutSection(prefer=way)).after for way in ("depth", "width"))
    assert deep.layers < wide.layers
    assert deep.hidden > wide.hidden
    for half in (
        _plan(0.5, cut=CutSection(prefer="depth")),
        _plan(0.7, cut=CutSection(prefer="depth")),
    ):
        assert half.after.layers < half.before.layers
        assert (half.after.hidden, half.after.heads) == (half.before.hidden, half.before.heads)


@given(st.floats(0.02, 0.98))
@settings(max_examples=30, deadline=None)
def test_any_share_is_met_within_two_percent_or_refused(share: float) -> None:
    config = config_of("qwen3", 400)
    if share < 0.05 or share > 0.9:
        with contextlib.suppress(UserError):
            plan_cut(config, share, form="text")
        return
    plan = plan_cut(config, share, form="text")
    assert abs(plan.parameters / plan.source_parameters - share) <= 0.0201 * share


def test_rows_of_a_task_may_be_fewer_or_more() -> None:
    config = config_of("bert", 20_000)
    few = plan_cut(config, 0.1, form="label", classes=3, rows=Rows(6000, free=True))
    assert few.after.vocabulary < 6000
    many = plan_cut(config, 0.9, form="label", classes=3, rows=Rows(2000, free=True))
    assert many.after.vocabulary > 2000
    assert few.after.classes == 3


def test_a_share_of_an_untied_language_model_counts_its_output_table() -> None:
    config = config_of("llama-untied", 400)
    config.architectures = ["LlamaForCausalLM"]
    plan = plan_cut(config, 0.25, form="label", classes=2)
    layout = layout_of(config, "text")
    assert plan.source_parameters == layout.count(layout.shape)


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"gpt2 cannot be cut.*Llama.*Qwen3.*Phi-3.*RoBERTa"):
        plan_cut(GPT2Config(), 0.5, form="text")
    with pytest.raises(UserError, match=r"smallest cut.*use at least 0\.\d+.*vocabulary: task"):
        _plan(0.001)
    with pytest.raises(UserError, match="largest cut"):
        _plan(0.9, rows=Rows(300))
    with pytest.raises(UserError, match="has 28 layers"):
        _plan(0.5, layers=30)
    with pytest.raises(UserError, match=r"student\.cut\.heads"):
        _plan(0.5, cut=CutSection(heads=25))
    with pytest.raises(UserError, match=r"student\.cut\.hidden"):
        plan_cut(config_of("bert", 99), 0.5, form="label", cut=CutSection(hidden=20))
    with pytest.raises(UserError, match="no low-rank embeddings for llama"):
        _plan(0.5, cut=CutSection(embedding_rank=64))
    odd = config_of("llama", 99)
    odd.model_type = "gemma3n"
    with pytest.raises(UserError, match="gemma3n cannot be cut"):
        plan_cut(odd, 0.5, form="text")


def test_a_smallest_share_that_is_named_can_be_met() -> None:
    with pytest.raises(UserError) as caught:
        _plan(0.001)
    named = float(str(caught.value).split("at least ")[1].split(",")[0])
    assert _plan(named).parameters


def test_tables_are_tied_as_is_wished_or_not_at_all() -> None:
    two = config_of("llama-untied", 400)
    for tie in (True, False):
        assert plan_cut(two, 0.5, form="text", cut=CutSection(tie=tie)).after.tied is tie
    one = config_of("llama", 400)
    assert plan_cut(one, 0.5, form="text", cut=CutSection(tie=True)).after.tied
    with pytest.raises(UserError, match="makes no second one"):
        plan_cut(one, 0.5, form="text", cut=CutSection(tie=False))
    with pytest.raises(UserError, match="makes no second one"):
        plan_cut(config_of("bert", 99), 0.5, form="masked", cut=CutSection(tie=False))
    with pytest.raises(UserError, match="no output table"):
        plan_cut(two, 0.5, form="label", cut=CutSection(tie=True))


def test_texts_are_drawn_from_first_to_last() -> None:
    texts = [str(number) for number in range(15)]
    assert evenly_drawn(texts, 8) == [str(number) for number in range(0, 15, 2)]
    assert evenly_drawn(texts, 15) == evenly_drawn(texts, 99) == texts
    assert evenly_drawn(texts, 2) == ["0", "14"]
    tokenizer = wordpiece()
    model = model_of("bert", len(tokenizer))
    layout = layout_from(model, "bert", 0)
    texts = ["dull"] * 8 + [TEXTS[0]] * 7  # in two parts, as data often lies
    read = measure_importance(model, tokenizer, layout, texts, 8)
    chosen = [len(tokenizer(text)["input_ids"]) for text in texts[::2]]
    assert read.tokens == sum(chosen)


def test_the_loss_is_what_the_page_says() -> None:
    """docs/cutting.md: 1 layers, 2 hidden, 0.6 heads x key-value heads, 0.6 neurons, 0.4 rows."""
    before = layout_of(config_of("llama", 400), "text").shape
    after = replace(before, layers=2, hidden=24, heads=2, kv_heads=1, neurons=32, vocabulary=200)
    by_hand = (
        1.0 * log(4 / 2) ** 2
        + 2.0 * log(48 / 24) ** 2
        + 0.6 * log(6 * 3 / 2) ** 2
        + 0.6 * log(96 / 32) ** 2
        + 0.4 * log(400 / 200) ** 2
    )
    assert cut_plan._lost(before, before, after, cut_plan._BALANCED) == pytest.approx(by_hand)


@pytest.mark.parametrize("rank", [8, 24])
@pytest.mark.parametrize("form", ["masked", "label"])
def test_low_rank_embeddings_have_the_parameters_that_were_planned(form: Any, rank: int) -> None:
    tokenizer = wordpiece()
    model = model_of("bert", len(tokenizer))
    if form == "label":
        model = BertForSequenceClassification(model.config)
    cut = CutSection(embedding_rank=rank)
    plan = plan_cut(model.config, 0.4, form=form, cut=cut)
    assert _parameters(cut_model(model, tokenizer, plan, form, TEXTS).model) == plan.parameters


def test_the_head_of_low_rank_embeddings_says_what_the_head_before_said() -> None:
    tokenizer = wordpiece()
    model = model_of("bert", len(tokenizer))
    cut = CutSection(embedding_rank=40, hidden=48, heads=6)
    plan = plan_cut(model.config, 0.95, form="masked", layers=4, cut=cut)
    plan = replace(plan, after=replace(plan.after, neurons=96))  # nothing else is cut
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    mask = batch["attention_mask"].bool()

    def beliefs(one: Any) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = one.eval()(**batch).logits[mask]
        return logits.log_softmax(-1)

    wanted = beliefs(model)
    small: Any = cut_model(model, tokenizer, plan, "masked", TEXTS).model
    got = beliefs(small)
    small.generator_predictions.apply(small._init_weights)
    drawn = beliefs(small)
    near, far = ((wanted.exp() * (wanted - one)).sum(-1).mean() for one in (got, drawn))
    assert near < 0.5 * far


@pytest.mark.parametrize("rank", [8, 24])
def test_low_rank_embeddings_are_an_electra(rank: int, tmp_path: Path) -> None:
    tokenizer = wordpiece()
    model = model_of("bert", len(tokenizer))
    cut = CutSection(embedding_rank=rank, hidden=48, heads=6)
    plan = plan_cut(model.config, 0.7, form="masked", layers=4, cut=cut)
    before: Any = model.base_model
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = before.embeddings(ids)
    done = cut_model(model, tokenizer, plan, "masked", TEXTS)
    assert _parameters(done.model) == plan.parameters
    done.model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "electra"
    again: Any = AutoModelForMaskedLM.from_pretrained(tmp_path)
    body = again.base_model
    with torch.no_grad():
        got = body.embeddings_project(body.embeddings(ids))
    off = float((got - wanted).square().mean() / wanted.var())
    assert off < (0.7 if rank == 8 else 0.3)
