"""Weights over a run against the papers' equations, stages, and what is logged of each term."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_train_objectives import TASK
from torch import Tensor
from transformers import BertForSequenceClassification

from stillhouse.core.recipe_features import ScheduleSection
from stillhouse.core.recipe_train import TrainSection
from stillhouse.models.signals import DenseSignal
from stillhouse.train.balance import Balance, GradientNorm, Uncertainty, factor
from stillhouse.train.balanced import (
    BalancedObjective,
    Moment,
    Scheduled,
    Stages,
    log_of,
    own_weights,
)
from stillhouse.train.batches import Collator, Rows, encode_labels
from stillhouse.train.features_layers import EMBEDDINGS, LayerPair
from stillhouse.train.features_terms import Activation, Hidden, Relation
from stillhouse.train.outputs import Counts, LabelReader, Needs, Outputs, count
from stillhouse.train.parts import Parts, attach
from stillhouse.train.schedule import plan_schedule, training_arguments
from stillhouse.train.teachers import Beside, LiveInsides, StoredBeliefs, TeacherView
from stillhouse.train.terms import Response
from stillhouse.train.trainer import DistillationTrainer
from tiny_models import review_examples, tiny_bert, wordpiece


def _at(shape: str, progress: float, **more: Any) -> float:
    return factor(ScheduleSection.model_validate({"shape": shape, **more}), progress)


def test_schedules() -> None:
    assert factor(None, 0.3) == 1
    ramp = {"start": 0.2, "end": 0.6, "before": 1.0, "after": 3.0}
    assert [_at("linear", x, **ramp) for x in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx(
        [1, 1, 2, 3, 3]
    )
    wave = [1 + (1 - math.cos(math.pi * x)) for x in (0, 0.25, 0.5, 1)]
    found = [_at("cosine", 0.2 + 0.4 * x, **ramp) for x in (0, 0.25, 0.5, 1)]
    assert found == pytest.approx(wave)
    steps = {"at": [[0, 0], [0.25, 2], [0.5, 0.5]]}
    assert [_at("steps", x, **steps) for x in (0, 0.2, 0.25, 0.49, 0.5, 0.9)] == [
        0,
        0,
        2,
        2,
        0.5,
        0.5,
    ]


def test_uncertainty_weights_find_their_place() -> None:
    """d/ds (e^-s w L + s / 2) = 0 at e^-s = 1 / (2 w L): a loss that stays finds its own weight."""
    balance = Uncertainty(3)
    given, losses = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([4.0, 0.05, 9.0])
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(600):
        extra = balance.regulariser(given)
        assert extra is not None
        loss = (balance.weights(given) * losses).sum() + extra
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = torch.exp(-balance.log_variances)
    torch.testing.assert_close(weights, torch.tensor([1 / 8, 5.0, 1.0]), rtol=1e-3, atol=1e-3)


def _grad_norm(rows: list[tuple[list[float], list[float], list[float]]], alpha: float, rate: float):
    """Algorithm 1 of Chen et al., in plain floats, with autograd for its inner loss alone."""
    gains = torch.ones(len(rows[0][0]), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([gains], lr=rate)
    most = [0.0] * len(gains)
    for given, values, norms in rows:
        most = [max(a, b) for a, b in zip(most, values, strict=True)]
        sizes = [g * w * n for g, w, n in zip(gains.tolist(), given, norms, strict=True)]
        mean = sum(sizes) / len(sizes)
        ratios = [v / m for v, m in zip(values, most, strict=True)]
        targets = [mean * (r / (sum(ratios) / len(ratios))) ** alpha for r in ratios]
        own = gains * torch.tensor([w * n for w, n in zip(given, norms, strict=True)])
        inner = (own - torch.tensor(targets, dtype=torch.float64)).abs().sum()
        optimizer.zero_grad()
        inner.backward()
        optimizer.step()
        with torch.no_grad():
            gains *= len(gains) / gains.sum()
    return gains.tolist()


def test_gradient_norm_weights_follow_the_algorithm() -> None:
    rows = [
        ([1.0, 0.5, 2.0], [4.0 / (i + 1), 1.0, 0.5 + 0.1 * i], [3.0, 0.2 + 0.05 * i, 1.0])
        for i in range(12)
    ]
    balance = GradientNorm(3, alpha=1.5, learning_rate=0.025).double()
    for given, values, norms in rows:
        balance.learn(*(torch.tensor(x, dtype=torch.float64) for x in (given, values, norms)))
    assert balance.gains.tolist() == pytest.approx(_grad_norm(rows, 1.5, 0.025), rel=1e-6)
    assert balance.gains.sum().item() == pytest.approx(3)


def test_gradient_norm_brings_sizes_together_and_leaves_what_waits() -> None:
    balance = GradientNorm(3, alpha=0.0, learning_rate=0.025)
    given, norms = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([4.0, 1.0, 7.0])
    for _ in range(400):
        balance.learn(given, torch.ones(3), norms)
    sizes = balance.gains * norms
    assert sizes[0].item() == pytest.approx(sizes[1].item(), rel=0.1)
    assert balance.gains[2] == 1
    assert balance.gains[:2].sum().item() == pytest.approx(2, rel=1e-5)


def _model(layers: int, seed: int) -> BertForSequenceClassification:
    config = tiny_bert(wordpiece(), layers).config
    config.num_labels = 2
    torch.manual_seed(seed)
    return BertForSequenceClassification(config).double().eval()


def _objective(balance: Balance | None = None, **more: Any) -> tuple[Any, BalancedObjective]:
    model, teacher, parts = _model(2, 3), _model(4, 4), Parts()
    pairs = (LayerPair(0, 1), LayerPair(1, 3))
    made = {pair: parts.add_map(f"m_{pair.student}", 16, 16, 1e-2, 0) for pair in pairs}
    balance = balance or Balance()
    parts.add_balance(balance, 0.1)
    terms = (
        Scheduled(Response(0.5, 2.0), 1.5),
        Scheduled(Hidden("hidden", pairs, "cosine", made), 0.7),
        Scheduled(Relation("relation", pairs[1:], ("values", "keys"), 4), 3.0),
        Scheduled(Activation("activation", (EMBEDDINGS, *pairs)), 0.2),
    )
    objective = BalancedObjective(
        reader=LabelReader(),
        terms=(),
        teacher=Beside(StoredBeliefs(), LiveInsides(teacher)),
        scheduled=terms,
        parts=parts.double(),
        balance=balance,
        **more,
    )
    return model, objective


def _rows(number: int = 8) -> Rows:
    return encode_labels(review_examples(number), TASK, wordpiece(), 48).rows


def _train(micro: int, balance: Balance, folder: Any, **more: Any) -> Any:
    model, objective = _objective(balance, **more)
    trainer = DistillationTrainer(
        model,
        objective=objective,
        args=training_arguments(
            TrainSection(max_grad_norm=1e9, learning_rate=0.1, warmup_ratio=0.0),
            plan_schedule(16, 8, micro, 2, 1),
            folder=folder,
            seed=0,
            device=torch.device("cpu"),
            best_by=None,
            optim="sgd",  # Adam would blow rounding up where a gradient is nothing
        ),
        collator=Collator(0),
        rows=_rows(16),
        held_out=None,
        callbacks=[],
    )
    trainer.train()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    return weights, trainer.state.log_history, objective


BALANCES = [
    pytest.param(Balance, id="fixed", marks=pytest.mark.full),
    pytest.param(lambda: Uncertainty(4), id="uncertainty", marks=pytest.mark.full),
    pytest.param(lambda: GradientNorm(4, 1.5, 0.025), id="gradient_norm"),
]


@pytest.mark.parametrize("make", BALANCES)
@pytest.mark.parametrize("over", [pytest.param("last_shared", marks=pytest.mark.full), "all"])
def test_any_micro_batch_split_gives_the_same_run(make: Any, over: str, tmp_path: Any) -> None:
    """Weights, losses, learned weights and gradient norms alike."""
    whole, log, objective = _train(8, make(), tmp_path / "8", norms_over=over)
    for micro in (4, 1):
        parts, other, twin = _train(micro, make(), tmp_path / str(micro), norms_over=over)
        for name, weight in whole.items():
            torch.testing.assert_close(parts[name], weight, rtol=1e-7, atol=1e-9, msg=name)
        for mine, theirs in zip(log, other, strict=True):
            if "loss" in mine:
                assert theirs == pytest.approx(mine, rel=1e-5)
        for mine, theirs in zip(
            objective.balance.state_dict().values(), twin.balance.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-7)
    assert any(key.startswith("distillation.maps") for key in whole), "projectors were trained too"
    rows = [log_of(entry) for entry in log if "loss" in entry]
    assert all(row is not None and len(row) == 4 for row in rows)
    assert all(
        set(one) == {"loss", "weight", "gradient_norm"} for row in rows for one in row.values()
    )


@pytest.mark.parametrize("over", ["last_shared", "all"])
def test_what_is_logged_is_loss_weight_and_gradient_of_each_term(over: Any) -> None:
    model, objective = _objective(norms_over=over)
    attach(model, objective.parts)
    batch = Collator(0)(_rows().items)
    counts = Counts(*count(batch).unbind())
    objective.begin_step(Moment(0, 10, True))
    loss = objective.loss(model, batch, counts)
    loss.backward()
    objective.end_step(lambda x: x)
    found = log_of(objective.take_log())
    assert found is not None
    assert objective.take_log() == {}
    total = 0.0
    for one in objective.scheduled:
        model.zero_grad()
        view = objective._view(model, batch, one.term.student_needs, one.term.teacher_needs)
        value = one.term(view).total / counts.of(one.term.unit)
        (one.weight * value).backward()
        # Relations read the projections of layer 1, so layer 0 is the last that all reach.
        part = model.bert.encoder.layer[0] if over == "last_shared" else model
        gradients = [
            p.grad for n, p in part.named_parameters() if p.grad is not None and "maps" not in n
        ]
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        row = found[one.term.name]
        assert row["loss"] == pytest.approx(value.item(), rel=1e-9)
        assert row["weight"] == one.weight
        assert row["gradient_norm"] == pytest.approx(norm, rel=1e-6)
        total += one.weight * value.item()
    assert loss.item() == pytest.approx(total, rel=1e-9)


def test_gradients_are_read_at_log_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, objective = _objective()
    batch = Collator(0)(_rows().items)
    objective.begin_step(Moment(0, 10, False))
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", lambda *a, **k: pytest.fail("a gradient was read"))
        patch.setattr(Tensor, "item", lambda *a: pytest.fail("a number was read"))
        objective.loss(model, batch, Counts(*count(batch).unbind())).backward()
        objective.end_step(lambda x: x)


@pytest.mark.parametrize("make", BALANCES, ids=["fixed", "uncertainty", "gradient_norm"])
def test_a_step_at_which_no_term_is_on_moves_nothing(make: Any) -> None:
    model, objective = _objective(make())
    late = ScheduleSection(shape="linear")
    objective.scheduled = [replace(one, schedule=late) for one in objective.scheduled]
    attach(model, objective.parts)
    batch = Collator(0)(_rows().items)
    counts = Counts(*count(batch).unbind())
    for step, learns in ((0, False), (5, True)):
        model.zero_grad()
        objective.begin_step(Moment(step, 10, True))
        loss = objective.loss(model, batch, counts)
        loss.backward()
        objective.end_step(lambda x: x)
        gradients = [p.grad for p in own_weights(model)]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert any(g is not None and g.any() for g in gradients) == learns
        assert (loss.item() > 0) == learns
        assert bool(log_of(objective.take_log())) == learns
        assert all(value.isfinite().all() for value in objective.balance.state_dict().values())


def test_schedules_know_whether_they_are_ever_on() -> None:
    cases: list[tuple[dict[str, Any], float, bool]] = [
        ({"shape": "linear"}, 0, True),
        ({"shape": "linear", "after": 0}, 0, False),
        ({"shape": "cosine", "before": 1, "after": 0, "end": 0.5}, 0.4, True),
        ({"shape": "cosine", "before": 1, "after": 0, "end": 0.5}, 0.5, False),
        ({"shape": "steps", "at": [[0, 0]]}, 0, False),
        ({"shape": "steps", "at": [[0, 0], [1, 1]]}, 0, False),
        ({"shape": "steps", "at": [[0, 0], [0.9, 1]]}, 0, True),
        ({"shape": "steps", "at": [[0, 1], [0.3, 0]]}, 0.2, True),
        ({"shape": "steps", "at": [[0, 1], [0.3, 0]]}, 0.3, False),
    ]
    for section, since, on in cases:
        schedule = ScheduleSection.model_validate(section)
        assert schedule.ever_on(since) == on, (section, since)
        steps = [k / 1000 for k in range(1000) if k / 1000 >= since]
        assert any(factor(schedule, progress) > 0 for progress in steps) == on


def test_stages_train_one_layer_after_another() -> None:
    stages = Stages((0, 1), until=0.5)
    assert [stages.at(x) for x in (0, 0.2, 0.25, 0.49, 0.5, 1)] == [0, 0, 1, 1, None, None]
    model, objective = _objective(stages=stages)
    attach(model, objective.parts)
    batch = Collator(0)(_rows().items)
    counts = Counts(*count(batch).unbind())

    def moved(step: int) -> tuple[set[str], set[str]]:
        model.zero_grad()
        objective.begin_step(Moment(step, 100, True))
        objective.loss(model, batch, counts).backward()
        objective.end_micro(model)
        objective.end_step(lambda x: x)
        trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        return trained, set(log_of(objective.take_log()) or {})

    first, on = moved(0)
    assert on == {"hidden", "activation"}, "relation has no pair there, and the response waits"
    assert {n for n in first if "layer.0" in n}
    assert {n for n in first if "embeddings" in n}
    assert not {n for n in first if "layer.1" in n or "classifier" in n or "pooler" in n}
    second, on = moved(30)
    assert on == {"hidden", "relation", "activation"}
    assert {n for n in second if "layer.1" in n}
    assert not {n for n in second if "layer.0" in n or "embeddings" in n or "classifier" in n}
    last, on = moved(50)
    assert on == {"response", "hidden", "relation", "activation"}
    assert {"layer.0", "layer.1", "classifier"} <= {
        mark for mark in ("layer.0", "layer.1", "classifier") for n in last if mark in n
    }


def test_a_student_equal_to_its_teacher_has_nothing_to_learn() -> None:
    model = _model(2, 3)
    pairs = (EMBEDDINGS, LayerPair(0, 0), LayerPair(1, 1))
    terms = [Hidden("h", pairs, "mse", {}), Relation("r", pairs[1:], ("queries",), 2)]
    objective = BalancedObjective(
        reader=LabelReader(),
        terms=(),
        teacher=LiveInsides(model),
        scheduled=[Scheduled(term) for term in terms],
    )
    batch = Collator(0)(_rows().items)
    objective.begin_step(Moment(0, 1, True))
    loss = objective.loss(model, batch, Counts(*count(batch).unbind()))
    assert loss.abs() < 1e-12


def test_beliefs_beside_insides_stay_whole() -> None:
    """Sampled beliefs come with their information; without it a held-out KL is a cross-entropy."""

    class Sampled:
        def view(self, batch: Any, needs: Needs) -> TeacherView:
            logits = torch.zeros(2, 3) if needs.anything else None
            signal = None if logits is None else DenseSignal(logits)
            return TeacherView(signal, None, torch.tensor([1.0, 2.0]))

    class Inside:
        def view(self, batch: Any, needs: Needs) -> TeacherView:
            return TeacherView(None, Outputs(hidden_states=(torch.ones(1),)))

    seen = Beside(Sampled(), Inside()).view({}, Needs(logits=True, hidden_states=True))
    assert seen.signal is not None
    assert seen.information is not None
    assert seen.information.tolist() == [1.0, 2.0]
    assert seen.outputs is not None
