"""The divergence of a recipe, from its key to the loss; heads of unequal width; NaN is never
trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification

import naive_divergences as naive
from stillhouse.core.errors import RecipeError, StillhouseError, UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_train import TrainSection
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.divergence import divergence
from stillhouse.models.divergence_kind import Divergence
from stillhouse.models.drawing import draw_signal
from stillhouse.models.head import Head
from stillhouse.models.signals import DenseSignal, HiddenSignal, TeacherSignal, sparsify
from stillhouse.train.batches import Collator, Rows, encode_labels
from stillhouse.train.features_wiring import Learned
from stillhouse.train.finite import not_finite, unusable_positions
from stillhouse.train.objectives import (
    HeldOutSums,
    check_finite,
    label_objective,
    text_objective,
)
from stillhouse.train.outputs import Batch, CausalReader, Counts, Outputs, StepAt, count
from stillhouse.train.planning import check_recipe
from stillhouse.train.schedule import plan_schedule, training_arguments
from stillhouse.train.students import Student
from stillhouse.train.teachers import LiveTeacher
from stillhouse.train.terms import Response, View, over_shared_ids
from stillhouse.train.trainer import DistillationTrainer
from stillhouse.train.wiring import Reading, build_objective, divergence_in
from tiny_models import byte_bpe, review_examples, tiny_bert, tiny_llama, wordpiece

TASK = ClassificationTask(kind="classification", labels=("positive", "negative"))
NAN, INF = float("nan"), float("inf")


def _recipe(teacher: dict[str, Any] | None = None, **train: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "task": {"kind": "classification", "labels": ["a", "b"]},
            "traffic": {"path": "x"},
            "teacher": {"model": "hf:m"} | (teacher or {}),
            "student": {"head": "label", "from": "hf:x"},
            "train": train,
        }
    )


def _classifier() -> BertForSequenceClassification:
    config = tiny_bert(wordpiece()).config
    config.num_labels = 2
    torch.manual_seed(3)
    return BertForSequenceClassification(config)


def _label_batch(count: int = 5) -> tuple[Rows, Batch]:
    rows = encode_labels(review_examples(count), TASK, wordpiece(), 48).rows
    return rows, Collator(0)(rows.items)


@pytest.mark.parametrize(
    ("keys", "means"),
    [
        ({}, Divergence()),
        ({"divergence": "jsd"}, Divergence("jsd", 0.5)),
        ({"divergence": "skew_forward_kl"}, Divergence("skew_forward_kl", 0.1)),
        ({"divergence": "jsd", "divergence_beta": 0.25}, Divergence("jsd", 0.25)),
    ],
)
def test_a_recipe_names_its_divergence(keys: dict[str, Any], means: Divergence) -> None:
    recipe = _recipe(**keys)
    check_recipe(recipe)
    assert divergence_in(recipe.train) == means


def test_the_recipe_s_divergence_is_trained_on_and_forward_kl_is_measured() -> None:
    recipe = _recipe(alpha=0.3, divergence="jsd", divergence_beta=0.2)
    model = _classifier().eval()
    student = Student(model, wordpiece(), "label", None)  # type: ignore[arg-type]
    reading = Reading(0.3, "hf:m", torch.device("cpu"), False, Learned(Rows([]), ()))
    objective = build_objective(recipe, student, reading)
    rows, batch = _label_batch()
    with torch.no_grad():
        loss = objective.loss(model, batch, Counts(5, 1, 1))
        held_out = objective.held_out(model, batch)
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    soft = hard = forward = 0.0
    for item, z in zip(rows.items, found.tolist(), strict=True):
        p = item["teacher_probabilities"]
        soft += naive.divergence("jsd", 0.2, naive.power(p, 2.0), naive.softmax(z, 2.0))
        hard += naive.divergence(
            "cross_entropy", 0, [float(c == item["labels"]) for c in (0, 1)], naive.softmax(z)
        )
        forward += naive.kl(p, naive.softmax(z))
    assert loss.item() == pytest.approx((0.3 * 4 * soft + 0.7 * hard) / 5, rel=1e-5)
    assert held_out.divergence.item() == pytest.approx(forward, rel=1e-5)


@pytest.mark.parametrize(
    ("teacher", "keys", "says"),
    [
        ({}, {"divergence_beta": 0.5}, r"divergence_beta: is not read by .*forward_kl"),
        ({}, {"divergence": "total_variation", "divergence_beta": 0.5}, "is not read by"),
        (
            {},
            {"divergence": "skew_reverse_kl", "divergence_beta": 1},
            "a distribution with itself",
        ),
        (
            {"model": "openai:m", "signals": "samples", "samples": 5, "sampling_temperature": 1},
            {"divergence": "reverse_kl"},
            "class got no vote",
        ),
    ],
)
def test_divergences_that_mean_nothing_are_refused_in_the_plan(
    teacher: dict[str, Any], keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        check_recipe(_recipe(teacher, **keys))
    assert "\n" not in str(caught.value)


def test_another_tokenizer_s_teacher_has_one_distance() -> None:
    plain = _recipe(divergence="jsd").model_dump(mode="json", by_alias=True, exclude_unset=True)
    plain["student"]["head"] = "text"
    member = {"model": "hf:other"}
    plain["train"]["teachers"] = {"members": [member], "tokenizers": "universal"}
    with pytest.raises(RecipeError, match="sorted probabilities alone"):
        check_recipe(Recipe.model_validate(plain))


@pytest.mark.parametrize(
    "keys", [{"divergence": "kl"}, {"divergence": "jsd", "divergence_beta": 1.5}]
)
def test_unknown_divergences_are_no_recipe(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="divergence"):
        _recipe(**keys)


def test_beliefs_that_rule_out_a_class_are_refused_where_the_divergence_is_infinite() -> None:
    sure = review_examples(3)[0].model_copy(update={"label_probabilities": (1.0, 0.0)})
    examples = [*review_examples(3), sure]
    with pytest.raises(UserError, match=r"1 of 4 examples \(got 'reverse_kl'\)"):
        check_finite(examples, 0.5, Divergence("reverse_kl"))
    check_finite(examples, 0.5, Divergence("jsd", 0.5))
    check_finite(examples, 0.0, Divergence("reverse_kl"))
    check_finite(examples[:3], 0.5, Divergence("reverse_kl"))


# Heads of unequal width


def _logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _forms(width: int) -> dict[str, TeacherSignal]:
    head = Head(_logits(0, width, 3), _logits(1, width))
    hidden = HiddenSignal(_logits(2, 4, 3), head)
    uniforms = torch.rand(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return {
        "dense": hidden.dense(),
        "hidden": hidden,
        "sparse": sparsify(hidden.dense(), 3),
        "sampled": draw_signal(hidden, uniforms),
    }


@pytest.mark.parametrize("form", ["dense", "hidden", "sparse", "sampled"])
def test_a_wider_student_is_cut_to_its_teacher(form: str) -> None:
    signal, student = _forms(7)[form], _logits(5, 4, 9)
    shared = over_shared_ids(student, signal)
    assert shared.signal is not None
    cut = divergence(shared.signal, shared.student_logits).total
    torch.testing.assert_close(cut, divergence(signal, student[:, :7]).total)


@pytest.mark.parametrize("form", ["dense", "hidden"])
def test_a_wider_teacher_that_holds_every_logit_is_cut_to_its_student(form: str) -> None:
    signal, student = _forms(9)[form], _logits(5, 4, 7)
    shared = over_shared_ids(student, signal)
    assert shared.signal is not None
    whole = _forms(9)["dense"]
    assert isinstance(whole, DenseSignal)
    torch.testing.assert_close(
        divergence(shared.signal, shared.student_logits).total,
        divergence(DenseSignal(whole.logits[:, :7]), student).total,
    )


@pytest.mark.parametrize("form", ["sparse", "sampled"])
def test_stored_beliefs_over_more_ids_than_the_student_has_are_refused(form: str) -> None:
    with pytest.raises(UserError, match="has 7 outputs, and the stored beliefs run over 9"):
        over_shared_ids(_logits(5, 4, 7), _forms(9)[form])


def test_classes_are_never_cut() -> None:
    view = View(
        {"labels": torch.zeros(4, dtype=torch.int64)},
        torch.zeros(4, dtype=torch.int64),
        Outputs(logits=_logits(5, 4, 3)),
        DenseSignal(_logits(6, 4, 2)),
        None,
    )
    with pytest.raises(UserError, match="has 3 classes where its teacher believes in 2"):
        Response(0.5)(view)


# Nothing, NaN and infinity


def test_a_step_without_targets_is_zero_with_a_zero_gradient() -> None:
    tokenizer = byte_bpe()
    model, teacher = tiny_llama(tokenizer), tiny_llama(tokenizer, layers=2)
    source = LiveTeacher(teacher, CausalReader())
    batch = {
        "input_ids": torch.ones(2, 5, dtype=torch.int64),
        "attention_mask": torch.ones(2, 5, dtype=torch.int64),
        "labels": torch.full((2, 5), -100),
    }
    for of in (Divergence(), Divergence("jsd")):
        loss = text_objective(0.5, 2.0, source, of).loss(model, batch, Counts(*count(batch)))
        loss.backward()
        assert loss.item() == 0.0
    for weight in model.parameters():
        assert weight.grad is None or not weight.grad.any()


def _bad(row: list[float]) -> Tensor:
    return torch.tensor([[0.0, 1.0], row])


@pytest.mark.parametrize("row", [[NAN, 0.0], [INF, 0.0], [-INF, -INF]])
def test_a_teacher_s_bad_beliefs_are_named(row: list[float]) -> None:
    _, batch = _label_batch(2)
    bad = {**batch, "teacher_logits": _bad(row)}
    objective = label_objective(0.5, 2.0)
    model = _classifier()
    for ask in (lambda: objective.loss(model, bad, Counts(2, 1, 1)), lambda: _held(model, bad)):
        with pytest.raises(UserError, match=r"teacher: its beliefs are NaN.*1 of 2 targets"):
            ask()


def _held(model: Any, batch: Batch) -> HeldOutSums:
    with torch.no_grad():
        return label_objective(0.5, 2.0).held_out(model, batch)


def test_a_student_that_went_off_is_named() -> None:
    _, batch = _label_batch(3)
    model = _classifier()
    with torch.no_grad():
        model.classifier.bias[0] = NAN
    for alpha in (0.0, 0.5):
        with pytest.raises(StillhouseError, match=r"training went off: the student's.*3 of 3"):
            label_objective(alpha, 2.0).loss(model, batch, Counts(3, 1, 1))


def test_an_infinite_divergence_is_named() -> None:
    _, batch = _label_batch(2)
    sure = {**batch, "teacher_logits": torch.tensor([[0.0, -INF], [0.0, 0.0]])}
    objective = label_objective(0.5, 2.0, Divergence("reverse_kl"))
    with pytest.raises(UserError, match=r"train\.divergence: is infinite.*use jsd"):
        objective.loss(_classifier(), sure, Counts(2, 1, 1))
    assert "the loss is inf" in str(not_finite(torch.tensor(INF), torch.zeros(2, 2), None))


def test_positions_that_hold_no_belief() -> None:
    forms = _forms(5)
    for signal in forms.values():
        assert not unusable_positions(signal).any()
    dense = DenseSignal(
        torch.stack([torch.zeros(3), torch.full((3,), -INF), torch.tensor([0, NAN, 1])])
    )
    assert unusable_positions(dense).tolist() == [False, True, True]
    assert unusable_positions(sparsify(dense, 2)).tolist() == [False, True, True]


class _NoSlope:
    """A loss of 0 whose gradient is not a number: sqrt at 0."""

    def prepare(self, model: Any, batch: Batch, step: StepAt) -> Batch:
        return batch

    def loss(self, model: Any, batch: Batch, counts: Counts) -> Tensor:
        total: Tensor = sum(p.sum() for p in model.parameters())  # type: ignore[assignment]
        return (total * 0.0).sqrt()

    def held_out(self, model: Any, batch: Batch) -> HeldOutSums:
        raise AssertionError("never looked at")


def test_weights_are_not_moved_by_a_gradient_that_is_no_number(tmp_path: Any) -> None:
    rows, _ = _label_batch(4)
    model = _classifier()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = DistillationTrainer(
        model,
        objective=_NoSlope(),
        args=training_arguments(
            TrainSection(),
            plan_schedule(len(rows), 4, None, 1, 1),
            folder=tmp_path,
            seed=0,
            device=torch.device("cpu"),
            best_by=None,
        ),
        collator=Collator(0),
        rows=rows,
        held_out=None,
        callbacks=[],
    )
    with pytest.raises(StillhouseError, match=r"training went off: the gradient of step 1 "):
        trainer.train()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
