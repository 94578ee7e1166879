"""Readers of masked, encoder-decoder and plain modules against loops of one example at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.recipe_train import TrainSection
from stillhouse.train.batches import LengthGroupedSampler, Rows
from stillhouse.train.features_layers import LayerPair
from stillhouse.train.features_terms import Attention, Hidden, Relation
from stillhouse.train.kinds import Kind, way_of
from stillhouse.train.masking import MaskedRows, Masking
from stillhouse.train.module_rows import ItemRows, ModuleCollator, TensorRows
from stillhouse.train.objectives import TermsObjective, Weighted
from stillhouse.train.outputs import Counts, Needs
from stillhouse.train.readers import MaskedReader, ModuleReader, Seq2SeqReader
from stillhouse.train.schedule import plan_schedule, training_arguments
from stillhouse.train.teachers import LiveTeacher
from stillhouse.train.terms import Response
from stillhouse.train.token_rows import TokenCollator
from stillhouse.train.trainer import DistillationTrainer

V = 24
FIRST = (LayerPair(0, 0),)
LAYERED = (
    Hidden("hidden", FIRST, "mse", {}),
    Attention("attention", FIRST, "kl", False),
    Relation("relation", FIRST, ("queries", "keys", "values"), 2),
)
ALPHA, T = 0.6, 2.5


def bert(seed: int, layers: int = 1) -> BertForMaskedLM:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.5,
    )  # fmt: skip
    return BertForMaskedLM(config).double().eval()


def t5(seed: int) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=V, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, dropout_rate=0.0, initializer_factor=1.5,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).double().eval()


def bart(seed: int) -> BartForConditionalGeneration:
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=V, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, init_std=0.5,
        max_position_embeddings=32, dropout=0.0, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    model = BartForConditionalGeneration(config).double().eval()
    model.final_logits_bias.normal_(generator=torch.manual_seed(seed + 50))
    return model


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def masked_rows(count: int = 8) -> Rows:
    draw = np.random.default_rng(3)
    items = [{"input_ids": [2, *draw.integers(5, V, 3 + n % 5).tolist(), 3]} for n in range(count)]
    rows = MaskedRows(items, Masking(4, V, frozenset({0, 1, 2, 3, 4}), seed=1, share=0.4))
    return Rows([rows[n] for n in range(count)])


def written_rows(count: int = 8) -> Rows:
    draw = np.random.default_rng(4)
    return Rows(
        [
            {
                "input_ids": draw.integers(3, V, 2 + n % 4).tolist(),
                "labels": draw.integers(3, V, 1 + (3 * n) % 5).tolist(),
            }
            for n in range(count)
        ]
    )


def image_rows(count: int = 8) -> Rows:
    torch.manual_seed(6)
    inputs = torch.randn(count, 3, 4, dtype=torch.float64)
    return TensorRows({"inputs": inputs, "labels": torch.arange(count) % 4})


CASES: dict[str, tuple[Kind, Callable[[int], Any], Callable[[], Rows], Any]] = {
    "bert": ("masked_lm", bert, masked_rows, TokenCollator(0)),
    "t5": ("seq2seq", t5, written_rows, TokenCollator(0)),
    "bart": ("seq2seq", bart, written_rows, TokenCollator(1)),
    "module": ("module", net, image_rows, ModuleCollator()),
}
BY_NAME = pytest.mark.parametrize("name", CASES)


def whole(rows: Rows, collator: Any) -> Any:
    return collator([rows[n] for n in range(len(rows))])


def objective_of(kind: Kind, teacher: Any) -> TermsObjective:
    reader = way_of(kind).reader
    return TermsObjective(reader, (Weighted(Response(ALPHA, T)),), LiveTeacher(teacher, reader))


def naive(q: list[float], p: list[float], answer: int) -> float:
    """One target's loss from the definition: plain floats."""

    def tempered(logs: list[float], t: float) -> list[float]:
        top = max(logs)
        parts = [math.exp((x - top) / t) for x in logs]
        return [x / sum(parts) for x in parts]

    kl = sum(a * math.log(a / b) for a, b in zip(tempered(p, T), tempered(q, T), strict=True))
    return ALPHA * T**2 * kl - (1 - ALPHA) * math.log(tempered(q, 1.0)[answer])


