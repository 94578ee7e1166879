"""Objectives against a naive reference, and under any split of a step into micro-batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, TrainerCallback

from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_train import TrainSection
from stillhouse.core.tasks import ClassificationTask
from stillhouse.train.batches import Collator, Rows, encode_chats, encode_labels
from stillhouse.train.objectives import (
    Objective,
    check_beliefs,
    check_one_tokenizer,
    label_objective,
    text_objective,
)
from stillhouse.train.outputs import CausalReader, Counts, Needs, next_tokens
from stillhouse.train.planning import check_recipe
from stillhouse.train.schedule import eval_batch, plan_schedule, training_arguments
from stillhouse.train.teachers import LiveTeacher
from stillhouse.train.trainer import DistillationTrainer
from tiny_models import byte_bpe, review_examples, tiny_bert, tiny_llama, wordpiece

TASK = ClassificationTask(kind="classification", labels=("positive", "negative"))


def _classifier() -> BertForSequenceClassification:
    config = tiny_bert(wordpiece()).config
    config.num_labels = 2
    torch.manual_seed(3)
    return BertForSequenceClassification(config).double()


def _text_rows(count: int = 8) -> Rows:
    examples = [
        e.model_copy(
            update={
                "messages": (
                    e.messages[0],
                    e.messages[1].model_copy(update={"content": "so so " * (i % 3) + "film"}),
                )
            }
        )
        for i, e in enumerate(review_examples(count))
    ]
    return encode_chats(examples, byte_bpe(), 200).rows


def _naive(log_q: list[float], log_p: list[float], answer: int, alpha: float, t: float) -> float:
    """One target's loss, from the definition: plain floats, no torch."""

    def tempered(logs: list[float]) -> list[float]:
        total = sum(math.exp(x / t) for x in logs)
        return [math.exp(x / t) / total for x in logs]

    p, q = tempered(log_p), tempered(log_q)
    kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    ce = -log_q[answer] + math.log(sum(math.exp(x) for x in log_q))
    return alpha * t**2 * kl + (1 - alpha) * ce


def test_label_loss_equals_the_definition() -> None:
    model = _classifier().eval()
    rows = encode_labels(review_examples(5), TASK, wordpiece(), 48).rows
    batch = Collator(0)(rows.items)
    loss = label_objective(0.3, 2.5).loss(model, batch, Counts(5, 1, 1))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    wanted = sum(
        _naive(q, [math.log(x) for x in item["teacher_probabilities"]], item["labels"], 0.3, 2.5)
        for q, item in zip(logits.tolist(), rows.items, strict=True)
    )
    assert loss.item() == pytest.approx(wanted / 5, rel=1e-6)


def test_text_loss_equals_the_definition() -> None:
    tokenizer = byte_bpe()
    model, teacher = tiny_llama(tokenizer).double(), tiny_llama(tokenizer, layers=2).double()
    torch.nn.init.normal_(teacher.model.embed_tokens.weight, generator=torch.manual_seed(5))
    items = _text_rows(4).items
    batch = Collator(tokenizer.pad_token_id)(items)
    loss = text_objective(0.6, 3.0, LiveTeacher(teacher, CausalReader())).loss(
        model, batch, Counts(7, 1, 1)
    )
    total = 0.0
    for item in items:  # one example at a time, no padding, all logits
        ids = torch.tensor([item["input_ids"]])
        with torch.no_grad():
            q, p = model(input_ids=ids).logits[0], teacher(input_ids=ids).logits[0]
        for at, label in enumerate(item["labels"]):
            if label != -100:
                total += _naive(q[at - 1].tolist(), p[at - 1].tolist(), label, 0.6, 3.0)
    assert loss.item() == pytest.approx(total / 7, rel=1e-6)


def test_only_needed_positions_give_the_same_logits() -> None:
    tokenizer = byte_bpe()
    model = tiny_llama(tokenizer)
    batch = Collator(tokenizer.pad_token_id)(_text_rows(6).items)
    positions, targets = next_tokens(batch["labels"])
    assert targets.tolist() == batch["labels"][batch["labels"] != -100].tolist()
    with torch.no_grad():
        whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        got = CausalReader().read(model, batch, Needs(logits=True)).logits
        kept = CausalReader().read(model, batch, Needs(last_hidden=True))
    torch.testing.assert_close(got, whole[positions])
    assert kept.logits is None
    torch.testing.assert_close(kept.class_logits(), whole[positions])


class _Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = {n: p.grad.clone() for n, p in kwargs["model"].named_parameters()}


def _one_step(model: Any, objective: Objective, rows: Rows, micro: int, folder: Any) -> Any:
    section = TrainSection(max_grad_norm=1e9, learning_rate=1e-2, warmup_ratio=0.0)
    gradients = _Gradients()
    trainer = DistillationTrainer(
        model,
        objective=objective,
        args=training_arguments(
            section,
            plan_schedule(len(rows), 8, micro, 1, 1),
            folder=folder,
            seed=0,
            device=torch.device("cpu"),
            best_by=None,
        ),
        collator=Collator(0),
        rows=rows,
        held_out=None,
        callbacks=[gradients],
    )
    trainer.train()
    assert trainer.state.global_step == 1
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return gradients.found, {n: p.detach() for n, p in model.named_parameters()}, loss


