"""Selective distillation against its definition, and in a training run."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from stillhouse.core.errors import RecipeError
from stillhouse.core.progress import Silent
from stillhouse.models.signals import DenseSignal
from stillhouse.train.outputs import CausalReader, Needs
from stillhouse.train.planning import check_recipe
from stillhouse.train.selective import SelectedResponse, most_to_gain
from stillhouse.train.stage import run_train
from stillhouse.train.terms import Response, View
from tiny_models import byte_bpe, loud_llama, review_examples, text_recipe, write_jsonl


def test_the_targets_with_most_to_gain_are_kept() -> None:
    student = torch.tensor([3.0, 1.0, 5.0, 2.0, 0.5])
    reference = torch.tensor([0.5, 1.0, 4.9, 0.1, 0.5])  # the third is hard for both
    kept = most_to_gain(student, reference, 0.4)
    assert kept.tolist() == [True, False, False, True, False]
    assert int(most_to_gain(student, reference, 0.41).sum()) == 3
    assert bool(most_to_gain(student, reference, 1.0).all())


def view() -> tuple[View, object]:
    tokenizer = byte_bpe()
    student, teacher, reference = (
        loud_llama(tokenizer, layers, std) for layers, std in ((1, 0.2), (3, 0.4), (2, 0.3))
    )
    ids = torch.randint(5, 300, (2, 9), generator=torch.manual_seed(0))
    labels = ids.clone()
    labels[:, :3] = -100
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    reader = CausalReader()
    targets = reader.targets(batch)
    read = reader.read(student, batch, Needs(logits=True))
    with torch.no_grad():
        signal = DenseSignal(reader.read(teacher, batch, Needs(logits=True)).class_logits())
    return View(batch, targets, read, signal, None), reference


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_term_is_its_definition(temperature: float) -> None:
    seen, reference = view()
    term = SelectedResponse(0.7, reference, 0.5, temperature)
    value = term(seen)
    logits = seen.student.class_logits()
    assert isinstance(seen.signal, DenseSignal)
    with torch.no_grad():
        theirs = CausalReader().read(reference, seen.batch, Needs(logits=True)).class_logits()
    rows = []
    for i, target in enumerate(seen.targets.tolist()):
        p = (seen.signal.logits[i] / temperature).log_softmax(-1)
        q = (logits[i] / temperature).log_softmax(-1)
        r = (theirs[i] / temperature).log_softmax(-1)
        kl, kl_r = (p.exp() * (p - q)).sum(), (p.exp() * (p - r)).sum()
        rows.append(((kl - kl_r).item(), kl, -logits[i].log_softmax(-1)[target]))
    rows.sort(key=lambda row: -row[0])
    count = math.ceil(0.5 * len(rows))
    scale = len(rows) / count
    expected = sum(0.7 * temperature**2 * kl + 0.3 * ce for _, kl, ce in rows[:count]) * scale
    assert value.total.item() == pytest.approx(torch.as_tensor(expected).item(), rel=1e-4)


def test_keeping_all_is_the_plain_response() -> None:
    seen, reference = view()
    whole = SelectedResponse(0.6, reference, 1.0, 1.0)(seen)
    plain = Response(0.6, 1.0)(seen)
    assert whole.total.item() == pytest.approx(plain.total.item(), rel=1e-4)
    assert set(whole.parts) == set(plain.parts)


def test_a_reference_is_distilled_first_and_selects(tmp_path: Path) -> None:
    tokenizer = byte_bpe()
    teacher = tmp_path / "teacher"
    loud_llama(tokenizer, 3, 0.3).save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    data = tmp_path / "dataset"
    write_jsonl(data / "train.jsonl", list(review_examples(8)))
    write_jsonl(data / "held_out.jsonl", list(review_examples(4, 8)))
    recipe = text_recipe(
        teacher,
        alpha=1.0,
        epochs=1,
        evals=1,
        divergence="total_variation",
        distillation_temperature=1.0,
        selective={"keep": 0.5},
        on_policy={"student_fraction": 0.5, "max_new_tokens": 4},
    )
    run_train(recipe, data, None, tmp_path / "work", Silent())
    facts = json.loads((tmp_path / "work" / "train.json").read_text())
    assert facts["selective"] == {"keep": 0.5, "reference": "distil"}
    reference = json.loads((tmp_path / "work" / "reference" / "train.json").read_text())
    assert "selective" not in reference
    assert reference["student"]["parameters"] == facts["student"]["parameters"]
    assert not (tmp_path / "work" / "reference" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"alpha": 0.0}, "alpha: 0"),
        ({"signals": "cache"}, "cache"),
        ({"terms": [{"kind": "response"}]}, r"train\.terms"),
    ],
)
def test_what_cannot_be_selected_is_refused(
    train: dict[str, object], says: str, tmp_path: Path
) -> None:
    recipe = text_recipe(tmp_path, **{"alpha": 1.0, "selective": {}, **train})
    with pytest.raises(RecipeError, match=says):
        check_recipe(copy.deepcopy(recipe))