def alone(model: Any, kind: Kind, item: Any) -> tuple[list[list[float]], list[int]]:
    """Logits and answers of one example: no padding, all positions, targets picked in a loop."""
    with torch.no_grad():
        if kind == "module":
            return model(item["inputs"][None]).tolist(), [int(item["labels"])]
        ids = torch.tensor([item["input_ids"]])
        if kind == "masked_lm":
            logits = model(input_ids=ids).logits[0]
            at = [n for n, label in enumerate(item["labels"]) if label != -100]
            return logits[at].tolist(), [item["labels"][n] for n in at]
        before = [model.config.decoder_start_token_id, *item["labels"][:-1]]
        logits = model(input_ids=ids, decoder_input_ids=torch.tensor([before])).logits[0]
        return logits.tolist(), item["labels"]


@BY_NAME
def test_the_loss_is_that_of_a_loop_over_examples(name: str) -> None:
    kind, build, make, collator = CASES[name]
    student, teacher, rows = build(0), build(1), make()
    total, targets = 0.0, 0
    for n in range(len(rows)):
        q, answers = alone(student, kind, rows[n])
        p, _ = alone(teacher, kind, rows[n])
        total += sum(naive(a, b, answer) for a, b, answer in zip(q, p, answers, strict=True))
        targets += len(answers)
    batch = whole(rows, collator)
    counts = way_of(kind).counter(batch)
    assert counts[0] == targets
    assert counts[2] == len(rows)
    loss = objective_of(kind, teacher).loss(student, batch, Counts(*counts.unbind()))
    assert loss.item() == pytest.approx(total / targets, rel=1e-9)


@pytest.mark.parametrize("name", ["bert", "t5", "bart"])
def test_hidden_states_under_the_head_give_the_same_logits(name: str) -> None:
    kind, build, make, collator = CASES[name]
    reader, batch, model = way_of(kind).reader, whole(make(), collator), build(0)
    with torch.no_grad():
        logits = reader.read(model, batch, Needs(logits=True)).class_logits()
        below = reader.read(model, batch, Needs(last_hidden=True))
        more = reader.read(model, batch, Needs(logits=True, hidden_states=True))
    torch.testing.assert_close(below.class_logits(), logits)
    assert (below.logits is None) == (name != "bart")  # BART adds a bias after its matrix
    assert more.hidden_states is not None
    assert more.hidden_states[-1].shape[:2] == more.mask.shape


def _own_projections(name: str, model: Any, hidden: Any) -> list[tuple[torch.Tensor, ...]]:
    """Queries, keys and values [B, T, H] of each layer, from the hidden states before it."""
    found = []
    for n, states in enumerate(hidden[:-1]):
        if name == "bert":
            own = model.bert.encoder.layer[n].attention.self
            parts = (own.query, own.key, own.value)
        elif name == "t5":
            layer = model.decoder.block[n].layer[0]
            states = layer.layer_norm(states)
            parts = (layer.SelfAttention.q, layer.SelfAttention.k, layer.SelfAttention.v)
        else:
            own = model.model.decoder.layers[n].self_attn
            parts = (own.q_proj, own.k_proj, own.v_proj)
        found.append(tuple(part(states) for part in parts))
    return found


@pytest.mark.parametrize("last_hidden", [False, True])
@pytest.mark.parametrize("name", ["bert", "t5", "bart"])
@torch.no_grad()
def test_attention_and_projections_are_the_models_own(name: str, last_hidden: bool) -> None:
    """Of an encoder-decoder the decoder's, whatever kernel the model was loaded with."""
    kind, build, make, collator = CASES[name]
    reader, batch, model = way_of(kind).reader, whole(make(), collator), build(0)
    plain = reader.read(model, batch, Needs(logits=True))
    needs = Needs(
        logits=True, last_hidden=last_hidden, hidden_states=True, attentions=True,
        queries_keys_values=True,
    )  # fmt: skip
    read = reader.read(model, batch, needs)
    torch.testing.assert_close(read.class_logits(), plain.class_logits())
    model.set_attn_implementation("eager")
    asked = {key: batch[key] for key in ("input_ids", "attention_mask")}
    if kind == "seq2seq":
        asked["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    out = model(**asked, output_attentions=True)
    wanted = out.attentions if kind == "masked_lm" else out.decoder_attentions
    assert len(read.attentions) == len(wanted) == 1
    rows = read.mask[:, None, :, None].expand_as(wanted[0])
    torch.testing.assert_close(read.attentions[0][rows], wanted[0][rows])
    assert len(read.projections) == 1
    own = _own_projections(name, model, read.hidden_states)[0]
    for got, projected in zip(
        (read.projections[0].queries, read.projections[0].keys, read.projections[0].values),
        own,
        strict=True,
    ):
        assert got.shape[1] == 2, "heads"
        torch.testing.assert_close(got.transpose(1, 2).flatten(2), projected)


@pytest.mark.parametrize("term", LAYERED, ids=lambda term: term.name)
@pytest.mark.parametrize("name", ["bert", "t5", "bart"])
def test_terms_over_layers_bring_the_student_nearer(name: str, term: Any) -> None:
    kind, build, make, collator = CASES[name]
    student, teacher, batch = build(0).train(), build(1), whole(make(), collator)
    way = way_of(kind)
    objective = TermsObjective(way.reader, (Weighted(term),), LiveTeacher(teacher, way.reader))
    counts = Counts(*way.counter(batch).unbind())
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = objective.loss(student, batch, counts)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_head_is_evaluated_at_targets_alone() -> None:
    model, batch = bert(0), whole(masked_rows(), TokenCollator(0))
    seen: list[torch.Size] = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: seen.append(out.shape)
    )
    logits = MaskedReader().read(model, batch, Needs(logits=True)).logits
    handle.remove()
    hidden = int((batch["labels"] != -100).sum())
    assert seen == [(hidden, V)]
    assert logits.shape == (hidden, V)
    everywhere = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(logits, everywhere[batch["labels"] != -100])
    assert "forward" not in vars(model.get_output_embeddings())