@pytest.mark.parametrize("head", ["label", "text"])
def test_any_micro_batch_split_gives_the_same_step(head: str, tmp_path) -> None:
    results = []
    for micro in (8, 4, 2, 1):
        if head == "label":
            rows = encode_labels(review_examples(8), TASK, wordpiece(), 48).rows
            objective: Objective = label_objective(0.5, 2.0)
            model: Any = _classifier()
        else:
            rows = _text_rows(8)
            model = tiny_llama(byte_bpe()).double()
            objective = text_objective(
                0.5, 2.0, LiveTeacher(tiny_llama(byte_bpe(), layers=1).double(), CausalReader())
            )
        results.append(_one_step(model, objective, rows, micro, tmp_path / str(micro)))
    gradients, weights, loss = results[0]
    assert max(g.abs().max() for g in gradients.values()) > 1e-4
    for other_gradients, other_weights, other_loss in results[1:]:
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                other_gradients[name], gradient, rtol=1e-6, atol=1e-12, msg=name
            )
        for name, weight in weights.items():
            torch.testing.assert_close(other_weights[name], weight, rtol=1e-6, atol=1e-6)
        assert other_loss == pytest.approx(loss, rel=1e-5)


def test_held_out_is_zero_divergence_from_oneself() -> None:
    tokenizer = byte_bpe()
    model = tiny_llama(tokenizer)
    batch = Collator(tokenizer.pad_token_id)(_text_rows(4).items)
    with torch.no_grad():
        own = text_objective(0.5, 2.0, LiveTeacher(model, CausalReader())).held_out(model, batch)
        alone = text_objective(0.0, 2.0).held_out(model, batch)
    assert abs(own.divergence.item()) < 1e-5
    assert own.items == (batch["labels"] != -100).sum()
    assert alone.divergence == alone.cross_entropy == own.cross_entropy > 0


@pytest.mark.parametrize(("student_rows", "teacher_rows"), [(12, 0), (0, 12)])
def test_heads_padded_to_unequal_widths_are_compared_over_the_shared_ids(
    student_rows: int, teacher_rows: int
) -> None:
    """Rows that belong to no token change nothing, whichever of the two has more of them."""
    tokenizer = byte_bpe()
    batch = Collator(tokenizer.pad_token_id)(_text_rows(4).items)

    def pair(student_more: int, teacher_more: int) -> tuple[Any, Any]:
        found = []
        for layers, more in ((4, student_more), (2, teacher_more)):
            model = tiny_llama(tokenizer, layers)
            model.resize_token_embeddings(len(tokenizer) + more, mean_resizing=False)
            with torch.no_grad():
                model.get_output_embeddings().weight[len(tokenizer) :] = 3.0
            found.append(model)
        return found[0], found[1]

    def measured(student: Any, teacher: Any) -> tuple[float, list[float]]:
        objective = text_objective(0.5, 2.0, LiveTeacher(teacher, CausalReader()))
        loss = objective.loss(student, batch, Counts(7, 1, 1))
        loss.backward()
        with torch.no_grad():
            sums = objective.held_out(student, batch)[:4]
            return loss.item(), [part.item() for part in sums if part is not None]

    wanted_loss, wanted = measured(*pair(0, 0))
    loss, found = measured(*pair(student_rows, teacher_rows))
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("head", "micro", "wanted"), [("text", 2, 2), ("text", None, 8), ("label", 2, 2)]
)
def test_a_held_out_pass_holds_no_more_than_a_training_pass(
    head: str, micro: int | None, wanted: int
) -> None:
    section = TrainSection(batch_size=8, micro_batch_size=micro)
    schedule = plan_schedule(100, section.batch_size, section.micro_batch_size, 1, 1)
    assert eval_batch(section, schedule, head) == wanted
    free = TrainSection(batch_size=8)
    assert eval_batch(free, plan_schedule(100, 8, None, 1, 1), "label") == 64


def test_missing_beliefs_name_both_ways_out() -> None:
    mixed = [*review_examples(3), *review_examples(2, 3, beliefs=False)]
    with pytest.raises(UserError, match=r"2 of 5 examples have none.*signals.*alpha: 0"):
        check_beliefs(mixed, 0.5)
    check_beliefs(mixed, 0.0)
    check_beliefs(review_examples(3), 0.5)


def test_two_tokenizers_are_refused() -> None:
    check_one_tokenizer(byte_bpe(), byte_bpe())
    with pytest.raises(UserError, match="teacher's tokenizer"):
        check_one_tokenizer(wordpiece(), byte_bpe())


def _recipe(teacher: dict[str, Any], student: dict[str, Any], train: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "task": {"kind": "classification", "labels": ["a", "b"]},
            "traffic": {"path": "x"},
            "teacher": teacher,
            "student": student,
            "train": train,
        }
    )


@pytest.mark.parametrize(
    ("teacher", "student", "train", "says"),
    [
        ({"model": "openai:m"}, {"head": "text", "from": "hf:x"}, {}, "openai does not give"),
        (
            {"model": "openai:m", "signals": "none"},
            {"head": "label", "from": "hf:x"},
            {},
            "signals: none gives none",
        ),
        (
            {"model": "hf:m"},
            {"head": "label", "from": "hf:x"},
            {"alpha": 0, "hard_label_twin": True},
            "hard labels already",
        ),
    ],
)
def test_plans_that_cannot_work_are_refused_before_money_is_spent(
    teacher: dict[str, Any], student: dict[str, Any], train: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        check_recipe(_recipe(teacher, student, train))


def test_plans_that_can_work_pass() -> None:
    check_recipe(_recipe({"model": "hf:m"}, {"head": "text", "from": "teacher"}, {}))
    check_recipe(_recipe({"model": "openai:m"}, {"head": "label", "from": "hf:x"}, {}))
    check_recipe(_recipe({"model": "openai:m"}, {"head": "text", "from": "hf:x"}, {"alpha": 0}))