class _Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.found = {n: p.grad.clone() for n, p in named if p.grad is not None}


@BY_NAME
def test_any_micro_batch_split_gives_the_same_step(name: str, tmp_path) -> None:
    kind, build, make, collator = CASES[name]
    found = []
    for micro in (8, 2, 1):
        gradients = _Gradients()
        rows = make()
        trainer = DistillationTrainer(
            build(0),
            objective=objective_of(kind, build(1)),
            args=training_arguments(
                TrainSection(max_grad_norm=1e9, warmup_ratio=0.0),
                plan_schedule(len(rows), 8, micro, 1, 1),
                folder=tmp_path / str(micro),
                seed=0,
                device=torch.device("cpu"),
                best_by=None,
            ),
            collator=collator,
            rows=rows,
            held_out=None,
            callbacks=[gradients],
            counter=way_of(kind).counter,
        )
        trainer.train()
        assert trainer.state.global_step == 1
        found.append(gradients.found)
    assert max(float(g.abs().max()) for g in found[0].values()) > 1e-4
    for other in found[1:]:
        for key, gradient in found[0].items():
            torch.testing.assert_close(other[key], gradient, rtol=1e-9, atol=1e-12, msg=key)


def test_a_held_out_set_without_targets_cannot_be_measured(tmp_path) -> None:
    kind, build, make, collator = CASES["bert"]
    rows = make()
    trainer = DistillationTrainer(
        build(0),
        objective=objective_of(kind, build(1)),
        args=training_arguments(
            TrainSection(),
            plan_schedule(len(rows), 8, 8, 1, 1),
            folder=tmp_path,
            seed=0,
            device=torch.device("cpu"),
            best_by=None,
        ),
        collator=collator,
        rows=rows,
        held_out=Rows([row | {"labels": [-100] * len(row["labels"])} for row in make()]),
        callbacks=[],
        counter=way_of(kind).counter,
    )
    with pytest.raises(StillhouseError, match="the held-out set has no targets"):
        trainer.evaluate()


@BY_NAME
def test_a_row_that_fills_up_a_batch_counts_nowhere(name: str) -> None:
    kind, build, make, collator = CASES[name]
    rows = make()
    student, objective, counter = build(0), objective_of(kind, build(1)), way_of(kind).counter

    def measured(numbers: list[int]) -> tuple[list[int], float]:
        whole_batch = getattr(rows, "__getitems__", lambda chosen: [rows[n] for n in chosen])
        batch = collator(whole_batch(numbers))
        return counter(batch).tolist(), objective.loss(student, batch, Counts(1, 1, 1)).item()

    counts, loss = measured([0, 1])
    filled, same = measured([0, 1, -3])
    assert filled == counts
    assert same == pytest.approx(loss, rel=1e-9)


def test_filled_up_rows_of_masks_and_of_datasets_have_no_targets() -> None:
    assert set(long_rows(2)[-1]["labels"]) == {-100}
    assert ItemRows([(torch.zeros(2), 1)])[-1]["labels"] == -100


def test_a_step_without_targets_costs_nothing() -> None:
    batch = whole(written_rows(), TokenCollator(0))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = objective_of("seq2seq", t5(1)).loss(t5(0), batch, Counts(1, 1, 1))
    assert loss.item() == 0.0


def test_labels_of_many_positions_may_be_left_out() -> None:
    logits = torch.randn(2, 5, 4)
    labels = torch.tensor([[0, 1, -100, 3, -100], [-100, 2, 2, 1, 0]])
    batch = {"inputs": logits, "labels": labels}
    reader = ModuleReader()
    got = reader.read(nn.Identity(), batch, Needs(logits=True)).logits
    wanted = [logits[b, t] for b in range(2) for t in range(5) if labels[b, t] != -100]
    torch.testing.assert_close(got, torch.stack(wanted))
    assert reader.targets(batch).tolist() == [0, 1, 3, 2, 2, 1, 0]
    assert reader.count(batch).tolist() == [7, 7, 2, 0]
    with pytest.raises(UserError, match="classes are the last dimension"):
        reader.read(nn.Identity(), {"inputs": logits.mT, "labels": labels}, Needs(logits=True))


def test_a_module_is_not_asked_for_its_layers() -> None:
    with pytest.raises(UserError, match="compare layers"):
        ModuleReader().read(net(0), {"inputs": torch.zeros(1, 12)}, Needs(hidden_states=True))


def test_a_module_that_gives_no_logits_is_refused() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return [x]

    with pytest.raises(UserError, match=r"must return logits \[B, C\].*not list"):
        ModuleReader().read(Odd(), {"inputs": torch.zeros(1, 12)}, Needs(logits=True))


# Which tokens are hidden.

MASKING = Masking(mask_token_id=4, vocabulary=V, never=frozenset(range(5)), seed=7)


def long_rows(count: int, held_out: bool = False) -> MaskedRows:
    draw = np.random.default_rng(0)
    items = [{"input_ids": [2, *draw.integers(5, V, 100).tolist(), 3]} for _ in range(count)]
    return MaskedRows(items, MASKING, held_out=held_out)


def test_only_ordinary_tokens_are_hidden_and_labels_hold_what_was_there() -> None:
    rows = long_rows(20)
    for n in range(20):
        before, after = rows.items[n]["input_ids"], rows[n]
        for token, read, label in zip(before, after["input_ids"], after["labels"], strict=True):
            if label == -100:
                assert read == token
            else:
                assert label == token >= 5
                assert read == 4 or read >= 5


def test_shares_are_those_of_bert() -> None:
    """20,000 draws: four standard errors of a share of 0.15 are 0.0101; of those some 3,000 that
    are hidden, 0.0292 for the mask token and 0.0219 for the random ones, of which 1/19 draw
    the token that was there."""
    rows = long_rows(200)
    pairs = [
        (a, b)
        for n in range(200)
        for a, b in zip(rows[n]["input_ids"], rows[n]["labels"], strict=True)
    ]
    hidden = [(read, label) for read, label in pairs if label != -100]
    assert len(hidden) / 20_000 == pytest.approx(0.15, abs=0.0101)
    masked = sum(read == 4 for read, _ in hidden) / len(hidden)
    changed = sum(read not in (4, label) for read, label in hidden) / len(hidden)
    assert masked == pytest.approx(0.8, abs=0.0292)
    assert changed == pytest.approx(0.1 * 18 / 19, abs=0.0219)


def test_masks_are_by_seed_epoch_and_row() -> None:
    rows, again, watched = long_rows(3), long_rows(3), long_rows(3, held_out=True)
    first, held = rows[1], watched[1]
    assert again[1] == first != held
    rows.set_epoch(1)
    watched.set_epoch(1)
    assert rows[1] != first
    assert watched[1] == held
    rows.set_epoch(0)
    assert rows[1] == first


def test_a_short_row_has_a_target() -> None:
    rows = MaskedRows([{"input_ids": [2, 9, 3]}], MASKING)
    assert rows[0]["labels"] == [-100, 9, -100]


def test_rows_hear_of_an_epoch_before_its_first_row() -> None:
    rows = long_rows(6)
    heard: list[int] = []
    sampler = LengthGroupedSampler(rows.lengths, 2, 0, on_epoch=heard.append)
    sampler.set_epoch(3)
    next(iter(sampler))
    assert heard == [3]


def test_padding_of_a_target_is_no_target() -> None:
    rows = written_rows()
    batch = whole(rows, TokenCollator(0))
    assert batch["labels"].min() == -100
    wanted = [label for n in range(len(rows)) for label in rows[n]["labels"]]
    assert Seq2SeqReader().targets(batch).tolist() == wanted
